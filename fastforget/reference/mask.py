"""Masking and dampening of weights, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .update import compute_dtype


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
