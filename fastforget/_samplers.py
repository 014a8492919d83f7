"""Which samples a loader shows, and how it reads them.

A sampler is how somebody trains; a set is read once, each sample of it, or it is refused.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

REMEDY = "Pass the data set itself, or torch.utils.data.Subset(dataset, indices)"


def shown(loader: DataLoader[Any], name: str) -> Tensor | None:
    """Positions of the samples a loader shows, each once; ``None`` for all of them. A SubsetRandomSampler is a split: ignoring it would mix
    the user's sets. A random draw is no set: all samples count, or none of them could be told from another.

    Raises:
        ValueError: a sampler that leaves samples out, or shows some twice, and isn't known to be a split.
    """
    sampler: Any = loader.sampler
    size = len(loader.dataset)  # type: ignore[arg-type]
    batches = loader.batch_sampler
    if loader.batch_size is None:
        if type(batches) is not BatchSampler:
            return None if batches is None else _stable(lambda: [i for batch in batches for i in batch], batches, size, name)
        sampler = batches.sampler
    if isinstance(sampler, (SequentialSampler, RandomSampler)):
        return None
    if isinstance(sampler, WeightedRandomSampler):
        able = int((sampler.weights[:size] > 0).sum())
        if able < size:
            raise ValueError(
                f"{name}: its WeightedRandomSampler can draw {able} of the {size} samples, the others have no weight; accepted is a set "
                f"of which each sample is read once. {REMEDY}"
            )
        return None
    if isinstance(sampler, SubsetRandomSampler):
        return _distinct(list(sampler.indices), sampler, size, name)
    if isinstance(sampler, DistributedSampler):  # fills its share up with samples of the others
        return torch.tensor(list(dict.fromkeys(sampler)), dtype=torch.int64)
    return _stable(lambda: list(sampler), sampler, size, name)


def _stable(draw: Callable[[], list[int]], sampler: Any, size: int, name: str) -> Tensor | None:
    """What a sampler of unknown kind shows, if it is the same each time."""
    with _untouched(sampler):
        first = _distinct(draw(), sampler, size, name)
        second = draw()
    if sorted(second) != sorted(first.tolist()):
        raise ValueError(
            f"{name}: its {type(sampler).__name__} draws {len(first)} of the {size} samples, other ones each time; accepted is a set of "
            f"which each sample is read once. {REMEDY}"
        )
    left = size - len(first)
    if left and getattr(sampler, "drop_last", False):
        raise ValueError(f"{name}: its {type(sampler).__name__} with drop_last=True leaves {left} of the {size} samples out. {REMEDY}")
    return None if not left and second != first.tolist() else first


def _distinct(drawn: list[int], sampler: Any, size: int, name: str) -> Tensor:
    different = len(set(drawn))
    if different < len(drawn):
        raise ValueError(
            f"{name}: its {type(sampler).__name__} draws {len(drawn)} times but only {different} of the {size} samples, some of them "
            f"more than once; accepted is a set of which each sample is read once. {REMEDY}"
        )
    return torch.as_tensor(drawn, dtype=torch.int64)


@contextmanager
def _untouched(sampler: Any) -> Iterator[None]:
    """A draw on trial moves no random state: neither a global one nor the sampler's own."""
    given = [getattr(one, "generator", None) for one in (sampler, getattr(sampler, "sampler", None))]
    own = [generator for generator in given if isinstance(generator, torch.Generator)]
    states, python, numpy = [g.get_state() for g in own], random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)


def settings(loader: DataLoader[Any]) -> dict[str, Any]:
    """How the user's loader reads: torch refuses the settings of workers where there are none, and warns of pinned memory without a GPU."""
    settings: dict[str, Any] = {"num_workers": loader.num_workers, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        for name in ("prefetch_factor", "multiprocessing_context", "timeout"):
            settings[name] = getattr(loader, name)
    if loader.pin_memory and torch.cuda.is_available():
        settings["pin_memory"] = True
    return settings
