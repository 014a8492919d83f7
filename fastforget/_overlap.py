"""Does the forget set share samples with data to keep, or with data that is said to be unseen?

A shared sample is one with the same content (same bytes, dtype and shape) and the same label; a shared sequence is one with the same scored
tokens, however it is padded. Real data holds genuine duplicates (twins): two people with the same record, a text sent twice. So a count
alone is no mistake of the user; the rule is in :func:`allowed`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._data import Loaded, Pair, Source, unwrap_subsets
from ._hashes import set_hashes
from ._labels import IGNORED, TOKENS

READ_LIMIT = 20_000  # samples of a Dataset that are read one by one for this; tensors are always compared
SHARE = 0.01  # of the forget set may be shared without a question
ERRORS = 2  # and as many standard errors of a count more, as a few twins more or less are chance
CONTENTS, TOKEN_BY_TOKEN = BY_CONTENTS = "contents", "scored tokens"  # what samples and sequences are compared by
WHY = {
    "retain": "training on them would keep",
    "nonmember": "they are not unseen, and would be the model for",
    "test": "they are not unseen, and would hide",
}
_ROWS = 1024  # at a time: bounds the memory of a fingerprint
_WORDS = 2**16  # at a time: what is computed with them stays in the cache
_LOWER = 2**32 - 1
_MIX = -7046029254386353131  # 2**64 / golden ratio, as a signed number: spreads the labels' bits


@dataclass
class Shared:
    """How many forget samples another set holds as well, how many are allowed, and by what they were compared."""

    count: int
    allowed: float
    compared_by: str  # "contents", "scored tokens", "indices" or "not checked: why"

    def receipt(self) -> dict[str, Any]:
        counts = {} if self.compared_by.startswith("not") else {"shared": self.count, "allowed": self.allowed}
        return {"how": self.compared_by, **counts}


def check(forget: Source, others: list[Source]) -> dict[str, Any]:
    """Refuses a forget set that shares more samples with one of the others than twins explain; returns the counts for the receipt.

    Raises:
        ValueError: it does; the other set is named, and both counts.
    """
    counts, mine = {}, _Numbers(forget)
    for other in others:
        shared = _compare(mine, other)
        if shared.count > shared.allowed:
            raise ValueError(
                f"forget: {shared.count} of its {len(forget)} samples are in {other.name} too (same {shared.compared_by}, "
                f"{shared.allowed:.1f} accepted): {WHY[other.name]} what is to be forgotten. Take them out of {other.name}, or pass "
                "check_overlap=False if they are different samples that look the same"
            )
        counts[other.name] = shared.receipt()
    return counts


def compare(forget: Source, other: Source) -> Shared:
    """Indices where both are parts of one data set, contents where they can be read; in either case forget samples are counted."""
    return _compare(_Numbers(forget), other)


class _Numbers:
    """A set's samples as numbers, read at most once however many sets it is compared with."""

    def __init__(self, data: Source) -> None:
        self.data = data

    @functools.cached_property
    def fingerprints(self) -> Tensor | None:
        return fingerprints(self.data)

    @functools.cached_property
    def hashes(self) -> Tensor:
        """int64[N]: the first eight bytes of each sample's hash, which is the same for any batching."""
        return _numbers(set_hashes(self.data))

    @functools.cached_property
    def tokens(self) -> Tensor:
        """int64[N]: a number for the scored tokens of each sequence that has any, in their order. Padding has none, nor has the first
        token, which nothing answers."""
        found = (row[row != IGNORED] for _, labels in self.data.batches() for row in labels[:, 1:].cpu())
        return _numbers(hashlib.sha256(tokens.numpy().tobytes()).digest() for tokens in found if len(tokens))


def _compare(mine: _Numbers, other: Source) -> Shared:
    forget, others = mine.data, _Numbers(other)
    (forget_base, forget_indices), (other_base, other_indices) = _base(forget), _base(other)
    if forget_base == other_base:
        return Shared(int(torch.isin(forget_indices, other_indices).sum()), 0.0, "indices")  # the same index is never a twin
    size = sum(len(data) for data in (forget, other) if not isinstance(data.samples, Pair))
    if size > READ_LIMIT:
        return Shared(0, 0.0, f"not checked: {size} samples would be read one by one (at most {READ_LIMIT})")
    if forget.samples.reading is TOKENS:
        forget_prints, other_prints, compared_by = mine.tokens, others.tokens, TOKEN_BY_TOKEN
    else:
        try:
            (forget_prints, other_prints), compared_by = _by_contents(mine, others), CONTENTS
        except TypeError as error:
            return Shared(0, 0.0, f"not checked: {error}")
    count = int(torch.isin(forget_prints, other_prints).sum())
    return Shared(count, allowed(len(forget), twins(other_prints) if count else 0.0), compared_by)


def allowed(n: int, share: float) -> float:
    """1 % of the ``n`` forget samples, and twice as many as would have a twin in the other set if that were as likely as within it
    (``share``: see :func:`twins`); and two standard errors of a count (Poisson's) with this mean."""
    expected = (SHARE + 2 * share) * n
    return expected + ERRORS * math.sqrt(expected)


def twins(prints: Tensor) -> float:
    """The share of a set's samples that have a twin within it."""
    _, counts = prints.unique(return_counts=True)
    return float(counts[counts > 1].sum()) / len(prints)


def _base(data: Source) -> tuple[tuple[Any, ...], Tensor]:
    """What a set is a part of, and which part: tensors by where they lie in memory, data sets by identity."""
    indices = torch.arange(len(data)) if data.indices is None else data.indices
    if isinstance(data.samples, Pair):
        x = data.samples.inputs
        return (x.data_ptr(), x.shape, x.stride(), x.device, data.samples.labels.data_ptr()), indices
    whole, shown = unwrap_subsets(data.samples.dataset)
    return (id(whole),), indices if shown is None else shown[indices]


def fingerprints(data: Source) -> Tensor | None:
    """int64[N]: one number a sample, from the bytes of its inputs and its label; ``None`` where inputs aren't tensors of one shape, or
    where the user's own function makes the batches, so that a sample's shape may depend on its batch.

    The upper halves of two sums of 32-bit words times random 64-bit numbers, modulo 2**64 (multilinear hashing: Lemire and Kaser, The
    Computer Journal 57 (2014), section 3). Whatever the two samples are, they agree by chance at most once in 2**62 draws of these numbers.
    """
    if isinstance(data.samples, Loaded) and data.samples.collated:
        return None
    out, keys, like = [], torch.empty((2, 0), dtype=torch.int64), None
    # of a set that is read sample by sample no more is held than its own batches
    order = torch.arange(len(data)).split(_ROWS if isinstance(data.samples, Pair) else min(_ROWS, data.batch_size))
    for inputs, labels in data.at(order):
        if not isinstance(inputs, Tensor) or like not in (None, (inputs.dtype, inputs.shape[1:])):
            return None
        like = inputs.dtype, inputs.shape[1:]
        words = _words(inputs)
        if keys.shape[1] != words.shape[1]:
            keys = torch.randint(-(2**63), 2**63 - 1, (2, words.shape[1]), generator=torch.Generator().manual_seed(0))
        some = max(1, _WORDS // max(1, words.shape[1]))
        for block, their in zip(words.split(some), labels.cpu().split(some), strict=True):
            first, second = ((block.long() * key).sum(dim=1) for key in keys)
            out.append((first & ~_LOWER | second >> 32 & _LOWER) + their * _MIX)
    return torch.cat(out)


def _by_contents(mine: _Numbers, others: _Numbers) -> tuple[Tensor, Tensor]:
    """A number for each sample of both sets.

    Raises:
        TypeError: a sample has no bytes to be read.
    """
    if mine.fingerprints is None or others.fingerprints is None:
        return mine.hashes, others.hashes
    return mine.fingerprints, others.fingerprints


def _numbers(hashes: Iterable[bytes]) -> Tensor:
    """int64[N]: the first eight bytes of each."""
    return torch.from_numpy(np.frombuffer(b"".join(one[:8] for one in hashes), np.int64).copy())


def _words(x: Tensor) -> Tensor:
    """The bytes of each sample as 32-bit words [B, words], the last one filled up with zeros."""
    raw = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8)
    short = -raw.shape[1] % 4
    return (torch.nn.functional.pad(raw, (0, short)) if short else raw).view(torch.int32)
