"""Selective synaptic dampening: shrinks, without training, the weights that matter more for the forget set than for all data.

Foster, Schoepf & Brintrup, "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", AAAI'24, equation
4. Constants: if-loops/selective-synaptic-dampening@cdfdc0e.
"""

from __future__ import annotations

import dataclasses
import warnings
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from ...ops import mask
from ..engine.importance import SQUARES, Loss, importance, importance_of_two, of_dtype
from ..engine.loop import trainable
from ..task import Task
from .base import Standard, published, set_of

ORDER = 73  # purpose of a seed


@dataclasses.dataclass
class SSD(Standard):
    """Selective synaptic dampening, for classes. Where the importance on the forget set exceeds ``alpha`` times that on all data, a weight
    is multiplied by ``min(lam * all / forget, 1)``.

    It hardly does anything for samples drawn at random, which matter to the same weights as all others do. ``measured`` in the receipt has
    the share of weights that were dampened; where it is zero a warning says so, and the model is as given.

    Args:
        preset: ``"paper"``, or ``"code"`` (the data's order).
        alpha: how many times more a weight must matter to be selected (ResNet-18; ViT 5 for a class, 25 for a part of one; faces 50).
        lam: how strongly it is dampened (faces .1).
        batch_size: of both passes. Importance is the square of a *batch's* mean gradient, so it depends on it.
        order: of all data, forget set included: ``"mixed"``, or ``"in turn"``, the data to keep first, each set in its own order. Then no
            weight can matter more than (batches of all / batches of the forget set) times: with ``alpha`` 10 a forget set of a tenth of
            the data leaves the model as it was.

    >>> from fastforget.methods import SSD
    >>> SSD().alpha, SSD(preset="code").order
    (10.0, 'in turn')
    """

    alpha: float | None = None
    lam: float | None = None
    batch_size: int | None = None
    order: str | None = None

    name = "ssd"
    source = "Foster et al., AAAI'24, eq. 4; if-loops/selective-synaptic-dampening@cdfdc0e"
    weak = "samples drawn at random: they matter to the same weights as all others do, so hardly any is dampened"
    whole = ("batch_size",)
    numbers = ("alpha", "lam")
    choices = MappingProxyType({"order": ("mixed", "in turn")})
    presets = published(paper={"alpha": 10.0, "lam": 1.0, "batch_size": 128, "order": "mixed"}, code={"order": "in turn"})
    power: ClassVar[int] = SQUARES

    @property
    def trains_in(self) -> str:
        """Eval mode: nothing is trained, buffers stay."""
        return "eval"

    @property
    def loss(self) -> Loss:
        """Whose gradients are importance."""
        return F.cross_entropy

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Two importances, then one pass over the weights."""
        assert self.alpha is not None and self.lam is not None and self.batch_size is not None
        forget, retain = set_of(task, "forget"), set_of(task, "retain")
        size, power, loss = self.batch_size, self.power, self.loss
        if not task.cost.has_room(len(retain) + len(forget) * (2 if self.order == "mixed" else 1)):
            return None
        if self.order == "mixed":
            known = importance(task, [forget], size, power, loss=loss)
            every = importance(task, [retain, forget], size, power, loss=loss, generator=task.generator(ORDER))
        else:
            known, every = importance_of_two(task, forget, retain, size, power, loss=loss)
        params = trainable(task.model)
        with task.cost.at("ops"), torch.no_grad():
            count = int(mask.dampen_(params, of_dtype(known, params), of_dtype(every, params), alpha=self.alpha, lam=self.lam))
        if not count:
            about = f"{self.name}: no weight matters more than alpha={self.alpha:g} times as much for the forget set as for all data"
            warnings.warn(f"{about}, so none was dampened: the model is as given", stacklevel=2)
        return {"dampened": count, "share_dampened": count / sum(p.numel() for p in params)}
