"""RMIA and the bootstrap of ROC statistics in Triton.

A pair counts where fl(x / z) >= gamma, by the division itself. rmia_counts: torch.sort, then a binary search
with that predicate. rmia_vote: the first z that no longer counts stands for the division, so a pair costs one
comparison of integers a query. roc_bootstrap: torch.sort once; a resample of the nonmembers is a count at each
place and its running sum, and the drawn members add what lies below them. Integers throughout: neither order
nor rounding matters, and the one division at the end is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.membership import false_positive_budget
from .common import device_table, divide, float_bits, on_device, scalar
from .membership_lira import TL_INT
from .normal import philox_words

BLOCK, WARPS = 256, 8
VOTE_X, VOTE_Z, VOTE_WARPS = 64, 64, 8  # pairs of a program at a time: 16 votes a thread
DIVIDE_X, DIVIDE_Z = 32, 32  # an exact division takes more registers than a comparison
DRAWS = 1024  # Philox blocks of four draws
MAX_COUNTS = 1 << 26  # places of all resamples of one launch: bounds the scratch memory to 256 MB
MAX_RESAMPLES = 1 << 15  # a grid's second dimension ends at 65535


@triton.jit
def _dominates(x, z, gamma, STRICT: tl.constexpr):
    quotient = divide(x, z)
    return (quotient > gamma) if STRICT else (quotient >= gamma)


@triton.jit
def rmia_counts_kernel(
    ratio_x, ratio_z, zeros, numbers, gammas, counts, n, zs, steps, gamma_count, gamma_step,
    STRICT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ratio_z ascending in each row: zeros, numbers above, what never counts as NaN."""
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(ratio_x + row * n + at, mask=inside, other=0.0)
    values = ratio_z + row * zs
    first = tl.load(zeros + row)
    end = tl.load(numbers + row)
    g = 0
    while g < gamma_count:
        gamma = scalar(tl.load(gammas + g), DTYPE)
        low = tl.zeros([BLOCK], tl.int64) + first
        high = tl.zeros([BLOCK], tl.int64) + end
        step = 0
        while step < steps:
            middle = (low + high) // 2
            z = tl.load(values + middle, mask=inside & (middle < high), other=1.0)
            down = _dominates(x, z, gamma, STRICT) & (middle < high)
            low = tl.where(down, middle + 1, low)
            high = tl.where(down, high, middle)
            step += 1
        # x / 0 is the largest quotient, or none at all for x = 0, whose other quotients may still do
        zero = _dominates(x, tl.zeros([BLOCK], DTYPE), gamma, STRICT)
        tl.store(counts + g * tl.cast(gamma_step, tl.int64) + row * n + at, low - first + tl.where(zero, first, 0), mask=inside)
        g += 1


def rmia_counts(ratio_x: Tensor, ratio_z: Tensor, gammas: Sequence[float], strict: bool, counts: Tensor) -> None:
    rows, n = ratio_x.shape
    zs = ratio_z.shape[1]
    if rows * n == 0 or not gammas:
        return
    # a NaN, a -0 and what is negative never count; the sort puts NaN last
    ascending = torch.where(torch.signbit(ratio_z), torch.nan, ratio_z).sort(dim=1).values
    zeros, numbers = (ascending == 0).sum(dim=1), (ascending == ascending).sum(dim=1)
    with on_device(ratio_x):
        table = device_table([float_bits(gamma) for gamma in gammas], ratio_x.device)
        rmia_counts_kernel[(triton.cdiv(n, BLOCK), rows)](
            ratio_x, ascending, zeros, numbers, table, counts, n, zs, zs.bit_length(), len(gammas), rows * n,
            STRICT=strict, DTYPE=tl.float64 if ratio_x.dtype == torch.float64 else tl.float32, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["gamma"])
def vote_limits_kernel(
    ratio_x, limits, size, gamma: tl.int64, STRICT: tl.constexpr, DTYPE: tl.constexpr, INT: tl.constexpr, BLOCK: tl.constexpr
):
    """For gamma > 0: the bits of the first z >= 0 that no longer counts."""
    infinity: tl.constexpr = 0x7F800000 if tl.int32 == INT else 0x7FF0000000000000
    steps: tl.constexpr = 32 if tl.int32 == INT else 64
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(ratio_x + at, mask=at < size, other=0.0)
    bound = scalar(gamma, DTYPE)
    low = tl.zeros([BLOCK], INT)
    high = tl.full([BLOCK], infinity + 1, INT)
    step = 0
    while step < steps:
        middle = low + (high - low) // 2
        down = _dominates(x, middle.to(DTYPE, bitcast=True), bound, STRICT) & (middle < high)
        low = tl.where(down, middle + 1, low)
        high = tl.where(down, high, middle)
        step += 1
    tl.store(limits + at, low, mask=at < size)


@triton.jit(do_not_specialize=["gamma"])
def vote_kernel(
    ratio_x, ratio_z, limits, counts, n, zs, queries, part_size, gamma: tl.int64,
    DIVIDES: tl.constexpr, STRICT: tl.constexpr, DTYPE: tl.constexpr, INT: tl.constexpr, X: tl.constexpr, Z: tl.constexpr,
):  # fmt: skip
    infinity: tl.constexpr = 0x7F800000 if tl.int32 == INT else 0x7FF0000000000000
    at = tl.program_id(0).to(tl.int64) * X + tl.arange(0, X)
    inside = at < n
    begin = tl.program_id(1).to(tl.int64) * part_size
    end = tl.minimum(begin + part_size, zs)
    bound = scalar(gamma, DTYPE)
    total = tl.zeros([X], tl.int64)
    while begin < end:
        place = begin + tl.arange(0, Z)
        here = place < end
        votes = tl.zeros([X, Z], tl.int32)
        query = tl.cast(0, tl.int64)
        while query < queries:
            z = tl.load(ratio_z + query * zs + place, mask=here, other=float("nan"))
            if DIVIDES:
                x = tl.load(ratio_x + query * n + at, mask=inside, other=0.0)
                votes += _dominates(x[:, None], z[None, :], bound, STRICT).to(tl.int32)
            else:
                limit = tl.load(limits + query * n + at, mask=inside, other=0)
                bits = z.to(INT, bitcast=True)
                # NaN, -0 and what is negative never count
                bits = tl.where((bits >= 0) & (bits <= infinity), bits, infinity + 1)
                votes += (bits[None, :] < limit[:, None]).to(tl.int32)
            query += 1
        total += tl.sum((2 * votes > queries).to(tl.int32), 1)
        begin += Z
    tl.atomic_add(counts + at, total, mask=inside & (total > 0), sem="relaxed")


def rmia_vote(ratio_x: Tensor, ratio_z: Tensor, gamma: float, strict: bool, counts: Tensor) -> None:
    queries, n = ratio_x.shape
    zs = ratio_z.shape[1]
    counts.zero_()
    if queries * n * zs == 0:
        return
    dtype, integer = tl.float64 if ratio_x.dtype == torch.float64 else tl.float32, TL_INT[ratio_x.dtype]
    # a gamma that float32 rounds to 0 is 0
    divides = not torch.tensor(gamma, dtype=ratio_x.dtype).item() > 0.0
    wide, high = (DIVIDE_X, DIVIDE_Z) if divides else (VOTE_X, VOTE_Z)
    tiles = triton.cdiv(n, wide)
    # enough programs for a large device, of 4 tiles of z at least
    parts = min(max(1, 4096 // tiles), triton.cdiv(zs, 4 * high))
    part_size = triton.cdiv(triton.cdiv(zs, parts), high) * high
    with on_device(ratio_x):
        limits = torch.empty(ratio_x.numel(), dtype=torch.int32 if dtype == tl.float32 else torch.int64, device=ratio_x.device)
        if not divides:
            vote_limits_kernel[(triton.cdiv(ratio_x.numel(), BLOCK),)](
                ratio_x, limits, ratio_x.numel(), float_bits(gamma), STRICT=strict, DTYPE=dtype, INT=integer, BLOCK=BLOCK, num_warps=WARPS
            )  # fmt: skip
        vote_kernel[(tiles, triton.cdiv(zs, part_size))](
            ratio_x, ratio_z, limits, counts, n, zs, queries, part_size, float_bits(gamma),
            DIVIDES=divides, STRICT=strict, DTYPE=dtype, INT=integer, X=wide, Z=high, num_warps=VOTE_WARPS,
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
