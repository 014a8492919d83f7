"""Normal noise and raw Philox words in Triton.

A program writes whole Philox blocks. When ``start`` isn't a multiple of four, the program's window moves
back to the block's first element, and what lies outside the tensor isn't written.

A list goes out as one launch for each storage dtype (and one more if some tensors aren't 16-byte aligned):
see common.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TL_DTYPE, compute_dtype, find_tensor, float_bits, narrow, on_device, pick, scalar, work_table
from .noise_step import perturb_step_
from .normal import CHUNK, NUM_WARPS, in_order, normal_chunk, philox_words

__all__ = ["CHUNK", "NUM_WARPS", "add_normal_", "normal_", "perturb_step_", "random_bits"]


@triton.jit
def _noise_chunk(
    address, n, first, chunk, seed, stream, step, mean, std,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ADD: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Noise for one chunk. address: of element 0, first: its global index, chunk: which chunk of the tensor
    (all int64)."""
    z = normal_chunk(first, chunk, seed, stream, step, COMPUTE, CHUNK)

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
        first, address, dtype = pick(start, index), x.data_ptr(), x.dtype
        shift = first & 3
        key = dtype, (address - shift * dtype.itemsize) & 15 == 0
        chunks = (n + shift + CHUNK - 1) // CHUNK
        entry = (
            index,
            address,
            n,
            first,
            stream + index,
            pick(mean_bits, index),
            pick(std_bits, index),
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
