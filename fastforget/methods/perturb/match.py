"""How the model answers data it never saw, and how far its answers on the forget data are from that.

Forsaken (Liu et al., arXiv 2003.10933) and Lightweight (Chen et al., arXiv 2111.05528, and its 2025 successor) both push the model's
output distribution on the forget data towards its output distribution on non-member data. Neither text is fully public; what is our
reading is marked in the two methods.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops import membership
from ..attack import auc_of, standard_error
from ..cost import FORWARD
from ..engine.terms import confidence
from ..task import Task
from .sequential import FIRST, clear, parts

REFERENCES = ("by_class", "mean", "confidence", "uniform")
DIVERGENCES = ("P||V", "V||P", "JS")
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
FIRST_SAMPLES = 512  # of a look's first part where samples are to be forgotten: the target is made of as many non-members' answers
_SMALL = 1e-12  # keeps the logarithm of an unused class finite


@dataclass
class Target:
    """What the model's answers on the forget data should be like.

    ``table`` float32[K, K]: row c is the distribution that samples labelled c should be answered with on average. ``confidence``: sorted
    logit-scaled confidences of the non-members, for samples (None for whole classes, which the non-members don't hold).
    """

    table: Tensor
    confidence: Tensor | None
    divergence: str

    def distance(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The objective, differentiable: each class's divergence from its row, weighted by the class's share of the samples; and, for
        samples, how far the confidences are from the non-members' quantile by quantile (squared, in units of their variance), for
        classes, the mean of -log(1 - p), p being the probability of the classes to forget."""
        v, share = mean_posteriors(logits, labels, len(self.table))
        rows = share > 0
        total = (share[rows] * divergence(self.table[rows], v[rows], self.divergence)).sum()
        if self.confidence is None:
            # a mean can't see the last few samples that are still answered right
            kept = logits.masked_fill(self.table.sum(dim=0) == 0, -math.inf)
            return total + (logits.logsumexp(dim=1) - kept.logsumexp(dim=1)).mean()
        own = confidence(logits, labels).sort().values
        like = torch.quantile(self.confidence, (torch.arange(len(own), device=own.device, dtype=own.dtype) + 0.5) / len(own))
        return total + (own - like).square().mean() / self.confidence.var().clamp_min(_SMALL)


def target(task: Task, kind: str, divergence: str, answered: tuple[Tensor, Tensor] | None = None) -> Target:
    """How the model as it is answers the non-members (``answered``: their logits and labels, where they are known already).

    ``by_class``: row c is the mean posterior of the non-members labelled c; of all of them where none is. ``mean``: of all, for every c.
    ``confidence``: the one public re-implementation's: per class the mean largest logit, as shares. ``uniform``: 1 / K.
    """
    assert task.nonmember is not None
    logits, labels = answered or task.logits(task.nonmember)
    table = _table(task.outputs, kind, logits, labels)
    if not task.classes:
        return Target(table, confidence(logits, labels).sort().values, divergence)
    # a model that never saw the classes wouldn't answer with them, not even by mistake as this one does
    table[:, task.classes] = 0.0
    return Target(table / table.sum(dim=1, keepdim=True).clamp_min(_SMALL), None, divergence)


@dataclass
class Look:
    """What the model answers at one moment: logits and labels of the first forget samples (the same in every look, so that distances
    can be compared), the target they are compared with, what is still known (of the worst class, the share still answered right; for
    samples, the loss attack's AUC), and whether that makes the data unknown."""

    logits: Tensor
    labels: Tensor
    target: Target
    known: float
    unknown: bool

    @property
    def distance(self) -> float:
        return float(self.target.distance(self.logits, self.labels))


class Evidence:
    """The samples that decide, and what the model answers them. One look is a pass over at most ``most`` forget samples; where samples
    are to be forgotten, also over as many non-members: what the changes do to data never seen is part of the comparison, as the attacker
    sees the same model. Where whole classes are, the target stays what the original model answers.

    A look ends as soon as it decides: once more samples of a class are answered right than may be of all; for samples, once the attack's
    AUC is clearly above or below its limit.

    Args:
        task: the run.
        most: samples of each set, at most.
        margin: how many standard errors above a half the loss attack's AUC may be for samples to count as unknown.
        kind, divergence: of the target.
        purpose: of the seed.
        whole: looks take all samples at once: where the distance itself is what is looked for.
    """

    def __init__(self, task: Task, most: int, margin: float, kind: str, divergence: str, purpose: int, whole: bool = False) -> None:
        assert task.forget is not None and task.nonmember is not None
        self.task, self.most, self.margin, self.kind, self.divergence = task, most, margin, kind, divergence
        first = most if whole else FIRST if task.classes else FIRST_SAMPLES
        self.forget = [task.forget.subset(part) for part in parts(task, len(task.forget), most, purpose, first)]
        self.others = [task.nonmember.subset(part) for part in parts(task, len(task.nonmember), most, purpose, first)]

    @functools.cached_property
    def target(self) -> Target:
        """How the model answered the non-members when it was first looked at."""
        return target(self.task, self.kind, self.divergence, _joined([self.task.logits(part) for part in self.others]))

    @property
    def least(self) -> int:
        """Samples that a look takes at least."""
        return len(self.forget[0]) + (0 if self.task.classes else len(self.others[0]))

    @property
    def others_passes(self) -> int:
        """Sample passes that the target takes."""
        return -(-sum(map(len, self.others)) // FORWARD)

    def look(self) -> Look:
        """One look at the model as it is."""
        with self.task.cost.phase("looks"):
            return self._classes() if self.task.classes else self._samples()

    def _classes(self) -> Look:
        total = torch.bincount(torch.cat([part.labels() for part in self.forget]), minlength=self.task.outputs)
        right, seen = torch.zeros_like(total), torch.zeros_like(total)
        first: tuple[Tensor, Tensor] | None = None
        for part in self.forget:
            # as many right answers as this: whatever the others are, the class isn't gone
            if first is not None and (bool((right > GONE * total).any()) or self.task.cost.left() < len(part)):
                break
            logits, labels = self.task.logits(part)
            first = first or (logits, labels)
            seen += torch.bincount(labels.cpu(), minlength=len(seen))
            right += torch.bincount(labels[logits.argmax(dim=1).eq(labels)].cpu(), minlength=len(seen))
        assert first is not None
        known = float((right[seen > 0] / seen[seen > 0]).max())
        return Look(*first, self.target, known, not bool((right > GONE * total).any()) and bool(seen.eq(total).all()))

    def _samples(self) -> Look:
        own: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        auc, error = 0.5, 0.0
        n1, n0 = (sum(map(len, sets)) for sets in (self.forget, self.others))
        limit = 0.5 + self.margin * standard_error(n1, n0)
        for more, unseen in itertools.zip_longest(self.forget, self.others):
            size = sum(len(part) for part in (more, unseen) if part is not None)
            if own and (clear(auc, error, limit) or self.task.cost.left() < size):
                break
            own += [self.task.logits(more)] if more is not None else []
            others += [self.task.logits(unseen)] if unseen is not None else []
            losses = [membership.membership_scores(*_joined(answers)).loss for answers in (own, others)]
            auc, error = auc_of(*losses)
        return Look(*own[0], target(self.task, self.kind, self.divergence, _joined(others)), auc, auc <= limit)


def _joined(answers: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits and labels of parts, as one."""
    logits, labels = zip(*answers, strict=True)
    return torch.cat(logits), torch.cat(labels)


def _table(classes: int, kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    if kind == "uniform":
        return torch.full((classes, classes), 1.0 / classes, dtype=logits.dtype, device=logits.device)
    if kind == "confidence":
        total = torch.zeros(classes, dtype=logits.dtype, device=logits.device).index_add_(0, labels, logits.amax(dim=1))
        mean = (total / torch.bincount(labels, minlength=classes).clamp_min(1)).clamp_min(0)
        return (mean / mean.sum().clamp_min(_SMALL)).expand(classes, classes).clone()
    posterior = logits.softmax(dim=1)
    table = posterior.mean(dim=0).expand(classes, classes).clone()
    if kind == "by_class":
        for c in labels.unique().tolist():
            table[c] = posterior[labels == c].mean(dim=0)
    return table


def mean_posteriors(logits: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """V float32[K, K], the mean posterior of the samples of each class, and each class's share of the samples [K]."""
    count = torch.bincount(labels, minlength=classes).to(logits.dtype)
    total = torch.zeros(classes, classes, dtype=logits.dtype, device=logits.device).index_add_(0, labels, logits.softmax(dim=1))
    return total / count.clamp_min(1)[:, None], count / count.sum().clamp_min(1)


def divergence(p: Tensor, v: Tensor, kind: str) -> Tensor:
    """D(P_c, V_c) in nats for each row."""
    p, v = p.clamp_min(_SMALL), v.clamp_min(_SMALL)
    if kind == "P||V":
        return (p * (p / v).log()).sum(dim=-1)
    if kind == "V||P":
        return (v * (v / p).log()).sum(dim=-1)
    m = (p + v) / 2
    return 0.5 * ((p * (p / m).log()).sum(dim=-1) + (v * (v / m).log()).sum(dim=-1))


def forget_batch(task: Task, size: int) -> int:
    """How many forget samples a step takes: a batch, and twice as many where samples are to be forgotten, whose confidences are compared
    quantile by quantile within each class: a small batch would ask more of the single sample than the whole set does."""
    return size if task.classes else 2 * size


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of samples answered right."""
    return float(logits.argmax(dim=1).eq(labels).double().mean())
