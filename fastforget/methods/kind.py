"""What a request is about, classes and samples of a classifier or sequences of a language model: chosen once, by the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._data import Source
from .._labels import Reading
from .attack import Losses
from .task import Forward, Task
from .verdict import Before, Verdict


@dataclass
class Shown:
    """What the checks found out: how many classes or words the model knows, and by which of its modules (see ``Task.head``)."""

    outputs: int
    head: str | None = None


@dataclass(frozen=True)
class Kind:
    """How a request is read, checked and judged.

    Attributes:
        counted: "samples" or "sequences".
        labels: how labels are read.
        wanted: (method, classes, forget) -> the classes to forget; none where the samples of ``forget`` are.
        check: (model, forward, sets, classes, device, method) -> what one small batch and a first step show; refuses what can't serve.
        look_before: (task, hash of the weights) -> what the model knew.
        judge: (task, before, proxy) -> the verdict.
        right: (task, set) -> [N], the share of each sample that is answered right: 0 or 1 of a classifier, of tokens of a sequence.
        losses: (task, set) -> [N], what the loss attack goes by.
        head: (model, forward, set) -> ``Task.head``.
    """

    counted: str
    labels: Reading
    wanted: Callable[[Any, Any, Source | None], list[int]]
    check: Callable[[nn.Module, Forward, list[Source], list[int], torch.device, Any], Shown]
    look_before: Callable[[Task, str], Before]
    judge: Callable[[Task, Before, dict[str, Any] | None], Verdict]
    right: Callable[[Task, Source], Tensor]
    losses: Losses
    head: Callable[[nn.Module, Forward, Source], str | None]
