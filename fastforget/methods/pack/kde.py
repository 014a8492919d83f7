"""KDE: stem and head are drawn anew, and learn again what the original answers unseen and retain samples.

The sixth of the NeurIPS'23 competition's methods (Triantafillou et al., arXiv 2406.09073) that Cadet et al., "Deep Unlearn: Benchmarking
Machine Unlearning for Image Classification", arXiv 2410.01276, name and measure. Constants: xcadet/deepunlearn@6830ff6,
``munl/unlearning/kgltop6.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ...optim import MaskedSGD
from ..engine.fresh import draw_anew
from ..engine.loop import cosine, trainable
from ..engine.passes import EPOCHS
from ..engine.teacher import Answers
from ..engine.terms import distill
from ..task import Task, derived_seed
from .base import Trained, published, set_of

FRESH = 80  # purpose of a seed


@dataclasses.dataclass
class KDE(Trained):
    """KDE, for samples; never looks at the forget set. Needs data never seen, whose labels it doesn't read: methods without it are
    compared unfairly.

    The head is the last linear or convolution layer that gives as many outputs as there are classes, the stem the first convolution; a
    net without convolutions keeps its first layers. Frozen weights stay.

    Args:
        lr: of SGD in the passes over the retain set, falling from pass to pass by a cosine.
        warmup_lr: of SGD in the passes over data never seen.
        momentum, weight_decay: of both.
        epochs, warmup_epochs, batch_size: of these passes.
        temperature: of both nets' answers; there is no factor of its square.

    >>> from fastforget.methods import KDE
    >>> KDE().lr, KDE().warmup_lr, KDE().temperature
    (0.001, 0.0009, 5.0)
    """

    warmup_lr: float | None = None
    warmup_epochs: int | None = None
    temperature: float | None = None

    name = "kde"
    source = "NeurIPS'23 competition, arXiv 2406.09073; xcadet/deepunlearn@6830ff6"
    uses = ("retain", "nonmember")
    whole = ("epochs", "batch_size", "warmup_epochs")
    numbers = ("lr", "momentum", "weight_decay", "warmup_lr", "temperature")
    positive = ("temperature",)
    presets = published(
        paper={
            "lr": 0.001, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 3, "batch_size": 64, "warmup_lr": 9e-4, "warmup_epochs": 3,
            "temperature": 5.0,
        },
    )  # fmt: skip

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Descends KL(original || p) on unseen data, then CE + 2 KL on the retain set: its soft cross-entropy has KL's gradient."""
        assert self.lr is not None and self.momentum is not None and self.weight_decay is not None and self.warmup_lr is not None
        assert self.epochs is not None and self.warmup_epochs is not None and self.batch_size is not None and self.temperature is not None
        layers = stem_and_head(task)
        unseen, retain = set_of(task, "nonmember"), set_of(task, "retain")
        first, second = Answers(task, unseen, self.warmup_epochs), Answers(task, retain, self.epochs)
        if not (first.ready() and second.ready()):
            return None
        warmup = self.passes(task, unseen, "warm-up", epochs=self.warmup_epochs, beside=first.beside(self.batch_size))
        if not task.cost.has_room(warmup.each):
            return None
        by_moments = draw_anew(layers, derived_seed(task.seed, FRESH))
        optimizer = MaskedSGD(trainable(task.model), self.warmup_lr, self.momentum, weight_decay=self.weight_decay)
        for batch in warmup:
            loss = distill(task.forward(task.model, batch.inputs), first.of(batch.inputs, batch.rows), self.temperature)
            warmup.descend(optimizer, loss, len(batch))
        optimizer, beside = self.sgd(task), second.beside(self.batch_size)
        passes = self.passes(task, retain, "retain", beside=beside, purpose=EPOCHS + 500)
        for batch in () if task.cost.stopped_by_budget else passes:
            optimizer.param_groups[0]["lr"] = self.lr * cosine(batch.epoch, self.epochs)
            logits = task.forward(task.model, batch.inputs)
            known = distill(logits, second.of(batch.inputs, batch.rows), self.temperature)
            passes.descend(optimizer, nn.functional.cross_entropy(logits, batch.labels) + 2 * known, len(batch))
        return {"drawn_anew": [name for name, _ in layers], **({"drawn_by_moments": by_moments} if by_moments else {})}


def stem_and_head(task: Task) -> list[tuple[str, nn.Module]]:
    """The first convolution, if there is any, and the last layer with an output a class.

    Raises:
        ValueError: there is no such layer.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    modules = list(task.model.named_modules())
    stems = [(name, m) for name, m in modules if isinstance(m, convolutions)][:1]
    sizes = [(n, m) for n, m in modules if task.outputs == getattr(m, "out_features", getattr(m, "out_channels", None))]
    if not sizes:
        raise ValueError(f"model: no linear or convolution layer has {task.outputs} outputs, one a class; kde draws such a head anew")
    return stems + [layer for layer in sizes[-1:] if layer not in stems]
