"""UNSIR's error-maximizing loss and step, and products of two gradients, in Triton.

The loss reads the logits once and writes the gradient in the same pass when a row fits a tile; longer rows are
read three times, the second and third from L2. error_max_step_ reads four tensors and writes
three, 16 bytes at a time, and sums x^2 on the way: one partial sum a program, added by a second kernel in a
fixed order, so that the sum depends on the size alone. gradient_products does so with three sums, for a list
in one launch for each storage dtype.
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
    lerp,
    narrow,
    on_device,
    scalar,
    square_root,
    work_table,
)
from .distill import distill_loss
from .rows import (
    distance,
    exp_of_negative,
    load_label,
    load_tile,
    log1p_of_positive,
    other_exps,
    row_tiling,
    tile_max,
)

__all__ = ["distill_loss", "error_max_loss", "error_max_step_", "gradient_products"]  # the ops that are looked up here, by name

# 8 elements a thread, as the square root and the two divisions of Adam take many registers.
CHUNK = 2048
NUM_WARPS = 8
SUM_WIDTH = 1024


@triton.jit
def _gradient(e, classes, anchor, y, inverse, at_label, DTYPE: tl.constexpr):
    """(onehot - softmax) / B. At the label the caller has it: there a difference could cancel."""
    value = tl.where(classes[None, :] == anchor[:, None], 1.0, e) * -inverse[:, None]
    return narrow(tl.where(classes[None, :] == y[:, None], at_label[:, None], value), DTYPE)


@triton.jit
def error_max_loss_kernel(
    logits, labels, loss, dlogits, B, K,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < B
    classes = tl.arange(0, WIDTH)
    y, valid, x_y = load_label(logits, labels, rows, in_rows, K, COMPUTE)
    if WHOLE:
        x = load_tile(logits, rows, in_rows, classes, K, 1, COMPUTE)
        top, first = tile_max(x, classes, K)
    else:
        top = tl.full([ROWS], -float("inf"), COMPUTE)
        first = tl.zeros([ROWS], tl.int32) + K
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE)
            tile_top, tile_first = tile_max(x, classes + k, K)
            first = tl.where(tile_top > top, tile_first, first)
            top = tl.where(tile_top > top, tile_top, top)
            k += WIDTH

    is_top = x_y == top
    anchor = tl.where(is_top, y, first)
    if WHOLE:
        e, _ = other_exps(x, classes, top, anchor, y, 1.0, 0.0, False)
        tail = tl.sum(e, 1)
    else:
        tail = tl.zeros([ROWS], COMPUTE)
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE)
            e, _ = other_exps(x, classes + k, top, anchor, y, 1.0, 0.0, False)
            tail += tl.sum(e, 1)
            k += WIDTH

    d_y = distance(x_y, top, 1.0, 0.0, False)
    e_y = exp_of_negative(d_y)
    rest = tl.where(is_top, tail, tail + e_y)
    value = tl.where(is_top, 0.0, d_y) - log1p_of_positive(rest)
    # NaN logits reach `rest` by themselves; +inf and rows of -inf would not
    defined = valid & (top < float("inf")) & (top > -float("inf")) & (rest == rest)
    # NaN in the factors makes the whole row of the gradient NaN
    value = tl.where(defined, value, float("nan"))
    one = tl.full([ROWS], 1.0, COMPUTE)
    batch = one * B
    p_anchor = divide(one, 1.0 + rest)
    # 1 - p of the label: the tail where p is large, a harmless difference where p is at most 1/2
    not_label = tl.where(is_top, tail * p_anchor, 1.0 - e_y * p_anchor)
    inverse = tl.where(defined, divide(p_anchor, batch), float("nan"))
    at_label = tl.where(defined, divide(not_label, batch), float("nan"))
    tl.store(loss + rows, value.to(loss.dtype.element_ty), mask=in_rows)
    if WHOLE:
        at = dlogits + rows[:, None] * K + classes[None, :]
        gradient = _gradient(e, classes, anchor, y, inverse, at_label, dlogits.dtype.element_ty)
        tl.store(at, gradient, mask=in_rows[:, None] & (classes < K)[None, :])
    else:
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE)
            e, _ = other_exps(x, classes + k, top, anchor, y, 1.0, 0.0, False)
            at = dlogits + rows[:, None] * K + (classes + k)[None, :]
            gradient = _gradient(e, classes + k, anchor, y, inverse, at_label, dlogits.dtype.element_ty)
            tl.store(at, gradient, mask=in_rows[:, None] & (classes + k < K)[None, :])
            k += WIDTH


def error_max_loss(logits: Tensor, labels: Tensor, loss: Tensor, dlogits: Tensor) -> None:
    batch, classes = logits.shape
    if batch == 0:
        return
    compute = compute_dtype(logits.dtype)
    _, tiling = row_tiling(classes, compute, read_only=False)
    with on_device(logits):
        error_max_loss_kernel[(triton.cdiv(batch, tiling["ROWS"]),)](
            logits, labels, loss, dlogits, batch, classes, COMPUTE=compute, **tiling
        )


@triton.jit(do_not_specialize=["l2", "take1", "beta2", "take2", "step_size", "root_bc2", "eps", "low", "high"])
def error_max_step_kernel(
    x, grad, exp_avg, exp_avg_sq, partials, n,
    l2: tl.int64, take1: tl.int64, beta2: tl.int64, take2: tl.int64, step_size: tl.int64, root_bc2: tl.int64,
    eps: tl.int64, low: tl.int64, high: tl.int64,
    COMPUTE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    at = program * CHUNK + tl.arange(0, CHUNK)
    inside = at < n
    dtype: tl.constexpr = x.dtype.element_ty
    value = tl.load(x + at, mask=inside, other=0.0).to(COMPUTE)
    g = tl.load(grad + at, mask=inside, other=0.0).to(COMPUTE)
    m = tl.load(exp_avg + at, mask=inside, other=0.0).to(COMPUTE)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0).to(COMPUTE)
    # two double operations an element are free beside 28 bytes of traffic
    wide = value.to(tl.float64)
    tl.store(partials + program, tl.sum(wide * wide, 0))

    g = tl.fma(value, scalar(l2, COMPUTE), g)
    m = lerp(m, g, scalar(take1, COMPUTE))
    v = tl.fma(g * g, scalar(take2, COMPUTE), v * scalar(beta2, COMPUTE))
    denominator = divide(square_root(v), scalar(root_bc2, COMPUTE)) + scalar(eps, COMPUTE)
    value -= scalar(step_size, COMPUTE) * divide(m, denominator)
    # comparisons and not min/max: those drop NaN
    smallest = scalar(low, COMPUTE)
    largest = scalar(high, COMPUTE)
    value = tl.where(value < smallest, smallest, value)
    value = tl.where(value > largest, largest, value)
    tl.store(exp_avg + at, narrow(m, dtype), mask=inside)
    tl.store(exp_avg_sq + at, narrow(v, dtype), mask=inside)
    tl.store(x + at, narrow(value, dtype), mask=inside)


@triton.jit
def sum_partials_kernel(partials, total, count, WIDTH: tl.constexpr):
    lane = tl.arange(0, WIDTH)
    sums = tl.zeros([WIDTH], tl.float64)
    begin = 0
    while begin < count:
        sums += tl.load(partials + begin + lane, mask=begin + lane < count, other=0.0)
        begin += WIDTH
    tl.store(total, tl.sum(sums, 0).to(total.dtype.element_ty))


def error_max_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    sum_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    l2: float,
    clamp_min: float,
    clamp_max: float,
) -> None:
    n = x.numel()
    if n == 0:
        sum_sq.zero_()
        return
    programs = triton.cdiv(n, CHUNK)
    with on_device(x):
        partials = torch.empty(programs, dtype=torch.float64, device=x.device)
        scalars = (
            2.0 * l2 / x.shape[0], 1.0 - beta1, beta2, 1.0 - beta2, lr / (1.0 - beta1**step),
            (1.0 - beta2**step) ** 0.5, eps, clamp_min, clamp_max,
        )  # fmt: skip
        error_max_step_kernel[(programs,)](
            x, grad, exp_avg, exp_avg_sq, partials, n, *map(float_bits, scalars),
            COMPUTE=compute_dtype(x.dtype), CHUNK=CHUNK, num_warps=NUM_WARPS,
        )  # fmt: skip
        sum_partials_kernel[(1,)](partials, sum_sq, programs, WIDTH=SUM_WIDTH, num_warps=4)


@triton.jit(do_not_specialize=["tensors", "steps", "stride"])
def products_kernel(
    table, tensors, steps, partials, stride,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    a_at = tl.load(column + tensors).to(tl.pointer_type(DTYPE)) + begin
    b_at = tl.load(column + 2 * tensors).to(tl.pointer_type(DTYPE)) + begin
    n = tl.load(column + 3 * tensors)
    lane = tl.arange(0, CHUNK)
    if ALIGNED and begin + CHUNK <= n:
        a = tl.load(tl.multiple_of(a_at, 16) + lane).to(tl.float64)
        b = tl.load(tl.multiple_of(b_at, 16) + lane).to(tl.float64)
    else:
        inside = begin + lane < n
        a = tl.load(a_at + lane, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(b_at + lane, mask=inside, other=0.0).to(tl.float64)
    at = partials + program
    tl.store(at, tl.sum(a * b, 0))
    tl.store(at + stride, tl.sum(a * a, 0))
    tl.store(at + 2 * stride, tl.sum(b * b, 0))


def gradient_products(a: Sequence[Tensor], b: Sequence[Tensor], out: Tensor) -> None:
    groups: dict[tuple[torch.dtype, bool], list[tuple[int, ...]]] = {}
    programs_in_all = 0
    for x, y in zip(a, b, strict=True):
        n = x.numel()
        if n == 0:
            continue
        chunks = (n + CHUNK - 1) // CHUNK
        programs_in_all += chunks
        aligned = (x.data_ptr() | y.data_ptr()) & 15 == 0
        groups.setdefault((x.dtype, aligned), []).append((x.data_ptr(), y.data_ptr(), n, chunks))
    with on_device(out):
        partials = torch.empty(3, max(1, programs_in_all), dtype=torch.float64, device=out.device)
        done = 0
        for (dtype, aligned), entries in groups.items():
            columns = list(zip(*entries, strict=True))
            table, programs, steps = work_table(columns[:3], columns[3], out.device)
            products_kernel[(programs,)](
                table, len(entries), steps, partials[0, done:], partials.shape[1], DTYPE=TL_DTYPE[dtype],
                ALIGNED=aligned, CHUNK=CHUNK, num_warps=NUM_WARPS,
            )  # fmt: skip
            done += programs
        for row in range(3):
            sum_partials_kernel[(1,)](partials[row], out[row:], programs_in_all, WIDTH=SUM_WIDTH, num_warps=4)
