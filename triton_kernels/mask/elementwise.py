"""The elementwise ops of the mask family in Triton, on lists, one launch for each storage dtype (see common.py).

Memory-bound, so the kernels are all 16-byte accesses. The number of selected or nonzero elements is an
integer atomic, one for each program that has any: order can't change it. A float sum is one partial sum a
program, added by a second kernel in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import (
    TL_DTYPE,
    compute_dtype,
    divide,
    find_tensor,
    float_bits,
    narrow,
    on_device,
    scalar,
    work_table,
)
from ..update import sum_partials_kernel

# 8 elements a thread: six 16-byte loads in flight for float32 cover the latency of device memory, and the
# exact division (many registers) still lets three blocks share a multiprocessor.
CHUNK = 2048
NUM_WARPS = 8
SUM_WIDTH = 8192  # partial sums that one step adds: 16 loads a thread in flight


@triton.jit
def _dampened(p, forget, retain, alpha, lam, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    f = forget.to(COMPUTE)
    r = retain.to(COMPUTE)
    # a NaN importance compares false: not selected
    selected = f > alpha * r
    factor = divide(lam * r, f)
    factor = tl.where(factor > 1.0, 1.0, factor)
    # select, never multiply by a mask: an unselected weight keeps its bits, also where the factor is 0/0
    return tl.where(selected, narrow(p.to(COMPUTE) * factor, DTYPE), p), selected


@triton.jit
def _dampen_chunk(
    param, forget, retain, n, chunk, count, alpha, lam,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One chunk of one tensor; param, forget, retain are the addresses of its elements 0 (int64)."""
    begin = chunk * CHUNK
    lane = tl.arange(0, CHUNK)
    pointer_type: tl.constexpr = tl.pointer_type(DTYPE)
    p_at = param.to(pointer_type) + begin
    f_at = forget.to(pointer_type) + begin
    r_at = retain.to(pointer_type) + begin
    if ALIGNED and begin + CHUNK <= n:
        p_at = tl.multiple_of(p_at, 16)
        f_at = tl.multiple_of(f_at, 16)
        r_at = tl.multiple_of(r_at, 16)
        f = tl.load(f_at + lane)
        r = tl.load(r_at + lane)
        p, selected = _dampened(tl.load(p_at + lane), f, r, alpha, lam, DTYPE, COMPUTE)
        tl.store(p_at + lane, p)
        chosen = tl.sum(selected.to(tl.int64), 0)
    else:
        inside = begin + lane < n
        f = tl.load(f_at + lane, mask=inside, other=0.0)
        r = tl.load(r_at + lane, mask=inside, other=0.0)
        p, selected = _dampened(tl.load(p_at + lane, mask=inside, other=0.0), f, r, alpha, lam, DTYPE, COMPUTE)
        tl.store(p_at + lane, p, mask=inside)
        chosen = tl.sum((selected & inside).to(tl.int64), 0)
    if chosen > 0:
        tl.atomic_add(count, chosen, sem="relaxed")


@triton.jit(do_not_specialize=["n", "alpha", "lam"])
def dampen_one_kernel(
    param, forget, retain, n: tl.int64, count, alpha: tl.int64, lam: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    _dampen_chunk(
        param.to(tl.int64), forget.to(tl.int64), retain.to(tl.int64), n, tl.program_id(0).to(tl.int64), count,
        scalar(alpha, COMPUTE), scalar(lam, COMPUTE), DTYPE, COMPUTE, ALIGNED, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tensors", "steps", "alpha", "lam"])
def dampen_list_kernel(
    table, tensors, steps, count, alpha: tl.int64, lam: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    chunk = program - tl.load(column)
    param = tl.load(column + tensors)
    forget = tl.load(column + 2 * tensors)
    retain = tl.load(column + 3 * tensors)
    n = tl.load(column + 4 * tensors)
    _dampen_chunk(
        param, forget, retain, n, chunk, count, scalar(alpha, COMPUTE), scalar(lam, COMPUTE),
        DTYPE, COMPUTE, ALIGNED, CHUNK,
    )  # fmt: skip


def dampen_(
    params: Sequence[Tensor],
    forget_importance: Sequence[Tensor],
    retain_importance: Sequence[Tensor],
    count: Tensor,
    alpha: float,
    lam: float,
) -> None:
    count.zero_()
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    for index, (p, f, r) in enumerate(zip(params, forget_importance, retain_importance, strict=True)):
        n = p.numel()
        if n == 0:
            continue
        addresses = p.data_ptr(), f.data_ptr(), r.data_ptr()
        key = p.dtype, (addresses[0] | addresses[1] | addresses[2]) & 15 == 0
        entry = (index, *addresses, n, (n + CHUNK - 1) // CHUNK)
        if key in groups:
            groups[key].append(entry)
        else:
            groups[key] = [entry]

    for (dtype, aligned), entries in groups.items():
        meta = {
            "DTYPE": TL_DTYPE[dtype], "COMPUTE": compute_dtype(dtype), "ALIGNED": aligned,
            "CHUNK": CHUNK, "num_warps": NUM_WARPS,
        }  # fmt: skip
        scalars = (float_bits(alpha), float_bits(lam))
        index = entries[0][0]
        p, f, r = params[index], forget_importance[index], retain_importance[index]
        with on_device(p):
            if len(entries) == 1:
                dampen_one_kernel[(entries[0][5],)](p, f, r, p.numel(), count, *scalars, **meta)
            else:
                columns = list(zip(*entries, strict=True))
                table, programs, steps = work_table(columns[1:5], columns[5], p.device)
                dampen_list_kernel[(programs,)](table, len(entries), steps, count, *scalars, **meta)


@triton.jit
def _accumulated(importance, grad, scale, INTO: tl.constexpr, COMPUTE: tl.constexpr, SQUARED: tl.constexpr):
    g = grad.to(COMPUTE)
    size = g * g if SQUARED else tl.abs(g)
    return narrow(tl.fma(size, scale, importance.to(COMPUTE)), INTO)


@triton.jit(do_not_specialize=["tensors", "steps", "scale"])
def importance_kernel(
    table, tensors, steps, scale: tl.int64,
    INTO: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, SQUARED: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    i_at = tl.load(column + tensors).to(tl.pointer_type(INTO)) + begin
    g_at = tl.load(column + 2 * tensors).to(tl.pointer_type(DTYPE)) + begin
    n = tl.load(column + 3 * tensors)
    factor = scalar(scale, COMPUTE)
    lane = tl.arange(0, CHUNK)
    if ALIGNED and begin + CHUNK <= n:
        i_at = tl.multiple_of(i_at, 16)
        g = tl.load(tl.multiple_of(g_at, 16) + lane)
        tl.store(i_at + lane, _accumulated(tl.load(i_at + lane), g, factor, INTO, COMPUTE, SQUARED))
    else:
        inside = begin + lane < n
        g = tl.load(g_at + lane, mask=inside, other=0.0)
        old = tl.load(i_at + lane, mask=inside, other=0.0)
        tl.store(i_at + lane, _accumulated(old, g, factor, INTO, COMPUTE, SQUARED), mask=inside)


def importance_chunk(aligned: bool) -> int:
    """A bound and an address for each of 8 elements would spill on compute capability 8.0."""
    return CHUNK if aligned else CHUNK // 2


def accumulate_importance_(importances: Sequence[Tensor], grads: Sequence[Tensor], power: int, scale: float) -> None:
    groups: dict[tuple[torch.dtype, torch.dtype, bool], list[tuple[int, ...]]] = {}
    for index, (i, g) in enumerate(zip(importances, grads, strict=True)):
        n = g.numel()
        if n == 0:
            continue
        addresses = i.data_ptr(), g.data_ptr()
        key = i.dtype, g.dtype, (addresses[0] | addresses[1]) & 15 == 0
        groups.setdefault(key, []).append((index, *addresses, n, -(-n // importance_chunk(key[2]))))
    for (into, dtype, aligned), entries in groups.items():
        columns = list(zip(*entries, strict=True))
        g = grads[entries[0][0]]
        with on_device(g):
            table, programs, steps = work_table(columns[1:4], columns[4], g.device)
            importance_kernel[(programs,)](
                table, len(entries), steps, float_bits(scale), INTO=TL_DTYPE[into], DTYPE=TL_DTYPE[dtype],
                COMPUTE=compute_dtype(into), SQUARED=power == 2, ALIGNED=aligned, CHUNK=importance_chunk(aligned),
                num_warps=NUM_WARPS,
            )  # fmt: skip


@triton.jit
def _shrunk(x, threshold, DTYPE: tl.constexpr, COMPUTE: tl.constexpr):
    """The new values, their magnitudes in float64 and whether they aren't zero; NaN stays NaN."""
    value = x.to(COMPUTE)
    rest = tl.abs(value) - threshold
    rest = tl.where(rest < 0.0, 0.0, rest)
    # the sign as a bit: a minus is a subtraction from 0 and loses that of -0
    if tl.float64 == COMPUTE:
        sign = (value.to(tl.int64, bitcast=True) >> 63) << 63
        signed = (rest.to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = (value.to(tl.int32, bitcast=True) >> 31) << 31
        signed = (rest.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
    stored = narrow(signed, DTYPE)
    size = tl.abs(stored.to(COMPUTE))
    return stored, size.to(tl.float64), size != 0.0


@triton.jit(do_not_specialize=["tensors", "steps"])
def shrink_kernel(
    table, tensors, steps, partials, nonzero,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    x_at = tl.load(column + tensors).to(tl.pointer_type(DTYPE)) + begin
    n = tl.load(column + 2 * tensors)
    threshold = scalar(tl.load(column + 3 * tensors), COMPUTE)
    lane = tl.arange(0, CHUNK)
    if ALIGNED and begin + CHUNK <= n:
        x_at = tl.multiple_of(x_at, 16)
        stored, size, there = _shrunk(tl.load(x_at + lane), threshold, DTYPE, COMPUTE)
        tl.store(x_at + lane, stored)
        total = tl.sum(size, 0)
        count = tl.sum(there.to(tl.int64), 0)
    else:
        inside = begin + lane < n
        stored, size, there = _shrunk(tl.load(x_at + lane, mask=inside, other=0.0), threshold, DTYPE, COMPUTE)
        tl.store(x_at + lane, stored, mask=inside)
        total = tl.sum(tl.where(inside, size, 0.0), 0)
        count = tl.sum((there & inside).to(tl.int64), 0)
    tl.store(partials + program, total)
    if count > 0:
        tl.atomic_add(nonzero, count, sem="relaxed")


def soft_threshold_(xs: Sequence[Tensor], threshold: Sequence[float], l1: Tensor, nnz: Tensor) -> None:
    nnz.zero_()
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    programs_in_all = 0
    for index, x in enumerate(xs):
        n = x.numel()
        if n == 0:
            continue
        limit = float_bits(threshold[0] if len(threshold) == 1 else threshold[index])
        chunks = (n + CHUNK - 1) // CHUNK
        programs_in_all += chunks
        groups.setdefault((x.dtype, x.data_ptr() & 15 == 0), []).append((index, x.data_ptr(), n, limit, chunks))
    with on_device(l1):
        partials = torch.empty(max(1, programs_in_all), dtype=torch.float64, device=l1.device)
        done = 0
        for (dtype, aligned), entries in groups.items():
            columns = list(zip(*entries, strict=True))
            table, programs, steps = work_table(columns[1:4], columns[4], l1.device)
            shrink_kernel[(programs,)](
                table, len(entries), steps, partials[done:], nnz, DTYPE=TL_DTYPE[dtype],
                COMPUTE=compute_dtype(dtype), ALIGNED=aligned, CHUNK=CHUNK, num_warps=NUM_WARPS,
            )  # fmt: skip
            done += programs
        sum_partials_kernel[(1,)](partials, l1, programs_in_all, WIDTH=SUM_WIDTH, num_warps=16)
