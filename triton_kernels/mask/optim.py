"""SGD and Adam steps on the unmasked coordinates alone in Triton: one launch for each storage dtype.

The mask is read first. In whole chunks of aligned tensors it decides for each 16-byte group whether anything
of it is on, and a group that is off as a whole is neither read nor written; so rows that are off under a
neuron mask cost nothing, and what is read comes 16 bytes at a time. Elsewhere every element is decided alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import TL_DTYPE, compute_dtype, divide, find_tensor, float_bits, narrow, on_device, scalar, square_root, work_table

CHUNK = 2048
NUM_WARPS = 8
# forms of a mask; FACTORS: float32 one a row, off where 0
ALL, ELEMENTS, BITS, ROWS, FACTORS = range(5)
_ELEMENTS, _BITS, _ROWS, _FACTORS = tl.constexpr(ELEMENTS), tl.constexpr(BITS), tl.constexpr(ROWS), tl.constexpr(FACTORS)
COLUMNS = 10  # of the table: first chunk, four addresses, n, mask, form, row, 2^32 / row


@triton.jit
def row_of(begin, lane, row, reciprocal, CHUNK: tl.constexpr):
    """(begin + lane) // row for lane < CHUNK: one 64-bit division a program, else a comparison or, where
    several rows fit a chunk, a multiplication by reciprocal = ceil(2^32 / row)."""
    first = begin // row
    offset = (begin - first * row) + lane
    return first + tl.where(row >= CHUNK, (offset >= row).to(tl.int64), (offset * reciprocal) >> 32)


@triton.jit
def mask_at(form, mask, begin, lane, inside, row, reciprocal, CHUNK: tl.constexpr, GROUP: tl.constexpr):
    """Which elements are on (int32, 0 or 1), for one chunk's lanes in any arrangement."""
    on = inside.to(tl.int32)
    if form == _ELEMENTS:
        at = mask.to(tl.pointer_type(tl.uint8)) + begin
        if GROUP:
            at = tl.multiple_of(at, 8)
        on = (tl.load(at + lane, mask=inside, other=0) != 0).to(tl.int32)
    elif form == _BITS:
        at = begin + lane
        byte = tl.load(mask.to(tl.pointer_type(tl.uint8)) + (at >> 3), mask=inside, other=0)
        on = (byte.to(tl.int32) >> (at & 7).to(tl.int32)) & 1
    elif form == _ROWS:
        at = row_of(begin, lane, row, reciprocal, CHUNK)
        on = (tl.load(mask.to(tl.pointer_type(tl.uint8)) + at, mask=inside, other=0) != 0).to(tl.int32)
    elif form == _FACTORS:
        at = row_of(begin, lane, row, reciprocal, CHUNK)
        on = (tl.load(mask.to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0) != 0).to(tl.int32)
    return on


@triton.jit
def factor_at(form, mask, begin, lane, on, row, reciprocal, COMPUTE: tl.constexpr, CHUNK: tl.constexpr):
    factor = tl.full(lane.shape, 1.0, COMPUTE)
    if form == _FACTORS:
        at = row_of(begin, lane, row, reciprocal, CHUNK)
        factor = tl.load(mask.to(tl.pointer_type(tl.float32)) + at, mask=on, other=1.0).to(COMPUTE)
    return factor


@triton.jit
def _sgd(
    p_at, g_at, b_at, read, on, factor, lr, momentum, rest, decay,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    old = tl.load(p_at, mask=read, other=0.0)
    p = old.to(COMPUTE)
    g = tl.load(g_at, mask=read, other=0.0).to(COMPUTE) * factor
    if MAXIMIZE:
        g = -g
    g = tl.fma(p, decay, g)
    if MOMENTUM:
        kept = tl.load(b_at, mask=read, other=0.0)
        moved = g
        if not FIRST:
            moved = tl.fma(kept.to(COMPUTE), momentum, rest * g)
        tl.store(b_at, tl.where(on, narrow(moved, DTYPE), kept), mask=read)
        if NESTEROV:
            g = tl.fma(moved, momentum, g)
        else:
            g = moved
    tl.store(p_at, tl.where(on, narrow(tl.fma(-lr, g, p), DTYPE), old), mask=read)


@triton.jit(do_not_specialize=["tensors", "steps", "lr", "momentum", "rest", "decay"])
def masked_sgd_kernel(
    table, tensors, steps, lr: tl.int64, momentum: tl.int64, rest: tl.int64, decay: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
    MAXIMIZE: tl.constexpr, FIRST: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    kind: tl.constexpr = tl.pointer_type(DTYPE)
    p_at = tl.load(column + tensors).to(kind) + begin
    g_at = tl.load(column + 2 * tensors).to(kind) + begin
    b_at = tl.load(column + 3 * tensors).to(kind) + begin
    n = tl.load(column + 5 * tensors)
    mask = tl.load(column + 6 * tensors)
    form = tl.load(column + 7 * tensors)
    row = tl.load(column + 8 * tensors)
    reciprocal = tl.load(column + 9 * tensors)
    a, b, c, d = scalar(lr, COMPUTE), scalar(momentum, COMPUTE), scalar(rest, COMPUTE), scalar(decay, COMPUTE)
    if ALIGNED and begin + CHUNK <= n:
        p_at = tl.multiple_of(p_at, 16)
        g_at = tl.multiple_of(g_at, 16)
        b_at = tl.multiple_of(b_at, 16)
        lane = tl.arange(0, CHUNK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        on = mask_at(form, mask, begin, lane, lane < CHUNK, row, reciprocal, CHUNK, True)
        read = tl.broadcast_to((tl.max(on, 1) > 0)[:, None], lane.shape)
        factor = factor_at(form, mask, begin, lane, on != 0, row, reciprocal, COMPUTE, CHUNK)
        _sgd(
            p_at + lane, g_at + lane, b_at + lane, read, on != 0, factor, a, b, c, d,
            DTYPE, COMPUTE, MOMENTUM, NESTEROV, MAXIMIZE, FIRST,
        )  # fmt: skip
    else:
        # other names than above: a name has one shape
        i = tl.arange(0, CHUNK)
        single = mask_at(form, mask, begin, i, begin + i < n, row, reciprocal, CHUNK, False) != 0
        factors = factor_at(form, mask, begin, i, single, row, reciprocal, COMPUTE, CHUNK)
        _sgd(
            p_at + i, g_at + i, b_at + i, single, single, factors, a, b, c, d,
            DTYPE, COMPUTE, MOMENTUM, NESTEROV, MAXIMIZE, FIRST,
        )  # fmt: skip


@triton.jit
def _adam(
    p_at, g_at, m_at, v_at, read, on, rate, take1, beta2, take2, root, eps, decay,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, DECOUPLED: tl.constexpr, MAXIMIZE: tl.constexpr,
):  # fmt: skip
    old = tl.load(p_at, mask=read, other=0.0)
    old_m = tl.load(m_at, mask=read, other=0.0)
    old_v = tl.load(v_at, mask=read, other=0.0)
    g = tl.load(g_at, mask=read, other=0.0).to(COMPUTE)
    p = old.to(COMPUTE)
    if MAXIMIZE:
        g = -g
    if DECOUPLED:
        p = p * decay
    else:
        g = tl.fma(p, decay, g)
    m = old_m.to(COMPUTE)
    m = tl.fma(g - m, take1, m)
    v = tl.fma(g * g, take2, old_v.to(COMPUTE) * beta2)
    p -= rate * divide(m, divide(square_root(v), root) + eps)
    tl.store(m_at, tl.where(on, narrow(m, DTYPE), old_m), mask=read)
    tl.store(v_at, tl.where(on, narrow(v, DTYPE), old_v), mask=read)
    tl.store(p_at, tl.where(on, narrow(p, DTYPE), old), mask=read)


@triton.jit(do_not_specialize=["tensors", "steps", "rate", "take1", "beta2", "take2", "root", "eps", "decay"])
def masked_adam_kernel(
    table, tensors, steps, rate: tl.int64, take1: tl.int64, beta2: tl.int64, take2: tl.int64, root: tl.int64,
    eps: tl.int64, decay: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, DECOUPLED: tl.constexpr, MAXIMIZE: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    kind: tl.constexpr = tl.pointer_type(DTYPE)
    p_at = tl.load(column + tensors).to(kind) + begin
    g_at = tl.load(column + 2 * tensors).to(kind) + begin
    m_at = tl.load(column + 3 * tensors).to(kind) + begin
    v_at = tl.load(column + 4 * tensors).to(kind) + begin
    n = tl.load(column + 5 * tensors)
    mask = tl.load(column + 6 * tensors)
    form = tl.load(column + 7 * tensors)
    row = tl.load(column + 8 * tensors)
    reciprocal = tl.load(column + 9 * tensors)
    a, b, c, d = scalar(rate, COMPUTE), scalar(take1, COMPUTE), scalar(beta2, COMPUTE), scalar(take2, COMPUTE)
    e, f, h = scalar(root, COMPUTE), scalar(eps, COMPUTE), scalar(decay, COMPUTE)
    if ALIGNED and begin + CHUNK <= n:
        p_at = tl.multiple_of(p_at, 16)
        g_at = tl.multiple_of(g_at, 16)
        m_at = tl.multiple_of(m_at, 16)
        v_at = tl.multiple_of(v_at, 16)
        lane = tl.arange(0, CHUNK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        on = mask_at(form, mask, begin, lane, lane < CHUNK, row, reciprocal, CHUNK, True)
        read = tl.broadcast_to((tl.max(on, 1) > 0)[:, None], lane.shape)
        _adam(
            p_at + lane, g_at + lane, m_at + lane, v_at + lane, read, on != 0, a, b, c, d, e, f, h,
            DTYPE, COMPUTE, DECOUPLED, MAXIMIZE,
        )  # fmt: skip
    else:
        i = tl.arange(0, CHUNK)
        single = mask_at(form, mask, begin, i, begin + i < n, row, reciprocal, CHUNK, False) != 0
        _adam(
            p_at + i, g_at + i, m_at + i, v_at + i, single, single, a, b, c, d, e, f, h,
            DTYPE, COMPUTE, DECOUPLED, MAXIMIZE,
        )  # fmt: skip


def _form(p: Tensor, mask: Tensor) -> int:
    count = mask.numel()
    if count == 0:
        return ALL
    if mask.dtype == torch.uint8:
        return BITS
    if mask.dtype == torch.bool and count == p.numel():
        return ELEMENTS
    return FACTORS if mask.dtype == torch.float32 else ROWS


def group_size(dtype: torch.dtype) -> int:
    return 16 // dtype.itemsize


def _launch(
    kernel: Any, params: Sequence[Tensor], others: Sequence[Sequence[Tensor]], masks: Sequence[Tensor],
    scalars: Sequence[float], flags: dict[str, bool],
) -> None:  # fmt: skip
    """`others`: the gradients, then up to two lists of states."""
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    for index, (p, mask) in enumerate(zip(params, masks, strict=True)):
        n = p.numel()
        if n == 0:
            continue
        addresses = [p.data_ptr(), *(tensors[index].data_ptr() for tensors in others)]
        form, row = _form(p, mask), n // (p.shape[0] if p.dim() else 1)
        union = 0
        for address in addresses:
            union |= address
        aligned = union & 15 == 0 and (form != ELEMENTS or mask.data_ptr() & 7 == 0)
        addresses += [0] * (4 - len(addresses))
        entry = (index, *addresses, n, mask.data_ptr(), form, row, -(-(1 << 32) // row), (n + CHUNK - 1) // CHUNK)
        groups.setdefault((p.dtype, aligned), []).append(entry)
    for (dtype, aligned), entries in groups.items():
        columns = list(zip(*entries, strict=True))
        p = params[entries[0][0]]
        with on_device(p):
            table, programs, steps = work_table(columns[1:COLUMNS], columns[COLUMNS], p.device)
            kernel[(programs,)](
                table, len(entries), steps, *map(float_bits, scalars), DTYPE=TL_DTYPE[dtype], COMPUTE=compute_dtype(dtype),
                ALIGNED=aligned, CHUNK=CHUNK, GROUP=group_size(dtype), num_warps=NUM_WARPS, **flags,
            )  # fmt: skip


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    masks: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    others = [grads, momentum_buffers] if momentum_buffers else [grads]
    flags = {"MOMENTUM": bool(momentum_buffers), "NESTEROV": nesterov, "MAXIMIZE": maximize, "FIRST": first}
    _launch(masked_sgd_kernel, params, others, masks, (lr, momentum, 1.0 - dampening, weight_decay), flags)


def masked_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    masks: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    decay = 1.0 - lr * weight_decay if decoupled else weight_decay
    scalars = (lr / (1.0 - beta1**step), 1.0 - beta1, beta2, 1.0 - beta2, (1.0 - beta2**step) ** 0.5, eps, decay)
    flags = {"DECOUPLED": decoupled, "MAXIMIZE": maximize}
    _launch(masked_adam_kernel, params, [grads, exp_avgs, exp_avg_sqs], masks, scalars, flags)
