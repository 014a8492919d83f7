"""MUNBa: what is kept and what is to go bargain about each step.

Wu & Harandi, "MUNBa: Machine Unlearning via Nash Bargaining", ICCV'25, arXiv 2411.15537. Constants: JingWu321/MUNBa@2fe6294,
``Classification/unlearn/MUNBa.py``; values for each data set are unpublished.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import torch
from torch.nn import functional as F

from ..engine.bargain import combined, nash, nash_as_coded
from ..engine.loop import gradients, trainable
from ..engine.passes import EPOCHS
from ..task import Task
from .base import Cycled, Trained, cross_entropy, published, random_labels, set_of
from .plain import LABELS

FORGET_ORDER = 78  # purpose of a seed
CLIP = 1.0
RULES = {"closed": nash, "code": nash_as_coded}


@dataclasses.dataclass
class MUNBa(Trained):
    """MUNBa, for classes and for samples; forget samples learn labels drawn at random, so theirs aren't read.

    An epoch is a pass over the retain set; while it lasts, each of its batches has a forget batch beside it until every forget sample was
    shown. (With more forget than retain batches, those left over come first in the next epoch.)

    Args:
        preset: ``"paper"``, or ``"code"``: weights as the authors' code computes them, see ``rule``.
        rule: ``"closed"``, the closed form, which is finite unless gradients are opposite (there is no gradient in such a step, momentum
            and weight decay act alone); ``"code"``: with the code's 1e-8 in the denominators, which matter where gradients are small.
        lr, momentum, weight_decay: of SGD. Combined gradients are clipped to norm 1.
        epochs, batch_size: over the retain set; the forget set has batches of the same size.

    >>> from fastforget.methods import MUNBa
    >>> MUNBa().rule, MUNBa(preset="code").rule
    ('closed', 'code')
    """

    rule: str | None = None

    name = "munba"
    source = "Wu & Harandi, ICCV'25; JingWu321/MUNBa@2fe6294"
    reads_labels = False
    choices = MappingProxyType({"rule": tuple(RULES)})
    presets = published(
        paper={"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256, "rule": "closed"},
        code={"rule": "code"},
    )

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Steps along both gradients while forget batches last, then along CE(retain) alone."""
        assert self.batch_size is not None and self.epochs is not None and self.rule is not None
        optimizer, params, generator = self.sgd(task), trainable(task.model), task.generator(LABELS)
        forget = Cycled(task, set_of(task, "forget"), self.batch_size, FORGET_ORDER)
        batches, most, idle = iter(forget), len(forget), 0
        for epoch in range(self.epochs):
            purpose = EPOCHS + 1_000 * epoch
            passes = self.passes(task, set_of(task, "retain"), self.name, epochs=1, beside=forget.size, purpose=purpose, first=epoch + 1)
            for retain in passes:
                if retain.number >= most:
                    passes.descend(optimizer, cross_entropy(task, retain), len(retain))
                    continue
                inputs, labels = next(batches)
                loss = cross_entropy(task, retain)
                ours = gradients(task, loss, params)
                drawn = random_labels(labels, task.outputs, generator)
                theirs = gradients(task, F.cross_entropy(task.forward(task.model, inputs), drawn), params)
                weights = RULES[self.rule](ours, theirs)
                idle += weights == (0.0, 0.0)
                for p, g in zip(params, combined(weights, ours, theirs), strict=True):
                    p.grad = g
                torch.nn.utils.clip_grad_norm_(params, CLIP)
                with task.cost.at("ops"):
                    optimizer.step()
                passes.seen(loss, len(retain))
        return {"opposite": idle} if idle else None
