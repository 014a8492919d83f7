"""Two gradients combined into one step: Nash's bargaining solution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...ops import update

_OPPOSITE = 1e-6  # 1 + cosine under which two gradients are opposite to rounding


def nash(first: list[Tensor], second: list[Tensor]) -> tuple[float, float]:
    """Weights (w1, w2) so that w1 * g1 + w2 * g2 is (g1 / |g1| + g2 / |g2|) / sqrt(1 + c), c their cosine: of norm sqrt(2), whatever
    theirs are.

    Orthogonal gradients are no special case. A gradient of zero gets weight zero. Opposite ones (c = -1, to rounding) leave nothing to
    bargain about, as what helps the one harms the other: both weights are zero.

    >>> import torch
    >>> nash([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 0.5])])
    (0.333..., 2.0)
    >>> nash([torch.tensor([3.0, 0.0])], [torch.tensor([-2.0, 0.0])])
    (0.0, 0.0)
    """
    dot, one, two = (float(value) for value in update.gradient_products(first, second))
    cosine = dot / math.sqrt(one * two) if one * two > 0 else 0.0
    if 1 + cosine < _OPPOSITE:
        return 0.0, 0.0
    scale = math.sqrt(1 + cosine)
    return (1 / (math.sqrt(one) * scale) if one > 0 else 0.0), (1 / (math.sqrt(two) * scale) if two > 0 else 0.0)


def nash_as_coded(first: list[Tensor], second: list[Tensor]) -> tuple[float, float]:
    """The weights as JingWu321/MUNBa@2fe6294, ``Classification/unlearn/MUNBa.py``, computes them: a = sqrt((|g1|^2 |g2|^2 - d |g1| |g2|) /
    (|g1|^4 |g2|^2 - |g1|^2 d^2 + 1e-8)), d the dot product, and b = (1 - |g1|^2 a^2) / (d a + 1e-8); 1 and 0.1 where one isn't positive.

    Where gradients are small the 1e-8 outweighs what it is added to, and where they are orthogonal b has nothing to do with |g2|.

    >>> import torch
    >>> nash_as_coded([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 0.5])])
    (0.333..., 0.049...)
    >>> nash_as_coded([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 0.0])])
    (1.0, 0.1)
    """
    dot, one, two = (float(value) for value in update.gradient_products(first, second))
    square = (one * two - dot * math.sqrt(one * two)) / (one * one * two - one * dot * dot + 1e-8)
    a = math.sqrt(square) if square > 0 else 0.0
    b = (1 - one * a * a) / (dot * a + 1e-8)
    return (a, b) if a > 0 and b > 0 else (1.0, 0.1)


def combined(weights: tuple[float, float], first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """weights[0] * first + weights[1] * second."""
    total = torch._foreach_mul(first, weights[0])
    torch._foreach_add_(total, second, alpha=weights[1])
    return list(total)
