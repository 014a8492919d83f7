"""How the model answers data it never saw, and how far its answers on the forget data are from that.

Forsaken (Liu et al., arXiv 2003.10933) and Lightweight (Chen et al., arXiv 2111.05528, and its 2025 successor) both push the model's
output distribution on the forget data towards its output distribution on non-member data. Neither text is fully public; what is our
reading is marked in the two methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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


def reference(task: Task, kind: str) -> Tensor:
    """float32[K, K] on the model's device: row c is the distribution that samples labelled c should be answered with on average.

    ``by_class``: the mean posterior of the non-members labelled c; of all of them where none is. ``mean``: of all, for every c.
    ``confidence``: the one public re-implementation's: per class the mean largest logit, as shares. ``uniform``: 1 / K.
    """
    assert task.nonmember is not None
    classes = task.outputs
    if kind == "uniform":
        return torch.full((classes, classes), 1.0 / classes, device=task.device)
    logits, labels = outputs(task, task.nonmember)
    if kind == "confidence":
        top = logits.amax(dim=1)
        total = torch.zeros(classes, device=task.device).index_add_(0, labels, top)
        mean = (total / torch.bincount(labels, minlength=classes).clamp_min(1)).clamp_min(0)
        return (mean / mean.sum().clamp_min(_SMALL)).expand(classes, classes).clone()
    posterior = logits.softmax(dim=1)
    overall = posterior.mean(dim=0)
    table = overall.expand(classes, classes).clone()
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


def distance(logits: Tensor, labels: Tensor, target: Tensor, kind: str) -> Tensor:
    """The objective: divergence of each class's mean posterior from its target row, weighted by the class's share. Differentiable."""
    v, share = mean_posteriors(logits, labels, len(target))
    rows = share > 0
    return (share[rows] * divergence(target[rows], v[rows], kind)).sum()


def cycle(data: Source, size: int, generator: torch.Generator, device: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """Shuffled batches without end, each pass in a new order."""
    while True:
        yield from data.batches(generator=generator, device=device, batch_size=min(size, len(data)))


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


def unknown(task: Task, forget: Source) -> bool:
    """Whether the forget data looks like data never seen: its classes are gone, or the loss attack can't tell it from non-members."""
    assert task.nonmember is not None
    if task.classes:
        return max(task.right_by_class(forget, task.classes).values()) <= GONE
    auc, error = attack_auc(task, forget, task.nonmember)
    return auc <= 0.5 + error


def gradient(loss: Tensor, params: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where the loss doesn't depend on a parameter."""
    params = list(params)
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.contiguous() for p, g in zip(params, grads, strict=True)]
