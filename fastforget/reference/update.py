"""The error-maximizing step of UNSIR, in plain PyTorch (Tarun et al., arXiv 2111.08947, section IV: noise generation)."""

from __future__ import annotations

import math

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
