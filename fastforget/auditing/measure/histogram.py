"""Loss histograms on a log axis, with common bins for all models and sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Losses reach from 1e-30 (certain and right) to infinity; outside this range they are counted in the end
# bins.
LOW, HIGH = -8.0, 2.0


def loss_histograms(losses: dict[str, dict[str, Tensor]], bins: int = 40) -> dict[str, Any]:
    """``{"log10_edges": […], "share": {model: {set: share of the samples in each bin}}}``"""
    return {
        "log10_edges": [LOW + (HIGH - LOW) * i / bins for i in range(bins + 1)],
        "share": {model: {s: _share(values, bins) for s, values in sets.items()} for model, sets in losses.items()},
    }


def _share(loss: Tensor, bins: int) -> list[float]:
    place = loss.double().clamp(min=10.0 ** (LOW - 1)).log10().clamp(LOW, math.nextafter(HIGH, LOW))
    index = ((place - LOW) / (HIGH - LOW) * bins).floor().long().clamp(0, bins - 1)
    return (torch.bincount(index, minlength=bins).double() / loss.numel()).tolist()
