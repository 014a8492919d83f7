"""Masking and dampening of weights by importance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _schema
from . import _arguments as arg
from .mask_optim import masked_adam_ as masked_adam_
from .mask_optim import masked_sgd_ as masked_sgd_
from .mask_select import pack_bits, saliency_mask, unpack_bits

__all__ = ["dampen_", "pack_bits", "saliency_mask", "unpack_bits"]

_dampen = _schema.overload("dampen_")


def dampen_(
    params: Tensor | Sequence[Tensor],
    forget_importance: Tensor | Sequence[Tensor],
    retain_importance: Tensor | Sequence[Tensor],
    *,
    alpha: float,
    lam: float,
) -> Tensor:
    """Selective synaptic dampening, in place and in one pass (Foster, Schoepf & Brintrup, AAAI'24, equation 4).

    Where ``forget > alpha * retain``: ``p *= min(lam * retain / forget, 1)``. A NaN importance selects nothing.

    Args:
        params: a tensor or a list of tensors, changed in place; float32, bfloat16, float16 or float64.
        forget_importance, retain_importance: for each parameter a tensor of the same shape, dtype and device, >= 0 (SSD: the squared
            gradient on the forget set and on all data).
        alpha: selection weighting (the paper's ResNet-18: 10).
        lam: dampening constant (the paper: 1).

    Returns:
        0-d int64 tensor: how many weights were selected.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, list length or range.
        RuntimeError: a parameter requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> p = torch.tensor([1.0, 1.0])
    >>> mask.dampen_(p, torch.tensor([8.0, 1.0]), torch.tensor([0.5, 0.5]), alpha=10, lam=1).item()
    1
    >>> p.tolist()
    [0.0625, 1.0]
    """
    xs = arg.listed("params", params)
    forget = arg.same_list("forget_importance", forget_importance, "params", xs)
    retain = arg.same_list("retain_importance", retain_importance, "params", xs)
    staged = arg.writable("params", xs)
    for name, value in (("alpha", alpha), ("lam", lam)):
        if not (isinstance(value, (int, float)) and value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")
    if not xs:
        return torch.zeros((), dtype=torch.int64)
    count = torch.empty((), dtype=torch.int64, device=xs[0].device)
    inputs = (staged, arg.readable(forget), arg.readable(retain), count, alpha, lam)
    arg.run("dampen_", _dampen, staged, inputs)
    arg.write_back(xs, staged)
    return count
