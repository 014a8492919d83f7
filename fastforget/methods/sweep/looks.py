"""What a sweep's looks see: whether what was to go is gone, and what that cost of the answers on unseen data."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from ..._data import Source
from ...ops import membership
from ..attack import auc_of, of_same_classes
from ..cost import FORWARD
from ..engine.drawn import Drawn
from ..task import Task

LOOK_ORDER = 64  # purpose of a seed
LOOK = 512  # samples of the forget set in a look, at most
OTHERS = 256  # unseen samples of the classes to keep in it, at most, where classes go
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
MARGIN = 1.0  # standard errors that the loss attack's AUC may be from a half
LOST = 0.01  # of the unseen samples answered right, a sweep may cost, and what chance explains


class Looked(TypedDict, total=False):
    """What a sweep ended with: what is still known, and whether it is gone (None: there are no samples to look at)."""

    rate: float
    known: float
    gone: bool | None
    right: float  # share of unseen samples answered right, of the classes to keep
    costly: bool  # the sweep cost more of those than chance explains
    undone: bool  # it did, and was undone
    too_far: bool  # samples are fitted worse than unseen ones
    part: float  # of the way of the last sweep that was kept


def some_to_forget(task: Task) -> Source | None:
    """What a look takes of the forget set. Of several classes as many each, where they have them: all must be gone, the rarest too."""
    data, generator = task.forget, task.generator(LOOK_ORDER)
    if data is None or len(data) <= LOOK or len(task.classes) < 2:
        return None if data is None else data.at_most(LOOK, generator)
    order = torch.randperm(len(data), generator=generator)
    labels, turn = data.labels()[order], torch.empty_like(order)
    for c in task.classes:
        turn[labels == c] = torch.arange(int((labels == c).sum()))
    return data.subset(order[turn.argsort(stable=True)[:LOOK]].sort().values)


class Looks:
    """Looks at the model, on the same samples each time.

    Attributes:
        costs: sample passes of one, at most.
        right: which unseen samples the original answers right, bool[N]; none until they are known.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.forget = some_to_forget(task)
        self.others: Source | None = None if task.classes else task.held  # see :meth:`keep`
        of_others = len(self.others or ()) if not task.classes else min(OTHERS, len(task.nonmember or ()))
        self.costs = -(-(len(self.forget or ()) + of_others) // FORWARD)
        self.right = self._now = torch.zeros(0, dtype=torch.bool)
        self._same = None if self.others is None or self.forget is None else of_same_classes(self.forget, self.others)

    def first(self, unseen: Drawn | None) -> None:
        """What the original answers right, before the first sweep: of samples held back, or, where classes go, of some of the unseen
        samples that the sweep holds it by, whose answers are known."""
        if not self.task.classes:
            self.take()
            self.right = self._now
        elif unseen is not None:
            # these are of the classes to keep: the request left the others out
            there = torch.randperm(len(unseen.used), generator=self.task.generator(LOOK_ORDER))[:OTHERS].sort().values
            self.others = unseen.data.subset(unseen.used[there])
            self.right = unseen.logits.argmax(1).cpu()[there] == unseen.labels()[there]

    def take(self) -> Looked:
        """One look at the model as it is."""
        task = self.task
        with task.cost.phase("looks"):
            if not task.classes:
                assert self.others is not None and self.forget is not None
                others, wanted = task.logits(self.others), task.logits(self.forget)
                self._now = self._right(others)
                own, unseen = (membership.membership_scores(*answers).loss for answers in (wanted, others))
                auc, error = auc_of(own, unseen if self._same is None else unseen[self._same.to(unseen.device)])
                seen: Looked = {"known": auc, "gone": abs(auc - 0.5) <= MARGIN * error, "too_far": auc < 0.5 - MARGIN * error}
            elif self.forget is not None:
                known = max(task.right_by_class(self.forget, task.classes).values())
                seen = {"known": known, "gone": known <= GONE}
            else:
                seen = {"gone": None}
            if task.classes and self.others is not None:
                self._now = self._right(task.logits(self.others))
        if len(self._now):
            seen["right"] = self._now.double().mean().item()
            if self._costly():
                seen["costly"] = True
        return seen

    def _right(self, answers: tuple[Tensor, Tensor]) -> Tensor:
        return answers[0].argmax(1).eq(answers[1]).cpu()

    def _costly(self) -> bool:
        """Whether more is lost of what the original answers right than chance explains. The samples are the same, so chance is in those
        alone of which one of both answers is right (McNemar, Psychometrika 1947)."""
        if not len(self.right):
            return False
        lost, won = int((self.right & ~self._now).sum()), int((~self.right & self._now).sum())
        return lost - won > LOST * len(self.right) + MARGIN * math.sqrt(lost + won)
