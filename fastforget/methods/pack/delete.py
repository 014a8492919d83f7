"""DELETE: the forget class learns the original model's own answers without the label.

Zhou, Zheng, Mo, Lu, Lin & Zheng, "Decoupled Distillation to Erase: A General Unlearning Method for Any Class-centric Tasks", CVPR'25: the
target is the original's distribution with the label masked out. Constants: shaaaaron/DELETE@60018a1, ``method/delete.py`` and ``config/``.
"""

from __future__ import annotations

import dataclasses
import math
from types import MappingProxyType

from ..engine.teacher import Answers
from ..engine.terms import distill
from ..task import Task
from .base import Trained, published, set_of


@dataclasses.dataclass
class DELETE(Trained):
    """DELETE, for whole classes, from the forget set alone. Single samples of a class are none of its business: their target would have
    the class left out that the samples which stay have.

    Args:
        preset: ``"paper"`` and ``"code"`` (CIFAR-10, ResNet-18), ``"cifar100"`` (also VGG16 and ViT-S) or ``"tinyimagenet"``.
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: over the forget set.
        mode: ``"train"``: batch norm adapts to the class that is forgotten; ``"eval"``: it stays, and there is no dropout. The code holds
            batch norm for one class of TinyImageNet alone.

    >>> from fastforget.methods import DELETE
    >>> DELETE().lr, DELETE(preset="tinyimagenet").batch_size
    (0.0001, 64)
    """

    mode: str | None = None

    name = "delete"
    source = "Zhou et al., CVPR'25; shaaaaron/DELETE@60018a1"
    scope = "classes"
    uses = ("forget",)
    choices = MappingProxyType({"mode": ("train", "eval")})
    presets = published(
        paper={"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.0, "epochs": 20, "batch_size": 128, "mode": "train"},
        cifar100={"lr": 5e-5},
        tinyimagenet={"lr": 5e-5, "batch_size": 64},
    )

    @property
    def trains_in(self) -> str:
        """The option ``mode``."""
        assert self.mode is not None
        return self.mode

    def loop(self, task: Task) -> None:
        """Descends KL(softmax(z0 with z0[y] = -inf) || p), z0 the original's logits."""
        assert self.batch_size is not None and self.epochs is not None
        optimizer, forget = self.sgd(task), set_of(task, "forget")
        original = Answers(task, forget, self.epochs)
        if not original.ready():
            return
        for batch in (passes := self.passes(task, forget, self.name, beside=original.beside(self.batch_size))):
            others = original.of(batch.inputs, batch.rows).scatter(1, batch.labels[:, None], -math.inf)
            passes.descend(optimizer, distill(task.forward(task.model, batch.inputs), others), len(batch))
