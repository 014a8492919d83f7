"""Batches that are drawn for a whole run at once, with what the original model answers them, computed once a sample.

The *teacher's* answers hold a model where it was: the original model's own distribution over the classes, without those to forget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import _tree, _weights
from ..._columns import Column
from ..._data import Source, cut
from ..task import Task

MOSTLY = 0.75  # of a batch: few samples compare badly, and the others have to be held, too


@dataclass
class Batch:
    """Inputs, labels int64[B], and the teacher's log-probabilities float32[B, K]: minus infinity for classes that are to be forgotten."""

    inputs: Any
    labels: Tensor
    teacher: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Drawn:
    """``most`` batches of ``size`` samples of a set, every sample once before one comes again. An only sample is shown twice where batch
    norm can't train on one.

    Args:
        task: the model as it is now is the teacher.
        data: the set.
        size: samples in a batch (fewer where the set is smaller).
        most: batches.
        purpose: of the seed.
        earlier: an earlier draw from the set, whose answers of the teacher are taken over.
        mostly: samples that make three quarters of every batch, bool[N]; ``None``, or where they are as many of the set: by chance alone.
    """

    def __init__(
        self, task: Task, data: Source, size: int, most: int, purpose: int, earlier: Drawn | None = None, mostly: Tensor | None = None
    ) -> None:
        self.task, self.data = task, data
        size = min(size, len(data))
        generator = task.generator(purpose)
        self._mostly = None if mostly is None or int(mostly.sum()) >= MOSTLY * len(data) else mostly
        if self._mostly is None:
            order = _turns(torch.arange(len(data)), size * most, generator)
        else:
            some = max(1, int(MOSTLY * size))
            sides = (self._mostly, some), (~self._mostly, size - some)
            parts = [_turns(at.nonzero()[:, 0], n * most, generator).view(most, n) for at, n in sides]
            order = torch.cat(parts, dim=1).flatten()
        self.order = task.cut(order, size, data)
        self.size = len(self.order[0])
        self.used, inverse = torch.cat(self.order).unique(return_inverse=True)
        self._rows = inverse.split([len(batch) for batch in self.order])
        self.logits = self._answers(earlier)
        self._teacher = without(self.logits, task.classes)

    def _answers(self, earlier: Drawn | None) -> Tensor:
        """The teacher's logits of every sample that was drawn."""
        new = self.used if earlier is None else self.used[~torch.isin(self.used, earlier.used)]
        logits, self.task.teaching = Column(), True
        with _weights.evaluating(self.task.model), self.task.cost.phase("teacher"):
            for x, _ in self.task.cost.reading(self.data.at(cut(new, 256), device=self.task.device)):
                logits.add(self.task.forward(self.task.model, x).float())
        self.task.teaching = False
        if earlier is None:
            return logits.joined()
        known = torch.isin(earlier.used, self.used)
        parts = [earlier.logits[known.to(earlier.logits.device)], *([logits.joined()] if len(new) else [])]
        order = torch.cat([earlier.used[known], new]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]

    def __iter__(self) -> Iterator[Batch]:
        batches = self.task.cost.reading(self.data.at(self.order, device=self.task.device))
        for (inputs, labels), rows in zip(batches, self._rows, strict=True):
            yield Batch(inputs, labels, self._teacher[rows.to(self._teacher.device)])

    def labels(self) -> Tensor:
        """The labels of the samples whose :attr:`logits` are known, in their order."""
        return self.data.labels()[self.used]

    def by_chance(self) -> Tensor:
        """Rows of :attr:`logits` that hold no more of ``mostly`` than the set does, int64."""
        rows = torch.arange(len(self.used))
        if self._mostly is None:
            return rows
        more, share = self._mostly[self.used], self._mostly.double().mean().item()
        some = max(1, round(int((~more).sum()) * share / (1 - share)))
        return torch.cat([rows[~more], rows[more][:some]]).sort().values


def _turns(samples: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """So many of the samples in random order, each once before one comes again."""
    rounds = max(1, -(-wanted // len(samples)))
    return torch.cat([samples[torch.randperm(len(samples), generator=generator)] for _ in range(rounds)])[:wanted]


def without(logits: Tensor, classes: list[int]) -> Tensor:
    """Log-probabilities [B, K] of the classes that stay, renormalised; minus infinity for ``classes``."""
    if classes:
        logits = logits.index_fill(1, torch.tensor(classes, device=logits.device), -math.inf)
    return logits.log_softmax(dim=1)


def answers(task: Task, batches: list[Batch]) -> list[Tensor]:
    """The model's logits float32[B, K] of each batch: in one pass where the batches can be joined."""
    parts = [task.forward(task.model, inputs).float() for inputs in together([batch.inputs for batch in batches])]
    return list(torch.cat(parts).split([len(batch) for batch in batches]))


def together(inputs: list[Any]) -> list[Any]:
    """Batches' inputs as one batch where they can be joined, else as they are."""
    whole = joined(inputs) if len(inputs) > 1 else None
    return inputs if whole is None else [whole]


def joined(inputs: list[Any]) -> Any | None:
    """Batches' inputs as one, or ``None`` where nobody knows which rows belong to which sample, or the samples differ in shape."""
    if any(_tree.rows(part) is None for part in inputs):
        return None
    shapes = {tuple(tensor.shape[1:] for tensor in _tree.tensors(part)) for part in inputs}
    return _tree.cat(inputs) if len(shapes) == 1 else None
