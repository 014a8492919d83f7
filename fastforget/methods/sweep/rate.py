"""The sweep's rate, found from the model at hand: how much it has memorised, and how much its weights may move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ... import _weights
from ...ops import membership
from ..attack import auc_of
from ..engine.drawn import Drawn
from ..engine.loop import trainable
from ..engine.terms import anchor
from ..task import Task

STEADY = 1e-3  # nats by which the answers may change when all weights move by the first step's size, at random
TRIAL = 65  # purpose of a seed


def size(weight: Tensor) -> float:
    """The root mean square of a tensor's weights, by which its steps are scaled; biases that start at zero have a floor."""
    least = 1e-3 if weight.dim() > 1 else 0.02
    return max(float(weight.detach().float().square().mean().sqrt()), least)


def steady(task: Task, kept: Drawn) -> float:
    """The largest rate at which the model is steady: when every weight moves up or down by it, at random, the answers to kept samples
    change by :data:`STEADY` nats (KL). Small changes do so by the square of the rate, so one trial tells."""
    inputs, _ = next(kept.task.cost.reading(kept.data.at(kept.order[:1], device=task.device)))
    params = trainable(task.model)
    before, generator, trial = _weights.save(task.model), task.generator(TRIAL), 0.003
    with _weights.evaluating(task.model), task.cost.phase("trial"):
        teacher = task.forward(task.model, inputs).float().log_softmax(dim=1)
        for p in params:
            signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype).mul_(2).sub_(1)
            p.add_(signs, alpha=trial * size(p))
        changed = float(anchor(task.forward(task.model, inputs).float(), teacher))
        _weights.put_back(task.model, before)
    if not math.isfinite(changed):
        return trial / 3
    return trial * math.sqrt(STEADY / max(changed, 1e-12))


def memorised(kept: Drawn, unseen: Drawn | None) -> float:
    """How far the original model's losses tell data it was trained on from data it never saw: the loss attack's AUC above a half, less one
    standard error; 0.05 where there is no unseen data to tell."""
    if unseen is None:
        return 0.05
    losses = [membership.membership_scores(d.logits, d.labels().to(d.logits.device)).loss for d in (kept, unseen)]
    auc, error = auc_of(*losses)
    return max(0.0, auc - 0.5 - error)


def few_trained(model: nn.Module) -> bool:
    """Whether less than half of the weights may be trained, as with adapters on a frozen base."""
    return 2 * sum(p.numel() for p in model.parameters() if p.requires_grad) < sum(p.numel() for p in model.parameters())
