"""Masking and dampening of weights, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..update import compute_dtype


def dampen_(
    params: Sequence[Tensor],
    forget_importance: Sequence[Tensor],
    retain_importance: Sequence[Tensor],
    count: Tensor,
    alpha: float,
    lam: float,
) -> None:
    # Selective synaptic dampening (Foster, Schoepf & Brintrup, AAAI'24), equation 4
    count.zero_()
    for p, forget, retain in zip(params, forget_importance, retain_importance, strict=True):
        dtype = compute_dtype(p.dtype)
        f, r = forget.to(dtype), retain.to(dtype)
        selected = f > alpha * r
        factor = (lam * r / f).clamp(max=1.0)
        p.copy_(torch.where(selected, p.to(dtype) * factor, p.to(dtype)))
        count += selected.sum()


def accumulate_importance_(importances: Sequence[Tensor], grads: Sequence[Tensor], power: int, scale: float) -> None:
    # power 2: the diagonal Fisher estimate of SSD; power 1: the output-norm variant that needs no labels
    for importance, grad in zip(importances, grads, strict=True):
        dtype = compute_dtype(importance.dtype)
        g = grad.to(dtype)
        importance.copy_(importance.to(dtype) + scale * (g.abs() if power == 1 else g * g))


def soft_threshold_(xs: Sequence[Tensor], threshold: Sequence[float], l1: Tensor, nnz: Tensor) -> None:
    # the proximal operator of t * ||x||_1; a NaN stays NaN and counts as not zero
    l1.zero_()
    nnz.zero_()
    for i, x in enumerate(xs):
        value = x.to(compute_dtype(x.dtype))
        t = threshold[0] if len(threshold) == 1 else threshold[i]
        shrunk = (value.abs() - t).clamp_min(0.0)
        x.copy_(torch.copysign(shrunk, value))
        stored = x.to(torch.float64)
        l1 += stored.abs().sum()
        nnz += (stored != 0).sum()
