"""In which precision and memory format training passes run: inside alone. Weights stay float32, and the model keeps its own format.

``"auto"`` tries one step of each on a copy of the model at hand, and keeps the fastest that gives the same gradient. Choices made on a
clock may differ from run to run, and with them the bytes of the result; so a choice must be clearly faster (:data:`CLEARLY`), holds for
the process, and stands in the receipt: the same name given as ``precision=`` gives the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._modules import copy_of, dense_gradients
from ..._random import own_randomness
from ..._weights import training_mode
from ..task import Task

Loss = Callable[[nn.Module], Tensor]
PRECISIONS = ("auto", "float32", "bfloat16")
CLEARLY = 0.75  # of the time that float32 takes
SMALL = 0.004  # seconds of a step under which there is nothing to gain
ALIKE = 0.98  # cosine of the gradients
_CHOSEN: dict[Any, dict[str, Any]] = {}


@dataclass(frozen=True)
class Format:
    """One way to run a training pass."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return self.precision + (", channels_last" if self.channels_last else "")


def choose(task: Task, inputs: Any, labels: Tensor, *, loss: Loss | None = None) -> dict[str, Any]:
    """Sets ``task.autocast`` for the run by ``task.precision``; returns what was chosen, for the receipt.

    Args:
        task: the run.
        inputs, labels: a batch to try with.
        loss: of a model on this batch; default: cross-entropy.
    """
    if loss is None:
        loss = functools.partial(_cross_entropy, task, inputs, labels)
    has_convolutions = any(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in task.model.modules())
    if task.precision != "auto":
        chosen = {"precision": task.precision, "channels_last": task.precision == "bfloat16" and has_convolutions}
    elif any(p.dtype != torch.float32 for p in task.model.parameters() if p.is_floating_point()):
        chosen = {"precision": "float32", "channels_last": False, "why": "the model's own weights aren't float32"}
    else:
        key = _structure(task, labels)
        if key not in _CHOSEN:
            _CHOSEN[key] = _fastest(task, loss, has_convolutions)
        chosen = _CHOSEN[key]
    task.autocast = torch.bfloat16 if chosen["precision"] == "bfloat16" else None
    if chosen["channels_last"]:
        task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return dict(chosen)


def _structure(task: Task, labels: Tensor) -> Any:
    shapes = tuple((name, tuple(p.shape)) for name, p in task.model.named_parameters())
    return shapes, len(labels), str(task.device), torch.get_num_threads()


def _fastest(task: Task, loss: Loss, has_convolutions: bool) -> dict[str, Any]:
    first = Format("float32", False)
    seconds, gradient = _step(task, loss, first)
    times = {str(first): seconds}
    best, limit = first, CLEARLY * seconds
    if seconds >= SMALL:
        formats = [Format("bfloat16", has_convolutions), *([Format("float32", True)] if has_convolutions else [])]
        for candidate in formats:
            try:
                seconds, other = _step(task, loss, candidate)
            except RuntimeError:  # a layer without bfloat16
                continue
            times[str(candidate)] = seconds
            if seconds < limit and float(F.cosine_similarity(gradient, other, dim=0)) >= ALIKE:
                best, limit = candidate, seconds
    relative = {name: round(value / times[str(first)], 2) for name, value in times.items()}
    return {"precision": best.precision, "channels_last": best.channels_last, "measured": relative}


def _cross_entropy(task: Task, inputs: Any, labels: Tensor, model: nn.Module) -> Tensor:
    return F.cross_entropy(task.forward(model, inputs).float(), labels)


def _step(task: Task, loss: Loss, form: Format) -> tuple[float, Tensor]:
    """Seconds of a training step (the second of two) on a copy, and its gradient."""
    work = copy_of(task.model)
    if form.channels_last:
        work.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training_mode(work, task.model if task.original is None else task.original)
    seconds = float("inf")
    low = form.precision == "bfloat16"
    with own_randomness(0), torch.enable_grad(), dense_gradients(work), autocast(task, low), task.cost.phase("trial"):
        for _ in range(2):
            for p in work.parameters():
                p.grad = None
            _wait(task)
            began = time.perf_counter()
            with own_randomness(0):
                loss(work).backward()
            _wait(task)
            seconds = min(seconds, time.perf_counter() - began)
    grads = [p.grad.reshape(-1).float() for p in work.parameters() if p.grad is not None]
    return seconds, torch.cat(grads)


def _wait(task: Task) -> None:
    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)


@contextlib.contextmanager
def autocast(task: Task, on: bool) -> Iterator[None]:
    before, task.autocast = task.autocast, torch.bfloat16 if on else None
    try:
        yield
    finally:
        task.autocast = before


class Formats:
    """The memory format of every weight and buffer of a model, to be given back after a run."""

    def __init__(self, model: nn.Module) -> None:
        self.strides = [tensor.stride() for tensor in (*model.parameters(), *model.buffers())]

    def restore(self, model: nn.Module) -> None:
        """The values stay, the strides become what they were."""
        with torch.no_grad():
            for tensor, stride in zip((*model.parameters(), *model.buffers()), self.strides, strict=True):
                if tensor.stride() != stride:
                    tensor.data = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
