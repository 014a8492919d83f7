"""The sweep's rate, found from the model at hand: how far its weights may move before it answers otherwise; and what it has memorised."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ... import _weights
from ...ops import membership
from ..attack import auc_of
from ..engine import norms
from ..engine.drawn import Drawn
from ..engine.loop import gradients, trainable
from ..engine.tensorwise import direction
from ..engine.terms import anchor
from ..task import Task

# nats by which the answers to kept samples may change in the first step: so many, and more (by LOOSER) the more the model has memorised,
# which must be shaken loose; by less where the anchor doesn't weigh more then (ResNet-20 lost half a point of one class's sweep)
STEADY = 8e-3
LOOSER, LESS = 15.0, 3.0
TRIED = 3e-3  # the first rate tried
MEMORY = 0.1  # of an AUC above a half, from which on a model counts as one that has memorised its data


def size(weight: Tensor) -> float:
    """The root mean square of a tensor's weights, by which its steps are scaled; biases that start at zero have a floor."""
    least = 1e-3 if weight.dim() > 1 else 0.02
    return max(float(weight.detach().float().square().mean().sqrt()), least)


def steady(task: Task, kept: Drawn, push: Callable[[], Tensor], looser: float) -> float:
    """The largest rate at which the model is steady: when every tensor moves by it down the gradient of ``push``, as in a sweep's first
    step, the answers to kept samples change by :data:`STEADY` nats (KL), and by ``looser`` times as many more.

    Small changes do so by the square of the rate, so one trial tells; where it is far off, a second is made at the rate that it gave. The
    answers are those of training: a net with batch norm stands more there than with its running statistics.
    """
    (inputs, _), *_ = kept.task.cost.reading(kept.data.at(kept.order[:1], device=task.device))
    params = trainable(task.model)
    before, rate, allowed = _weights.save(task.model), TRIED, STEADY * (1 + looser)
    with _weights.evaluating(task.model), task.cost.phase("trial"):
        norms.by_batch(task)
        teacher = task.forward(task.model, inputs).float().log_softmax(dim=1)
        with torch.enable_grad():
            downhill = gradients(task, push(), params)
        for _ in range(2):
            for p, g in zip(params, downhill, strict=True):
                p.sub_(direction(g), alpha=rate * size(p))
            changed = float(anchor(task.forward(task.model, inputs).float(), teacher))
            _weights.put_back(task.model, before)
            if not math.isfinite(changed):
                rate /= 30
                continue
            rate *= math.sqrt(allowed / max(changed, 1e-12))
            if allowed / 10 < changed < allowed * 10:
                break
    return rate


def memorised(kept: Drawn, unseen: Drawn | None) -> float:
    """How far the original model's losses tell data it was trained on from data it never saw: the loss attack's AUC above a half, less one
    standard error; 0.05 where there is no unseen data to tell."""
    if unseen is None:
        return 0.05
    rows = ((d, d.by_chance()) for d in (kept, unseen))
    losses = [membership.membership_scores(d.logits[at], d.labels()[at].to(d.logits.device)).loss for d, at in rows]
    auc, error = auc_of(*losses)
    return max(0.0, auc - 0.5 - error)


def strength(memory: float) -> float:
    """What :func:`memorised` found, from 0 to 1."""
    return min(1.0, memory / MEMORY)


def few_trained(model: nn.Module) -> bool:
    """Whether less than half of the weights may be trained, as with adapters on a frozen base."""
    return 2 * sum(p.numel() for p in model.parameters() if p.requires_grad) < sum(p.numel() for p in model.parameters())
