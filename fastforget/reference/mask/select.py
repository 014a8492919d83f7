"""Masks of the weights that matter, in plain PyTorch: the exact global top-k of magnitudes (SalUn: Fan et al., ICLR'24, equation 3 with
a rank threshold), and ratios of two importances (SFRon: Huang et al., NeurIPS'24)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..update import compute_dtype


def pack_bits(mask: Tensor) -> Tensor:
    """bool[n] -> uint8[ceil(n / 8)]: element i is bit i % 8 (the lowest first) of byte i // 8."""
    padded = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
    padded[: mask.numel()] = mask.flatten()
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.view(-1, 8) * weights).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """uint8[ceil(n / 8)] -> bool[n]."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (bits & 1).flatten()[:n].to(torch.bool)


def saliency_mask(xs: Sequence[Tensor], k: int, masks: Sequence[Tensor], threshold: Tensor) -> None:
    # the order of torch.topk: NaN above infinity; of equal magnitudes the earlier in list and row-major order is kept
    magnitudes = [x.flatten().to(compute_dtype(threshold.dtype)).abs() for x in xs]
    flat = torch.cat(magnitudes) if magnitudes else threshold.new_empty(0)
    chosen = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    order = flat.sort(descending=True, stable=True)
    chosen[order.indices[:k]] = True
    threshold.fill_(order.values[k - 1] if k > 0 else torch.inf)
    for mask, part in zip(masks, chosen.split([m.numel() for m in magnitudes]), strict=True):
        mask.copy_(part.view(mask.shape) if mask.dtype == torch.bool else pack_bits(part))


def ratio_mask(
    numerators: Sequence[Tensor], denominators: Sequence[Tensor], masks: Sequence[Tensor], threshold: float, eps: float
) -> None:
    # a product in place of the quotient: nothing is divided by 0, and what is NaN is off
    for numerator, denominator, mask in zip(numerators, denominators, masks, strict=True):
        dtype = compute_dtype(numerator.dtype)
        on = numerator.to(dtype) + eps >= threshold * (denominator.to(dtype) + eps)
        mask.copy_(on if mask.dtype == torch.bool else pack_bits(on))
