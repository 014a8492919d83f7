"""ROC statistics and their bootstrap in Triton.

roc_stats: torch.sort, then one vectorised binary search for each score into the other class: counts, so
every sum is an exact integer. A second, single program adds the partial results in a fixed order and looks
up the thresholds. The only host work is the false-positive budget of each FPR, which depends on the sizes
alone; nothing waits for the device.

roc_bootstrap: torch.sort once; a resample of the nonmembers is a count at each place and its running sum, and
the drawn members add what lies below them. Integers throughout: neither order nor rounding matters, and the
one division at the end is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.membership.roc import false_positive_budget
from ..common import device_table, on_device
from ..normal import philox_words

# One search a thread: the loop waits for memory, so few registers (32) and every warp the machine holds.
SEARCH_BLOCK = 256
SEARCH_WARPS = 8
FINAL_BLOCK = 1024
PARTIALS = 3

BLOCK, WARPS = 256, 8  # of the bootstrap
DRAWS = 1024  # Philox blocks of four draws
MAX_COUNTS = 1 << 26  # places of all resamples of one launch: bounds the scratch memory to 256 MB
MAX_RESAMPLES = 1 << 15  # a grid's second dimension ends at 65535


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


@triton.jit
def _draw(word, size):
    return ((word.to(tl.uint64) * size.to(tl.uint64)) >> 32).to(tl.int64)


@triton.jit(do_not_specialize=["seed", "step", "n0"])
def count_draws_kernel(counts, seed: tl.int64, step: tl.int64, n0: tl.int64, DRAWS: tl.constexpr):
    """Counts of the drawn nonmembers: stream 1."""
    block = tl.program_id(0).to(tl.int64) * DRAWS + tl.arange(0, DRAWS)
    resample = tl.program_id(1).to(tl.int64)
    n0 = n0.to(tl.int64)
    w0, w1, w2, w3 = philox_words(block, seed.to(tl.int64), tl.full([], 1, tl.int64), step + resample)
    at = counts + resample * n0
    tl.atomic_add(at + _draw(w0, n0), 1, mask=4 * block < n0, sem="relaxed")
    tl.atomic_add(at + _draw(w1, n0), 1, mask=4 * block + 1 < n0, sem="relaxed")
    tl.atomic_add(at + _draw(w2, n0), 1, mask=4 * block + 2 < n0, sem="relaxed")
    tl.atomic_add(at + _draw(w3, n0), 1, mask=4 * block + 3 < n0, sem="relaxed")


@triton.jit(do_not_specialize=["n0", "n1", "rates", "size"])
def accepted_kernel(
    upto, not_above, budgets, accepted, n0: tl.int64, n1: tl.int64, rates: tl.int64, size: tl.int64, steps, BLOCK: tl.constexpr
):
    """For each resample and rate the first place of a member that is accepted (0: all are)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    resample = at // rates
    budget = tl.load(budgets + at % rates, mask=inside, other=0)
    rank = n0 - 1 - budget
    # the drawn nonmember that is the first beyond the budget
    low = tl.zeros([BLOCK], tl.int64)
    high = low + n0 - 1
    step = 0
    while step < steps:
        middle = (low + high) // 2
        before = tl.load(upto + resample * n0 + middle, mask=inside & (middle < high), other=0) <= rank
        before = before & (middle < high)
        low = tl.where(before, middle + 1, low)
        high = tl.where(before, high, middle)
        step += 1
    place = tl.load(not_above + low, mask=inside, other=0)
    tl.store(accepted + at, tl.where(budget >= n0, 0, tl.where(budget < 0, n1, place)), mask=inside)


@triton.jit
def _below(upto, place, mask):
    return tl.load(upto + place - 1, mask=mask & (place > 0), other=0).to(tl.int64)


@triton.jit
def _rank_sum(upto, below, not_above, place, inside):
    ranks = _below(upto, tl.load(below + place, mask=inside, other=0), inside)
    return tl.sum(ranks + _below(upto, tl.load(not_above + place, mask=inside, other=0), inside), 0)


@triton.jit(do_not_specialize=["seed", "step", "n0", "n1", "rates"])
def member_draws_kernel(
    upto, below, not_above, accepted, sums, seed: tl.int64, step: tl.int64, n0: tl.int64, n1: tl.int64, rates: tl.int64, DRAWS: tl.constexpr
):
    """Adds the drawn members' (stream 0) ranks, and how many each rate accepts."""
    block = tl.program_id(0).to(tl.int64) * DRAWS + tl.arange(0, DRAWS)
    resample = tl.program_id(1).to(tl.int64)
    n0 = n0.to(tl.int64)
    n1 = n1.to(tl.int64)
    rates = rates.to(tl.int64)
    w0, w1, w2, w3 = philox_words(block, seed.to(tl.int64), tl.full([], 0, tl.int64), step + resample)
    # a draw that is none has no place
    p0 = tl.where(4 * block < n1, _draw(w0, n1), -1)
    p1 = tl.where(4 * block + 1 < n1, _draw(w1, n1), -1)
    p2 = tl.where(4 * block + 2 < n1, _draw(w2, n1), -1)
    p3 = tl.where(4 * block + 3 < n1, _draw(w3, n1), -1)
    row = upto + resample * n0
    total = _rank_sum(row, below, not_above, p0, p0 >= 0) + _rank_sum(row, below, not_above, p1, p1 >= 0)
    total += _rank_sum(row, below, not_above, p2, p2 >= 0) + _rank_sum(row, below, not_above, p3, p3 >= 0)
    out = sums + resample * (rates + 1)
    tl.atomic_add(out, total, sem="relaxed")
    rate = tl.cast(0, tl.int64)
    while rate < rates:
        first = tl.load(accepted + resample * rates + rate)
        got = (p0 >= first).to(tl.int32) + (p1 >= first).to(tl.int32) + (p2 >= first).to(tl.int32) + (p3 >= first).to(tl.int32)
        tl.atomic_add(out + 1 + rate, tl.sum(got.to(tl.int64), 0), sem="relaxed")
        rate += 1


@triton.jit(do_not_specialize=["n0", "n1", "width", "size"])
def quotients_kernel(sums, out, n0: tl.int64, n1: tl.int64, width: tl.int64, size: tl.int64, BLOCK: tl.constexpr):
    # torch divides by a number through its reciprocal on a GPU, which rounds twice
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pairs = 2.0 * n1.to(tl.float64) * n0.to(tl.float64)
    total = tl.load(sums + at, mask=at < size, other=0).to(tl.float64)
    tl.store(out + at, total / tl.where(at % width == 0, pairs, n1.to(tl.float64)), mask=at < size)


def roc_bootstrap(member: Tensor, nonmember: Tensor, fprs: Sequence[float], seed: int, out: Tensor) -> None:
    # adding 0 turns -0.0 into 0.0, so that equal scores are also equal for a sort that looks at bits
    members, nonmembers = (member + 0.0).sort().values, (nonmember + 0.0).sort().values
    n1, n0, rates = members.numel(), nonmembers.numel(), len(fprs)
    resamples, device = len(out), out.device
    if resamples == 0:
        return
    below, not_above = (torch.searchsorted(nonmembers, members, right=right) for right in (False, True))
    members_not_above = torch.searchsorted(members, nonmembers, right=True)
    sums = torch.zeros(resamples, 1 + rates, dtype=torch.int64, device=device)
    together = min(resamples, max(1, MAX_COUNTS // n0), MAX_RESAMPLES)
    with on_device(out):
        budgets = device_table([false_positive_budget(fpr, n0) for fpr in fprs] or [0], device)
        for begin in range(0, resamples, together):
            part = min(together, resamples - begin)
            counts = torch.zeros(part, n0, dtype=torch.int32, device=device)
            count_draws_kernel[(triton.cdiv(n0, 4 * DRAWS), part)](counts, seed, begin, n0, DRAWS=DRAWS, num_warps=WARPS)
            upto = counts.cumsum(dim=1, dtype=torch.int32)
            accepted = torch.empty(max(1, part * rates), dtype=torch.int64, device=device)
            if rates:
                accepted_kernel[(triton.cdiv(part * rates, BLOCK),)](
                    upto, members_not_above, budgets, accepted, n0, n1, rates, part * rates, n0.bit_length(), BLOCK=BLOCK, num_warps=WARPS
                )  # fmt: skip
            member_draws_kernel[(triton.cdiv(n1, 4 * DRAWS), part)](
                upto, below, not_above, accepted, sums[begin:], seed, begin, n0, n1, rates, DRAWS=DRAWS, num_warps=WARPS
            )  # fmt: skip
        quotients_kernel[(triton.cdiv(sums.numel(), BLOCK),)](
            sums, out, n0, n1, 1 + rates, sums.numel(), BLOCK=BLOCK, num_warps=WARPS
        )  # fmt: skip
