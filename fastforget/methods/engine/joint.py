"""Several sets shuffled into one, and a share of a set: what methods train on that mix forget and retain samples in a batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ... import _tree
from ..._data import Loaded, Pair, Source
from ..task import Task


def joined(device: torch.device, *sets: Source) -> Source:
    """One set of all samples: first those of the first set, in its order, then those of the second, and so on.

    Sets that are read by the user's own function together are batched by it, so that it may pad a mixed batch. Other batches are put
    together from parts, which must fit.

    Args:
        device: where parts are put together.
        sets: one or more.
    """
    name = " and ".join(data.name for data in sets)
    first = sets[0].samples
    if isinstance(first, Loaded) and all(
        isinstance(s.samples, Loaded) and (s.samples.collate, s.samples.unpack) == (first.collate, first.unpack) for s in sets
    ):
        parts = [s.samples.dataset if s.indices is None else Subset(s.samples.dataset, s.indices.tolist()) for s in sets]  # type: ignore[union-attr]
        return Source(Loaded(name, ConcatDataset(parts), first.unpack, first.collate, first.settings), name=name)
    return Source(cast(Pair, Parts(name, device, sets)), name=name)


class Parts:
    """Samples of several sets, read from each and put in order."""

    collated = False

    def __init__(self, name: str, device: torch.device, sets: tuple[Source, ...]) -> None:
        self.name, self.device, self.sets = name, device, sets
        self.ends = list(itertools.accumulate(map(len, sets)))
        self.read_from = sets[0].read_from

    def __len__(self) -> int:
        return self.ends[-1]

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        batches = list(order)
        owners = [torch.bucketize(rows, torch.tensor(self.ends), right=True) for rows in batches]
        readers = []
        for k, (data, end) in enumerate(zip(self.sets, self.ends, strict=True)):
            wanted = [rows[own == k] - end + len(data) for rows, own in zip(batches, owners, strict=True)]
            readers.append(data.at([rows for rows in wanted if len(rows)], device=self.device))
        for own in owners:
            parts = [next(reader) for k, reader in enumerate(readers) if (own == k).any()]
            at = own.argsort(stable=True).argsort()  # where each sample of the batch stands in the parts, one after another
            yield self._in_order([inputs for inputs, _ in parts], at), torch.cat([labels for _, labels in parts])[at.to(self.device)]

    def _in_order(self, inputs: list[Any], at: Tensor) -> Any:
        try:
            return _tree.index(_tree.cat(inputs), at.to(self.device))
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"{self.name}: the method shuffles these sets into one, but their batches can't be joined ({error}); accepted are inputs "
                "of one kind and shape. Give them as data sets read by the same function, or padded to one length"
            ) from error


def in_memory(data: Source) -> bool:
    """Whether every reading of the set gives the same: nothing of it is augmented anew."""
    samples: Any = data.samples
    return all(map(in_memory, samples.sets)) if isinstance(samples, Parts) else isinstance(samples, Pair)


def share_of(task: Task, data: Source, share: float, purpose: int) -> Source:
    """So large a share of the set (at least one sample), drawn at random once; ``purpose`` of the seed."""
    return data.at_most(max(1, int(share * len(data))), task.generator(purpose))
