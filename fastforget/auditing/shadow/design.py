"""Who trains on what: the balanced in/out design, seeds, and samples known by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..._data import Loaded, Pair, Source
from ..._hashes import set_hashes
from ..._random import own_randomness

TRIED = 8  # samples that show whether a set augments at random


def derived_seed(seed: int, *what: int | str) -> int:
    """A seed of 31 bits (numpy takes no longer ones) for one purpose of one model: a hash, so that neighbours have nothing in common."""
    text = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def model_seed(seed: int, index: int) -> int:
    return derived_seed(seed, "model", index)


def membership(n: int, samples: int, seed: int) -> Tensor:
    """bool[n, samples]: model m is trained on sample i.

    Models come in pairs: one gets a random half of the samples, the other the rest. So each sample is IN exactly half of the models (one
    more or less than half of an odd n), each model has half of the samples, and the first models stay the same when n grows.

    >>> member = membership(4, 6, seed=0)
    >>> member.sum(0).tolist(), member.sum(1).tolist()
    ([2, 2, 2, 2, 2, 2], [3, 3, 3, 3])
    """
    member = torch.zeros((n, samples), dtype=torch.bool)
    for pair in range(-(-n // 2)):
        generator = torch.Generator().manual_seed(derived_seed(seed, "pair", pair))
        order = torch.randperm(samples, generator=generator)
        member[2 * pair, order[: samples // 2]] = True
        if 2 * pair + 1 < n:
            member[2 * pair + 1] = ~member[2 * pair]
    return member


def half_to_forget(member: Tensor, candidates: Tensor, seed: int, index: int) -> Tensor:
    """bool[N]: a random half (rounded up) of the model's own samples among the candidates (bool[N])."""
    own = (member & candidates).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(derived_seed(seed, "forget", index))
    chosen = own[torch.randperm(len(own), generator=generator)[: -(-len(own) // 2)]]
    return torch.zeros_like(member).index_fill_(0, chosen, True)


def digests(hashes: Iterable[bytes]) -> Tensor:
    """uint8[N, 16]: the first half of each sample's hash (:func:`fastforget._hashes.sample_hashes`)."""
    joined = b"".join(digest[:16] for digest in hashes)
    return torch.from_numpy(np.frombuffer(joined, np.uint8).reshape(-1, 16).copy())


def augments(source: Source) -> bool:
    """Whether a data set gives other samples each time it is read, tried with its first few."""
    if isinstance(source.samples, Pair):
        return False
    # in this process, where random states move from one read to the next
    own = Loaded(source.name, source.samples.dataset, source.samples.unpack, source.samples.collate, reading=source.samples.reading)
    few = Source(own, name=source.name, indices=source.indices).subset(torch.arange(min(TRIED, len(source))))
    reads = []
    for seed in (0, 1):
        with own_randomness(seed):
            reads.append(list(set_hashes(few)))
    return reads[0] != reads[1]


def positions_of(samples: Tensor, pool: Tensor) -> tuple[Tensor, list[int]]:
    """Where samples stand in a pool, both known by their digests.

    Returns:
        int64 positions of the samples that are in the pool, where equal samples get different positions while the pool has as many; and
        the numbers of the samples that are not.
    """
    places: dict[bytes, list[int]] = {}
    for at, digest in enumerate(pool.numpy()):
        places.setdefault(digest.tobytes(), []).append(at)
    used: dict[bytes, int] = {}
    positions, missing = [], []
    for number, digest in enumerate(samples.numpy()):
        key = digest.tobytes()
        if key not in places:
            missing.append(number)
            continue
        nth = used[key] = used.get(key, -1) + 1
        positions.append(places[key][nth % len(places[key])])
    return torch.tensor(positions, dtype=torch.int64), missing
