"""Normal noise and raw Philox words in Triton.

Same integers as every other backend, same normals within rounding: csrc/philox.h and csrc/normal.h state
the arithmetic, which is repeated here step by step (Triton's own randn cuts the tail at 5.7, its log, sin
and cos are approximations on the GPU). A program writes whole Philox blocks. When ``start`` isn't a
multiple of four, the program's window moves back to the block's first element, and what lies outside the
tensor isn't written.

A list goes out as one launch for each storage dtype (and one more if some tensors aren't 16-byte aligned):
see common.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TL_DTYPE, compute_dtype, find_tensor, float_bits, narrow, on_device, scalar, work_table

# 16 elements (4 Philox blocks) a thread: four independent chains hide the latency of the wide
# multiplications, and the results of a thread are a run of 16-byte stores. Twice as many would not fit 64
# registers and halve the occupancy.
CHUNK = 4096
NUM_WARPS = 8


@triton.jit
def philox_words(block, seed, stream, step):
    """The four words of each 64-bit block index, equal to tl.philox(seed, low, high, stream, step). That
    one asks for the halves of each product separately and gets two instructions; a 64-bit product is one
    (mul.wide)."""
    # the first round mixes all words, so a scalar stream and step need no broadcast
    c0 = (block & 0xFFFFFFFF).to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = stream.to(tl.uint32)
    c3 = step.to(tl.uint32)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def in_order(a, b, c, d, CHUNK: tl.constexpr):
    """a0 b0 c0 d0 a1 b1 ...: a thread keeps its own words, so this moves no data between threads."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [CHUNK])


@triton.jit
def _radius(x):
    # u = 2^e (1 + t) with 1 + t in [2/3, 4/3): ln(1 + t) keeps its relative accuracy as u -> 1
    shifted = (x.to(tl.uint32, bitcast=True) - (0x3F2AAAAB + 0x10000000)).to(tl.int32, bitcast=True)
    t = ((shifted & 0x7FFFFF) + 0x3F2AAAAB).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(t, -0.281121625, 0.308063964)
    p = tl.fma(p, t, -0.279753159)
    p = tl.fma(p, t, 0.328255821)
    p = tl.fma(p, t, -0.400238877)
    p = tl.fma(p, t, 0.500160545)
    p = tl.fma(p, t, -0.666663374)
    p = tl.fma(p, t, 0.999998642)
    p = tl.fma(p, t, -2.0)
    # the exponent stays in place (e * 2^23), exact in float32; the constant is -2 ln 2 * 2^-23
    exponent = (shifted & -0x800000).to(tl.float32)
    y = tl.fma(t, p, exponent * -1.6525917e-07)
    # sqrt from the approximate reciprocal root and one Newton step, within 0.51 ulp: the correctly rounded
    # instruction is a subroutine with a branch. The floor keeps y = 0 (u = 1) from becoming 0 * inf; the
    # next y above it is 1e-7.
    reciprocal = tl.rsqrt(tl.maximum(y, 1e-20))
    root = y * reciprocal
    return tl.fma(tl.fma(-root, root, y), 0.5 * reciprocal, root)


@triton.jit
def _cos_sin(odd):
    # y in [-1/2, 1/2) quarter turns around the nearest quadrant, which the integer's top bits give without
    # any error
    y = (odd << 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
    y2 = y * y
    s = tl.fma(y2, -0.00460483417, 0.0796814128)
    s = tl.fma(s, y2, -0.64596363)
    s = tl.fma(s, y2, -4.37113901e-08)
    c = tl.fma(y2, 0.000903767118, -0.0208601653)
    c = tl.fma(c, y2, 0.253669226)
    c = tl.fma(c, y2, -1.23370054)
    sine = tl.fma(y, 1.57079637, y * s).to(tl.uint32, bitcast=True)
    cosine = tl.fma(y2, c, 1.0).to(tl.uint32, bitcast=True)
    quadrant = odd + 0x20000000
    swapped = (quadrant & 0x40000000) != 0
    c_bits = tl.where(swapped, sine, cosine) ^ ((quadrant + 0x40000000) & 0x80000000)
    s_bits = tl.where(swapped, cosine, sine) ^ (quadrant & 0x80000000)
    return c_bits.to(tl.float32, bitcast=True), s_bits.to(tl.float32, bitcast=True)


@triton.jit
def normal_pair(even, odd, COMPUTE: tl.constexpr):
    x = even.to(tl.float32)
    x = tl.maximum(x, 0.5)
    if tl.float64 == COMPUTE:
        r = tl.sqrt(-2.0 * tl.log(x.to(tl.float64) * 2.3283064365386963e-10))
        t = odd.to(tl.float64) * 1.4629180792671596e-09  # 2 pi / 2^32
        return r * tl.cos(t), r * tl.sin(t)
    else:
        r = _radius(x)
        c, s = _cos_sin(odd)
        return r * c, r * s


@triton.jit
def _noise_chunk(
    address, n, first, chunk, seed, stream, step, mean, std,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ADD: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Noise for one chunk. address: of element 0, first: its global index, chunk: which chunk of the tensor
    (all int64)."""
    block = (first >> 2) + chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4).to(tl.int64)
    w0, w1, w2, w3 = philox_words(block, seed, stream, step)
    z0, z1 = normal_pair(w0, w1, COMPUTE)
    z2, z3 = normal_pair(w2, w3, COMPUTE)
    z = in_order(z0, z1, z2, z3, CHUNK)

    # local index of this window's first element: negative where it lies before the tensor's own first
    begin = chunk * CHUNK - (first & 3)
    pointer = address.to(tl.pointer_type(DTYPE)) + begin
    lane = tl.arange(0, CHUNK)
    if ALIGNED and (begin >= 0) & (begin + CHUNK <= n):
        # no mask, known alignment: 16-byte accesses
        where = tl.multiple_of(pointer, 16) + lane
        value = tl.fma(z, std, tl.load(where).to(COMPUTE) if ADD else mean)
        tl.store(where, narrow(value, DTYPE))
    else:
        inside = (begin + lane >= 0) & (begin + lane < n)
        if ADD:
            value = tl.fma(z, std, tl.load(pointer + lane, mask=inside, other=0.0).to(COMPUTE))
        else:
            value = tl.fma(z, std, mean)
        tl.store(pointer + lane, narrow(value, DTYPE), mask=inside)


@triton.jit(do_not_specialize=["n", "first", "seed", "stream", "step", "mean", "std"])
def noise_one_kernel(
    x, n: tl.int64, first: tl.int64, seed: tl.int64, stream: tl.int64, step: tl.int64,
    mean: tl.int64, std: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ADD: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    _noise_chunk(
        x.to(tl.int64), n, first.to(tl.int64), chunk, seed.to(tl.int64), stream, step,
        scalar(mean, COMPUTE), scalar(std, COMPUTE), DTYPE, COMPUTE, ADD, ALIGNED, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tensors", "steps", "seed", "step"])
def noise_list_kernel(
    table, tensors, steps, seed: tl.int64, step: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ADD: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    chunk = program - tl.load(column)
    address = tl.load(column + tensors)
    n = tl.load(column + 2 * tensors)
    first = tl.load(column + 3 * tensors)
    stream = tl.load(column + 4 * tensors)
    mean = scalar(tl.load(column + 5 * tensors), COMPUTE)
    std = scalar(tl.load(column + 6 * tensors), COMPUTE)
    _noise_chunk(
        address, n, first, chunk, seed.to(tl.int64), stream, step, mean, std,
        DTYPE, COMPUTE, ADD, ALIGNED, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "first", "seed", "stream", "step"])
def bits_kernel(
    out, n: tl.int64, first: tl.int64, seed: tl.int64, stream: tl.int64, step: tl.int64,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    block = (first.to(tl.int64) >> 2) + chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4).to(tl.int64)
    w0, w1, w2, w3 = philox_words(block, seed.to(tl.int64), stream, step)
    words = in_order(w0, w1, w2, w3, CHUNK).to(tl.int32, bitcast=True)
    begin = chunk * CHUNK - (first & 3)
    lane = tl.arange(0, CHUNK)
    if ALIGNED and (begin >= 0) & (begin + CHUNK <= n):
        tl.store(tl.multiple_of(out + begin, 16) + lane, words)
    else:
        tl.store(out + begin + lane, words, mask=(begin + lane >= 0) & (begin + lane < n))


def random_bits(out: Tensor, seed: int, stream: int, step: int, start: int) -> None:
    n = out.numel()
    if n == 0:
        return
    aligned = (out.data_ptr() - start % 4 * out.element_size()) % 16 == 0
    with on_device(out):
        grid = (triton.cdiv(n + start % 4, CHUNK),)
        bits_kernel[grid](out, n, start, seed, stream, step, ALIGNED=aligned, CHUNK=CHUNK, num_warps=NUM_WARPS)


def _pick(values: Sequence, index: int):
    return values[0] if len(values) == 1 else values[index]


def _launch(
    xs: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    stream: int,
    step: int,
    start: Sequence[int],
    add: bool,
) -> None:
    # this loop is the host's cost, so it handles plain integers and calls nothing that can wait
    mean_bits, std_bits = [float_bits(v) for v in mean], [float_bits(v) for v in std]
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    for index, x in enumerate(xs):
        n = x.numel()
        if n == 0:
            continue
        first, address, dtype = _pick(start, index), x.data_ptr(), x.dtype
        shift = first & 3
        key = dtype, (address - shift * dtype.itemsize) & 15 == 0
        chunks = (n + shift + CHUNK - 1) // CHUNK
        entry = (
            index,
            address,
            n,
            first,
            stream + index,
            _pick(mean_bits, index),
            _pick(std_bits, index),
            chunks,
        )
        if key in groups:
            groups[key].append(entry)
        else:
            groups[key] = [entry]

    for (dtype, aligned), entries in groups.items():
        meta = {
            "DTYPE": TL_DTYPE[dtype], "COMPUTE": compute_dtype(dtype), "ADD": add,
            "ALIGNED": aligned, "CHUNK": CHUNK, "num_warps": NUM_WARPS,
        }  # fmt: skip
        x = xs[entries[0][0]]
        with on_device(x):
            if len(entries) == 1:
                _, _, n, first, word, mean_word, std_word, chunks = entries[0]
                noise_one_kernel[(chunks,)](x, n, first, seed, word, step, mean_word, std_word, **meta)
            else:
                columns = list(zip(*entries, strict=True))
                table, programs, steps = work_table(columns[1:7], columns[7], x.device)
                noise_list_kernel[(programs,)](table, len(entries), steps, seed, step, **meta)


def normal_(
    xs: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    stream: int,
    step: int,
    start: Sequence[int],
) -> None:
    _launch(xs, mean, std, seed, stream, step, start, add=False)


def add_normal_(xs: Sequence[Tensor], std: Sequence[float], seed: int, stream: int, step: int, start: Sequence[int]) -> None:
    _launch(xs, (0.0,), std, seed, stream, step, start, add=True)
