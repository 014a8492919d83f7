"""The loss attack: can samples be told from unseen ones by how well the model fits them?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _weights
from .._columns import Column
from .._data import Source
from .._labels import TOKENS
from ..ops import membership
from .task import Task

Losses = Callable[[Task, Source], Tensor]


def auc_of(members: Tensor, others: Tensor) -> tuple[float, float]:
    """AUC of the attack by these losses, and its standard error where both are alike."""
    auc = float(membership.roc_stats(-members, -others, fprs=()).auc)
    return auc, standard_error(len(members), len(others))


def standard_error(n1: int, n0: int) -> float:
    """Of an AUC over so many members and others that are alike: the Mann-Whitney statistic's, sqrt((n1 + n0 + 1) / (12 n1 n0))."""
    return math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))


def losses_of(task: Task, data: Source) -> Tensor:
    """The cross-entropy of every sample of a set, float32[N]: batch by batch, as a large set's logits may not fit in memory."""
    with _weights.evaluating(task.model):
        losses = Column()
        for x, y in task.cost.reading(data.batches(device=task.device)):
            losses.add(membership.membership_scores(task.forward(task.model, x).float(), y).loss)
        return losses.joined()


def of_same_classes(forget: Source, unseen: Source, least: int = 1) -> Tensor | None:
    """Which unseen samples are of the forget samples' classes, bool[N]: beside other classes an attack tells how hard a class is, and not
    what was seen of it. ``None`` where all are, or fewer than ``least``, or where sequences have no class."""
    if forget.samples.reading is TOKENS:
        return None
    found = torch.isin(unseen.labels(), forget.labels().unique())
    return found if least <= int(found.sum()) < len(found) else None


def comparable(forget: Source, unseen: Source) -> Source:
    """The unseen samples of the forget samples' classes, as the audit takes them; all where there is none, see :func:`of_same_classes`."""
    found = of_same_classes(forget, unseen)
    return unseen if found is None else unseen.subset(found.nonzero()[:, 0])


def attack_auc(task: Task, forget: Source, nonmember: Source, losses: Losses = losses_of) -> tuple[float, float]:
    """AUC of the loss attack that tells ``forget`` from those of ``nonmember`` that are :func:`comparable`, and its standard error where
    they are alike.

    ``losses``: (task, set) -> a loss a sample.
    """
    return auc_of(losses(task, forget), losses(task, comparable(forget, nonmember)))
