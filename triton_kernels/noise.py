"""Normal noise and raw Philox words in Triton.

A program writes whole Philox blocks. When ``start`` isn't a multiple of four, the program's window moves
back to the block's first element, and what lies outside the tensor isn't written.

perturb_step_ is a gradient step with noise, p += -lr * g + std * N, in one pass: the same with one or two
tensors read beside the one that changes, a gradient, a std for each element, or both. Which ones there are is
known when the kernel is compiled.

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


@triton.jit
def _stepped(
    z, p, grad, elements, lane, inside, lr, std,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, GRAD: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """The new values; ``inside`` is None where nothing has to be masked."""
    value = tl.load(p + lane, mask=inside).to(COMPUTE)
    if GRAD:
        value = tl.fma(tl.load(grad + lane, mask=inside).to(COMPUTE), -lr, value)
    if ELEMENTS:
        value = tl.fma(z, tl.load(elements + lane, mask=inside).to(COMPUTE), value)
    else:
        value = tl.fma(z, std, value)
    return narrow(value, DTYPE)


@triton.jit
def _step_chunk(
    param, grad, elements, n, first, chunk, seed, stream, step, lr, std,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, GRAD: tl.constexpr, ELEMENTS: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one tensor; param, grad, elements are the addresses of its elements 0 (int64)."""
    z = normal_chunk(first, chunk, seed, stream, step, COMPUTE, CHUNK)
    # local index of this window's first element: negative where it lies before the tensor's own first
    begin = chunk * CHUNK - (first & 3)
    pointer_type: tl.constexpr = tl.pointer_type(DTYPE)
    p_at = param.to(pointer_type) + begin
    g_at = grad.to(pointer_type) + begin
    s_at = elements.to(pointer_type) + begin
    lane = tl.arange(0, CHUNK)
    if ALIGNED and (begin >= 0) & (begin + CHUNK <= n):
        p_at = tl.multiple_of(p_at, 16)
        g_at = tl.multiple_of(g_at, 16)
        s_at = tl.multiple_of(s_at, 16)
        value = _stepped(z, p_at, g_at, s_at, lane, None, lr, std, DTYPE, COMPUTE, GRAD, ELEMENTS)
        tl.store(p_at + lane, value)
    else:
        inside = (begin + lane >= 0) & (begin + lane < n)
        value = _stepped(z, p_at, g_at, s_at, lane, inside, lr, std, DTYPE, COMPUTE, GRAD, ELEMENTS)
        tl.store(p_at + lane, value, mask=inside)


@triton.jit(do_not_specialize=["n", "first", "seed", "stream", "step", "lr", "std"])
def perturb_one_kernel(
    param, grad, elements, n: tl.int64, first: tl.int64, seed: tl.int64, stream: tl.int64, step: tl.int64,
    lr: tl.int64, std: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, GRAD: tl.constexpr, ELEMENTS: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    _step_chunk(
        param.to(tl.int64), grad.to(tl.int64), elements.to(tl.int64), n, first.to(tl.int64),
        tl.program_id(0).to(tl.int64), seed.to(tl.int64), stream, step, scalar(lr, COMPUTE), scalar(std, COMPUTE),
        DTYPE, COMPUTE, GRAD, ELEMENTS, ALIGNED, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tensors", "steps", "seed", "step", "lr"])
def perturb_list_kernel(
    table, tensors, steps, seed: tl.int64, step: tl.int64, lr: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, GRAD: tl.constexpr, ELEMENTS: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    chunk = program - tl.load(column)
    param = tl.load(column + tensors)
    grad = tl.load(column + 2 * tensors)
    elements = tl.load(column + 3 * tensors)
    n = tl.load(column + 4 * tensors)
    first = tl.load(column + 5 * tensors)
    stream = tl.load(column + 6 * tensors)
    std = scalar(tl.load(column + 7 * tensors), COMPUTE)
    _step_chunk(
        param, grad, elements, n, first, chunk, seed.to(tl.int64), stream, step, scalar(lr, COMPUTE), std,
        DTYPE, COMPUTE, GRAD, ELEMENTS, ALIGNED, CHUNK,
    )  # fmt: skip


def perturb_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    std: Sequence[float],
    std_elements: Sequence[Tensor],
    seed: int,
    stream: int,
    step: int,
    start: Sequence[int],
) -> None:
    # a tensor that isn't there is stood in for by the parameter: the kernel never reads it
    grad_or_param, elements_or_param = grads or params, std_elements or params
    std_bits = [float_bits(0.0)] if std_elements else [float_bits(v) for v in std]
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    for index, (p, g, s) in enumerate(zip(params, grad_or_param, elements_or_param, strict=True)):
        n = p.numel()
        if n == 0:
            continue
        first, dtype = pick(start, index), p.dtype
        addresses = p.data_ptr(), g.data_ptr(), s.data_ptr()
        shift = first & 3
        back = shift * dtype.itemsize
        aligned = ((addresses[0] - back) | (addresses[1] - back) | (addresses[2] - back)) & 15 == 0
        entry = (
            index,
            *addresses,
            n,
            first,
            stream + index,
            pick(std_bits, index),
            (n + shift + CHUNK - 1) // CHUNK,
        )
        groups.setdefault((dtype, aligned), []).append(entry)

    lr_bits = float_bits(lr)
    for (dtype, aligned), entries in groups.items():
        meta = {
            "DTYPE": TL_DTYPE[dtype], "COMPUTE": compute_dtype(dtype), "GRAD": bool(grads),
            "ELEMENTS": bool(std_elements), "ALIGNED": aligned, "CHUNK": CHUNK, "num_warps": NUM_WARPS,
        }  # fmt: skip
        index, _, _, _, n, first, word, std_word, chunks = entries[0]
        p, g, s = params[index], grad_or_param[index], elements_or_param[index]
        with on_device(p):
            if len(entries) == 1:
                perturb_one_kernel[(chunks,)](p, g, s, n, first, seed, word, step, lr_bits, std_word, **meta)
            else:
                columns = list(zip(*entries, strict=True))
                table, programs, steps = work_table(columns[1:8], columns[8], p.device)
                perturb_list_kernel[(programs,)](table, len(entries), steps, seed, step, lr_bits, **meta)
