"""Membership scores and ROC statistics in Triton.

membership_scores: rows of up to 8192 classes stay in registers and are read once; longer rows are read
three times (maximum, sums, modified entropy), the later times from L2. Everything is relative to the row's
maximum, and the anchor class is kept out of the sums (see rows.py), so tiny losses keep their digits and
logit_confidence needs no probability near 1.

roc_stats: torch.sort, then one vectorised binary search for each score into the other class: counts, so
every sum is an exact integer. A second, single program adds the partial results in a fixed order and looks
up the thresholds. The only host work is the false-positive budget of each FPR, which depends on the sizes
alone; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.membership import false_positive_budget
from .common import compute_dtype, device_table, divide, float_bits, on_device, scalar
from .membership_lira import lira_stats
from .membership_lira_scores import lira_loo, lira_ratio, lira_update_
from .membership_rank import rmia_counts, rmia_vote, roc_bootstrap
from .rows import (
    distance,
    exp_of_negative,
    exp_to_the_end,
    load_label,
    load_tile,
    log1p_of_positive,
    log_of_positive,
    minus_log1m_over_p,
    other_exps,
    row_tiling,
    tile_max,
)

__all__ = [
    "lira_loo", "lira_ratio", "lira_stats", "lira_update_", "membership_scores", "rmia_counts", "rmia_vote", "roc_bootstrap", "roc_stats",
]  # fmt: skip

# One search a thread: the loop waits for memory, so few registers (32) and every warp the machine holds.
SEARCH_BLOCK = 256
SEARCH_WARPS = 8
FINAL_BLOCK = 1024
PARTIALS = 3


@triton.jit
def _tail_sums(x, classes, top, anchor, y, scale, scale_low, SCALED: tl.constexpr):
    """Sums over all classes but anchor and label of e and e * -d, and the maximum over all but the anchor."""
    e, d = other_exps(x, classes, top, anchor, y, scale, scale_low, SCALED)
    # e is 0 there, and 0 * -inf would be NaN
    d = tl.where(d < -88.0, -88.0, d) if x.dtype != tl.float64 else tl.where(d < -800.0, -800.0, d)
    second = tl.max(tl.where(classes[None, :] == anchor[:, None], -float("inf"), x), 1)
    return tl.sum(e, 1), tl.sum(e * -d, 1), second


@triton.jit
def _modified_terms(x, classes, top, anchor, y, inverse, scale, scale_low, SCALED: tl.constexpr):
    """Sum over all classes but anchor and label of -p log(1 - p); there p <= 1/2."""
    e, _ = other_exps(x, classes, top, anchor, y, scale, scale_low, SCALED)
    p = e * inverse[:, None]
    return tl.sum(p * p * minus_log1m_over_p(p), 1)


@triton.jit
def _far_sums(x, classes, top, second, anchor, scale, scale_low, SCALED: tl.constexpr):
    """Sums over all classes but the anchor of e and e * -d, with e relative to the second largest logit: the
    first sum is at least 1 where there is a second class at all."""
    base = tl.where(second > -float("inf"), second, 0.0)
    e = exp_of_negative(distance(x, base[:, None], scale, scale_low, SCALED))
    e = tl.where(classes[None, :] == anchor[:, None], 0.0, e)
    d = distance(x, top[:, None], scale, scale_low, SCALED)
    return tl.sum(e, 1), tl.sum(tl.where(e > 0, e * -d, 0.0), 1)


@triton.jit(do_not_specialize=["temperature", "stride"])
def membership_scores_kernel(
    logits, labels, scores, correct, N, K, temperature: tl.int64, stride,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALED: tl.constexpr, BY_THREAD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < N
    classes = tl.arange(0, WIDTH)
    step = stride if BY_THREAD else 1
    exact = 1.0 / scalar(temperature, tl.float64)
    scale = exact.to(COMPUTE)
    scale_low = (exact - scale.to(tl.float64)).to(COMPUTE)
    y, valid, x_y = load_label(logits, labels, rows, in_rows, K, COMPUTE)

    if WHOLE:
        x = load_tile(logits, rows, in_rows, classes, K, step, COMPUTE)
        top, first = tile_max(x, classes, K)
    else:
        top = tl.full([ROWS], -float("inf"), COMPUTE)
        first = tl.zeros([ROWS], tl.int32) + K
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            tile_top, tile_first = tile_max(x, classes + k, K)
            first = tl.where(tile_top > top, tile_first, first)
            top = tl.where(tile_top > top, tile_top, top)
            k += WIDTH

    is_top = x_y == top
    anchor = tl.where(is_top, y, first)
    if WHOLE:
        tail, weighted, second = _tail_sums(x, classes, top, anchor, y, scale, scale_low, SCALED)
    else:
        tail = tl.zeros([ROWS], COMPUTE)
        weighted = tl.zeros([ROWS], COMPUTE)
        second = tl.full([ROWS], -float("inf"), COMPUTE)
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            more, more_weighted, tile_second = _tail_sums(
                x, classes + k, top, anchor, y, scale, scale_low, SCALED
            )  # fmt: skip
            tail += more
            weighted += more_weighted
            second = tl.maximum(second, tile_second)
            k += WIDTH

    d_y = distance(x_y, top, scale, scale_low, SCALED)
    e_y = exp_of_negative(d_y)
    rest = tl.where(is_top, tail, tail + e_y)  # all classes but the anchor
    weighted += tl.where(is_top | (e_y == 0), 0.0, e_y * -d_y)
    inverse = divide(tl.full([ROWS], 1.0, COMPUTE), 1.0 + rest)
    if WHOLE:
        modified = _modified_terms(x, classes, top, anchor, y, inverse, scale, scale_low, SCALED)
    else:
        modified = tl.zeros([ROWS], COMPUTE)
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            modified += _modified_terms(x, classes + k, top, anchor, y, inverse, scale, scale_low, SCALED)
            k += WIDTH

    # log of the tail, from the tail itself unless that is so small that its terms may have been flushed to
    # 0: then relative to the second largest logit. Rare, so the whole program branches on it.
    threshold: tl.constexpr = 1e-280 if tl.float64 == COMPUTE else 1e-25
    tiny = rest < threshold
    log_rest = log_of_positive(tl.where(tiny, 1.0, rest))
    if tl.max(tiny.to(tl.int32), 0) > 0:
        if WHOLE:
            far, far_weighted = _far_sums(x, classes, top, second, anchor, scale, scale_low, SCALED)
        else:
            far = tl.zeros([ROWS], COMPUTE)
            far_weighted = tl.zeros([ROWS], COMPUTE)
            k = 0
            while k < K:
                x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
                more, more_weighted = _far_sums(x, classes + k, top, second, anchor, scale, scale_low, SCALED)
                far += more
                far_weighted += more_weighted
                k += WIDTH
        gap = distance(second, top, scale, scale_low, SCALED)
        far_log = tl.where(second > -float("inf"), gap + log_of_positive(tl.where(far > 0, far, 1.0)), -float("inf"))
        log_rest = tl.where(tiny, far_log, log_rest)
        rest = tl.where(tiny, exp_to_the_end(far_log), rest)
        # the mean distance times the tail, each in its own range
        mean = far_weighted / tl.where(far > 0, far, 1.0)
        weighted = tl.where(tiny, tl.where(far > 0, rest * mean, 0.0), weighted)

    log_total = log1p_of_positive(rest)
    loss = tl.where(is_top, log_total, log_total - d_y)
    entropy = log_total + weighted * inverse
    not_label = tl.where(is_top, rest, 1.0 + tail) * inverse
    label_term = tl.where(not_label > 0, not_label * loss, 0.0)
    # -log(1 - p) of the anchor, whose p may be anything up to 1
    surprise = tl.where(inverse <= 0.5, inverse * minus_log1m_over_p(inverse), log_total - log_rest)
    modified += label_term + tl.where(is_top, 0.0, inverse * surprise)
    confidence = tl.where(is_top, 1.0, exp_to_the_end(d_y)) * inverse
    margin = tl.where(is_top, -distance(second, top, scale, scale_low, SCALED), d_y)
    logit_confidence = tl.where(is_top, -log_rest, d_y - log1p_of_positive(tail))
    # of two classes the other is the tail: no exp and log to round it
    logit_confidence = tl.where(K == 2, margin, logit_confidence)

    # NaN logits reach `rest` by themselves; +inf and rows of -inf would not
    defined = valid & (top < float("inf")) & (top > -float("inf")) & (rest == rest)
    nan = float("nan")
    out = scores + rows
    tl.store(out, tl.where(defined, loss, nan), mask=in_rows)
    tl.store(out + N, tl.where(defined, confidence, nan), mask=in_rows)
    tl.store(out + 2 * tl.cast(N, tl.int64), tl.where(defined, entropy, nan), mask=in_rows)
    tl.store(out + 3 * tl.cast(N, tl.int64), tl.where(defined, modified, nan), mask=in_rows)
    tl.store(out + 4 * tl.cast(N, tl.int64), tl.where(defined, margin, nan), mask=in_rows)
    tl.store(out + 5 * tl.cast(N, tl.int64), tl.where(defined, logit_confidence, nan), mask=in_rows)
    tl.store(correct + rows, (defined & (first == y)).to(tl.int8), mask=in_rows)


def membership_scores(logits: Tensor, labels: Tensor, temperature: float, scores: Tensor, correct: Tensor) -> None:
    n, classes = logits.shape
    if n == 0:
        return
    compute = compute_dtype(logits.dtype)
    by_thread, tiling = row_tiling(classes, compute, read_only=True)
    with on_device(logits):
        membership_scores_kernel[(triton.cdiv(n, tiling["ROWS"]),)](
            logits, labels, scores, correct.view(torch.int8), n, classes, float_bits(temperature), 1,
            COMPUTE=compute, SCALED=temperature != 1.0, BY_THREAD=by_thread, **tiling,
        )  # fmt: skip


@triton.jit
def count_below(values, count, steps, query, EQUAL_TOO: tl.constexpr):
    """How many of the sorted values are below the query (or equal to it): a binary search, every lane its
    own."""
    low = tl.zeros_like(query).to(tl.int64)
    high = low + count
    step = 0
    while step < steps:
        middle = (low + high) // 2
        value = tl.load(values + middle, mask=middle < high, other=float("inf"))
        right = (value <= query) if EQUAL_TOO else (value < query)
        right = right & (middle < high)
        low = tl.where(right, middle + 1, low)
        high = tl.where(right, high, middle)
        step += 1
    return low


@triton.jit
def roc_search_kernel(
    member, nonmember, partials, n1, n0, steps1, steps0, programs1, programs,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial results of one block of scores, in rows of `partials`.

    Members: twice the rank sum; the largest TP * n0 - FP * n1 with the score as threshold; its last index.
    Nonmembers: the largest FP * n1 - TP * n0.
    Integers, so neither order nor rounding matters; n1 * n0 must stay below 2^62.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    lowest: tl.constexpr = -(2**63) + 1
    wide1 = tl.cast(n1, tl.int64)
    wide0 = tl.cast(n0, tl.int64)
    if program < programs1:
        at = program * BLOCK + lane
        inside = at < n1
        query = tl.load(member + at, mask=inside, other=0.0)
        previous = tl.load(member + at - 1, mask=inside & (at > 0), other=float("nan"))
        below = count_below(nonmember, n0, steps0, query, False)
        not_above = count_below(nonmember, n0, steps0, query, True)
        # the first of equal scores counts all of them: TP = how many are not before it
        starts = inside & (query != previous)
        gain = (wide1 - at) * wide0 - (wide0 - below) * wide1
        gain = tl.where(starts, gain, lowest)
        best = tl.max(gain, 0)
        tl.store(partials + program, tl.sum(tl.where(inside, below + not_above, 0), 0))
        tl.store(partials + programs + program, best)
        tl.store(partials + 2 * programs + program, tl.max(tl.where(gain == best, at, -1), 0))
    else:
        at = (program - programs1) * BLOCK + lane
        inside = at < n0
        query = tl.load(nonmember + at, mask=inside, other=0.0)
        previous = tl.load(nonmember + at - 1, mask=inside & (at > 0), other=float("nan"))
        below = count_below(member, n1, steps1, query, False)
        starts = inside & (query != previous)
        lead = (wide0 - at) * wide1 - (wide1 - below) * wide0
        tl.store(partials + programs + program, tl.max(tl.where(starts, lead, lowest), 0))


@triton.jit
def roc_final_kernel(
    member, nonmember, partials, budgets, out, n1, n0, steps1, programs1, programs, F,
    BLOCK: tl.constexpr, BUDGETS: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    lowest: tl.constexpr = -(2**63) + 1
    ranks = tl.zeros([BLOCK], tl.int64)
    gain = tl.full([BLOCK], lowest, tl.int64)
    where = tl.full([BLOCK], -1, tl.int64)
    lead = tl.full([BLOCK], lowest, tl.int64)
    begin = 0
    while begin < programs1:
        inside = begin + lane < programs1
        ranks += tl.load(partials + begin + lane, mask=inside, other=0)
        block_gain = tl.load(partials + programs + begin + lane, mask=inside, other=lowest)
        block_where = tl.load(partials + 2 * programs + begin + lane, mask=inside, other=-1)
        better = (block_gain > gain) | ((block_gain == gain) & (block_where > where))
        gain = tl.where(better, block_gain, gain)
        where = tl.where(better, block_where, where)
        begin += BLOCK
    begin = programs1
    while begin < programs:
        inside = begin + lane < programs
        lead = tl.maximum(lead, tl.load(partials + programs + begin + lane, mask=inside, other=lowest))
        begin += BLOCK

    best = tl.max(gain, 0)
    at = tl.max(tl.where(gain == best, where, -1), 0)
    most = tl.maximum(tl.maximum(best, tl.max(lead, 0)), 0)
    pairs = tl.cast(n1, tl.float64) * tl.cast(n0, tl.float64)
    tl.store(out, tl.sum(ranks, 0).to(tl.float64) / (2.0 * pairs))
    tl.store(out + 1, (1.0 + tl.maximum(best, 0).to(tl.float64) / pairs) / 2.0)
    tl.store(out + 2, most.to(tl.float64) / pairs)
    best_at = tl.load(member + at).to(tl.float64)
    tl.store(out + 3, tl.where(best > 0, best_at, float("inf")))

    # TPR at each FPR: members above the (budget + 1)-th largest nonmember
    slot = tl.arange(0, BUDGETS)
    asked = slot < F
    budget = tl.load(budgets + slot, mask=asked, other=0)
    all_count = budget >= n0
    limit = tl.load(nonmember + (n0 - 1 - budget), mask=asked & (budget < n0), other=0.0)
    above = n1 - count_below(member, n1, steps1, limit, True)
    above = tl.where(all_count, n1, above)
    smallest = tl.load(member + (n1 - above), mask=asked & (above > 0), other=float("inf")).to(tl.float64)
    tl.store(out + 4 + slot, above.to(tl.float64) / tl.cast(n1, tl.float64), mask=asked)
    tl.store(out + 4 + F + slot, smallest, mask=asked)


def roc_stats(member: Tensor, nonmember: Tensor, fprs: Sequence[float], out: Tensor) -> None:
    # adding 0 turns -0.0 into 0.0, so that equal scores are also equal for a sort that looks at bits
    members = (member + 0.0).sort().values
    nonmembers = (nonmember + 0.0).sort().values
    n1, n0 = members.numel(), nonmembers.numel()
    programs1 = triton.cdiv(n1, SEARCH_BLOCK)
    programs = programs1 + triton.cdiv(n0, SEARCH_BLOCK)
    with on_device(out):
        partials = torch.empty(PARTIALS * programs, dtype=torch.int64, device=out.device)
        budgets = device_table([false_positive_budget(fpr, n0) for fpr in fprs] or [0], out.device)
        roc_search_kernel[(programs,)](
            members, nonmembers, partials, n1, n0, n1.bit_length(), n0.bit_length(), programs1, programs,
            BLOCK=SEARCH_BLOCK, num_warps=SEARCH_WARPS,
        )  # fmt: skip
        roc_final_kernel[(1,)](
            members, nonmembers, partials, budgets, out, n1, n0, n1.bit_length(), programs1, programs,
            len(fprs),
            BLOCK=FINAL_BLOCK, BUDGETS=triton.next_power_of_2(max(1, len(fprs))), num_warps=8,
        )  # fmt: skip
