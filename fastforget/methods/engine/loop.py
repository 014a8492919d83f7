"""The training loop of every method: numbered steps that are counted, shown, and ended by the budget.

with training(task, "train"):
    for step in steps(task, most, "sweep", each=3 * 64):
        ...
        descend(task, optimizer, loss)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ... import _weights
from ..._progress import Progress, progress
from ..task import Task


@contextlib.contextmanager
def training(task: Task, mode: str) -> Iterator[None]:
    """Gradients, and the model in mode ``"train"`` (norms that are frozen stay so) or ``"eval"``; afterwards its flags are as before."""
    with _weights.flags_kept(task.model), torch.enable_grad():
        task.train_mode() if mode == "train" else task.model.eval()
        yield


def steps(task: Task, most: int, phase: str, *, each: int, label: str | None = None, first: int = 0) -> Iterator[int]:
    """The numbers 0, 1, ... of at most ``most`` steps. The run ends before a step for which the budget has no room.

    Args:
        task: whose cost is counted, in ``phase``.
        most: steps.
        phase: its name.
        each: sample passes that a step takes.
        label: of the progress bar, if it isn't the phase's name.
        first: the number of the first step, where a run goes on.
    """
    bar: Progress[int]
    with progress(most, label or phase, task.progress) as bar, task.cost.phase(phase):
        bar.step(first)
        for step in range(first, most):
            if not task.cost.has_room(each):
                return
            yield step
            bar.step(1, task.cost.note())


def backward(task: Task, loss: Tensor) -> None:
    """``loss.backward()``, as time of the model."""
    with task.cost.at("model"):
        loss.backward()


def descend(task: Task, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of the optimiser down the loss."""
    optimizer.zero_grad(set_to_none=True)
    backward(task, loss)
    with task.cost.at("ops"):
        optimizer.step()


def gradients(task: Task, loss: Tensor, params: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where the loss doesn't depend on a parameter."""
    params = list(params)
    with task.cost.at("model"):
        grads = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.contiguous() for p, g in zip(params, grads, strict=True)]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training may change."""
    return [p for p in model.parameters() if p.requires_grad]


def must_be_finite(loss: Tensor | float, phase: str, rate: float, remedy: str) -> float:
    """The loss as a number.

    Raises:
        FloatingPointError: it is NaN or infinite.
    """
    value = float(loss)
    if not math.isfinite(value):
        raise FloatingPointError(f"{phase}: the loss became {value} at rate {rate:g}; the model is unchanged. {remedy}")
    return value


def cosine(step: int, most: int) -> float:
    """The factor of a rate that falls from one to zero."""
    return 0.5 + 0.5 * math.cos(math.pi * step / most)
