"""What a row of requests cost the model: the share it answers right of data that was never to be forgotten.

The models compared answer the same samples, so the error of a difference is that of their paired answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from .._text import percent
from .._weights import device_of
from ..methods.task import Forward, Task
from ..methods.verdict import CLEAR

MORE = 0.01  # that all requests may lose beyond what the first one lost
MOST, SOME = 2_000, 71  # samples of a set to keep that are looked at, and the purpose of their seed


class RetrainWarning(UserWarning):
    """A journal's requests lost more together than they should: the model is to be trained anew."""


@dataclass(frozen=True)
class Loss:
    """What was lost since the original, in shares of ``samples`` answered right: those of ``data`` (``"test"`` or ``"retain"``) whose class
    wasn't forgotten by any request.

    Attributes:
        original, first, now: by the original, by the model after the first request, and after the last.
        error: standard error of :attr:`more`, paired by sample.
        counted: ``"samples"``; or ``"sequences"``, of which the shares are of tokens, means over sequences.
    """

    data: str
    samples: int
    original: float
    first: float
    now: float
    error: float
    counted: str = "samples"

    @property
    def lost(self) -> float:
        return self.original - self.now

    @property
    def more(self) -> float:
        """Lost beyond what the first request lost, which counts as nothing where it gained."""
        return min(self.original, self.first) - self.now

    @property
    def retrain(self) -> bool:
        """Whether more than the first request's loss and a point is lost, by more than two standard errors."""
        return self.more - MORE > CLEAR * self.error

    def receipt(self) -> dict[str, Any]:
        return {**asdict(self), "retrain": self.retrain}

    @classmethod
    def of(cls, receipt: Mapping[str, Any]) -> Loss:
        """From :meth:`receipt`."""
        return cls(**{name: receipt[name] for name in cls.__dataclass_fields__ if name in receipt})

    def __str__(self) -> str:
        tokens = "the tokens of " if self.counted == "sequences" else ""
        first, more = 100 * (self.original - self.first), 100 * self.more
        text = (
            f"of {tokens}{self.samples} {self.data} {self.counted} {percent(self.now)} are answered right, {percent(self.original)} by the "
            f"original: {100 * self.lost:.1f} points lost, {first:.1f} of them by the first request; beyond that "
            f"{more:.1f} ± {100 * self.error:.1f}"
        )
        return f"{text}. RETRAIN: it is clearly more than a point" if self.retrain else text


def task_of(model: nn.Module, forward: Forward, head: str | None = None) -> Task:
    """A task that only looks at a model."""
    return Task(model, forward, [], 0, device_of(model), 0, False, None, None, None, head=head)


def loss_of(data: str, original: Tensor, first: Tensor, now: Tensor, *, counted: str = "samples") -> Loss:
    """From which samples three models answer right, bool[N] each; or of each sequence the share of its tokens, float[N].

    >>> import torch
    >>> first, now = torch.tensor([True] * 100), torch.tensor([True] * 80 + [False] * 20)
    >>> loss = loss_of("test", first, first, now)
    >>> round(loss.error, 3), loss.retrain
    (0.04, True)
    """
    n = len(now)
    before, once, last = (float(answers.double().mean()) for answers in (original, first, now))
    less = (first if once <= before else original).double() - now.double()
    return Loss(data, n, before, once, last, error=math.sqrt(float(less.var(correction=0)) / n), counted=counted)
