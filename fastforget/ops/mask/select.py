"""Masks of the weights that matter: the largest magnitudes of a whole list, ratios of two importances; masks of one bit an element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from ... import _schema
from ...reference.mask import select as reference
from .. import _arguments as arg
from .. import _sharded
from . import _select_sharded

__all__ = ["pack_bits", "ratio_mask", "saliency_mask", "unpack_bits"]

_saliency_mask, _ratio_mask = _schema.overload("saliency_mask"), _schema.overload("ratio_mask")
_try_ratio_mask = _schema.boxed("ratio_mask")


def _chosen(keep: float, n: int) -> int:
    """The integer nearest to ``keep * n`` (halves go up), by integer arithmetic on the exact fraction that the float ``keep`` is:
    the product of floats could fall on the wrong side of a half, or lose whole units beyond 2**53."""
    if not (isinstance(keep, (int, float)) and 0 <= keep <= 1):
        raise ValueError(f"keep: got {keep!r}; accepted is a number from 0 to 1, the share of all elements to choose")
    numerator, denominator = float(keep).as_integer_ratio()
    return (2 * numerator * n + denominator) // (2 * denominator)


def _unset_masks(xs: Sequence[Tensor], packed: bool) -> list[Tensor]:
    return [
        torch.empty(-(-t.numel() // 8), dtype=torch.uint8, device=t.device)
        if packed
        else torch.empty_like(t, dtype=torch.bool, memory_format=torch.contiguous_format)  # half the time of torch.empty(t.shape, ...)
        for t in xs
    ]


@overload
def saliency_mask(x: Tensor, keep: float, *, packed: bool = False) -> tuple[Tensor, Tensor]: ...
@overload
def saliency_mask(x: Sequence[Tensor], keep: float, *, packed: bool = False) -> tuple[list[Tensor], Tensor]: ...


def saliency_mask(
    x: Tensor | Sequence[Tensor], keep: float, *, packed: bool = False
) -> tuple[Tensor | list[Tensor], Tensor]:
    """Masks of the elements with the largest magnitudes, chosen over the whole list (SalUn: Fan et al., ICLR'24, equation 3).

    Exactly ``k`` elements are on: the integer nearest to ``keep`` times the number of elements (halves go up). NaN counts as larger than
    infinity; of equal magnitudes the earlier in list and row-major order is chosen. No copy of the list is made: on the CPU the extra
    memory grows with n^(2/3), at most 5 MB for the 45 MB of a ResNet-18, and the time is bounded whatever the values are.

    Args:
        x: a tensor or a list of tensors of any shapes (SalUn: the gradients of the forget loss); float32, bfloat16 and float16 may be
            mixed and compare as float32; a float64 tensor makes the comparison float64. Must not require grad.
        keep: share of all elements to choose, 0 to 1.
        packed: one bit an element instead of a bool: uint8[ceil(n / 8)] for a tensor of n elements, lowest bit first
            (:func:`unpack_bits` undoes it).

    Returns:
        masks: one tensor or a list, as ``x`` is.
        threshold: 0-d, the smallest chosen magnitude (infinity if none is chosen); float32, or float64 if any ``x`` is.

    Raises:
        TypeError, ValueError: wrong dtype, device or range.
        RuntimeError: a tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> masks, threshold = mask.saliency_mask([torch.tensor([0.1, -3.0]), torch.tensor([[2.0], [-0.5]])], 0.5)
    >>> [m.tolist() for m in masks], threshold.item()
    ([[False, True], [[True], [False]]], 2.0)
    """
    xs = arg.listed("x", x)
    arg.no_gradient("saliency_mask", "x", xs)
    k = _chosen(keep, sum(t.numel() for t in xs))
    if not xs:
        return [], torch.full((), math.inf)
    if _sharded.found(xs):
        _not_packed(packed)
        parts = _sharded.Parts("x", xs, changed=False)
        own, threshold = _select_sharded.select(parts, k)
        local = [torch.empty(t.shape, dtype=torch.bool, device=t.device) for t in parts.local]
        least = torch.empty_like(threshold)  # of this rank's own
        arg.run("saliency_mask", _saliency_mask, [*local, least], (arg.readable(parts.local), own, local, least))
        masks = _placed(local, parts)
        return masks[0] if isinstance(x, Tensor) else masks, threshold
    masks = _unset_masks(xs, packed)
    wide = any(t.dtype == torch.float64 for t in xs)
    threshold = torch.empty((), dtype=torch.float64 if wide else torch.float32, device=xs[0].device)
    arg.run("saliency_mask", _saliency_mask, [*masks, threshold], (arg.readable(xs), k, masks, threshold))
    return masks[0] if isinstance(x, Tensor) else masks, threshold


def _not_packed(packed: bool) -> None:
    if packed:
        raise ValueError(f"packed: got {packed!r} with a DTensor; accepted is False: a byte's bits would lie on two ranks")


def _placed(masks: list[Tensor], parts: _sharded.Parts) -> list[Tensor]:
    """Masks of the parts as DTensors, where these are parts of some."""
    pairs = zip(masks, parts.given, strict=True)
    return [_sharded.alike(m, t, t.shape, t.placements) if _sharded.is_sharded(t) else m for m, t in pairs]


@overload
def ratio_mask(numerators: Tensor, denominators: Tensor, threshold: float, *, eps: float = 1e-15, packed: bool = False) -> Tensor: ...
@overload
def ratio_mask(
    numerators: Sequence[Tensor], denominators: Sequence[Tensor], threshold: float, *, eps: float = 1e-15, packed: bool = False
) -> list[Tensor]: ...


def ratio_mask(
    numerators: Tensor | Sequence[Tensor],
    denominators: Tensor | Sequence[Tensor],
    threshold: float,
    *,
    eps: float = 1e-15,
    packed: bool = False,
) -> Tensor | list[Tensor]:
    """Masks of the elements that matter more to one set than to another, over a whole list (SFRon: Huang et al., NeurIPS'24).

    On where ``numerator + eps >= threshold * (denominator + eps)``, computed in float32 (float64 for float64): the published quotient
    ``(numerator + eps) / (denominator + eps) >= threshold`` without the division. At a threshold of 1 and denominators >= 0 the two agree
    on all finite values; at others they may differ where the quotient is the threshold to within a rounding. NaN is off.

    Args:
        numerators: a tensor or a list of tensors of any shapes, >= 0 (SFRon: the Fisher information of the forget set); float32, bfloat16,
            float16 or float64. Must not require grad.
        denominators: for each numerator a tensor of the same shape, dtype and device (SFRon: that of the retain set).
        threshold: a finite number >= 0 (SFRon's code: 1).
        eps: a finite number >= 0, added to both (SFRon's code: 1e-15).
        packed: one bit an element instead of a bool, as :func:`saliency_mask` packs them (:func:`unpack_bits` undoes it).

    Returns:
        One mask or a list, as ``numerators`` is: bool of its shape, or uint8[ceil(n / 8)] for n elements.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device, list length or range.
        RuntimeError: a tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> mask.ratio_mask(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]), 1.0).tolist()
    [True, False, True]
    """
    for name, value in (("threshold", threshold), ("eps", eps)):
        if isinstance(value, bool) or not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")
    numbers = float(threshold), float(eps)
    lists = arg.plain_lists(numerators, denominators)
    if lists is not None and set(map(type, lists[0])) <= {Tensor, torch.nn.Parameter}:
        masks = _unset_masks(lists[0], packed)
        if arg.accepted(_try_ratio_mask, (*lists, masks, *numbers)):
            return masks[0] if isinstance(numerators, Tensor) else masks
    if _sharded.found(numerators, denominators):
        _not_packed(packed)
        parts = _sharded.Parts("numerators", numerators, changed=False)
        masks = _placed(ratio_mask(parts.local, parts.like("denominators", denominators), threshold, eps=eps), parts)
        return masks[0] if isinstance(numerators, Tensor) else masks
    xs = arg.listed("numerators", numerators)
    ys = arg.same_list("denominators", denominators, "numerators", xs)
    arg.no_gradient("ratio_mask", "numerators", xs)
    arg.no_gradient("ratio_mask", "denominators", ys)
    masks = _unset_masks(xs, packed)
    if xs:
        arg.run("ratio_mask", _ratio_mask, masks, (arg.readable(xs), arg.readable(ys), masks, *numbers))
    return masks[0] if isinstance(numerators, Tensor) else masks


def pack_bits(mask: Tensor) -> Tensor:
    """A bool mask of any shape as one bit an element.

    Args:
        mask: bool, n elements.

    Returns:
        uint8[ceil(n / 8)]: element ``i`` (row-major) is bit ``i % 8`` of byte ``i // 8``, the lowest bit first; unused bits are 0.

    Raises:
        TypeError: not a bool tensor.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> mask.pack_bits(torch.tensor([True, False, True])).tolist()
    [5]
    """
    if arg.tensor("mask", mask).dtype != torch.bool:
        raise TypeError(f"mask: got {arg.describe(mask)}; accepted dtype is bool. Compare first, e.g. mask != 0")
    return reference.pack_bits(mask)


def unpack_bits(packed: Tensor, shape: int | Sequence[int]) -> Tensor:
    """The bool mask that was packed.

    Args:
        packed: uint8[ceil(n / 8)], as :func:`pack_bits` and :func:`saliency_mask` make it.
        shape: the mask's shape (n elements), or n.

    Returns:
        bool tensor of that shape.

    Raises:
        TypeError: not a uint8 tensor.
        ValueError: another number of bytes.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> mask.unpack_bits(torch.tensor([5], dtype=torch.uint8), (3,)).tolist()
    [True, False, True]
    """
    if arg.tensor("packed", packed).dtype != torch.uint8:
        raise TypeError(f"packed: got {arg.describe(packed)}; accepted dtype is uint8")
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    n = math.prod(size)
    if packed.dim() != 1 or packed.numel() != -(-n // 8):
        raise ValueError(f"packed: got {arg.describe(packed)}; accepted is [{-(-n // 8)}], 8 of the {n} elements of {size} a byte")
    return reference.unpack_bits(packed, n).view(size)
