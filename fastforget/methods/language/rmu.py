"""RMU: hidden states of forget sequences are driven to one random direction, those of retain sequences held where they were.

Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv 2403.03218. The constants of preset
``"paper"`` are those of the authors' notebook for Zephyr 7B, ``"code"`` the defaults of their script ``rmu/unlearn.py``, both as other
repositories quote them: the authors' own wasn't at hand. Averages over tokens with a mask as locuslab/open-unlearning@7fa0b55 has them.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..engine.passes import Passes
from ..engine.teacher import forward_only
from ..pack.base import Cycled, published, set_of
from ..task import Task
from .base import RETAIN_ORDER, Language
from .states import States, attended

DIRECTION = 73  # purpose of a seed


@dataclasses.dataclass
class RMU(Language):
    """RMU, for sequences: MSE(h(forget), c u) + alpha MSE(h(retain), h_original(retain)), in one layer's output h.

    u is uniform in [0, 1) in every coordinate, of length 1, and drawn once. An MSE is the mean over coordinates, as in the code (the paper
    writes a squared norm), and over the tokens of a sequence that ``attention_mask`` shows (all where there is none), labels or not. Of
    the trained weights only those of the layer and the two before it move. A copy of the model stays in memory.

    Args:
        layer: the module's name, as ``model.named_modules()`` has it, e.g. ``"model.layers.7"``; default: the middle one of the longest
            ``ModuleList`` that lies in no other.
        steering: c.
        retain_weight: alpha.
        weights: what the names of trained weights must contain, e.g. ``"mlp.down_proj"``, which is all that the code trains of Zephyr's
            layers; default: all of these layers.
        steps: at most.
        hold: ``"states"`` (the term above), or ``"labels"`` or ``"anchor"`` in its place.
        preset: ``"paper"`` or ``"code"``.
        lr, weight_decay: of AdamW; ``momentum``: its first beta.
        epochs, batch_size: over the forget set.
        mean, optimizer: what every method for language models has.

    >>> from fastforget.methods import RMU
    >>> RMU().steering, RMU(preset="code").retain_weight
    (6.5, 100.0)
    """

    layer: str | None = None
    steering: float | None = None
    weights: str = ""
    steps: int | None = None
    hold: str = "states"

    name = "rmu"
    source = "Li et al., arXiv 2403.03218; centerforaisafety/wmdp, rmu/unlearn.py, as others quote it"
    reads_labels = False
    whole = (*Language.whole, "steps")
    numbers = (*Language.numbers, "steering")
    choices = MappingProxyType({**Language.choices, "hold": ("states", *Language.choices["hold"])})
    presets = published(
        paper={
            "lr": 5e-5, "momentum": 0.9, "weight_decay": 0.01, "epochs": 1, "batch_size": 4, "retain_weight": 1200.0,
            "mean": "sequences", "steering": 6.5, "steps": 150,
        },
        code={"retain_weight": 100.0, "steering": 20.0, "steps": 80},
    )  # fmt: skip

    def loop(self, task: Task) -> dict[str, Any]:
        """Steps down both terms."""
        assert self.steering is not None and self.retain_weight is not None and self.batch_size is not None and self.epochs is not None
        if not isinstance(self.weights, str):
            raise TypeError(f"weights: got {self.weights!r}; accepted is a part of the names of weights, or ''")
        states = States(task.model, self.layer)
        trained = states.train_last(3, self.weights)
        optimizer = self.stepper(task)
        saved = self.saved(task, optimizer)
        teacher = _weights.working_copy(task.model).eval() if self.retain_weight and self.hold != "labels" else None
        forget, retain = set_of(task, "forget"), None
        beside = 0
        if self.retain_weight:
            retain = Cycled(task, set_of(task, "retain"), self.batch_size, RETAIN_ORDER, saved.step if saved else 0)
            beside = retain.size + (forward_only(retain.size) if teacher is not None else 0)
        kept, target = iter(retain or ()), None
        passes = Passes(task, self.name, forget, self.batch_size, self.epochs, beside=beside, most=self.steps, checkpoint=saved)
        for batch in passes:
            h = states.of(task, task.model, batch.inputs)
            if not h.requires_grad:
                raise ValueError(
                    f"layer: no gradient reaches the weights of {states.name!r} from its own output; name another one, or "
                    "checkpoint with use_reentrant=False"
                )
            if target is None:
                target = self.steering * _direction(task, h)
            loss = _squared(h - target, batch.inputs)
            if retain is not None:
                loss = loss + self.retain_weight * self._kept(task, states, teacher, *next(kept))
            passes.descend(optimizer, loss, len(batch))
        return {"layer": states.name, "trained": trained}

    def _kept(self, task: Task, states: States, teacher: Any, inputs: Any, labels: Tensor) -> Tensor:
        if self.hold != "states":
            return self._held(task, teacher, inputs, labels)
        with torch.no_grad():
            before = states.of(task, teacher, inputs)
        return _squared(states.of(task, task.model, inputs) - before, inputs)


def _direction(task: Task, like: Tensor) -> Tensor:
    u = torch.rand(like.shape[-1], generator=task.generator(DIRECTION), dtype=torch.float64)
    return (u / u.norm()).to(like)


def _squared(apart: Tensor, inputs: Any) -> Tensor:
    """Mean over coordinates, over each sequence's attended tokens, over sequences."""
    shown = attended(inputs, apart)
    return ((apart.square().mean(dim=2) * shown).sum(dim=1) / shown.sum(dim=1)).mean()
