"""Optimiser steps that leave masked coordinates as they are: the formulas of torch.optim's SGD, Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ... import _schema
from ...reference.mask.select import unpack_bits
from .. import _arguments as arg
from .. import _sharded

__all__ = ["masked_adam_", "masked_sgd_"]

T = TypeVar("T", Tensor, Sequence[Tensor])
Masks = Tensor | Sequence[Tensor | None] | None

_masked_sgd = _schema.overload("masked_sgd_")
_masked_adam = _schema.overload("masked_adam_")
_try_sgd, _try_adam = _schema.boxed("masked_sgd_"), _schema.boxed("masked_adam_")
# What an op takes for no mask: of a dtype that no mask has, or a mask with no elements could be taken for it.
_ALL_ON = torch.empty(0, dtype=torch.int8, device="cpu")


def check_mask(where: str, mask: object, p: Tensor, factors: bool) -> Tensor:
    """``mask`` itself, if it is a form of mask for ``p``. ``factors``: whether one float32 a neuron is one."""
    n = p.numel()
    if isinstance(mask, Tensor) and mask.device == p.device and mask.layout is torch.strided:
        shape, rows = mask.shape, p.shape[:1]
        if mask.dtype == torch.bool and (shape == p.shape or (shape == rows and p.dim() > 0)):
            return mask
        if mask.dtype == torch.uint8 and shape == (-(-n // 8),):
            return mask
        if factors and mask.dtype == torch.float32 and shape == rows and p.dim() > 0:
            return mask
    forms = [f"bool {tuple(p.shape)}, one a coordinate"]
    if p.dim() > 0:
        forms.append(f"bool ({p.shape[0]},), one a row")
    forms.append(f"uint8 ({-(-n // 8)},), one bit a coordinate, the lowest bit first")
    if factors and p.dim() > 0:
        forms.append(f"float32 ({p.shape[0]},), a factor on each row's gradient")
    raise (ValueError if isinstance(mask, Tensor) else TypeError)(
        f"{where}: got {arg.describe(mask)}; accepted for a parameter of shape {tuple(p.shape)} on {p.device} are "
        f"{'; '.join(forms)}; or None, all on. A mask of numbers becomes one of bool by mask != 0"
    )


def _masks(masks: Masks, params: list[Tensor], factors: bool) -> list[Tensor]:
    """A mask for each parameter as the op takes it: contiguous, empty where all is on."""
    given = [masks] * len(params) if masks is None else [masks] if isinstance(masks, Tensor) else list(masks)
    if len(given) != len(params):
        raise ValueError(f"masks: got {len(given)} masks; accepted are {len(params)}, one for each of params, or None for all on")
    all_on = torch.empty(0, dtype=_ALL_ON.dtype, device=params[0].device)
    contiguous: list[Tensor] = []
    for i, (mask, p) in enumerate(zip(given, params, strict=True)):
        checked = all_on if mask is None else check_mask(f"masks[{i}]", mask, p, factors)
        contiguous.append(checked if checked.is_contiguous() else checked.contiguous())
    return contiguous


def _parts_of_masks(parts: _sharded.Parts, masks: Masks, factors: bool) -> list[Tensor | None]:
    """Each mask's part on this rank; a mask is a DTensor, or a plain tensor for the whole parameter."""
    given = [masks] * len(parts.given) if masks is None else [masks] if isinstance(masks, Tensor) else list(masks)
    if len(given) != len(parts.given):
        _masks(masks, parts.given, factors)  # refuses it in words
    local: list[Tensor | None] = []
    for i, (mask, p) in enumerate(zip(given, parts.given, strict=True)):
        if mask is not None:
            check_mask(f"masks[{i}]", mask, p, factors)
            if mask.shape == p.shape and mask.dtype == torch.bool:
                (mask,) = parts.only(i).like(f"masks[{i}]", mask)
            elif mask.dtype == torch.uint8 and _sharded.is_sharded(p):
                mask = parts.box[i].cut(unpack_bits(_sharded.replicated(mask), p.numel()).view(p.shape))
            else:
                mask = parts.rows(i, mask)
        local.append(mask)
    return local


def _fast(
    op: Callable[..., None],
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    masks: Masks,
    states: tuple[Any, ...],
    numbers: tuple[float, ...],
) -> bool:
    """Whether the op took the call as it is. ``states``: what changes beside the parameters."""
    lists = arg.plain_lists(params, grads, *states)
    if lists is None:
        return False
    changed, gradients, *moments = lists
    given = [None] * len(changed) if masks is None else [masks] if isinstance(masks, Tensor) else masks
    each = arg.plain_lists([_ALL_ON if mask is None else mask for mask in given])
    return each is not None and arg.accepted(op, (changed, gradients, *each, *moments, *numbers), changed, *moments)


def _numbers(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not (isinstance(value, (int, float)) and value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")


def masked_sgd_(
    params: T,
    grads: Tensor | Sequence[Tensor],
    masks: Masks,
    *,
    lr: float,
    momentum_buffers: Tensor | Sequence[Tensor] | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
) -> T:
    """One step of ``torch.optim.SGD`` on the coordinates that a mask leaves on, in place, in one pass over the whole list.

    A frozen coordinate keeps the bits of its weight and of its momentum: no gradient, NaN or weight decay reaches it. (SalUn's
    procedure, Fan et al., ICLR'24: multiply the gradient by the mask, take an ordinary step, undo what weight decay and momentum
    did to frozen weights.)

    Args:
        params: a tensor or a list of tensors, changed in place; float32, bfloat16, float16 or float64.
        grads: for each parameter a tensor of its shape, dtype and device.
        masks: None (all on), or for each parameter one of: None; bool of its shape; bool[rows], ``rows = p.shape[0]``, one a neuron
            or output channel (rows that are off are not even read); uint8[ceil(n / 8)], one bit a coordinate, the lowest first, as
            ``saliency_mask(..., packed=True)`` gives them; float32[rows], a factor on each row's gradient (0 freezes the row).
        lr: learning rate.
        momentum_buffers: like params, changed in place; needed where ``momentum`` is not 0, unused where it is.
        momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD``.
        first: the buffers hold nothing yet and become the gradient, as in the first step of ``torch.optim.SGD``.

    Returns:
        ``params``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, list length, mask or range.
        RuntimeError: a changed tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> mask.masked_sgd_(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([True, False]), lr=0.5)
    tensor([[0.5000, 0.5000],
            [1.0000, 1.0000]])
    """
    _numbers(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if isinstance(dampening, bool) or not (isinstance(dampening, (int, float)) and math.isfinite(dampening)):
        raise ValueError(f"dampening: got {dampening!r}; accepted is a finite number")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"nesterov: needs a momentum and no dampening; got momentum {momentum!r} and dampening {dampening!r}")
    scalars = (lr, momentum, dampening, weight_decay, bool(nesterov), bool(maximize), bool(first))
    if _fast(_try_sgd, params, grads, masks, (momentum_buffers if momentum != 0 else [],), scalars):
        return params
    if _sharded.found(params, grads, masks, momentum_buffers):
        parts = _sharded.Parts("params", params)
        held = None if momentum == 0 or momentum_buffers is None else parts.like("momentum_buffers", momentum_buffers, changed=True)
        masked_sgd_(
            parts.local, parts.like("grads", grads), _parts_of_masks(parts, masks, True), lr=lr, momentum_buffers=held, momentum=momentum,
            dampening=dampening, weight_decay=weight_decay, nesterov=nesterov, maximize=maximize, first=first,
        )  # fmt: skip
        parts.done()
        return params
    xs = arg.listed("params", params)
    gradients = arg.same_list("grads", arg.listed("grads", grads), "params", xs)
    if not xs:
        return params
    staged = arg.writable("params", xs)
    buffers: list[Tensor] = []
    staged_buffers: list[Tensor] = []
    if momentum != 0:
        if momentum_buffers is None:
            raise ValueError(
                f"momentum_buffers: got None with momentum {momentum!r}; accepted is a tensor like each of params. "
                "Begin with torch.zeros_like and first=True"
            )
        buffers = arg.same_list("momentum_buffers", momentum_buffers, "params", xs)
        staged_buffers = arg.writable("momentum_buffers", buffers)
    forms = _masks(masks, xs, True)
    arg.apart("masked_sgd_", xs, gradients, forms, buffers)
    inputs = (staged, arg.readable(gradients), forms, staged_buffers)
    arg.run("masked_sgd_", _masked_sgd, staged + staged_buffers, inputs + scalars)
    arg.write_back(xs, staged)
    arg.write_back(buffers, staged_buffers)
    return params


def masked_adam_(
    params: T,
    grads: Tensor | Sequence[Tensor],
    masks: Masks,
    exp_avgs: Tensor | Sequence[Tensor],
    exp_avg_sqs: Tensor | Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
) -> T:
    """One step of ``torch.optim.Adam`` (``decoupled``: of ``AdamW``) on the coordinates that a mask leaves on, in place, in one
    pass over the whole list.

    A frozen coordinate keeps the bits of its weight and of both moments; weight decay doesn't reach it. The bias correction is that
    of ``step`` for every coordinate.

    Args:
        params: a tensor or a list of tensors, changed in place; float32, bfloat16, float16 or float64.
        grads: for each parameter a tensor of its shape, dtype and device.
        masks: None (all on), or for each parameter one of: None; bool of its shape; bool[rows], ``rows = p.shape[0]``, one a neuron
            or output channel (rows that are off are not even read); uint8[ceil(n / 8)], one bit a coordinate, the lowest first.
        exp_avgs, exp_avg_sqs: like params, Adam's moments, changed in place (zeros before the first step).
        step: 1 for the first step.
        lr, betas, eps, weight_decay, maximize: as in ``torch.optim.Adam``.
        decoupled: weight decay as in ``torch.optim.AdamW``, beside the gradient instead of in it.

    Returns:
        ``params``.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, list length, mask or range.
        RuntimeError: a changed tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> p, m, v = torch.ones(3), torch.zeros(3), torch.zeros(3)
    >>> mask.masked_adam_(p, torch.ones(3), torch.tensor([True, False, True]), m, v, step=1, lr=0.5)
    tensor([0.5000, 1.0000, 0.5000])
    """
    arg.integer("step", step, 1, 2**63)
    _numbers(lr=lr, eps=eps, weight_decay=weight_decay)
    beta1, beta2 = betas
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"betas: got {betas!r}; accepted are two numbers in [0, 1)")
    scalars = (step, lr, float(beta1), float(beta2), eps, weight_decay, bool(decoupled), bool(maximize))
    if _fast(_try_adam, params, grads, masks, (exp_avgs, exp_avg_sqs), scalars):
        return params
    if _sharded.found(params, grads, masks, exp_avgs, exp_avg_sqs):
        parts = _sharded.Parts("params", params)
        moments = (parts.like("exp_avgs", exp_avgs, changed=True), parts.like("exp_avg_sqs", exp_avg_sqs, changed=True))
        masked_adam_(
            parts.local, parts.like("grads", grads), _parts_of_masks(parts, masks, False), *moments, step=step, lr=lr, betas=betas, eps=eps,
            weight_decay=weight_decay, decoupled=decoupled, maximize=maximize,
        )  # fmt: skip
        parts.done()
        return params
    xs = arg.listed("params", params)
    gradients = arg.same_list("grads", arg.listed("grads", grads), "params", xs)
    averages = arg.same_list("exp_avgs", exp_avgs, "params", xs)
    squares = arg.same_list("exp_avg_sqs", exp_avg_sqs, "params", xs)
    if not xs:
        return params
    changed = xs + averages + squares
    staged = arg.writable("params", xs)
    staged_averages, staged_squares = arg.writable("exp_avgs", averages), arg.writable("exp_avg_sqs", squares)
    mutated = staged + staged_averages + staged_squares
    forms = _masks(masks, xs, False)
    arg.apart("masked_adam_", xs, gradients, forms, averages, squares)
    inputs = (staged, arg.readable(gradients), forms, staged_averages, staged_squares)
    arg.run("masked_adam_", _masked_adam, mutated, inputs + scalars)
    arg.write_back(changed, mutated)
    return params
