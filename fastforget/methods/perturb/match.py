"""How the model answers data it never saw, and how far its answers on the forget data are from that.

Forsaken (Liu et al., arXiv 2003.10933) and Lightweight (Chen et al., arXiv 2111.05528, and its 2025 successor) both push the model's
output distribution on the forget data towards its output distribution on non-member data. Neither text is fully public; what is our
reading is marked in the two methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops import membership
from ..attack import auc_of
from ..task import Task

REFERENCES = ("by_class", "mean", "confidence", "uniform")
DIVERGENCES = ("P||V", "V||P", "JS")
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
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


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - logsumexp of the others, differentiable (Carlini et al., S&P'22, section VI-A)."""
    others = logits.scatter(1, labels[:, None], -math.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(dim=1)


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
    """What the model answers at one moment: the forget data's logits and labels, the target they are compared with, what is still known
    (of the worst class, the share still answered right; for samples, the loss attack's AUC), and whether that makes the data unknown."""

    logits: Tensor
    labels: Tensor
    target: Target
    known: float
    unknown: bool

    @property
    def distance(self) -> float:
        return float(self.target.distance(self.logits, self.labels))


class Evidence:
    """The samples that decide, and what the model answers them. One look is one pass over ``most`` forget samples; where samples are to
    be forgotten, also over as many non-members: what the changes do to data never seen is part of the comparison, as the attacker sees
    the same model. Where whole classes are, the target stays what the original model answers.

    ``margin``: how many standard errors above a half the loss attack's AUC may be for samples to count as unknown.
    """

    def __init__(self, task: Task, most: int, margin: float, kind: str, divergence: str, purpose: int) -> None:
        assert task.forget is not None and task.nonmember is not None
        self.task, self.margin, self.kind, self.divergence = task, margin, kind, divergence
        self.forget = task.forget.at_most(most, task.generator(purpose))
        self.others = task.nonmember.at_most(most, task.generator(purpose))
        self.target = target(task, kind, divergence, task.logits(self.others))

    def look(self) -> Look:
        """One look at the model as it is."""
        logits, labels = self.task.logits(self.forget)
        if self.task.classes:
            right = logits.argmax(dim=1).eq(labels).double()
            kept = max(float(right[labels == c].mean()) for c in labels.unique().tolist())
            return Look(logits, labels, self.target, kept, kept <= GONE)
        others = self.task.logits(self.others)
        auc, error = auc_of(membership.membership_scores(logits, labels).loss, membership.membership_scores(*others).loss)
        return Look(logits, labels, target(self.task, self.kind, self.divergence, others), auc, auc <= 0.5 + self.margin * error)


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


def gradient(loss: Tensor, params: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where the loss doesn't depend on a parameter."""
    params = list(params)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.contiguous() for p, g in zip(params, grads, strict=True)]
