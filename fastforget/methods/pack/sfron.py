"""SFRon: ascent on the forget set, weighted by sample and masked by weight, between steps on the retain set.

Huang, Cheng, Zheng, Wang, He, Li & Huang, "Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement", NeurIPS'24.
Constants: K1nght/Unified-Unlearning-w-Remain-Geometry@36bb7f6, ``Classification/unlearn/sfron.py`` (CIFAR-10, 10 % at random).
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...ops import mask
from ..engine.gradmask import scaled
from ..engine.importance import SQUARES, importance
from ..engine.loop import backward, cosine, trainable
from ..engine.passes import Passes
from ..task import Task
from .base import Cycled, Standard, cross_entropy, optimizer_of, published, set_of

FORGET_ORDER, SWEEP = 76, 77  # purposes of seeds


@dataclasses.dataclass
class SFRon(Standard):
    """SFRon, for classes and for samples.

    Forget and retain steps share one optimiser and its momentum, so weights outside of the mask move in forget steps too.

    Args:
        preset: ``"paper"`` and ``"code"`` are one: the code has the paper's slow update switched off (``ema``), and with which value the
            paper's figures were made isn't known. ``"tinyimagenet"``: the constants that the code leaves in a comment.
        lr, momentum, weight_decay, optimizer: of ``"sgd"``, or of ``"adamw"`` with ``momentum`` its first beta. The rate falls by a cosine.
        steps: on the retain set, batch by batch; every ``every``-th begins with one on the forget set.
        batch_size: of both sets, and of the importances for the mask.
        ascent: factor on the forget loss, which falls by the same cosine.
        adapt: power of a sample's loss that its weight is one over; the weights' mean is one.
        threshold: a weight is in the mask where its importance on the forget set is at least so many times that on the retain set.
        clip: largest norm of the masked gradient of a forget step.
        ema: after every step the weights become ``ema`` times themselves plus ``1 - ema`` times those before; 1 changes nothing.

    >>> from fastforget.methods import SFRon
    >>> SFRon().ascent, SFRon(preset="tinyimagenet").every
    (25.0, 1)
    """

    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    steps: int | None = None
    every: int | None = None
    batch_size: int | None = None
    ascent: float | None = None
    adapt: float | None = None
    threshold: float | None = None
    clip: float | None = None
    ema: float | None = None

    name = "sfron"
    weighs = True
    source = "Huang et al., NeurIPS'24; K1nght/Unified-Unlearning-w-Remain-Geometry@36bb7f6"
    whole = ("steps", "every", "batch_size")
    numbers = ("lr", "momentum", "weight_decay", "ascent", "adapt", "threshold", "clip", "ema")
    choices = MappingProxyType({"optimizer": ("sgd", "adamw")})
    presets = published(
        paper={
            "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "optimizer": "sgd", "steps": 1500, "every": 5, "batch_size": 128,
            "ascent": 25.0, "adapt": 0.5, "threshold": 1.0, "clip": 7.0, "ema": 1.0,
        },
        tinyimagenet={"lr": 2e-5, "weight_decay": 0.05, "optimizer": "adamw", "steps": 500, "every": 1, "ascent": 500.0, "adapt": 0.6},
    )  # fmt: skip

    def loop(self, task: Task) -> dict[str, Any] | None:
        """The mask, then steps up the weighted forget loss and down CE(retain)."""
        assert self.batch_size is not None and self.steps is not None and self.every is not None and self.threshold is not None
        assert self.lr is not None and self.ascent is not None and self.ema is not None
        size, sets, params = self.batch_size, [set_of(task, name) for name in self.uses], list[Tensor](trainable(task.model))
        if not task.cost.has_room(sum(map(len, sets))):
            return None
        generator = task.generator(SWEEP)
        known, kept = (importance(task, [data], size, SQUARES, generator=generator, phase="mask") for data in sets)
        masks = mask.ratio_mask(known, kept, self.threshold)
        optimizer = optimizer_of(self.optimizer, task, self.lr, self.momentum, self.weight_decay)
        batches = iter(forget := Cycled(task, sets[0], size, FORGET_ORDER))
        epochs = -(-self.steps // max(1, len(sets[1]) // size))
        for batch in (passes := Passes(task, self.name, sets[1], size, epochs, beside=forget.size, most=self.steps)):
            fall = cosine(batch.step, self.steps)
            before = [p.detach().clone() for p in params] if self.ema != 1 else []
            optimizer.param_groups[0]["lr"] = self.lr * fall
            if batch.step % self.every == 0:
                inputs, labels = next(batches)
                self._ascend(task, optimizer, params, masks, self.ascent * fall * self._weighted(task.forward(task.model, inputs), labels))
            passes.descend(optimizer, cross_entropy(task, batch), len(batch))
            if before:
                with task.cost.at("ops"), torch.no_grad():
                    torch._foreach_lerp_(params, before, 1 - self.ema)
        return {"share_in_mask": sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)}

    def _weighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean of the samples' losses, each weighted by one over its power ``adapt``; the weights' mean is one."""
        assert self.adapt is not None
        each = F.cross_entropy(logits, labels, reduction="none")
        weights = 1 / (each.detach() ** self.adapt + 1e-15)
        return (weights / weights.mean() * each).mean()

    def _ascend(self, task: Task, optimizer: torch.optim.Optimizer, params: list[Tensor], masks: list[Tensor], loss: Tensor) -> None:
        """A step up the loss, by its masked and clipped gradient."""
        assert self.clip is not None
        optimizer.zero_grad(set_to_none=True)
        with scaled(dict(zip(params, masks, strict=True))):
            backward(task, -loss)
        with task.cost.at("ops"):
            nn.utils.clip_grad_norm_(params, self.clip)
            optimizer.step()
