"""Batch norm's running statistics, taken anew: training steps on other data than the model is for leave them where that data was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..task import Task


def moving(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that normalise by the batch and move their running statistics, as the model's modes are."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kinds) and m.training and m.track_running_stats and m.running_mean is not None]


def settle(task: Task, batches: Iterable[Any]) -> None:
    """Running statistics are the mean of those of these batches' inputs, with the weights as they are."""
    norms = moving(task.model)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            for inputs in batches:
                task.forward(task.model, inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
