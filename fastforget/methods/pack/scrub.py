"""SCRUB: a student that disobeys its teacher, the original model, on what is to go, and obeys on what is kept.

Kurmanji, Triantafillou, Hayes & Triantafillou, "Towards Unbounded Machine Unlearning", NeurIPS'23, section 3, with its rewinding (SCRUB+R).
Presets: ``"paper"`` has the constants of the authors' small-scale notebook (meghdadk/SCRUB@98ffb11), ``"code"`` those of their notebook of
membership attacks, ``"large"`` those of the large-scale one.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..engine.passes import EPOCHS, Passes, Shuffled
from ..engine.rewind import Rewind
from ..engine.teacher import Answers
from ..engine.terms import distill
from ..task import Task
from .base import Trained, optimizer_of, published, set_of


@dataclasses.dataclass
class SCRUB(Trained):
    """SCRUB, for classes and for samples; SCRUB+R (``rewind=True``) for samples alone, which compares labels of the forget set: else none
    of them is read.

    Args:
        preset: ``"paper"``, ``"code"`` or ``"large"``.
        gamma, alpha: weights of the retain set's cross-entropy, and of the divergence from the teacher there.
        temperature: T of the divergences, each T^2 * KL(softmax(teacher / T) || softmax(student / T)).
        msteps: the first so many epochs begin with a pass up the divergence on the forget set.
        optimizer: ``"adam"`` (weight decay in the gradient) or ``"sgd"``.
        decay: epochs after each of which the rate falls to a tenth.
        lr, weight_decay: of the optimiser; ``momentum``: of SGD, and Adam's first beta.
        epochs, batch_size: over the retain set; forget_batch_size: of the forget set.
        rewind: keeps the model of every epoch, and returns the one whose error on the forget set is nearest to the last one's on
            ``nonmember`` samples of the same classes.

    >>> from fastforget.methods import SCRUB
    >>> SCRUB().optimizer, SCRUB(preset="code").temperature
    ('adam', 4.0)
    """

    gamma: float | None = None
    alpha: float | None = None
    temperature: float | None = None
    msteps: int | None = None
    optimizer: str | None = None
    decay: tuple[int, ...] | None = None
    forget_batch_size: int | None = None
    rewind: bool = False

    name = "scrub"
    source = "Kurmanji et al., NeurIPS'23, section 3; meghdadk/SCRUB@98ffb11"
    reads_labels = False
    weak = "fragile: constants that serve one net undo another, or leave it as it was"
    whole = ("epochs", "batch_size", "forget_batch_size", "msteps")
    numbers = ("lr", "momentum", "weight_decay", "gamma", "alpha", "temperature")
    positive = ("temperature",)
    choices = MappingProxyType({"optimizer": ("adam", "sgd")})
    presets = published(
        paper={
            "lr": 5e-4, "momentum": 0.9, "weight_decay": 0.1, "epochs": 10, "batch_size": 32, "forget_batch_size": 64, "gamma": 1.0,
            "alpha": 0.5, "temperature": 2.0, "msteps": 3, "optimizer": "adam", "decay": (5, 8, 9),
        },
        code={"optimizer": "sgd", "weight_decay": 5e-4, "temperature": 4.0, "epochs": 5, "forget_batch_size": 16, "decay": (3, 5, 9)},
        large={
            "optimizer": "sgd", "weight_decay": 5e-4, "temperature": 4.0, "epochs": 3, "batch_size": 128, "forget_batch_size": 32,
            "decay": (3, 5, 9), "gamma": 0.99, "alpha": 0.001, "msteps": 2,
        },
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.decay is not None
        if not all(isinstance(epoch, int) and epoch >= 1 for epoch in self.decay):
            raise ValueError(f"decay: got {self.decay!r}; accepted are epochs, ints >= 1, e.g. (5, 8, 9), or () for none")

    def loop(self, task: Task) -> dict[str, Any] | None:
        """In every epoch up T^2 KL on the forget set (the first ``msteps``), then down gamma * CE + alpha * T^2 KL on the retain set."""
        assert self.epochs is not None and self.msteps is not None and self.lr is not None and self.decay is not None
        teachers = {name: Answers(task, set_of(task, name), most) for name, most in (("forget", self.msteps), ("retain", self.epochs))}
        if not all(teacher.ready() for teacher in teachers.values()):
            return None
        rewind = Rewind(task) if self.rewind else None
        optimizer = optimizer_of(self.optimizer, task, self.lr, self.momentum, self.weight_decay)
        for epoch in range(1, self.epochs + 1):
            optimizer.param_groups[0]["lr"] = self.lr * 0.1 ** sum(epoch > end for end in self.decay)
            for name in ("forget", "retain")[epoch > self.msteps :]:
                for batch in (passes := self._pass(task, name, epoch, teachers[name])):
                    passes.descend(optimizer, self._loss(task, teachers[name], batch, name), len(batch))
            if task.cost.stopped_by_budget:
                break
            if rewind:
                rewind.note(epoch)
        return rewind.end() if rewind else None

    def _pass(self, task: Task, name: str, epoch: int, teacher: Answers) -> Passes:
        """One pass over a set."""
        size = self.forget_batch_size if name == "forget" else self.batch_size
        assert size is not None
        data, purpose = set_of(task, name), EPOCHS + 2_000 * epoch + 1_000 * (name == "retain")
        return Passes(task, f"scrub {name}", data, size, 1, beside=teacher.beside(size), purpose=purpose, first=epoch)

    def _loss(self, task: Task, teacher: Answers, batch: Shuffled, name: str) -> Tensor:
        assert self.gamma is not None and self.alpha is not None and self.temperature is not None
        logits = task.forward(task.model, batch.inputs)
        divergence = self.temperature**2 * distill(logits, teacher.of(batch.inputs, batch.rows), self.temperature)
        return -divergence if name == "forget" else self.gamma * F.cross_entropy(logits, batch.labels) + self.alpha * divergence
