"""LiRA's log-likelihood ratios in Triton, and the running moments (their moments: lira_moments.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import float_bits, on_device, scalar
from .lira_moments import PLANES, _finite, _launch_columns, _middle, _refined, lira_stats

__all__ = ["lira_loo", "lira_ratio", "lira_stats", "lira_update_"]

BLOCK, WARPS = 128, 4
SCORE_ROWS = 1  # targets of a program: one value a thread, whose statistics fill its registers
ONE_SIDED, DENSITY = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _log_ratio(t, center0, variance0, count0, center1, variance1, count1, floor, least, MODE: tl.constexpr):
    """Index 0 is OUT, 1 is IN; all float64."""
    variance0 = tl.where(variance0 < floor, floor, variance0)
    z0 = (t - center0) / tl.sqrt(variance0)
    enough = count0 >= least
    if MODE == ONE_SIDED:
        score = z0
    elif MODE == DENSITY:
        score = 0.5 * z0 * z0 + 0.5 * tl.log(6.283185307179586 * variance0)
    else:
        variance1 = tl.where(variance1 < floor, floor, variance1)
        z1 = (t - center1) / tl.sqrt(variance1)
        score = 0.5 * (z0 * z0 - z1 * z1) + 0.5 * tl.log(variance0 / variance1)
        enough = enough & (count1 >= least)
    return tl.where(enough, score, float("nan"))


@triton.jit
def _add(total, lost, x):
    """One more term, with what the additions lost (Kahan, 1965), but for infinite sums, where that is no number."""
    term = x - lost
    raised = total + term
    return raised, tl.where(_finite(raised), (raised - total) - term, 0.0)


@triton.jit(do_not_specialize=["floor", "least"])
def ratio_kernel(
    target, center, variance, count, out, rows, samples, queries, variance_step, variance_side, floor: tl.int64, least: tl.int64,
    MODE: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.cast(samples, tl.int64) * queries
    some = sample < samples
    here = (row < rows)[:, None] & some[None, :]
    bound = scalar(floor, tl.float64)
    wanted = least.to(tl.float64)
    count0 = tl.load(count + sample, mask=some, other=0).to(tl.float64)
    count1 = tl.load(count + samples + sample, mask=some, other=0).to(tl.float64)
    total = tl.zeros([ROWS, BLOCK], tl.float64)
    lost = total
    query = 0
    while query < queries:
        column = sample * queries + query
        t = tl.load(target + row[:, None] * columns + column[None, :], mask=here, other=0.0).to(tl.float64)
        center0 = tl.load(center + column, mask=some, other=0.0).to(tl.float64)
        center1 = tl.load(center + columns + column, mask=some, other=0.0).to(tl.float64)
        variance0 = tl.load(variance + column * variance_step, mask=some, other=1.0).to(tl.float64)
        variance1 = tl.load(variance + variance_side + column * variance_step, mask=some, other=1.0).to(tl.float64)
        score = _log_ratio(
            t, center0[None, :], variance0[None, :], count0[None, :], center1[None, :], variance1[None, :], count1[None, :],
            bound, wanted, MODE,
        )  # fmt: skip
        total, lost = _add(total, lost, score)
        query += 1
    tl.store(out + row[:, None] * samples + sample[None, :], (total / queries).to(DTYPE), mask=here)


def lira_ratio(
    target: Tensor, center: Tensor, variance: Tensor, count: Tensor, mode: int, var_floor: float, min_count: int, out: Tensor
) -> None:
    rows, samples, queries = target.shape
    if rows * samples == 0:
        return
    if queries == 0:
        out.fill_(float("nan"))
        return
    columns = samples * queries
    step, side = (0, 1) if variance.numel() == 2 and columns != 1 else (1, columns)
    with on_device(target):
        ratio_kernel[(triton.cdiv(samples, BLOCK), triton.cdiv(rows, SCORE_ROWS))](
            target, center, variance, count, out, rows, samples, queries, step, side, float_bits(var_floor), min_count,
            MODE=mode, DTYPE=tl.float64 if target.dtype == torch.float64 else tl.float32,
            BLOCK=BLOCK, ROWS=SCORE_ROWS, num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def _moments_without(scores, member, row, is_in, sample, samples, column, columns, some, left, M, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Mean and spread of the row's own side without the row itself, from the scores."""
    mean = tl.zeros([ROWS, BLOCK], tl.float64)
    total = mean
    square = mean
    m = tl.cast(0, tl.int64)
    while m < M:
        x = tl.load(scores + m * columns + column, mask=some, other=0.0).to(tl.float64)
        on = tl.load(member + m * samples + sample, mask=some, other=0) != 0
        total += tl.where((row != m)[:, None] & (on[None, :] == is_in), x[None, :], 0.0)
        m += 1
    mean = total / left
    total = square
    m = tl.cast(0, tl.int64)
    while m < M:
        x = tl.load(scores + m * columns + column, mask=some, other=0.0).to(tl.float64)
        on = tl.load(member + m * samples + sample, mask=some, other=0) != 0
        d = tl.where((row != m)[:, None] & (on[None, :] == is_in), x[None, :] - mean, 0.0)
        total += d
        square += d * d
        m += 1
    return _refined(mean, total, square, left)


@triton.jit(do_not_specialize=["floor", "least"])
def loo_kernel(
    scores, member, kept, variance, out, M, samples, queries, floor: tl.int64, least: tl.int64,
    MODE: tl.constexpr, MEDIAN: tl.constexpr, GLOBAL: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.cast(samples, tl.int64) * queries
    some = sample < samples
    here = (row < M)[:, None] & some[None, :]
    bound = scalar(floor, tl.float64)
    wanted = least.to(tl.float64)
    is_in = tl.load(member + row[:, None] * samples + sample[None, :], mask=here, other=0) != 0
    total = tl.zeros([ROWS, BLOCK], tl.float64)
    lost = total
    query = 0
    while query < queries:
        column = sample * queries + query
        t = tl.load(scores + row[:, None] * columns + column[None, :], mask=here, other=0.0).to(tl.float64)
        at = kept + column
        count0 = tl.load(at, mask=some, other=2.0)[None, :]
        mean0 = tl.load(at + columns, mask=some, other=0.0)[None, :]
        spread0 = tl.load(at + 2 * columns, mask=some, other=0.0)[None, :]
        count1 = tl.load(at + 6 * columns, mask=some, other=2.0)[None, :]
        mean1 = tl.load(at + 7 * columns, mask=some, other=0.0)[None, :]
        spread1 = tl.load(at + 8 * columns, mask=some, other=0.0)[None, :]
        n = tl.where(is_in, count1, count0)
        whole = tl.where(is_in, mean1, mean0)
        spread = tl.where(is_in, spread1, spread0)
        left = n - 1.0
        d = t - whole
        mean = whole - d / left
        rest = spread - d * d * (n / left)
        # safe while at least half of the spread stays
        infinite = (t == t) & (_finite(t) == 0)
        overflown = (spread == spread) & (_finite(spread) == 0)
        lossy = here & tl.where(_finite(spread), (rest >= 0.5 * spread) == 0, infinite | overflown)
        if tl.max(tl.max(lossy.to(tl.int32), 1), 0) > 0:
            again, again_rest = _moments_without(
                scores, member, row, is_in, sample, samples, column, columns, some, left, M, BLOCK, ROWS
            )  # fmt: skip
            mean = tl.where(lossy, again, mean)
            rest = tl.where(lossy, again_rest, rest)
        other_count = tl.where(is_in, count0, count1)
        other_mean = tl.where(is_in, mean0, mean1)
        other_variance = tl.where(is_in, spread0, spread1) / other_count
        if MEDIAN:
            first0 = tl.load(at + 3 * columns, mask=some, other=0.0)[None, :]
            next0 = tl.load(at + 4 * columns, mask=some, other=0.0)[None, :]
            after0 = tl.load(at + 5 * columns, mask=some, other=0.0)[None, :]
            first1 = tl.load(at + 9 * columns, mask=some, other=0.0)[None, :]
            next1 = tl.load(at + 10 * columns, mask=some, other=0.0)[None, :]
            after1 = tl.load(at + 11 * columns, mask=some, other=0.0)[None, :]
            first = tl.where(is_in, first1, first0)
            second = tl.where(is_in, next1, next0)
            third = tl.where(is_in, after1, after0)
            odd = n.to(tl.int64) % 2 == 1
            # of two equal values it does not matter which one goes
            low = tl.where(t <= first, second, first)
            high = tl.where(t <= second, third, second)
            mean = _middle(mean, low, tl.where(odd, high, low))
            first = tl.where(is_in, first0, first1)
            second = tl.where(is_in, next0, next1)
            odd = other_count.to(tl.int64) % 2 == 1
            one = tl.where(other_count >= 2.0, second, first)
            other_mean = _middle(other_mean, tl.where(odd, one, first), tl.where(odd, one, second))
        own_variance = rest / left
        center0 = tl.where(is_in, other_mean, mean)
        center1 = tl.where(is_in, mean, other_mean)
        if GLOBAL:
            variance0 = tl.load(variance).to(tl.float64)
            variance1 = tl.load(variance + 1).to(tl.float64)
        else:
            variance0 = tl.where(is_in, other_variance, own_variance)
            variance1 = tl.where(is_in, own_variance, other_variance)
        n0 = tl.where(is_in, count0, left)
        n1 = tl.where(is_in, left, count1)
        score = _log_ratio(t, center0, variance0, n0, center1, variance1, n1, bound, wanted, MODE)
        total, lost = _add(total, lost, score)
        query += 1
    tl.store(out + row[:, None] * samples + sample[None, :], (total / queries).to(DTYPE), mask=here)


def lira_loo(
    scores: Tensor, member: Tensor, median: bool, variance: Tensor, mode: int, var_floor: float, min_count: int, out: Tensor
) -> None:
    models, samples, queries = scores.shape
    if models * samples == 0:
        return
    if queries == 0:
        out.fill_(float("nan"))
        return
    kept = torch.empty(2 * PLANES, samples * queries, dtype=torch.float64, device=scores.device)
    _launch_columns(scores, member, (kept, kept, kept, kept), median, keep=True)
    with on_device(scores):
        loo_kernel[(triton.cdiv(samples, BLOCK), triton.cdiv(models, SCORE_ROWS))](
            scores, member.view(torch.int8), kept, variance if variance.numel() else kept, out, models, samples, queries,
            float_bits(var_floor), min_count,
            MODE=mode, MEDIAN=median, GLOBAL=variance.numel() > 0,
            DTYPE=tl.float64 if scores.dtype == torch.float64 else tl.float32,
            BLOCK=BLOCK, ROWS=SCORE_ROWS, num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def update_kernel(scores, member, count, mean, m2, models, samples, queries, BLOCK: tl.constexpr):
    """Welford (Technometrics 4, 1962), one more model at a time; the counts are raised afterwards."""
    columns = tl.cast(samples, tl.int64) * queries
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    sample = column // queries
    n0 = tl.load(count + sample, mask=inside, other=0).to(tl.float64)
    n1 = tl.load(count + samples + sample, mask=inside, other=0).to(tl.float64)
    mean0 = tl.load(mean + column, mask=inside, other=0.0)
    mean1 = tl.load(mean + columns + column, mask=inside, other=0.0)
    m2_0 = tl.load(m2 + column, mask=inside, other=0.0)
    m2_1 = tl.load(m2 + columns + column, mask=inside, other=0.0)
    m = tl.cast(0, tl.int64)
    while m < models:
        x = tl.load(scores + m * columns + column, mask=inside, other=0.0).to(tl.float64)
        side = tl.load(member + m * samples + sample, mask=inside, other=-1)
        out = side == 0
        on = side == 1
        n = tl.where(on, n1, n0) + 1.0
        before = tl.where(on, mean1, mean0)
        distance = x - before
        moved = before + distance / n
        spread = tl.where(on, m2_1, m2_0) + distance * (x - moved)
        n0 = tl.where(out, n, n0)
        n1 = tl.where(on, n, n1)
        mean0 = tl.where(out, moved, mean0)
        mean1 = tl.where(on, moved, mean1)
        m2_0 = tl.where(out, spread, m2_0)
        m2_1 = tl.where(on, spread, m2_1)
        m += 1
    tl.store(mean + column, mean0, mask=inside)
    tl.store(mean + columns + column, mean1, mask=inside)
    tl.store(m2 + column, m2_0, mask=inside)
    tl.store(m2 + columns + column, m2_1, mask=inside)


def lira_update_(scores: Tensor, member: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> None:
    models, samples, queries = scores.shape
    if models * samples == 0:
        return
    with on_device(scores):
        if queries > 0:
            update_kernel[(triton.cdiv(samples * queries, BLOCK),)](
                scores, member, count, mean, m2, models, samples, queries, BLOCK=BLOCK, num_warps=WARPS
            )  # fmt: skip
        for side in (0, 1):
            count[side] += (member == side).sum(dim=0)
