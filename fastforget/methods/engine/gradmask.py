"""Masks made of gradients, and gradients multiplied by them.

A mask inside an optimiser (:class:`fastforget.optim.MaskedSGD`) keeps the bits of what is masked out; a gradient that is multiplied
(:func:`scaled`) leaves weight decay and momentum as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ...ops import mask


def smallest(grad: Tensor, share: float) -> Tensor:
    """bool of the tensor's shape: its ``round(share * n)`` elements of the smallest magnitude.

    >>> import torch
    >>> smallest(torch.tensor([3.0, -1.0, 0.5, -2.0]), 0.5).tolist()
    [False, True, True, False]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: got {share!r}; accepted is a number from 0 to 1, the share of a layer's weights")
    n = grad.numel()
    chosen, _ = mask.saliency_mask(grad, (n - round(share * n)) / n)
    return ~chosen


@contextlib.contextmanager
def scaled(factors: Mapping[Any, Tensor]) -> Iterator[None]:
    """Inside, each parameter's gradient is multiplied by its factor, element by element, as it comes."""
    handles = [p.register_hook(lambda grad, factor=factor: grad * factor) for p, factor in factors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
