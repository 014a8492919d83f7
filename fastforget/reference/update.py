"""Losses with their gradients, the error-maximizing step of UNSIR, and products of two gradients, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; everything narrower is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """Refuses labels outside ``[0, classes)`` on the CPU; elsewhere returns which are valid, without a synchronisation."""
    valid = (labels >= 0) & (labels < classes)
    if labels.device.type == "cpu" and not bool(valid.all()):
        at = int((~valid).nonzero()[0])
        raise RuntimeError(f"labels[{at}] is {int(labels[at])}; accepted: 0 to {classes - 1}")
    return valid


# UNSIR (Tarun, Chundawat, Mandal & Kankanhalli, arXiv 2111.08947), section IV: noise generation


def error_max_loss(logits: Tensor, labels: Tensor, loss: Tensor, dlogits: Tensor) -> None:
    batch, classes = logits.shape
    if batch == 0:
        return
    valid = check_labels(labels, classes)
    log_p = F.log_softmax(logits.to(compute_dtype(logits.dtype)), dim=1)
    safe = torch.where(valid, labels, 0)
    gradient = (F.one_hot(safe, classes) - log_p.exp()) / batch
    loss.copy_(torch.where(valid, log_p.gather(1, safe[:, None])[:, 0], math.nan))
    dlogits.copy_(torch.where(valid[:, None], gradient, math.nan))


def error_max_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    sum_sq: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    l2: float,
    clamp_min: float,
    clamp_max: float,
) -> None:
    if x.numel() == 0:
        sum_sq.zero_()
        return
    dtype = compute_dtype(x.dtype)
    value = x.to(dtype)
    sum_sq.copy_(value.to(torch.float64).square().sum())
    total = grad.to(dtype) + (2.0 * l2 / x.shape[0]) * value
    m = torch.lerp(exp_avg.to(dtype), total, 1.0 - beta1)
    v = beta2 * exp_avg_sq.to(dtype) + (1.0 - beta2) * total * total
    denominator = v.sqrt() / math.sqrt(1.0 - beta2**step) + eps
    exp_avg.copy_(m)
    exp_avg_sq.copy_(v)
    x.copy_((value - (lr / (1.0 - beta1**step)) * m / denominator).clamp(clamp_min, clamp_max))


def _classes_left(drop: Tensor, batch: int, classes: int) -> tuple[Tensor, Tensor]:
    """bool[B, K]: what the teacher keeps; bool[B]: the rows whose entry of ``drop`` is a class or -1."""
    if drop.dtype == torch.bool:
        left = torch.ones(classes, dtype=torch.bool, device=drop.device) if drop.numel() == 0 else ~drop
        return left.expand(batch, classes), torch.ones(batch, dtype=torch.bool, device=drop.device)
    valid = (drop >= -1) & (drop < classes)
    if drop.device.type == "cpu" and not bool(valid.all()):
        at = int((~valid).nonzero()[0])
        raise RuntimeError(f"drop[{at}] is {int(drop[at])}; accepted: -1 (none) to {classes - 1}")
    return torch.arange(classes, device=drop.device) != drop[:, None], valid


def distill_loss(logits: Tensor, teacher: Tensor, drop: Tensor, temperature: float, loss: Tensor, dlogits: Tensor) -> None:
    # Hinton, Vinyals & Dean, arXiv 1503.02531, section 2, without their factor T^2; a class with q = 0 adds nothing
    batch, classes = logits.shape
    if batch == 0:
        return
    dtype = compute_dtype(logits.dtype)
    left, valid = _classes_left(drop, batch, classes)
    log_p = F.log_softmax(logits.to(dtype) / temperature, dim=1)
    log_q = F.log_softmax(torch.where(left, teacher.to(dtype), -math.inf) / temperature, dim=1)
    q = log_q.exp()
    loss.copy_(torch.where(valid, torch.where(q == 0, 0.0, q * (log_q - log_p)).sum(dim=1), math.nan))
    dlogits.copy_(torch.where(valid[:, None], (log_p.exp() - q) / (temperature * batch), math.nan))


def gradient_products(a: Sequence[Tensor], b: Sequence[Tensor], out: Tensor) -> None:
    out.zero_()
    for x, y in zip(a, b, strict=True):
        wide_x, wide_y = x.to(torch.float64), y.to(torch.float64)
        out += torch.stack([(wide_x * wide_y).sum(), wide_x.square().sum(), wide_y.square().sum()])
