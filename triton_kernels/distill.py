"""The distillation loss and its gradient in Triton.

Student and teacher are read once, and the gradient written in the same pass, when a row of both fits a tile; longer rows are read three
times, the second and third from L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import compute_dtype, divide, float_bits, narrow, on_device, scalar
from .rows import exp_of_negative, load_tile, log1p_of_positive, pair_tiling

# what a teacher leaves out
NOTHING, ONE_A_ROW, CLASSES = 0, 1, 2


@triton.jit
def _teacher_tile(teacher, drop, y, rows, in_rows, classes, K, COMPUTE: tl.constexpr, DROP: tl.constexpr):
    t = load_tile(teacher, rows, in_rows, classes, K, 1, COMPUTE)
    if DROP == 1:
        t = tl.where(classes[None, :] == y[:, None], -float("inf"), t)
    if DROP == 2:
        out = tl.load(drop + classes, mask=classes < K, other=1)
        t = tl.where((out != 0)[None, :], -float("inf"), t)
    return t


@triton.jit
def _terms(x, top, temperature):
    """exp((x - top) / T) and its exponent."""
    d = x - top[:, None]
    d = divide(d, tl.zeros_like(d) + temperature)
    return exp_of_negative(d), d


@triton.jit
def _others(e, x, top):
    """The sum of the terms but for the largest logits', which are 1, and the number of those."""
    largest = x == top[:, None]
    return tl.sum(tl.where(largest, 0.0, e), 1), tl.sum(largest.to(e.dtype), 1)


@triton.jit
def _weighted(q, y, x):
    # a class that the teacher rules out adds nothing, whatever the student makes of it
    return tl.sum(tl.where(q == 0.0, 0.0, q * (y - x)), 1)


@triton.jit
def _difference(p, q, total_z, total_t, divisor, DTYPE: tl.constexpr):
    """(softmax - softmax of the teacher) / (T B); divisions, so that equal rows give 0."""
    zero = tl.zeros_like(p)
    d = divide(p, zero + total_z[:, None]) - divide(q, zero + total_t[:, None])
    return narrow(divide(d, zero + divisor[:, None]), DTYPE)


@triton.jit(do_not_specialize=["temperature"])
def distill_loss_kernel(
    logits, teacher, drop, loss, dlogits, B, K, temperature: tl.int64,
    COMPUTE: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < B
    classes = tl.arange(0, WIDTH)
    T = scalar(temperature, COMPUTE)
    y = tl.zeros([ROWS], tl.int32) - 1
    valid = in_rows
    if DROP == 1:
        label = tl.load(drop + rows, mask=in_rows, other=-1)
        valid = (label >= -1) & (label < K)
        y = tl.where(valid, label, -1).to(tl.int32)
    if WHOLE:
        z = load_tile(logits, rows, in_rows, classes, K, 1, COMPUTE)
        t = _teacher_tile(teacher, drop, y, rows, in_rows, classes, K, COMPUTE, DROP)
        top_z = tl.max(z, 1)
        top_t = tl.max(t, 1)
    else:
        top_z = tl.full([ROWS], -float("inf"), COMPUTE)
        top_t = tl.full([ROWS], -float("inf"), COMPUTE)
        k = 0
        while k < K:
            here = tl.max(load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE), 1)
            top_z = tl.where(here > top_z, here, top_z)
            here = tl.max(_teacher_tile(teacher, drop, y, rows, in_rows, classes + k, K, COMPUTE, DROP), 1)
            top_t = tl.where(here > top_t, here, top_t)
            k += WIDTH

    if WHOLE:
        p, x = _terms(z, top_z, T)
        q, u = _terms(t, top_t, T)
        sum_z, ties_z = _others(p, z, top_z)
        sum_t, ties_t = _others(q, t, top_t)
        weighted = _weighted(q, u, x)
    else:
        zero = tl.zeros([ROWS], COMPUTE)
        sum_z, ties_z, sum_t, ties_t, weighted = zero, zero, zero, zero, zero
        k = 0
        while k < K:
            z = load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE)
            t = _teacher_tile(teacher, drop, y, rows, in_rows, classes + k, K, COMPUTE, DROP)
            p, x = _terms(z, top_z, T)
            q, u = _terms(t, top_t, T)
            others, ties = _others(p, z, top_z)
            sum_z += others
            ties_z += ties
            others, ties = _others(q, t, top_t)
            sum_t += others
            ties_t += ties
            weighted += _weighted(q, u, x)
            k += WIDTH

    rest_z = sum_z + (ties_z - 1.0)
    rest_t = sum_t + (ties_t - 1.0)
    total_z = ties_z + sum_z
    total_t = ties_t + sum_t
    value = divide(weighted, total_t) + (log1p_of_positive(rest_z) - log1p_of_positive(rest_t))
    # NaN logits reach the sums by themselves; +inf and rows of -inf would not
    defined = valid & (rest_z == rest_z) & (rest_t == rest_t)
    defined = defined & (top_z < float("inf")) & (top_z > -float("inf")) & (top_t < float("inf")) & (top_t > -float("inf"))
    tl.store(loss + rows, tl.where(defined, value, float("nan")).to(loss.dtype.element_ty), mask=in_rows)
    # NaN in the divisor makes the whole row of the gradient NaN
    divisor = tl.where(defined, tl.zeros([ROWS], COMPUTE) + T * B, float("nan"))
    if WHOLE:
        at = dlogits + rows[:, None] * K + classes[None, :]
        gradient = _difference(p, q, total_z, total_t, divisor, dlogits.dtype.element_ty)
        tl.store(at, gradient, mask=in_rows[:, None] & (classes < K)[None, :])
    else:
        k = 0
        while k < K:
            p, _ = _terms(load_tile(logits, rows, in_rows, classes + k, K, 1, COMPUTE), top_z, T)
            q, _ = _terms(_teacher_tile(teacher, drop, y, rows, in_rows, classes + k, K, COMPUTE, DROP), top_t, T)
            at = dlogits + rows[:, None] * K + (classes + k)[None, :]
            gradient = _difference(p, q, total_z, total_t, divisor, dlogits.dtype.element_ty)
            tl.store(at, gradient, mask=in_rows[:, None] & (classes + k < K)[None, :])
            k += WIDTH


def distill_loss(logits: Tensor, teacher: Tensor, drop: Tensor, temperature: float, loss: Tensor, dlogits: Tensor) -> None:
    batch, classes = logits.shape
    if batch == 0:
        return
    compute = compute_dtype(logits.dtype)
    tiling = pair_tiling(classes, compute)
    form = ONE_A_ROW if drop.dtype == torch.int64 else CLASSES if drop.numel() else NOTHING
    with on_device(logits):
        distill_loss_kernel[(triton.cdiv(batch, tiling["ROWS"]),)](
            logits, teacher, drop.view(torch.uint8) if form == CLASSES else drop, loss, dlogits, batch, classes,
            float_bits(temperature), COMPUTE=compute, DROP=form, **tiling,
        )  # fmt: skip
