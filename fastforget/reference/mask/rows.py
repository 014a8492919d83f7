"""Statistics of each neuron's weights or of each channel's activations, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def neuron_stats(xs: Sequence[Tensor], dim: int, mean_abs: Sequence[Tensor], sum_sq: Sequence[Tensor]) -> None:
    for x, mean, total in zip(xs, mean_abs, sum_sq, strict=True):
        rows = x.movedim(dim, 0).unsqueeze(-1).flatten(1).to(torch.float64)  # also where there are no rows
        mean.copy_(rows.abs().mean(dim=1))
        total.copy_(rows.square().sum(dim=1))
