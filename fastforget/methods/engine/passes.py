"""Whole passes over a set, shuffled: the loop of the published methods, which count in epochs.

for batch in (epochs := Passes(task, "fine-tune", task.retain, 256, 10)):
    loss = F.cross_entropy(task.forward(task.model, batch.inputs), batch.labels)
    epochs.descend(optimizer, loss, len(batch))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._data import Source
from ..task import Task
from .loop import backward, descend, must_be_finite, steps
from .resume import Checkpoint

EPOCHS = 70  # purpose of the seed of the first pass's order; each further pass has the next one


@dataclass
class Shuffled:
    """One batch of a pass: inputs and labels int64[B] on the model's device, where it stands, and which samples it holds."""

    epoch: int
    number: int  # in its epoch
    step: int  # over all epochs
    inputs: Any
    labels: Tensor
    rows: Tensor  # positions in the set, int64[B], on the CPU

    def __len__(self) -> int:
        return len(self.labels)


class Passes:
    """``epochs`` passes over a set in batches of ``size``, each in an order of its own; the history gets each pass's mean loss.

    Args:
        task: whose cost is counted.
        phase: its name, in the cost and in the history.
        data: the set.
        size: samples in a batch.
        epochs: passes.
        beside: sample passes that a step takes besides its batch, for the budget.
        purpose: of the seed of the orders: two loops of one run have two.
        most: steps, where a method counts in these: the last pass may be cut short.
        first: the number of the first pass, for the history.
        checkpoint: the run goes on from its step, and is written to it.
    """

    def __init__(
        self,
        task: Task,
        phase: str,
        data: Source,
        size: int,
        epochs: int,
        *,
        beside: int = 0,
        purpose: int = EPOCHS,
        most: int | None = None,
        first: int = 1,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.task, self.phase, self.data, self.most, self.first = task, phase, data, most, first
        size = min(size, len(data))
        self.orders = [
            task.cut(torch.randperm(len(data), generator=task.generator(purpose + 1_000 * e)), size, data) for e in range(epochs)
        ]
        self.each = max((len(rows) for batches in self.orders for rows in batches), default=0) + beside
        self._sum, self._seen, self._rate, self._checkpoint = torch.zeros((), device=task.device), 0, 0.0, checkpoint

    def __len__(self) -> int:
        """Steps of all passes."""
        steps = sum(map(len, self.orders))
        return steps if self.most is None else min(steps, self.most)

    def __iter__(self) -> Iterator[Shuffled]:
        order = [(e, i, rows) for e, batches in enumerate(self.orders) for i, rows in enumerate(batches)][: self.most]
        start = 0
        if self._checkpoint is not None and (losses := self._checkpoint.restore()) is not None:
            start, (self._sum, self._seen, self._rate) = self._checkpoint.step, losses
        read = self.task.cost.reading(self.data.at([rows for _, _, rows in order[start:]], device=self.task.device))
        for step in steps(self.task, len(order), self.phase, each=self.each, first=start):
            if self._checkpoint is not None and step > start:
                self._checkpoint.write(step, (self._sum, self._seen, self._rate))
            epoch, number, rows = order[step]
            if number == 0:
                self._note(epoch - 1)
            inputs, labels = next(read)
            yield Shuffled(epoch, number, step, inputs, labels, rows)
        if order:
            self._note(order[-1][0])

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, samples: int) -> None:
        """One step of the optimiser down the loss, which is the mean over so many ``samples``."""
        self._rate = optimizer.param_groups[0]["lr"]
        descend(self.task, optimizer, loss)
        self.seen(loss, samples)

    def backward(self, loss: Tensor, samples: int) -> None:
        """The loss's gradients, for a step that is taken by the method."""
        backward(self.task, loss)
        self.seen(loss, samples)

    def seen(self, loss: Tensor, samples: int) -> None:
        """Counts a loss for the history, the mean over so many samples, of a step that the method takes by itself."""
        self._sum += loss.detach() * samples
        self._seen += samples

    def _note(self, epoch: int) -> None:
        if self._seen:
            mean = must_be_finite(self._sum / self._seen, f"{self.phase}, epoch {epoch + self.first}", self._rate, "Lower lr=")
            self.task.history.append({"phase": self.phase, "epoch": epoch + self.first, "loss": mean, "rate": self._rate})
        self._sum, self._seen = torch.zeros_like(self._sum), 0
