"""AMUN: the model is taught its own mistakes close to the forget samples, which makes it less sure of these.

Ebrahimpour-Boroojeny, Sundaram & Chandrasekaran, "AMUN: Adversarial Machine UNlearning", arXiv 2503.00917. Constants: Ali-E/AMUN@9e341a9,
``adversarial_unlearn.py`` and ``pgdl2_modified.py``; their learning rate is searched, .01 with a fall after each epoch is the README's.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

from ..._data import source as source_of
from ..engine.adversarial import adversarial
from ..engine.joint import joined
from ..task import Task
from .base import Trained, cross_entropy, published, set_of

CLIPS = {"none": None, "unit": (0.0, 1.0)}


@dataclasses.dataclass
class AMUN(Trained):
    """AMUN, for samples, with inputs that are one floating point tensor. The forget samples are trained on too, with their true labels,
    so a class as a whole stays known.

    Args:
        preset: ``"paper"``; ``"code"``, which takes inputs for pixels and holds them between 0 and 1; ``"no_retain"``, from the forget set
            alone; ``"advonly"``, without the forget samples; ``"advonly_no_retain"``, on adversarial examples alone.
        eps: the first radius (L2) in which an adversarial example is looked for; it is doubled until there is one.
        steps: in each ball, of a tenth of its radius.
        clip: ``"none"``, or ``"unit"``: adversarial inputs stay between 0 and 1.
        with_retain, with_forget: whether the retain set, and the forget set with its true labels, are trained on beside the examples.
        fall_every: epochs after which the learning rate falls to a tenth.
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: over all sets, shuffled into one.

    >>> from fastforget.methods import AMUN
    >>> AMUN().with_retain, AMUN(preset="no_retain").with_retain, AMUN(preset="advonly").with_forget
    (True, False, False)
    """

    eps: float | None = None
    steps: int | None = None
    clip: str | None = None
    with_retain: bool | None = None
    with_forget: bool | None = None
    fall_every: int | None = None

    name = "amun"
    source = "Ebrahimpour-Boroojeny et al., arXiv 2503.00917; Ali-E/AMUN@9e341a9"
    weak = "whole classes stay known: forget samples are trained on with their true labels"
    whole = ("epochs", "batch_size", "steps", "fall_every")
    numbers = ("lr", "momentum", "weight_decay", "eps")
    choices = MappingProxyType({"clip": tuple(CLIPS)})
    presets = published(
        paper={
            "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 128, "eps": 0.04, "steps": 50, "clip": "none",
            "with_retain": True, "with_forget": True, "fall_every": 1,
        },
        code={"clip": "unit"},
        no_retain={"with_retain": False},
        advonly={"with_forget": False},
        advonly_no_retain={"with_retain": False, "with_forget": False},
    )  # fmt: skip

    @property
    def gradients(self) -> tuple[str, ...]:
        """Adversarial examples are looked for in eval mode."""
        return ("train", "eval")

    def needed(self, task: Task) -> tuple[str, ...]:
        """The forget set, and the retain set where it is trained on."""
        return self.uses if self.with_retain else ("forget",)

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Adversarial examples of the original, then CE on all sets in one."""
        assert self.eps is not None and self.steps is not None and self.clip is not None and self.fall_every is not None
        assert self.lr is not None
        forget = set_of(task, "forget")
        found = adversarial(task, forget, self.eps, self.steps, CLIPS[self.clip])
        if found is None:
            return None
        sets = [set_of(task, "retain")] if self.with_retain else []
        sets += [forget] if self.with_forget else []
        data = joined(task.device, *sets, source_of((found.inputs, found.labels), name="adversarial"))
        optimizer = self.sgd(task)
        for batch in (passes := self.passes(task, data, self.name)):
            optimizer.param_groups[0]["lr"] = self.lr * 0.1 ** (batch.epoch // self.fall_every)
            passes.descend(optimizer, cross_entropy(task, batch), len(batch))
        return {"adversarial": len(data) - sum(map(len, sets)), "withstood": found.withstood, "distance": float(found.distances.mean())}
