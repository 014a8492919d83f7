"""One unlearning request, checked: what every method is given to work with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _weights
from .._columns import Column
from .._data import Source, cut
from .._trial import least_of
from .cost import Cost

Forward = Callable[[nn.Module, Any], Tensor]


def derived_seed(seed: int, purpose: int) -> int:
    """A seed for one purpose (shuffle, split, ...), so that no two purposes share a random sequence."""
    return (seed * 1_000_003 + purpose) % 2**63


def _cast(task: Task, forward: Forward) -> Forward:
    """Training passes (those with gradients, and the teacher's) under the task's autocast; logits are float32 then."""

    def cast(model: nn.Module, inputs: Any) -> Tensor:
        if task.autocast is None or not (torch.is_grad_enabled() or task.teaching):
            return forward(model, inputs)
        with torch.autocast(task.device.type, task.autocast):
            logits = forward(model, inputs)
        return logits.float()

    return cast


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
    test_kept: Source | None = None  # test data of what is to be kept: it only measures what a run costs
    held: Source | None = None  # non-members that the method doesn't train on
    original: nn.Module | None = None  # the model as given: its weights are read; it is never called, nor written
    head: str | None = None  # of a language model: the layer whose product by blocks makes the logits
    history: list[dict[str, Any]] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    precision: str = "float32"  # of training passes: see engine/precision.py
    autocast: torch.dtype | None = None  # what training passes are computed in, where it isn't the weights' own
    teaching: bool = False  # passes without gradients are the teacher's
    measuring: bool = False  # what the model answers goes into the verdict
    remark: str = ""  # what the method has to say of how it ended, for the verdict's why

    def __post_init__(self) -> None:
        self.forward = self.cost.counting(_cast(self, self.forward))

    @property
    def unseen(self) -> Source | None:
        """What forget samples are compared with: data that nothing was trained on."""
        return self.test or self.held or self.nonmember

    @property
    def unseen_kept(self) -> Source | None:
        """Unseen data of what is to be kept."""
        return self.test_kept or self.held or self.nonmember

    def generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose))

    def cut(self, order: Tensor, size: int, data: Source) -> list[Tensor]:
        """Training batches of ``size`` of the positions ``order`` in ``data``, none of one sample where batch norm can't train on that."""
        alone = len(order) % size == 1 or size == 1
        return cut(order, size, least_of(self.model, data, self.forward) if alone else 1)

    def train_mode(self) -> None:
        """The model in train mode, but for norms that are frozen in the model as given."""
        _weights.training_mode(self.model, self.model if self.original is None else self.original)

    @contextlib.contextmanager
    def looking(self, phase: str) -> Iterator[None]:
        """A look for the verdict, as a phase of the cost: NaN is no answer there, neither right nor wrong."""
        self.measuring = True
        try:
            with self.cost.phase(phase):
                yield
        finally:
            self.measuring = False

    def logits(self, source: Source) -> tuple[Tensor, Tensor]:
        """Logits float32[N, K] and labels[N] of a set, in eval mode, without gradients, on the model's device."""
        logits, labels = Column(), Column()
        for here, y in self._passed(source):
            logits.add(here.float())
            labels.add(y)
        return logits.joined(), labels.joined()

    def answers(self, source: Source) -> Tensor:
        """The model's answer for every sample of a set, in eval mode, on the CPU."""
        answers = Column()
        for here, _ in self._passed(source):
            answers.add(here.argmax(1).cpu())
        return answers.joined()

    def _passed(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels of each batch.

        Raises:
            FloatingPointError: in a look for the verdict, logits that are NaN or infinite.
        """
        first = 0
        with _weights.evaluating(self.model):
            for x, y in self.cost.reading(source.batches(device=self.device)):
                logits = self.forward(self.model, x)
                if self.measuring and not bool(torch.isfinite(logits).all()):
                    bad = first + int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
                    raise FloatingPointError(
                        f"{source.name}: the model's logits on sample {bad} aren't finite (NaN or inf); accepted are inputs and weights "
                        "that give finite ones. The given model is unchanged"
                    )
                yield logits, y
                first += len(y)

    def right(self, source: Source) -> float:
        """Share of right answers on a set."""
        return self.answers(source).eq(source.labels()).double().mean().item()

    def right_by_class(self, source: Source, classes: Iterable[int]) -> dict[int, float]:
        """Share of right answers for each class that the set holds."""
        labels = source.labels()
        right = self.answers(source).eq(labels).double()
        return {c: right[labels == c].mean().item() for c in classes if bool((labels == c).any())}
