"""How the model answers data it never saw, and how far its answers on the forget data are from that.

Forsaken (Liu et al., arXiv 2003.10933) and Lightweight (Chen et al., arXiv 2111.05528, and its 2025 successor) both push the model's
output distribution on the forget data towards its output distribution on non-member data. Neither text is fully public; what is our
reading is marked in the two methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._data import Source
from ..ops import membership
from . import _weights
from ._task import Task

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
        samples, how far the confidences are from the non-members' quantile by quantile (squared, in units of their variance)."""
        v, share = mean_posteriors(logits, labels, len(self.table))
        rows = share > 0
        total = (share[rows] * divergence(self.table[rows], v[rows], self.divergence)).sum()
        if self.confidence is None:
            return total
        own = confidence(logits, labels).sort().values
        like = torch.quantile(self.confidence, (torch.arange(len(own), device=own.device, dtype=own.dtype) + 0.5) / len(own))
        return total + (own - like).square().mean() / self.confidence.var().clamp_min(_SMALL)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y - logsumexp of the others, differentiable (Carlini et al., S&P'22, section VI-A)."""
    others = logits.scatter(1, labels[:, None], -math.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(dim=1)


def target(task: Task, kind: str, divergence: str) -> Target:
    """How the model as it is answers the non-members.

    ``by_class``: row c is the mean posterior of the non-members labelled c; of all of them where none is. ``mean``: of all, for every c.
    ``confidence``: the one public re-implementation's: per class the mean largest logit, as shares. ``uniform``: 1 / K.
    """
    assert task.nonmember is not None
    logits, labels = outputs(task, task.nonmember)
    spread = None if task.classes else confidence(logits, labels).sort().values
    return Target(_table(task.outputs, kind, logits, labels), spread, divergence)


def _table(classes: int, kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    if kind == "uniform":
        return torch.full((classes, classes), 1.0 / classes, device=logits.device)
    if kind == "confidence":
        total = torch.zeros(classes, device=logits.device).index_add_(0, labels, logits.amax(dim=1))
        mean = (total / torch.bincount(labels, minlength=classes).clamp_min(1)).clamp_min(0)
        return (mean / mean.sum().clamp_min(_SMALL)).expand(classes, classes).clone()
    posterior = logits.softmax(dim=1)
    table = posterior.mean(dim=0).expand(classes, classes).clone()
    if kind == "by_class":
        for c in labels.unique().tolist():
            table[c] = posterior[labels == c].mean(dim=0)
    return table


def outputs(task: Task, data: Source) -> tuple[Tensor, Tensor]:
    """Logits float32[N, K] and labels[N] of a set, in eval mode, without gradients."""
    logits, labels = [], []
    with _weights.evaluating(task.model):
        for x, y in data.batches(device=task.device):
            logits.append(task.forward(task.model, x).float())
            labels.append(y)
    return torch.cat(logits), torch.cat(labels)


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


def cycle(data: Source, size: int, generator: torch.Generator, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """Shuffled batches without end, each pass in a new order."""
    while True:
        yield from data.batches(generator=generator, device=device, batch_size=min(size, len(data)))


def at_most(data: Source, n: int, generator: torch.Generator) -> Source:
    """The set, or ``n`` of its samples drawn at random where it holds more."""
    return data if len(data) <= n else data.split(n, generator)[1]


def losses(task: Task, data: Source) -> Tensor:
    """The cross-entropy of every sample of a set, float32[N]."""
    logits, labels = outputs(task, data)
    return membership.membership_scores(logits, labels).loss


def attack_auc(task: Task, forget: Source, nonmember: Source) -> tuple[float, float]:
    """AUC of the loss attack that tells ``forget`` from ``nonmember``, and its standard error where they are alike.

    The standard error is that of the Mann-Whitney statistic under equality, sqrt((n1 + n0 + 1) / (12 n1 n0)).
    """
    members, others = losses(task, forget), losses(task, nonmember)
    auc = float(membership.roc_stats(-members, -others, fprs=()).auc)
    n1, n0 = len(members), len(others)
    return auc, math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))


def unknown(task: Task, forget: Source, like: Target, tolerance: float) -> bool:
    """Whether the forget data looks like data never seen: its classes are gone and what is answered instead is near the target (a few
    samples may be answered otherwise by chance), or the loss attack can't tell the samples from non-members."""
    assert task.nonmember is not None
    if not task.classes:
        auc, error = attack_auc(task, forget, task.nonmember)
        return auc <= 0.5 + error
    logits, labels = outputs(task, forget)
    right = logits.argmax(dim=1).eq(labels).double()
    kept = max(float(right[labels == c].mean()) for c in labels.unique().tolist())
    return kept <= GONE and float(like.distance(logits, labels)) <= tolerance


def gradient(loss: Tensor, params: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where the loss doesn't depend on a parameter."""
    params = list(params)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.contiguous() for p, g in zip(params, grads, strict=True)]
