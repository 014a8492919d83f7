"""What a sweep trains on: everything that pushes and holds, from its first step on."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ..engine.drawn import Batch, Drawn, answers
from ..engine.terms import alike, anchor, away_from, confidence, hold, log_odds
from ..task import Task
from .images import Images
from .options import BATCHES, SweepOptions
from .rate import strength

# weights beside that of -log(1 - p): of the anchor, of the cross-entropy on data to keep, of the original's answers without the classes
HOLD, LABELS, WITHOUT = 8.0, 0.3, 0.5
# the anchor weighs so many times more where classes go and the model has memorised all it can: in batches below the largest, as in few
# small steps the push outweighed it (conv nets that had learned 300 to 1,000 samples by heart lost 1.5 points with one class and 6 with
# two, now none), and of several classes (ResNet-20 lost half a point)
TIGHTER, TIGHTER_SEVERAL = 3.0, 1.0
SOME = 8  # unseen samples, of which the original's spread can be told
# weight of the quantile term for samples, at the largest of the run's own batches; in proportion at smaller ones, whose few samples
# compare less surely (small nets with 16: 10 cost two points, 3 to 5 a half to one, and hid the samples as well)
SAMPLES_ALIKE = 10.0
# of one class's quantile term where the model has memorised nothing: without it the answers are gone, but log-odds far below zero
# still tell the class (MNIST 5k: AUC .98, retrained .78; with it .87). Of several classes it cost a point there and hid them no better
LEAST_ALIKE = 0.15
# where the model has memorised its data: of one class (1.5 cost half a point and hid no more) and of several
ONE, SEVERAL = 1.0, 2.0


class Step(NamedTuple):
    """What a step draws."""

    kept: Batch
    unseen: Batch | None
    forget: Batch | Images

    @property
    def others(self) -> list[Batch]:
        """What is held."""
        return [self.kept] if self.unseen is None else [self.kept, self.unseen]


class Objective:
    """Hold and push, with what the original model shows of their weights.

    Attributes:
        memory: what the original has memorised, see :func:`~.rate.memorised`.
        strength: the same from 0 to 1.
        tighter: so many times more the anchor weighs where the model has memorised all it can.
        held: weight of the anchor.
        alike: weight of the quantile term.
        same: classes of the unseen samples that it compares samples with; ``None``: all.
    """

    def __init__(
        self, options: SweepOptions, task: Task, kept: Drawn, unseen: Drawn | None, memory: float, batch_size: int, same: Tensor | None
    ) -> None:
        self.hold, self.task = options.hold, task
        self.classes = torch.tensor(task.classes, dtype=torch.int64, device=task.device)
        self.memory, self.strength = memory, strength(memory)
        whole, least = (ONE, LEAST_ALIKE) if len(task.classes) == 1 else (SEVERAL, 0.0)
        found = max(whole * self.strength, least) if task.classes else SAMPLES_ALIKE * min(1.0, batch_size / max(BATCHES.values()))
        self.alike = found if options.alike is None else options.alike
        self.tighter = _tighter(len(task.classes), batch_size)
        self.held = HOLD * (1 + self.tighter * self.strength)
        self.same = None if same is None else same.to(task.device)
        # the original's variance of what the quantile term compares
        if unseen is None or len(unseen.used) < SOME:
            shown = kept.logits, kept.labels().to(task.device)
        else:
            shown = self._alike(unseen.logits, unseen.labels().to(task.device))
        self._spread = self._compared(*shown).var(correction=0)

    def receipt(self) -> dict[str, float]:
        """What the model at hand decided, JSON-able."""
        return {"held": self.held, "alike": self.alike}

    def _alike(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the quantile term compares samples with."""
        if self.same is None:
            return logits, labels
        at = torch.isin(labels, self.same)
        return logits[at], labels[at]

    def _compared(self, logits: Tensor, labels: Tensor) -> Tensor:
        return log_odds(logits, self.classes) if self.task.classes else confidence(logits, labels)

    def __call__(self, step: Step) -> Tensor:
        held, push = self.parts(step)
        return held + push

    def parts(self, step: Step) -> tuple[Tensor, Tensor]:
        """What holds the model, and what pushes the forget data out of it."""
        others = step.others
        logits = step.forget.beside(others) if isinstance(step.forget, Images) else answers(self.task, [*others, step.forget])
        held = hold(self.hold, logits[0], step.kept.teacher, step.kept.labels)
        if step.unseen is not None:
            held = (held + anchor(logits[1], step.unseen.teacher)) / 2
        held = self.held * held + LABELS * F.cross_entropy(logits[0], step.kept.labels)
        return held, self._push(logits[-1], step.forget, logits[len(others) - 1], others[-1])

    def _push(self, logits: Tensor, forget: Batch | Images, others: Tensor, unseen: Batch) -> Tensor:
        """``others`` are the answers to what the forget samples are to be like."""
        if not self.task.classes:
            assert isinstance(forget, Batch)
            like = confidence(*self._alike(others, unseen.labels))
            return self.alike * alike(confidence(logits, forget.labels), like, self._spread)
        push = away_from(logits, self.classes)
        if isinstance(forget, Batch):  # what images would be without their classes, nobody knows
            push = push + WITHOUT * anchor(logits, forget.teacher)
        if self.alike:
            like = log_odds(others, self.classes)
            spread = torch.maximum(like.detach().var(correction=0), self._spread)
            push = push + self.alike * alike(log_odds(logits, self.classes), like, spread)
        return push


def _tighter(classes: int, batch_size: int) -> float:
    if not classes:
        return 0.0
    return TIGHTER if batch_size < max(BATCHES.values()) else TIGHTER_SEVERAL * (classes > 1)


def lost(task: Task, batches: list[Batch]) -> float:
    """How far the answers, in eval mode, are from the original's: KL in nats, summed over the batches."""
    with _weights.evaluating(task.model):
        return sum(float(anchor(task.forward(task.model, batch.inputs).float(), batch.teacher)) for batch in batches)


def first(data: Drawn, count: int) -> list[Batch]:
    """Its first batches."""
    return list(islice(data, count))
