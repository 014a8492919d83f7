"""Masking and dampening of weights by importance: one tensor or a whole parameter list in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg
from .. import _sharded

__all__ = ["SoftThreshold", "accumulate_importance_", "dampen_", "soft_threshold_"]

T = TypeVar("T", Tensor, Sequence[Tensor])

_dampen = _schema.overload("dampen_")
_accumulate_importance = _schema.overload("accumulate_importance_")
_soft_threshold = _schema.overload("soft_threshold_")
_try_dampen = _schema.boxed("dampen_")
_try_accumulate_importance = _schema.boxed("accumulate_importance_")
_try_soft_threshold = _schema.boxed("soft_threshold_")


def _check_factor(name: str, value: Any) -> None:
    if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
        raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")


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
    _check_factor("alpha", alpha)
    _check_factor("lam", lam)
    lists = arg.plain_lists(params, forget_importance, retain_importance)
    if lists is not None:
        count = arg.unset_scalar(torch.int64)
        if arg.accepted(_try_dampen, (*lists, count, alpha, lam), lists[0]):
            return count
    if _sharded.found(params, forget_importance, retain_importance):
        parts = _sharded.Parts("params", params)
        f, r = parts.like("forget_importance", forget_importance), parts.like("retain_importance", retain_importance)
        own, _ = (
            dampen_([parts.local[i] for i in some], [f[i] for i in some], [r[i] for i in some], alpha=alpha, lam=lam)
            for some in parts.counted()
        )
        parts.done()
        return parts.total(own.to(parts.local[0].device))
    xs = arg.listed("params", params)
    forget = arg.same_list("forget_importance", forget_importance, "params", xs)
    retain = arg.same_list("retain_importance", retain_importance, "params", xs)
    staged = arg.writable("params", xs)
    if not xs:
        return torch.zeros((), dtype=torch.int64)
    count = torch.empty((), dtype=torch.int64, device=xs[0].device)
    arg.apart("dampen_", xs, forget, retain)
    inputs = (staged, arg.readable(forget), arg.readable(retain), count, alpha, lam)
    arg.run("dampen_", _dampen, staged, inputs)
    arg.write_back(xs, staged)
    return count


def accumulate_importance_(importances: T, grads: Tensor | Sequence[Tensor], *, power: int = 2, scale: float = 1.0) -> T:
    """Adds ``scale * |grad|**power`` to each importance, in place and in one pass.

    Power 2 sums the diagonal of the empirical Fisher information, the importance of selective synaptic dampening (Foster, Schoepf &
    Brintrup, AAAI'24; ``scale``: one over the number of batches). Power 1 sums magnitudes, as memory aware synapses do
    (Aljundi et al., ECCV'18).

    Args:
        importances: a tensor or a list of tensors, changed in place.
        grads: for each importance a tensor of its shape and device; float32, bfloat16, float16 or float64. An importance has the dtype of
            its gradient, or is float32 where the gradient has 16 bits (better: a long sum of small squares stalls in 16 bits).
        power: 1 or 2.
        scale: a finite number.

    Returns:
        ``importances``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, list length or range.
        RuntimeError: an importance requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> mask.accumulate_importance_(torch.ones(2), torch.tensor([3.0, -1.0]), scale=0.5).tolist()
    [5.5, 1.5]
    """
    if isinstance(power, bool) or power not in (1, 2):
        raise ValueError(f"power: got {power!r}; accepted are 1 (magnitudes) and 2 (squares)")
    if not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        raise ValueError(f"scale: got {scale!r}; accepted is a finite number")
    numbers: tuple[int, float] = (int(power), float(scale))
    lists = arg.plain_lists(importances, grads)
    if lists is not None:
        changed, gradients = lists
        if arg.accepted(_try_accumulate_importance, (changed, gradients, *numbers), changed):
            return importances
    if _sharded.found(importances, grads):
        parts = _sharded.Parts("importances", importances)
        accumulate_importance_(parts.local, parts.like("grads", grads), power=power, scale=scale)
        parts.done()
        return importances
    xs = arg.listed("importances", importances)
    gradients = arg.listed("grads", grads)
    if len(gradients) != len(xs):
        raise ValueError(f"grads: got {len(gradients)} tensors; accepted are {len(xs)}, one for each of importances")
    for i, (x, grad) in enumerate(zip(xs, gradients, strict=True)):
        widened = x.dtype == torch.float32 and grad.dtype in (torch.bfloat16, torch.float16)
        if not widened or grad.shape != x.shape or grad.device != x.device:
            arg.same(f"grads[{i}]", grad.to(x.dtype) if widened else grad, f"importances[{i}]", x)
    staged = arg.writable("importances", xs)
    if xs:
        arg.apart("accumulate_importance_", xs, gradients)
        inputs = (staged, arg.readable(gradients), *numbers)
        arg.run("accumulate_importance_", _accumulate_importance, staged, inputs)
        arg.write_back(xs, staged)
    return importances


class SoftThreshold(NamedTuple):
    """What :func:`soft_threshold_` left behind: the sum of magnitudes (0-d float64) and how many are not zero (0-d int64)."""

    l1: Tensor
    nnz: Tensor


def soft_threshold_(x: Tensor | Sequence[Tensor], threshold: float | Sequence[float]) -> SoftThreshold:
    """Moves every element towards zero by ``threshold``, in place: ``x = sign(x) * max(|x| - threshold, 0)``.

    The proximal operator of ``threshold * ||x||_1``: the step that makes a mask sparse (the penalty of Forsaken: Ma et al., TDSC'22;
    the operator: Beck & Teboulle, SIAM J. Imaging Sci. 2009). Zeros keep the sign of ``x``; NaN stays NaN.

    Args:
        x: a tensor or a list of tensors, changed in place; float32, bfloat16, float16 or float64.
        threshold: a finite number >= 0, or one a tensor.

    Returns:
        l1: 0-d float64, the sum of the magnitudes that were stored, over the whole list.
        nnz: 0-d int64, how many of them are not zero.

    Raises:
        TypeError, ValueError: wrong dtype, device, list length or range.
        RuntimeError: a tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> x = torch.tensor([3.0, -0.5, -2.0])
    >>> mask.soft_threshold_(x, 1.0)
    SoftThreshold(l1=tensor(3., dtype=torch.float64), nnz=tensor(2))
    >>> x.tolist()
    [2.0, -0.0, -1.0]
    """
    if type(threshold) is float and 0 <= threshold < math.inf:
        lists = arg.plain_lists(x)
        if lists is not None:
            l1, nnz = arg.unset_scalar(torch.float64), arg.unset_scalar(torch.int64)
            if arg.accepted(_try_soft_threshold, (*lists, (threshold,), l1, nnz), lists[0]):
                return SoftThreshold(l1, nnz)
    if _sharded.found(x):
        parts = _sharded.Parts("x", x)
        each = [threshold] * len(parts.given) if isinstance(threshold, (int, float)) else threshold
        if isinstance(each, Tensor) or not isinstance(each, (list, tuple)) or len(each) != len(parts.given):
            return soft_threshold_(parts.local, each)  # refuses it in words
        own, _ = (soft_threshold_([parts.local[i] for i in some], [each[i] for i in some]) for some in parts.counted())
        parts.done()
        device = parts.local[0].device
        return SoftThreshold(parts.total(own.l1.to(device)), parts.total(own.nnz.to(device)))
    xs = arg.listed("x", x)
    staged = arg.writable("x", xs)
    values = [threshold] if isinstance(threshold, (int, float)) else threshold
    if isinstance(values, Tensor) or not isinstance(values, (list, tuple)):
        raise TypeError(f"threshold: got {arg.describe(threshold)}; accepted is a float, or a list of floats, one a tensor")
    if values is threshold and len(values) != len(xs):
        raise ValueError(f"threshold: got {len(values)} values; accepted is one float, or one for each of the {len(xs)} tensors")
    for value in values:
        _check_factor("threshold", value)
    if not xs:
        return SoftThreshold(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64))
    arg.apart("soft_threshold_", xs)
    l1 = torch.empty((), dtype=torch.float64, device=xs[0].device)
    nnz = torch.empty((), dtype=torch.int64, device=xs[0].device)
    arg.run("soft_threshold_", _soft_threshold, [*staged, l1, nnz], (staged, [float(v) for v in values], l1, nnz))
    arg.write_back(xs, staged)
    return SoftThreshold(l1, nnz)
