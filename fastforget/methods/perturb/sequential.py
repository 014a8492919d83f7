"""Looks at as few samples as decide: a look goes on, part by part, until what it shows is clearly on one side of a limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..task import Task

FIRST, GROWTH = 128, 2  # samples of the first part; each further cut is at so many times as many
CLEAR = 2.5  # standard errors


def parts(task: Task, samples: int, most: int, purpose: int, first: int = FIRST) -> list[Tensor]:
    """Positions in a set of ``samples``, ``most`` of them at random: the parts that a look takes one after the other."""
    order = torch.randperm(samples, generator=task.generator(purpose))[:most]
    cuts, at = [], first
    while at < len(order):
        cuts.append(at)
        at *= GROWTH
    return list(order.tensor_split(cuts))


def clear(estimate: float, error: float, limit: float) -> bool:
    """Whether an estimate is clearly on one side of the limit."""
    return abs(estimate - limit) > CLEAR * error


def mean_of(values: Tensor) -> tuple[float, float]:
    """Mean of numbers from -1 to 1, and its standard error: with one 1 more than there is, so that a few that agree don't look certain.

    >>> import torch
    >>> mean_of(torch.zeros(3))
    (0.0, 0.28867513459481287)
    """
    n = len(values)
    return float(values.double().mean()), math.sqrt((float(values.square().sum()) + 1) / (n + 1) / n)
