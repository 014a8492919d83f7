"""Batch norm's running statistics, taken anew: training steps on other data than the model is for leave them where that data was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..task import Task


def _normalises(module: nn.Module) -> bool:
    """Whether it is a batch norm with running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.running_mean is not None


def has_statistics(model: nn.Module) -> bool:
    """Whether the model has batch norms with running statistics."""
    return any(map(_normalises, model.modules()))


def moving(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that normalise by the batch and move their running statistics, as the model's modes are."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and _normalises(m) and m.training]


def by_batch(task: Task) -> None:
    """Batch norms in train mode, but for frozen ones; all else, such as dropout, in eval mode."""
    task.train_mode()
    for module in task.model.modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = False


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
