"""A gradient step with noise in Triton: p += -lr * g + std * N, in one pass.

As in noise.py, but with one or two tensors read beside the one that changes: a gradient, a std for each
element, or both. Which ones there are is known when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import TL_DTYPE, compute_dtype, find_tensor, float_bits, narrow, on_device, pick, scalar, work_table
from .normal import CHUNK, NUM_WARPS, normal_chunk


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
