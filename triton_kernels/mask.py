"""Selective synaptic dampening over a list of tensors in Triton: one launch for each storage dtype (see
common.py).

Memory-bound: three reads and one write an element, so the kernel is all 16-byte accesses. The number of
selected elements is an integer atomic, one for each program that selected any: order can't change it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
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

# 8 elements a thread: six 16-byte loads in flight for float32 cover the latency of device memory, and the
# exact division (many registers) still lets three blocks share a multiprocessor.
CHUNK = 2048
NUM_WARPS = 8


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
