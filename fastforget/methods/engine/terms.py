"""The terms of an objective: what holds the model where it was, and what pushes the forget data out of it.

Every term is a mean over its samples, float32, and differentiable in the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ...ops import update

HOLDS = ("anchor", "labels")
_SMALL = 1e-6


def anchor(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || model), in nats: the original model's own answers hold it where it was, and between the samples it was trained on.

    Args:
        logits: [B, K].
        teacher: log-probabilities [B, K]; minus infinity where the teacher has no opinion left (classes to forget).

    >>> import torch
    >>> teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    >>> round(anchor(torch.tensor([[0.0, 0.0, 0.0]]), teacher).item(), 4), anchor(torch.tensor([[1.0, 1.0, -99.0]]), teacher).item()
    (0.4055, 0.0)
    """
    p = teacher.exp()
    return (p * (teacher.masked_fill(p == 0, 0.0) - logits.log_softmax(dim=1))).sum(dim=1).mean()


def distill(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) || softmax(logits / T)), in nats, mean over the samples; without the factor T^2.

    Args:
        logits, teacher: [B, K]; minus infinity in ``teacher`` leaves a class out.
        temperature: T.

    >>> import torch
    >>> round(distill(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0).item(), 4)
    0.1109
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return update.distill_loss(logits, teacher.to(logits.dtype), temperature=temperature)[0].mean()


def hold(kind: str, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What the model is held by on data to keep: ``"anchor"``, the original model's answers, or ``"labels"``, cross-entropy."""
    return anchor(logits, teacher) if kind == "anchor" else F.cross_entropy(logits, labels)


def away_from(logits: Tensor, classes: Tensor) -> Tensor:
    """-log(1 - p), p the probability of ``classes`` together."""
    kept = logits.index_fill(1, classes, -math.inf)
    return (logits.logsumexp(dim=1) - kept.logsumexp(dim=1)).mean()


def log_odds(logits: Tensor, classes: Tensor) -> Tensor:
    """[B]: the log-odds of ``classes`` together against the others."""
    return logits[:, classes].logsumexp(dim=1) - logits.index_fill(1, classes, -math.inf).logsumexp(dim=1)


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """[B]: z_y - logsumexp of the others, the log-odds of the label (Carlini et al., S&P'22, section VI-A)."""
    others = logits.scatter(1, labels[:, None], -math.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.logsumexp(dim=1)


def alike(own: Tensor, others: Tensor, scale: Tensor) -> Tensor:
    """How far two samples of numbers are apart, quantile by quantile: mean squared difference over ``scale``. Only ``own`` is moved."""
    others = others.detach()
    at = (torch.arange(len(own), device=own.device, dtype=own.dtype) + 0.5) / len(own)
    return (own.sort().values - torch.quantile(others, at)).square().mean() / scale.clamp_min(_SMALL)
