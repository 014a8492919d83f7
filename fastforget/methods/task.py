"""One unlearning request, checked: what every method is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _weights
from .._columns import Column
from .._data import Source, cut
from .._trial import least_of

Forward = Callable[[nn.Module, Any], Tensor]


def derived_seed(seed: int, purpose: int) -> int:
    """A seed for one purpose (shuffle, split, ...), so that no two purposes share a random sequence."""
    return (seed * 1_000_003 + purpose) % 2**63


@dataclass
class Task:
    """Model copy, data and settings of one run; ``history`` grows while a method works."""

    model: nn.Module
    forward: Forward
    classes: list[int]
    outputs: int
    device: torch.device
    seed: int
    progress: bool
    retain: Source | None
    forget: Source | None
    test: Source | None
    nonmember: Source | None = None
    original: nn.Module | None = None  # the model as given: its weights are read; it is never called, nor written
    history: list[dict[str, Any]] = field(default_factory=list)

    def generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))

    def cut(self, order: Tensor, size: int, data: Source) -> list[Tensor]:
        """Training batches of ``size`` of the positions ``order`` in ``data``, none of one sample where batch norm can't train on that."""
        alone = len(order) % size == 1 or size == 1
        return cut(order, size, least_of(self.model, data, self.forward) if alone else 1)

    def train_mode(self) -> None:
        """The model in train mode, but for norms that are frozen in the model as given."""
        _weights.training_mode(self.model, self.original or self.model)

    def logits(self, source: Source) -> tuple[Tensor, Tensor]:
        """Logits float32[N, K] and labels[N] of a set, in eval mode, without gradients, on the model's device."""
        logits, labels = Column(), Column()
        with _weights.evaluating(self.model):
            for x, y in source.batches(device=self.device):
                logits.add(self.forward(self.model, x).float())
                labels.add(y)
        return logits.joined(), labels.joined()

    def answers(self, source: Source) -> Tensor:
        """The model's answer for every sample of a set, in eval mode, on the CPU."""
        with _weights.evaluating(self.model):
            answers = Column()
            for x, _ in source.batches(device=self.device):
                answers.add(self.forward(self.model, x).argmax(1).cpu())
            return answers.joined()

    def right(self, source: Source) -> float:
        """Share of right answers on a set."""
        return self.answers(source).eq(source.labels()).double().mean().item()

    def right_by_class(self, source: Source, classes: Iterable[int]) -> dict[int, float]:
        """Share of right answers for each class that the set holds."""
        labels = source.labels()
        right = self.answers(source).eq(labels).double()
        return {c: right[labels == c].mean().item() for c in classes if bool((labels == c).any())}
