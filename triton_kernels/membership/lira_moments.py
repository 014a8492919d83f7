"""LiRA in Triton: statistics of the shadow scores, log-likelihood ratios, leave-one-out scores, running moments.

A lane owns a column (sample, query) or a sample, so neighbouring lanes read neighbouring scores. Sums are
float64 and relative to the column's first score, then to the mean that a first pass found. Medians are exact
order statistics, found by counting (see _search), which needs no copy of the scores and no limit to the
number of models. Leaving a model out takes it from the statistics with all models; the column is read again
only where the subtraction would lose digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import on_device

TL_INT = {torch.float32: tl.int32, torch.float64: tl.int64}
# Two scores a thread at a time: the search for two medians holds a dozen values a column, and with twice as many
# columns or rows the registers no longer suffice for four blocks on a multiprocessor.
BLOCK, ROWS, WARPS = 64, 4, 4
PLANES = 6  # count, mean, spread (sum of squared distances to the mean), three order statistics


@triton.jit
def _value(key, DTYPE: tl.constexpr):
    lowest: tl.constexpr = -(2**31) if tl.float32 == DTYPE else -(2**63)
    return tl.where(key < 0, (0 - key) ^ lowest, key).to(DTYPE, bitcast=True)


@triton.jit
def _key(x, INT: tl.constexpr):
    """Integers in the order of the values, -0 and 0 alike; a NaN lies beyond infinity."""
    highest: tl.constexpr = 2**31 - 1 if tl.int32 == INT else 2**63 - 1
    bits = x.to(INT, bitcast=True)
    return tl.where(bits < 0, 0 - (bits & highest), bits)


@triton.jit
def _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS: tl.constexpr):
    """Scores [ROWS, columns] of the models from m on, and which of them are OUT and IN."""
    rows = m + tl.arange(0, ROWS)
    here = (rows < M)[:, None] & inside[None, :]
    at = rows.to(tl.int64)[:, None]
    x = tl.load(scores + at * columns + column[None, :], mask=here, other=0.0)
    on = tl.load(member + at * samples + sample[None, :], mask=here, other=0) != 0
    return x, here & (on == 0), here & on


@triton.jit
def _finite(x):
    return x - x == 0


@triton.jit
def _refined(mean, total, square, count):
    """Mean and sum of squared distances from the first mean, and the sums of the distances to it and their squares."""
    correction = total / count
    spread = square - total * correction
    return tl.where(_finite(correction), mean + correction, mean), tl.where(spread < 0, 0.0, spread)


@triton.jit
def _aim(low, high, below, reached, rank, turn, DTYPE: tl.constexpr, INT: tl.constexpr):
    """A key inside (low, high): in even rounds the share of scores for the share of the interval, else the middle."""
    middle = (low & high) + ((low ^ high) >> 1)
    start = _value(low + 1, DTYPE)
    share = (rank - below + 0.5) / tl.maximum(reached - below, 1).to(tl.float32)
    guess = start + (_value(high, DTYPE) - start) * share.to(DTYPE)
    key = _key(guess, INT)
    return tl.where((turn % 2 == 0) & _finite(guess) & (key > low) & (key < high), key, middle)


@triton.jit
def _open(low, high, below, reached):
    return (reached - below > 1) & (high > low + 1)


@triton.jit
def _search(
    scores, member, M, column, columns, sample, samples, inside,
    low0, high0, count0, rank0, low1, high1, count1, rank1,
    ROWS: tl.constexpr, DTYPE: tl.constexpr, INT: tl.constexpr,
):  # fmt: skip
    """The scores of rank, rank + 1 and rank + 2 of both sides.

    Of all keys those in (low, high] are left, and scores of rank [below, reached) have them. Every second
    round halves the keys, so there are at most twice as many rounds as bits.
    """
    below0 = count0 * 0
    below1 = below0
    reached0 = count0
    reached1 = count1
    turn = 0
    while tl.max((_open(low0, high0, below0, reached0) | _open(low1, high1, below1, reached1)).to(tl.int32), 0) > 0:
        at0 = _aim(low0, high0, below0, reached0, rank0, turn, DTYPE, INT)
        at1 = _aim(low1, high1, below1, reached1, rank1, turn, DTYPE, INT)
        pivot0 = _value(at0, DTYPE)
        pivot1 = _value(at1, DTYPE)
        found0 = below0 * 0
        found1 = found0
        m = 0
        while m < M:
            x, out, on = _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS)
            found0 += tl.sum((out & (x <= pivot0[None, :])).to(tl.int32), 0)
            found1 += tl.sum((on & (x <= pivot1[None, :])).to(tl.int32), 0)
            m += ROWS
        open0 = _open(low0, high0, below0, reached0)
        open1 = _open(low1, high1, below1, reached1)
        down0 = open0 & (found0 > rank0)
        down1 = open1 & (found1 > rank1)
        up0 = open0 & (found0 <= rank0)
        up1 = open1 & (found1 <= rank1)
        high0 = tl.where(down0, at0, high0)
        high1 = tl.where(down1, at1, high1)
        reached0 = tl.where(down0, found0, reached0)
        reached1 = tl.where(down1, found1, reached1)
        low0 = tl.where(up0, at0, low0)
        low1 = tl.where(up1, at1, low1)
        below0 = tl.where(up0, found0, below0)
        below1 = tl.where(up1, found1, below1)
        turn += 1

    infinity: tl.constexpr = float("inf")
    # the key below -infinity is a NaN: "not at most" where "above" would be false
    under0 = _value(low0, DTYPE)
    under1 = _value(low1, DTYPE)
    limit0 = _value(high0, DTYPE)
    limit1 = _value(high1, DTYPE)
    first0 = tl.full(low0.shape, infinity, DTYPE)
    first1 = first0
    next0 = first0
    next1 = first0
    m = 0
    while m < M:
        x, out, on = _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS)
        in0 = out & (x <= limit0[None, :]) & ((x <= under0[None, :]) == 0)
        in1 = on & (x <= limit1[None, :]) & ((x <= under1[None, :]) == 0)
        first0 = tl.minimum(first0, tl.min(tl.where(in0, x, infinity), 0))
        first1 = tl.minimum(first1, tl.min(tl.where(in1, x, infinity), 0))
        next0 = tl.minimum(next0, tl.min(tl.where(out & (x > limit0[None, :]), x, infinity), 0))
        next1 = tl.minimum(next1, tl.min(tl.where(on & (x > limit1[None, :]), x, infinity), 0))
        m += ROWS
    beyond0 = tl.full(low0.shape, infinity, DTYPE)
    beyond1 = beyond0
    upto0 = below0 * 0
    upto1 = upto0
    m = 0
    while m < M:
        x, out, on = _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS)
        upto0 += tl.sum((out & (x <= next0[None, :])).to(tl.int32), 0)
        upto1 += tl.sum((on & (x <= next1[None, :])).to(tl.int32), 0)
        beyond0 = tl.minimum(beyond0, tl.min(tl.where(out & (x > next0[None, :]), x, infinity), 0))
        beyond1 = tl.minimum(beyond1, tl.min(tl.where(on & (x > next1[None, :]), x, infinity), 0))
        m += ROWS
    after0 = tl.where(rank0 + 2 < reached0, first0, tl.where(rank0 + 2 < upto0, next0, beyond0))
    after1 = tl.where(rank1 + 2 < reached1, first1, tl.where(rank1 + 2 < upto1, next1, beyond1))
    next0 = tl.where(rank0 + 1 < reached0, first0, next0)
    next1 = tl.where(rank1 + 1 < reached1, first1, next1)
    return first0, next0, after0, first1, next1, after1


@triton.jit
def _middle(mean, a, b):
    # no scores, a NaN, or infinities of both signs
    return tl.where(mean == mean, (a.to(tl.float64) + b.to(tl.float64)) / 2.0, mean)


@triton.jit
def columns_kernel(
    scores, member, center, variance, count, kept, M, samples, queries,
    MEDIAN: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr, INT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Statistics of both sides, to center, variance and count, or (KEEP) to `kept` [2, PLANES, columns]."""
    columns = tl.cast(samples, tl.int64) * queries
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    sample = column // queries
    infinity: tl.constexpr = float("inf")
    start = tl.load(scores + column, mask=inside & (M > 0), other=0.0).to(tl.float64)
    start = tl.where(_finite(start), start, 0.0)
    total0 = tl.zeros([BLOCK], tl.float64)
    total1 = total0
    count0 = tl.zeros([BLOCK], tl.int32)
    count1 = count0
    low0 = tl.full([BLOCK], infinity, DTYPE)
    low1 = low0
    high0 = tl.full([BLOCK], -infinity, DTYPE)
    high1 = high0
    m = 0
    while m < M:
        x, out, on = _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS)
        d = x.to(tl.float64) - start[None, :]
        total0 += tl.sum(tl.where(out, d, 0.0), 0)
        total1 += tl.sum(tl.where(on, d, 0.0), 0)
        count0 += tl.sum(out.to(tl.int32), 0)
        count1 += tl.sum(on.to(tl.int32), 0)
        if MEDIAN:
            low0 = tl.minimum(low0, tl.min(tl.where(out, x, infinity), 0))
            low1 = tl.minimum(low1, tl.min(tl.where(on, x, infinity), 0))
            high0 = tl.maximum(high0, tl.max(tl.where(out, x, -infinity), 0))
            high1 = tl.maximum(high1, tl.max(tl.where(on, x, -infinity), 0))
        m += ROWS
    mean0 = start + total0 / count0
    mean1 = start + total1 / count1
    total0 = tl.zeros([BLOCK], tl.float64)
    total1 = total0
    square0 = total0
    square1 = total0
    m = 0
    while m < M:
        x, out, on = _tile(scores, member, m, M, column, columns, sample, samples, inside, ROWS)
        d0 = tl.where(out, x.to(tl.float64) - mean0[None, :], 0.0)
        d1 = tl.where(on, x.to(tl.float64) - mean1[None, :], 0.0)
        total0 += tl.sum(d0, 0)
        total1 += tl.sum(d1, 0)
        square0 += tl.sum(d0 * d0, 0)
        square1 += tl.sum(d1 * d1, 0)
        m += ROWS
    mean0, spread0 = _refined(mean0, total0, square0, count0)
    mean1, spread1 = _refined(mean1, total1, square1, count1)
    if MEDIAN:
        # for leaving one out from the rank below the middle: two or three values can then be a middle
        rank0 = tl.maximum(count0 // 2 - 1, 0) if KEEP else tl.maximum(count0 - 1, 0) // 2
        rank1 = tl.maximum(count1 // 2 - 1, 0) if KEEP else tl.maximum(count1 - 1, 0) // 2
        first0, next0, after0, first1, next1, after1 = _search(
            scores, member, M, column, columns, sample, samples, inside,
            _key(low0, INT) - 1, _key(high0, INT), count0, rank0,
            _key(low1, INT) - 1, _key(high1, INT), count1, rank1,
            ROWS, DTYPE, INT,
        )  # fmt: skip
    if KEEP:
        at = kept + column
        tl.store(at, count0.to(tl.float64), mask=inside)
        tl.store(at + columns, mean0, mask=inside)
        tl.store(at + 2 * columns, spread0, mask=inside)
        tl.store(at + 6 * columns, count1.to(tl.float64), mask=inside)
        tl.store(at + 7 * columns, mean1, mask=inside)
        tl.store(at + 8 * columns, spread1, mask=inside)
        if MEDIAN:
            tl.store(at + 3 * columns, first0.to(tl.float64), mask=inside)
            tl.store(at + 4 * columns, next0.to(tl.float64), mask=inside)
            tl.store(at + 5 * columns, after0.to(tl.float64), mask=inside)
            tl.store(at + 9 * columns, first1.to(tl.float64), mask=inside)
            tl.store(at + 10 * columns, next1.to(tl.float64), mask=inside)
            tl.store(at + 11 * columns, after1.to(tl.float64), mask=inside)
    else:
        center0 = _middle(mean0, first0, tl.where(count0 % 2 == 1, first0, next0)) if MEDIAN else mean0
        center1 = _middle(mean1, first1, tl.where(count1 % 2 == 1, first1, next1)) if MEDIAN else mean1
        tl.store(center + column, center0.to(DTYPE), mask=inside)
        tl.store(center + columns + column, center1.to(DTYPE), mask=inside)
        tl.store(variance + column, (spread0 / count0).to(DTYPE), mask=inside)
        tl.store(variance + columns + column, (spread1 / count1).to(DTYPE), mask=inside)
        first = inside & (column % queries == 0)
        tl.store(count + sample, count0.to(tl.int64), mask=first)
        tl.store(count + samples + sample, count1.to(tl.int64), mask=first)


def _launch_columns(scores: Tensor, member: Tensor, outputs: tuple[Tensor, ...], median: bool, keep: bool) -> None:
    models, samples, queries = scores.shape
    dtype = tl.float64 if scores.dtype == torch.float64 else tl.float32
    with on_device(scores):
        columns_kernel[(triton.cdiv(samples * queries, BLOCK),)](
            scores, member.view(torch.int8), *outputs, models, samples, queries,
            MEDIAN=median, KEEP=keep, DTYPE=dtype, INT=TL_INT[scores.dtype], BLOCK=BLOCK, ROWS=ROWS, num_warps=WARPS,
        )  # fmt: skip


def lira_stats(scores: Tensor, member: Tensor, median: bool, center: Tensor, variance: Tensor, count: Tensor) -> None:
    models, samples, queries = scores.shape
    if samples * queries == 0:
        count[1] = member.sum(dim=0)
        count[0] = models - count[1]
        return
    _launch_columns(scores, member, (center, variance, count, center), median, keep=False)
