"""Optimiser steps on the unmasked coordinates alone, in plain PyTorch. Formulas: torch.optim's SGD, Adam and AdamW.

A frozen coordinate keeps the bits of its weight and of its optimiser state; weight decay doesn't reach it either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..update import compute_dtype
from .select import unpack_bits


def element_mask(mask: Tensor, like: Tensor) -> Tensor:
    """Which coordinates of ``like`` are on, from any accepted form of mask: bool like ``like``; bool or float32 [rows], one a neuron;
    uint8 packed bits; int8 of no elements for all on."""
    n = like.numel()
    if mask.numel() == 0:
        return torch.ones_like(like, dtype=torch.bool)
    if mask.dtype == torch.uint8:
        return unpack_bits(mask, n).view(like.shape)
    if mask.dtype == torch.bool and mask.numel() == n:
        return mask.view(like.shape)
    return (mask != 0).view(-1, *[1] * (like.dim() - 1)).expand_as(like)


def _apply(target: Tensor, on: Tensor, value: Tensor) -> None:
    target.copy_(torch.where(on, value.to(target.dtype), target))


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    masks: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    for i, (p, grad, mask) in enumerate(zip(params, grads, masks, strict=True)):
        dtype = compute_dtype(p.dtype)
        on, value = element_mask(mask, p), p.to(dtype)
        g = grad.to(dtype)
        if mask.dtype == torch.float32 and mask.numel() > 0:  # one factor a neuron
            g = g * mask.to(dtype).view(-1, *[1] * (p.dim() - 1))
        g = -g if maximize else g
        if weight_decay != 0:  # as in torch.optim: no 0 * inf
            g = torch.add(g, value, alpha=weight_decay)
        if momentum_buffers:
            buffer = momentum_buffers[i]
            moved = g if first else torch.add(momentum * buffer.to(dtype), g, alpha=1.0 - dampening)
            _apply(buffer, on, moved)
            g = torch.add(g, moved, alpha=momentum) if nesterov else moved
        _apply(p, on, torch.add(value, g, alpha=-lr))


def masked_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    masks: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    step_size = lr / (1.0 - beta1**step)
    sqrt_bias2 = math.sqrt(1.0 - beta2**step)
    for p, grad, mask, exp_avg, exp_avg_sq in zip(params, grads, masks, exp_avgs, exp_avg_sqs, strict=True):
        dtype = compute_dtype(p.dtype)
        on, value = element_mask(mask, p), p.to(dtype)
        g = -grad.to(dtype) if maximize else grad.to(dtype)
        if decoupled:
            value = value * (1.0 - lr * weight_decay)
        elif weight_decay != 0:
            g = torch.add(g, value, alpha=weight_decay)
        m = torch.lerp(exp_avg.to(dtype), g, 1.0 - beta1)
        v = beta2 * exp_avg_sq.to(dtype) + (1.0 - beta2) * g * g
        _apply(exp_avg, on, m)
        _apply(exp_avg_sq, on, v)
        _apply(p, on, value - step_size * m / (v.sqrt() / sqrt_bias2 + eps))
