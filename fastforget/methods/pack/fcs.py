"""FCS: answers on the forget set are made even, then held away from the retain set's between passes that repair.

The first place of the NeurIPS'23 unlearning competition (Triantafillou et al., arXiv 2406.09073), as Cadet et al., "Deep Unlearn:
Benchmarking Machine Unlearning for Image Classification", arXiv 2410.01276, name and measure it. Constants: xcadet/deepunlearn@6830ff6,
``munl/unlearning/kgltop1.py``.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ...optim import MaskedSGD
from ..engine.loop import cosine, trainable
from ..engine.passes import EPOCHS
from ..engine.teacher import forward_only
from ..engine.terms import distill
from ..task import Task
from .base import Cycled, Trained, cross_entropy, published, set_of

RETAIN_ORDER = 79  # purpose of a seed


@dataclasses.dataclass
class FCS(Trained):
    """FCS, for samples; reads no forget labels. Three optimisers with momenta of their own move the same weights.

    Args:
        lr, momentum, weight_decay: of SGD in the first pass, towards even answers on the forget set.
        epochs: rounds, each of a pass over the forget set with retain batches beside it and a pass over the retain set.
        batch_size: of both sets.
        forget_lr: of SGD in the rounds' forget passes, momentum as above and no weight decay; it falls to ``least_lr`` by a cosine.
        retain_lr: of SGD in the rounds' retain passes, for batches of 64: it grows with the batch.
        retain_weight_decay: of that.
        temperature: the similarities are divided by it.

    With fewer retain than forget batches, the retain set is begun again (the code leaves the pass).

    >>> from fastforget.methods import FCS
    >>> FCS().epochs, FCS().forget_lr
    (8, 0.0003)
    """

    forget_lr: float | None = None
    least_lr: float | None = None
    retain_lr: float | None = None
    retain_weight_decay: float | None = None
    temperature: float | None = None

    name = "fcs"
    source = "first place, NeurIPS'23 competition, arXiv 2406.09073; xcadet/deepunlearn@6830ff6"
    reads_labels = False
    numbers = (
        "lr", "momentum", "weight_decay", "forget_lr", "least_lr", "retain_lr", "retain_weight_decay", "temperature",
    )  # fmt: skip
    positive = ("temperature",)
    presets = published(
        paper={
            "lr": 0.005, "momentum": 0.9, "weight_decay": 0.0, "epochs": 8, "batch_size": 256, "forget_lr": 3e-4, "least_lr": 1e-6,
            "retain_lr": 0.001, "retain_weight_decay": 0.01, "temperature": 1.15,
        },
    )  # fmt: skip

    def loop(self, task: Task) -> None:
        """Descends KL(uniform || p) on the forget set, then rounds of the contrast and of CE(retain)."""
        assert self.epochs is not None and self.batch_size is not None and self.temperature is not None and self.momentum is not None
        assert self.forget_lr is not None and self.least_lr is not None
        assert self.retain_lr is not None and self.retain_weight_decay is not None
        forget, retain, even = set_of(task, "forget"), set_of(task, "retain"), self.sgd(task)
        for batch in (passes := self.passes(task, forget, "even answers", epochs=1)):
            logits = task.forward(task.model, batch.inputs)
            passes.descend(even, distill(logits, torch.zeros_like(logits)), len(batch))
        params = trainable(task.model)
        apart = MaskedSGD(params, self.forget_lr, self.momentum)
        repair = MaskedSGD(params, self.retain_lr * self.batch_size / 64, self.momentum, weight_decay=self.retain_weight_decay)
        others = Cycled(task, retain, self.batch_size, RETAIN_ORDER)
        batches, done = iter(others), 0
        for epoch in range(self.epochs):
            if task.cost.stopped_by_budget:
                return
            first = EPOCHS + 2_000 * (epoch + 1)
            beside, number = forward_only(others.size), epoch + 1
            passes = self.passes(task, forget, "contrast", epochs=1, beside=beside, purpose=first, first=number)
            for batch in passes:
                most = self.epochs * len(passes)
                apart.param_groups[0]["lr"] = self.least_lr + (self.forget_lr - self.least_lr) * cosine(done, most)
                logits = task.forward(task.model, batch.inputs)
                with torch.no_grad():
                    kept = task.forward(task.model, next(batches)[0])
                passes.descend(apart, contrast(logits, kept, self.temperature), len(batch))
                done += 1
            for batch in (passes := self.passes(task, retain, "repair", epochs=1, purpose=first + 1_000, first=number)):
                passes.descend(repair, cross_entropy(task, batch), len(batch))


def contrast(forget: Tensor, retain: Tensor, temperature: float) -> Tensor:
    """The mean of -log softmax(forget retain^T / temperature) over all pairs of logits [B, K] and [C, K]: without a pair that belongs
    together, each forget sample becomes alike to all retain samples evenly."""
    return -(forget @ retain.T / temperature).log_softmax(dim=1).mean()
