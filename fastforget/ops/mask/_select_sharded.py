"""How many of a rank's magnitudes are among the ``k`` largest of all ranks.

The order is by magnitude, and among equals by place in the list and in the whole tensor. On one rank it is the order of its own parts,
so what is chosen there are the first of them: a count is all that a rank needs to know.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._dtensors import Box
from ...reference.update import compute_dtype
from .._sharded import Parts

_BITS = 16  # of a key at a time: 65,536 bins go over the wire
_CHUNK = 1 << 20


def select(parts: Parts, k: int) -> tuple[int, Tensor]:
    """How many of the rank's elements are chosen, and the smallest chosen magnitude (infinity if none is)."""
    wide = any(t.dtype == torch.float64 for t in parts.given)
    dtype = compute_dtype(torch.float64 if wide else torch.float32)
    device = parts.local[0].device
    if k == 0:
        return 0, torch.full((), torch.inf, dtype=dtype, device=device)
    key, equal = _kth_largest(parts, k, dtype, device)
    floats = torch.tensor(key, dtype=torch.int64 if wide else torch.int32, device=device).view(dtype)
    above = [0] * len(parts.local)
    ties = [0] * len(parts.local)
    for i, t in enumerate(parts.local):
        for keys, _ in _keys(t, dtype):
            above[i] += int((keys > key).sum())
            ties[i] += int((keys == key).sum())
    return sum(above) + _first_ties(parts, ties, key, equal, dtype), floats


def _keys(x: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, int]]:
    """Magnitudes as integers of the same order, a stretch at a time with where it begins: NaN, whatever its bits, above infinity."""
    flat = x.detach().reshape(-1)
    for at in range(0, flat.numel(), _CHUNK):
        magnitudes = flat[at : at + _CHUNK].to(dtype).abs()
        magnitudes = torch.where(magnitudes.isnan(), torch.full_like(magnitudes, torch.nan), magnitudes)
        yield magnitudes.view(torch.int64 if dtype == torch.float64 else torch.int32).to(torch.int64), at


def _kth_largest(parts: Parts, k: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int]:
    """The key of rank ``k``, and how many with this key are chosen: a histogram of the next bits in each round, summed over the ranks."""
    own, _ = parts.counted()
    width = 64 if dtype == torch.float64 else 32
    prefix, left = 0, k
    for shift in range(width - _BITS, -1, -_BITS):
        bins = torch.zeros(1 << _BITS, dtype=torch.int64, device=device)
        for i in own:
            for keys, _ in _keys(parts.local[i], dtype):
                if shift + _BITS < width:
                    keys = keys[keys >> (shift + _BITS) == prefix]
                bins += torch.bincount((keys >> shift) & ((1 << _BITS) - 1), minlength=1 << _BITS)
        from_top = parts.total(bins).flip(0).cumsum(0)
        at = int(torch.searchsorted(from_top, left))
        left -= int(from_top[at - 1]) if at else 0
        prefix = (prefix << _BITS) | ((1 << _BITS) - 1 - at)
    return prefix, left


def _first_ties(parts: Parts, ties: list[int], key: int, wanted: int, dtype: torch.dtype) -> int:
    """How many of the rank's elements with this key are among the first ``wanted`` of all ranks: the place of the last is bisected."""
    own, _ = parts.counted()
    device = parts.local[0].device
    counts = torch.zeros(len(ties), dtype=torch.int64, device=device)
    counts[own] = torch.tensor([ties[i] for i in own], dtype=torch.int64, device=device)
    each = parts.total(counts).tolist()
    chosen = 0
    for i, (count, here) in enumerate(zip(each, ties, strict=True)):
        if wanted == 0:
            break
        if count <= wanted:
            chosen, wanted = chosen + here, wanted - count
            continue
        places = _places(parts.local[i], parts.box[i], key, dtype)
        counts_here = i in own
        low, high = 0, parts.given[i].numel()  # the least place before which `wanted` of them lie is one of these
        while low < high:
            middle = (low + high) // 2
            before = torch.searchsorted(places, middle)
            found = int(parts.total(before.clone() if counts_here else torch.zeros_like(before)))
            low, high = (low, middle) if found >= wanted else (middle + 1, high)
        return chosen + int(torch.searchsorted(places, high))
    return chosen


def _places(part: Tensor, box: Box, key: int, dtype: torch.dtype) -> Tensor:
    """Where in the whole tensor the part's elements with this key are, ascending."""
    flat = torch.cat([(keys == key).nonzero()[:, 0] + at for keys, at in _keys(part, dtype)] or [torch.zeros(0, dtype=torch.int64)])
    flat = flat.to(part.device)
    place, stride, rest = torch.zeros_like(flat), 1, flat
    for size, begin, whole in zip(reversed(box.size), reversed(box.begin), reversed(box.whole), strict=True):
        place += (rest % max(size, 1) + begin) * stride
        rest, stride = rest // max(size, 1), stride * whole
    return place
