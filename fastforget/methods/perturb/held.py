"""What holds the model while the forget data is pushed out of it, and what the changes cost all the same.

``hold="anchor"``: on data to keep and on data never seen the model answers as the original did, by KL; classes to forget are left out of
the original's answers. ``hold="labels"``: cross-entropy on the data to keep, as the papers describe it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..engine.drawn import Batch, answers, without
from ..engine.terms import HOLDS, hold
from ..task import Task
from .match import accuracy
from .sequential import clear, mean_of, parts

KINDS = ("auto", *HOLDS)
UNSEEN = 100  # added to the purpose of the seed: the order of data never seen


def kind_of(choice: str, task: Task) -> str:
    """The hold that an option stands for: ``"auto"`` is the anchor for classes, labels for samples.

    Samples to forget are to be answered as data never seen. An anchor on that data takes away half of the ways there: it keeps more, and
    leaves samples that the attack still tells from the others.
    """
    if choice != "auto":
        return choice
    return "anchor" if task.classes else "labels"


class Teacher:
    """The model as it is now, kept to be asked what it answers."""

    def __init__(self, task: Task) -> None:
        self.task, self.model = task, _weights.working_copy(task.model)

    def answers(self, inputs: Any) -> Tensor:
        """Its logits, in eval mode."""
        with _weights.evaluating(self.model), self.task.cost.phase("teacher"):
            return self.task.forward(self.model, inputs).float()


class Stream:
    """Shuffled batches of a set without end, each pass in a new order; the teacher is asked once a sample.

    Args:
        task: the run.
        teacher: its answers are wanted; None: they aren't.
        data: the set.
        size: samples in a batch.
        purpose: of the seed.
    """

    def __init__(self, task: Task, teacher: Teacher | None, data: Source, size: int, purpose: int) -> None:
        self.task, self.teacher, self.data = task, teacher, data
        self.size, self.generator = min(size, len(data)), task.generator(purpose)
        self._answers: list[Tensor] = []  # of the first pass, in its order
        self._row = torch.full((len(data),), -1)

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        """Batches, and the teacher's logits with no class left out (none without a teacher)."""
        task = self.task
        while True:
            order = list(torch.randperm(len(self.data), generator=self.generator).split(self.size))
            batches = task.cost.reading(self.data.at(order, device=task.device))
            for (inputs, labels), positions in zip(batches, order, strict=True):
                logits = self._asked(positions, inputs)
                yield Batch(inputs, labels, without(logits, task.classes) if len(logits) else logits), logits

    def _asked(self, positions: Tensor, inputs: Any) -> Tensor:
        if self.teacher is None:
            return torch.empty(0)
        if int(self._row[positions[0]]) < 0:  # the first pass
            self._row[positions] = torch.arange(len(positions)) + sum(map(len, self._answers))
            self._answers.append(self.teacher.answers(inputs))
            return self._answers[-1]
        self._answers = [torch.cat(self._answers)]
        return self._answers[0][self._row[positions].to(self._answers[0].device)]


@dataclass
class Held:
    """One step's hold: its loss; of the first set's batch the share answered right; and the share of right answers lost since the run
    began, of the set that lost most (None: nobody asked the original)."""

    loss: Tensor
    right: float
    lost: float | None


class Hold:
    """The hold of a run, batch by batch. Without data to keep, the anchor holds by data never seen alone, and labels don't hold at all.

    Args:
        task: the run.
        kind: ``"anchor"`` or ``"labels"``.
        size: samples of each set in a step.
        purpose: of the seed.
    """

    def __init__(self, task: Task, kind: str, size: int, purpose: int) -> None:
        self.task, self.kind, self.teacher = task, kind, Teacher(task)
        asked = self.teacher if kind == "anchor" else None
        sets = [(task.retain, purpose), (task.nonmember if kind == "anchor" else None, purpose + UNSEEN)]
        streams = [Stream(task, asked, data, size, seed) for data, seed in sets if data is not None]
        self.batches = [iter(stream) for stream in streams]
        samples = sum(stream.size for stream in streams)
        self.each = samples - (-samples // 3 if asked else 0)  # sample passes of a step, at most

    def step(self) -> Held:
        """The next batches' loss."""
        drawn = [next(batches) for batches in self.batches]
        logits = answers(self.task, [batch for batch, _ in drawn])
        losses = [hold(self.kind, z, batch.teacher, batch.labels) for z, (batch, _) in zip(logits, drawn, strict=True)]
        right = [accuracy(z.detach(), batch.labels) for z, (batch, _) in zip(logits, drawn, strict=True)]
        lost = [accuracy(before, batch.labels) - now for now, (batch, before) in zip(right, drawn, strict=True) if len(before)]
        return Held(torch.stack(losses).mean(), right[0], max(lost, default=None))


class Kept:
    """What the changes cost: the hold's loss and the right answers that were lost, on samples that the run is looked at by.

    The loss is that of the first part, the same in every look; how many answers are lost is looked at until it is clearly more or less
    than a limit, or all samples have been looked at.
    """

    def __init__(self, hold: Hold, data: Source, most: int, purpose: int) -> None:
        self.hold, self.data = hold, data
        self.parts = parts(hold.task, len(data), most, purpose)
        self.least = len(self.parts[0])  # samples of a look
        self._before: list[Tensor] = []

    def look(self, limit: float) -> tuple[float, float]:
        """Mean loss, and the share of right answers that were lost: compared with ``limit``."""
        task, loss, lost = self.hold.task, math.nan, torch.empty(0)
        with task.cost.phase("looks"):
            for number, part in enumerate(self.parts):
                if number and (clear(*mean_of(lost), limit) or task.cost.left() < len(part)):
                    break
                ((inputs, labels),) = task.cost.reading(self.data.at([part], device=task.device))
                with _weights.evaluating(task.model):
                    logits = task.forward(task.model, inputs).float()
                if number == len(self._before):
                    self._before.append(self.hold.teacher.answers(inputs))
                before = self._before[number]
                if number == 0:
                    loss = float(hold(self.hold.kind, logits, without(before, task.classes), labels))
                change = before.argmax(dim=1).eq(labels).float() - logits.argmax(dim=1).eq(labels).float()
                lost = torch.cat((lost, change.cpu()))
        return loss, float(lost.mean())
