"""RMIA in Triton.

A pair counts where fl(x / z) >= gamma, by the division itself. rmia_counts: torch.sort, then a binary search
with that predicate. rmia_vote: the first z that no longer counts stands for the division, so a pair costs one
comparison of integers a query. Integers throughout: the order doesn't matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import device_table, divide, float_bits, on_device, scalar
from .lira_moments import TL_INT

BLOCK, WARPS = 256, 8
VOTE_X, VOTE_Z, VOTE_WARPS = 64, 64, 8  # pairs of a program at a time: 16 votes a thread
DIVIDE_X, DIVIDE_Z = 32, 32  # an exact division takes more registers than a comparison
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
