"""NegGrad+: down the loss of what is kept and up the loss of what is to go, in one step.

Kurmanji, Triantafillou, Hayes & Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS'23, section 3. Presets: ``"paper"`` has
the constants of the authors' small-scale notebook (meghdadk/SCRUB@98ffb11), ``"code"`` those of their notebook of membership attacks,
``"deepunlearn"`` those of xcadet/deepunlearn@6830ff6.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from torch.nn import functional as F

from ..task import Task
from .base import Cycled, Trained, cross_entropy, published, set_of

FORGET_ORDER = 72  # purpose of a seed


@dataclasses.dataclass
class NegGradPlus(Trained):
    """NegGrad+, for classes and for samples.

    A forget sample is shown |retain| / |forget| times an epoch, so ``alpha`` must rise as the forget set shrinks.

    Args:
        preset: ``"paper"``, ``"code"`` or ``"deepunlearn"``.
        alpha: weight of the retain loss, 0 to 1; one minus it weighs the forget loss, which is ascended.
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: over the retain set.
        forget_batch_size: of the forget set, which is cycled.
        mode: ``"train"`` or ``"eval"`` (batch norm stays, no dropout).

    >>> from fastforget.methods import NegGradPlus
    >>> NegGradPlus().alpha, NegGradPlus(preset="code").mode
    (0.95, 'train')
    """

    alpha: float | None = None
    forget_batch_size: int | None = None
    mode: str | None = None

    name = "neggrad_plus"
    source = "Kurmanji et al., NeurIPS'23; meghdadk/SCRUB@98ffb11, xcadet/deepunlearn@6830ff6"
    whole = ("epochs", "batch_size", "forget_batch_size")
    numbers = ("lr", "momentum", "weight_decay", "alpha")
    shares = ("alpha",)
    choices = MappingProxyType({"mode": ("train", "eval")})
    presets = published(
        paper={
            "alpha": 0.95, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "epochs": 10, "batch_size": 32, "forget_batch_size": 64,
            "mode": "eval",
        },
        code={"alpha": 0.9999, "epochs": 5, "forget_batch_size": 16, "mode": "train"},
        deepunlearn={"momentum": 0.9, "batch_size": 256, "forget_batch_size": 256},
    )  # fmt: skip

    @property
    def trains_in(self) -> str:
        """The option ``mode``."""
        assert self.mode is not None
        return self.mode

    def loop(self, task: Task) -> None:
        """Descends alpha * CE(retain) - (1 - alpha) * CE(forget)."""
        assert self.alpha is not None and self.forget_batch_size is not None
        optimizer, alpha = self.sgd(task), self.alpha
        forget = Cycled(task, set_of(task, "forget"), self.forget_batch_size, FORGET_ORDER)
        passes = self.passes(task, set_of(task, "retain"), self.name, beside=forget.size)
        for retain, (inputs, labels) in zip(passes, forget, strict=False):
            kept = cross_entropy(task, retain)
            known = F.cross_entropy(task.forward(task.model, inputs), labels)
            passes.descend(optimizer, alpha * kept - (1 - alpha) * known, len(retain))
