"""Masks of the weights that matter in Triton: the exact global top-k of magnitudes, and ratios of importances.

The top-k is found with no word from the device to the host. Magnitudes order as their bits do, so the k-th
largest is found digit by digit: a histogram of one digit over the whole list, then the digit in which the
k-th lies. One more pass writes the masks. Only where more magnitudes equal the k-th than may be kept, two
kernels in between rank them by position; otherwise these return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import TL_DTYPE, compute_dtype, find_tensor, float_bits, on_device, scalar, work_table

CHUNK = 2048
COUNTED = 8  # chunks of one program of the histogram
NUM_WARPS = 8
DIGIT_BITS = 11
BINS = tl.constexpr(1 << DIGIT_BITS)
SCAN = 4096
# (lowest bit, bits) of each digit. Of a widened 16-bit number the last 13 bits are zero.
DIGITS_16 = ((20, 11), (9, 11))
DIGITS_32 = (*DIGITS_16, (0, 9))
DIGITS_64 = ((52, 11), (41, 11), (30, 11), (19, 11), (8, 11), (0, 8))


@triton.jit
def keys_of(x, COMPUTE: tl.constexpr):
    """Integers that order as the magnitudes do; all NaN are one, above infinity's."""
    value = x.to(COMPUTE)
    if tl.float64 == COMPUTE:
        bits = value.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        return tl.where(bits > 0x7FF0000000000000, 0x7FF8000000000000, bits)
    else:
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        return tl.where(bits > 0x7F800000, 0x7FC00000, bits)


@triton.jit
def load_keys(x, begin, n, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    at = x.to(tl.pointer_type(DTYPE)) + begin
    lane = tl.arange(0, CHUNK)
    if ALIGNED and begin + CHUNK <= n:
        value = tl.load(tl.multiple_of(at, 16) + lane)
    else:
        value = tl.load(at + lane, mask=begin + lane < n, other=0.0)
    return keys_of(value, COMPUTE)


@triton.jit
def store_mask(mask, on, begin, n, ALIGNED: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr):
    """Stores one chunk of 0 and 1, which must be 0 beyond the tensor."""
    lane = tl.arange(0, CHUNK)
    if PACKED:
        shift = tl.arange(0, 8)[None, :]
        bits = tl.sum(tl.reshape(on, [CHUNK // 8, 8]) << shift, 1).to(tl.uint8)
        at = begin // 8 + tl.arange(0, CHUNK // 8)
        tl.store(mask + at, bits, mask=at * 8 < n)
    elif ALIGNED and begin + CHUNK <= n:
        tl.store(tl.multiple_of(mask + begin, 16) + lane, on.to(tl.uint8))
    else:
        tl.store(mask + begin + lane, on.to(tl.uint8), mask=begin + lane < n)


@triton.jit(do_not_specialize=["tensors", "steps"])
def histogram_kernel(
    table, tensors, steps, state, histogram,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, COUNTED: tl.constexpr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * (CHUNK * COUNTED)
    x = tl.load(column + tensors)
    n = tl.load(column + 3 * tensors)
    end = begin + CHUNK * COUNTED
    end = tl.where(end < n, end, n)
    above = tl.load(state)
    counts = tl.zeros([BINS], tl.int32)
    while begin < end:
        keys = load_keys(x, begin, n, DTYPE, COMPUTE, ALIGNED, CHUNK)
        inside = begin + tl.arange(0, CHUNK) < n
        if not FIRST:
            inside = inside & ((keys >> (SHIFT + BITS)) == above)
        digit = ((keys >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
        counts += tl.histogram(digit, BINS, mask=inside).to(tl.int32)
        begin += CHUNK
    tl.atomic_add(histogram + tl.arange(0, BINS), counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["k"])
def digit_kernel(
    state, histogram, threshold, k: tl.int64,
    COMPUTE: tl.constexpr, SHIFT: tl.constexpr, BITS: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """state: the digits found so far (in the end the k-th key), how many of those that share them are to be
    kept, and how many share them."""
    bin = BINS - 1 - tl.arange(0, BINS)  # from the highest
    counts = tl.load(histogram + bin)
    upto = tl.cumsum(counts, 0)
    if FIRST:
        wanted = k.to(tl.int64)
        prefix = wanted * 0
    else:
        wanted = tl.load(state + 1)
        prefix = tl.load(state)
    here = (upto >= wanted) & (upto - counts < wanted)
    key = (prefix << BITS) | tl.sum(tl.where(here, bin, 0).to(tl.int64), 0)
    before = tl.sum(tl.where(here, upto - counts, 0), 0)
    sharing = tl.sum(tl.where(here, counts, 0), 0)
    if LAST:
        key = key << SHIFT  # what was left out is zero in every key
        if tl.float64 == COMPUTE:
            tl.store(threshold, key.to(tl.float64, bitcast=True))
        else:
            tl.store(threshold, key.to(tl.int32).to(tl.float32, bitcast=True))
    # every thread has read the old state: the sums above wait for all of them
    tl.debug_barrier()
    tl.store(state, key)
    tl.store(state + 1, wanted - before)
    tl.store(state + 2, sharing)


@triton.jit(do_not_specialize=["tensors", "steps"])
def ties_kernel(
    table, tensors, steps, state, ties,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    if tl.load(state + 1) != tl.load(state + 2):
        program = tl.program_id(0).to(tl.int64)
        column = table + find_tensor(table, tensors, steps, program)
        chunk = program - tl.load(column)
        n = tl.load(column + 3 * tensors)
        begin = chunk * CHUNK
        keys = load_keys(tl.load(column + tensors), begin, n, DTYPE, COMPUTE, ALIGNED, CHUNK)
        tied = (keys == tl.load(state)) & (begin + tl.arange(0, CHUNK) < n)
        tl.store(ties + tl.load(column + 4 * tensors) + chunk, tl.sum(tied.to(tl.int32), 0).to(tl.int64))


@triton.jit(do_not_specialize=["chunks"])
def scan_kernel(state, ties, chunks, WIDTH: tl.constexpr):
    """Each chunk's count becomes the sum of those before it."""
    if tl.load(state + 1) != tl.load(state + 2):
        carried = tl.load(state) * 0
        begin = 0
        while begin < chunks:
            at = begin + tl.arange(0, WIDTH)
            counts = tl.load(ties + at, mask=at < chunks, other=0)
            tl.store(ties + at, carried + tl.cumsum(counts, 0) - counts, mask=at < chunks)
            carried += tl.sum(counts, 0)
            begin += WIDTH


@triton.jit(do_not_specialize=["tensors", "steps"])
def mask_kernel(
    table, tensors, steps, state, ties,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    chunk = program - tl.load(column)
    mask = tl.load(column + 2 * tensors).to(tl.pointer_type(tl.uint8))
    n = tl.load(column + 3 * tensors)
    begin = chunk * CHUNK
    limit = tl.load(state)
    wanted = tl.load(state + 1)
    lane = tl.arange(0, CHUNK)
    keys = load_keys(tl.load(column + tensors), begin, n, DTYPE, COMPUTE, ALIGNED, CHUNK)
    inside = begin + lane < n
    tied = ((keys == limit) & inside).to(tl.int32)
    on = tied
    if wanted != tl.load(state + 2):
        rank = tl.load(ties + tl.load(column + 4 * tensors) + chunk) + (tl.cumsum(tied, 0) - tied)
        on = tl.where(rank < wanted, tied, 0)
    on = tl.where((keys > limit) & inside, 1, on)
    store_mask(mask, on, begin, n, ALIGNED, PACKED, CHUNK)


Entries = dict[tuple[torch.dtype, bool, bool], list[tuple[int, ...]]]


def _entries(xs: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Entries, int]:
    """By dtype, alignment and packing: x, mask, size and first chunk in the whole list of each tensor; the
    number of chunks."""
    groups: Entries = {}
    first = 0
    for x, mask in zip(xs, masks, strict=True):
        n = x.numel()
        if n == 0:
            continue
        packed = mask.dtype != torch.bool
        aligned = (x.data_ptr() | (0 if packed else mask.data_ptr())) & 15 == 0
        groups.setdefault((x.dtype, aligned, packed), []).append((x.data_ptr(), mask.data_ptr(), n, first))
        first += -(-n // CHUNK)
    return groups, first


def saliency_mask(xs: Sequence[Tensor], k: int, masks: Sequence[Tensor], threshold: Tensor) -> None:
    groups, chunks = _entries(xs, masks)
    dtypes = {dtype for dtype, _, _ in groups}
    wide = threshold.dtype == torch.float64
    compute = TL_DTYPE[threshold.dtype]
    digits = DIGITS_64 if wide else DIGITS_32 if torch.float32 in dtypes else DIGITS_16
    device = threshold.device

    def each(kernel: Any, elements: int, arguments: Sequence[Tensor], flags: Callable[[bool], dict[str, Any]]) -> None:
        for (dtype, aligned, packed), entries in groups.items():
            columns = list(zip(*entries, strict=True))
            table, programs, steps = work_table(columns, [-(-n // elements) for n in columns[2]], device)
            kernel[(programs,)](
                table, len(entries), steps, *arguments, DTYPE=TL_DTYPE[dtype], COMPUTE=compute, ALIGNED=aligned,
                CHUNK=CHUNK, num_warps=NUM_WARPS, **flags(packed),
            )  # fmt: skip

    with on_device(threshold):
        if k == 0:
            threshold.fill_(torch.inf)
            # a key above all others, and nothing to rank
            state = torch.full((3,), 2**63 - 1 if wide else 2**31 - 1, dtype=torch.int64, device=device)
            ties = state
        else:
            state = torch.empty(3, dtype=torch.int64, device=device)
            ties = torch.empty(chunks, dtype=torch.int64, device=device)
            histograms = torch.zeros(len(digits), 1 << DIGIT_BITS, dtype=torch.int64, device=device)
            for round, (shift, bits) in enumerate(digits):
                digit = {"SHIFT": shift, "BITS": bits, "FIRST": round == 0}
                each(
                    histogram_kernel, CHUNK * COUNTED, (state, histograms[round]),
                    lambda _packed, digit=digit: {"COUNTED": COUNTED, **digit},
                )  # fmt: skip
                last = round + 1 == len(digits)
                digit_kernel[(1,)](
                    state, histograms[round], threshold, k, COMPUTE=compute, LAST=last, num_warps=NUM_WARPS, **digit
                )
            each(ties_kernel, CHUNK, (state, ties), lambda _packed: {})
            scan_kernel[(1,)](state, ties, chunks, WIDTH=SCAN, num_warps=NUM_WARPS)
        each(mask_kernel, CHUNK, (state, ties), lambda packed: {"PACKED": packed})


@triton.jit(do_not_specialize=["tensors", "steps", "threshold", "eps"])
def ratio_kernel(
    table, tensors, steps, threshold: tl.int64, eps: tl.int64,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, PACKED: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    begin = (program - tl.load(column)) * CHUNK
    a_at = tl.load(column + tensors).to(tl.pointer_type(DTYPE)) + begin
    b_at = tl.load(column + 2 * tensors).to(tl.pointer_type(DTYPE)) + begin
    mask = tl.load(column + 3 * tensors).to(tl.pointer_type(tl.uint8))
    n = tl.load(column + 4 * tensors)
    lane = tl.arange(0, CHUNK)
    small = scalar(eps, COMPUTE)
    limit = scalar(threshold, COMPUTE)
    # a NaN compares false: off
    if ALIGNED and begin + CHUNK <= n:
        a = tl.load(tl.multiple_of(a_at, 16) + lane).to(COMPUTE)
        b = tl.load(tl.multiple_of(b_at, 16) + lane).to(COMPUTE)
        on = (a + small >= limit * (b + small)).to(tl.int32)
    else:
        inside = begin + lane < n
        a = tl.load(a_at + lane, mask=inside, other=0.0).to(COMPUTE)
        b = tl.load(b_at + lane, mask=inside, other=0.0).to(COMPUTE)
        on = (inside & (a + small >= limit * (b + small))).to(tl.int32)
    store_mask(mask, on, begin, n, ALIGNED, PACKED, CHUNK)


def ratio_mask(
    numerators: Sequence[Tensor], denominators: Sequence[Tensor], masks: Sequence[Tensor], threshold: float, eps: float
) -> None:
    groups: Entries = {}
    for a, b, mask in zip(numerators, denominators, masks, strict=True):
        if a.numel() == 0:
            continue
        packed = mask.dtype != torch.bool
        addresses = a.data_ptr(), b.data_ptr(), mask.data_ptr()
        aligned = (addresses[0] | addresses[1] | (0 if packed else addresses[2])) & 15 == 0
        groups.setdefault((a.dtype, aligned, packed), []).append((*addresses, a.numel()))
    for (dtype, aligned, packed), entries in groups.items():
        columns = list(zip(*entries, strict=True))
        device = numerators[0].device
        with on_device(numerators[0]):
            table, programs, steps = work_table(columns, [-(-n // CHUNK) for n in columns[3]], device)
            ratio_kernel[(programs,)](
                table, len(entries), steps, float_bits(threshold), float_bits(eps), DTYPE=TL_DTYPE[dtype],
                COMPUTE=compute_dtype(dtype), ALIGNED=aligned, PACKED=packed, CHUNK=CHUNK, num_warps=NUM_WARPS,
            )  # fmt: skip
