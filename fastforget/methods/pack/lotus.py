"""LoTUS: forget samples learn the original model's answers made uncertain, by as much as they are known better than unseen samples.

Spartalis, Semertzidis, Gavves & Daras, "LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty", CVPR'25. Constants:
cspartalis/LoTUS@35ae25e, ``src/unlearning_methods/lotus_class.py``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...optim import MaskedAdamW
from ..engine.joint import joined, share_of
from ..engine.loop import trainable
from ..engine.passes import EPOCHS
from ..engine.teacher import Answers, forward_only
from ..task import Task
from .base import Trained, published, set_of

SHARE, GUMBEL = 74, 75  # purposes of seeds


@dataclasses.dataclass
class LoTUS(Trained):
    """LoTUS, for samples; for classes too, though these leave a rest (forget accuracy .14 to .39 in the authors' tables).

    Needs data never seen for samples: what is known of the forget set beyond it sets the temperature, and ends the run. It may be
    synthetic.

    Args:
        preset: ``"paper"`` and ``"code"`` (CIFAR-10), ``"cifar100"`` (also MUFAC), ``"classes"`` (for whole classes), ``"vit"``.
        alpha: the temperature is exp(alpha * d), d the accuracy on the forget set minus the original's on unseen data (0 for classes).
        share: of the retain set, drawn once.
        stop: a pass isn't begun when d is at most minus this.
        lr, momentum, weight_decay: of AdamW; ``momentum`` is its first beta.
        epochs, batch_size: over the forget set and that share, shuffled into one.

    >>> from fastforget.methods import LoTUS
    >>> LoTUS().alpha, LoTUS(preset="vit").epochs
    (8.0, 3)
    """

    alpha: float | None = None
    share: float | None = None
    stop: float | None = None

    name = "lotus"
    source = "Spartalis et al., CVPR'25; cspartalis/LoTUS@35ae25e"
    uses = ("forget", "retain", "nonmember")
    numbers = ("lr", "momentum", "weight_decay", "alpha", "share", "stop")
    shares = ("share",)
    presets = published(
        paper={
            "lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 128, "alpha": 8.0, "share": 0.3, "stop": 0.01,
        },
        cifar100={"alpha": 2.0},
        classes={"alpha": 32.0},
        vit={"lr": 1e-6, "epochs": 3, "batch_size": 32},
    )  # fmt: skip

    def needed(self, task: Task) -> tuple[str, ...]:
        """Classes as a whole need no data never seen: a model that forgot them answers none of theirs right."""
        return self.uses[:2] if task.classes else self.uses

    def loop(self, task: Task) -> dict[str, Any]:
        """Descends the cross-entropy against targets that are drawn anew in every step."""
        assert self.alpha is not None and self.share is not None and self.stop is not None and self.epochs is not None
        assert self.lr is not None and self.momentum is not None and self.batch_size is not None
        forget = set_of(task, "forget")
        both = joined(task.device, forget, share_of(task, set_of(task, "retain"), self.share, SHARE))
        unseen = None if task.classes else right(task, set_of(task, "nonmember"))
        measured: dict[str, Any] = {"unseen_accuracy": unseen, "temperatures": []}
        original = Answers(task, both, self.epochs)
        if (unseen is None and not task.classes) or not original.ready():
            return measured
        betas = (self.momentum, 0.999)
        optimizer = MaskedAdamW(trainable(task.model), self.lr, betas, weight_decay=self.weight_decay or 0.0)
        generator = task.generator(GUMBEL)
        for epoch in range(self.epochs):
            known = right(task, forget)
            if known is None or (beyond := known - (unseen or 0.0)) <= -self.stop:
                break
            measured["temperatures"].append(temperature := math.exp(self.alpha * beyond))
            beside, purpose = original.beside(self.batch_size), EPOCHS + 1_000 * epoch
            for batch in (epochs := self.passes(task, both, self.name, epochs=1, beside=beside, purpose=purpose, first=epoch + 1)):
                answers, gone = original.of(batch.inputs, batch.rows), (batch.rows < len(forget)).to(task.device)
                targets = uncertain(answers, gone, temperature, generator)
                logits = task.forward(task.model, batch.inputs)
                epochs.descend(optimizer, -(targets * logits.log_softmax(1)).sum(1).mean(), len(batch))
        return measured


def right(task: Task, data: Any) -> float | None:
    """Share of right answers, or ``None`` where the budget has no room to look."""
    if task.cost.stopped_by_budget or not task.cost.has_room(forward_only(len(data))):
        return None
    with task.cost.phase("accuracy"):
        return task.right(data)


def uncertain(logits: Tensor, gone: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Targets [B, K]: of samples to forget the Gumbel-softmax at this temperature, of others a class drawn from the answers."""
    noise = -torch.empty(logits.shape, dtype=logits.dtype).exponential_(generator=generator).log().to(logits.device)
    drawn = logits + noise
    return torch.where(gone[:, None], (drawn / temperature).softmax(1), F.one_hot(drawn.argmax(1), logits.shape[1]).to(logits.dtype))
