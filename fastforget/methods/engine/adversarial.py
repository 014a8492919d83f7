"""The first inputs, on the way up a model's loss, that it answers otherwise than by their labels: projected gradients in growing balls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _tree, _weights
from ..._columns import Column
from ..._data import Source
from ..task import Task
from .teacher import forward_only

DOUBLINGS = 20  # of the ball's radius: what withstands a millionfold has no gradient to go by
BATCH = 128


@dataclass
class Adversarial:
    """Inputs, the wrong classes int64[N] that the model answers them with, and how far each is from its sample (L2, float[N]);
    ``withstood``: samples that were answered rightly at any distance that was tried, and are left out."""

    inputs: Tensor
    labels: Tensor
    distances: Tensor
    withstood: int


def adversarial(task: Task, data: Source, eps: float, steps: int, clip: tuple[float, float] | None) -> Adversarial | None:
    """For every sample a point that is answered wrongly, in eval mode; one that is answered wrongly already stays as it is.

    A step is the gradient's direction times a tenth of the radius, then a projection on the ball; after ``steps`` of them those that are
    still answered rightly go on in a ball twice as large.

    Args:
        task: whose model is asked and whose cost is counted.
        data: samples whose inputs are one floating point tensor; read once.
        eps: the first radius.
        steps: in each ball.
        clip: the least and the largest input there may be.

    Returns:
        ``None`` where the budget ended before all were found.

    Raises:
        TypeError: inputs aren't one floating point tensor.
        ValueError: inputs lie outside of ``clip``; or every sample withstood.
    """
    inputs, labels, distances, withstood = Column(), Column(), Column(), 0
    with _weights.eval_mode(task.model), task.cost.phase("adversarial"), torch.enable_grad():
        for given, own in task.cost.reading(data.batches(batch_size=BATCH)):
            _check(given, data.name, clip)
            start = given.detach().to(task.device)
            ended = _ascend(task, start, own.to(task.device), eps, steps, clip)
            if ended is None:
                return None
            at, answered = ended
            wrong = answered >= 0
            withstood += int((~wrong).sum())
            inputs.add(at[wrong].to(given.device))
            labels.add(answered[wrong].to(own.device))
            distances.add((at - start)[wrong].flatten(1).norm(dim=1).cpu())
    if not len(labels):
        raise ValueError(f"{data.name}: no sample was answered wrongly within {eps * 2**DOUBLINGS:g}; the model has no gradient there")
    return Adversarial(inputs.joined(), labels.joined(), distances.joined(), withstood)


def _check(inputs: object, name: str, clip: tuple[float, float] | None) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise TypeError(
            f"{name}: inputs are {_tree.describe(inputs)}; accepted is one floating point tensor, prepared as in training, as adversarial "
            "examples are moved by gradients. Convert it first, e.g. images.float() / 255, or choose another method"
        )
    if clip is not None and len(inputs) and not (clip[0] <= float(inputs.min()) and float(inputs.max()) <= clip[1]):
        low, high = float(inputs.min()), float(inputs.max())
        raise ValueError(f"{name}: inputs go from {low:g} to {high:g}; clip='unit' takes pixels from 0 to 1. Pass clip='none'")


def _ascend(
    task: Task, start: Tensor, labels: Tensor, eps: float, steps: int, clip: tuple[float, float] | None
) -> tuple[Tensor, Tensor] | None:
    """Where each sample ended, and the wrong class it is answered with there (-1: none); ``None`` where the budget ended."""
    at, answered = start.clone(), torch.full_like(labels, -1)
    rows = torch.arange(len(labels), device=labels.device)  # still answered rightly
    for radius in (eps * 2**ball for ball in range(DOUBLINGS + 1)):
        for _ in range(steps):
            if not task.cost.has_room(len(rows)):
                return None
            x = at[rows].requires_grad_()
            logits = task.forward(task.model, x)
            with task.cost.at("model"):
                (up,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows], reduction="sum"), x)
            now = logits.detach().argmax(1)
            right = now == labels[rows]
            answered[rows[~right]] = now[~right]
            moves = right & up.flatten(1).any(dim=1)  # without a gradient it would stay where it is for good
            rows = rows[moves]
            if not len(rows):
                return at, answered
            at[rows] = _step(start[rows], at[rows], up[moves], radius, clip)
    if not task.cost.has_room(forward_only(len(rows))):
        return None
    with torch.no_grad():
        now = task.forward(task.model, at[rows]).argmax(1)
    answered[rows] = torch.where(now == labels[rows], -1, now)
    return at, answered


def _step(start: Tensor, at: Tensor, up: Tensor, radius: float, clip: tuple[float, float] | None) -> Tensor:
    """A tenth of the radius up, and back into the ball."""
    moved = at + 0.1 * radius * up / _norms(up) - start
    moved = start + moved * (radius / _norms(moved)).clamp_max(1.0)
    return moved if clip is None else moved.clamp(*clip)


def _norms(x: Tensor) -> Tensor:
    """[B, 1, ...]: the L2 norm of each sample, positive."""
    norms = x.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    return norms.view(-1, *[1] * (x.dim() - 1))
