"""MSG, masked small gradients: draws anew the weights that tell the forget set from the retain set least, and fine-tunes the rest gently.

Of NeurIPS'23's unlearning challenge (kookmin); named, and found best beside CT, by Cadet, Borovykh, Malekzadeh, Ahmadi-Abhari & Haddadi,
"Deep Unlearn", arXiv 2410.01276. Constants: xcadet/deepunlearn@6830ff6, ``munl/unlearning/kgltop2.py``.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..engine.gradmask import scaled, smallest
from ..engine.importance import SUM, importance
from ..engine.loop import trainable
from ..engine.reinit import CONVOLUTIONS, default_bias_, kaiming_
from ..task import Task
from .base import Trained, cross_entropy, published, set_of

SAMPLE, DRAW = 74, 75  # purposes of seeds


@dataclasses.dataclass
class MSG(Trained):
    """MSG (masked small gradients), meant for samples; classes can be asked as well.

    The gradient is that of as many retain samples less that of the forget set, in eval mode (the code: in whatever mode the model came).
    Batch norm and what is not in ``layers`` is fine-tuned at the full rate.

    Args:
        preset: ``"paper"``, or ``"code"`` (biases of the layers are drawn anew too).
        share: of each layer's weights that are drawn anew.
        slow: factor on the gradient of the layer's other weights. Weight decay reaches them in full.
        layers: ``"conv"`` (published), ``"all"`` (linear layers too: of a ViT the published way touches one layer), or ``"auto"``:
            convolutions where there are any, else linear layers. ``measured`` in the receipt says how many.
        biases: whether the biases of these layers are drawn anew.
        lr: of SGD in the middle epoch; it rises to there, and falls, in equal steps.
        momentum, weight_decay: of SGD.
        epochs, batch_size: over the retain set; the batch size is that of the gradients too.

    >>> from fastforget.methods import MSG
    >>> MSG().share, MSG().rates()
    (0.3, [0.3333333333333333, 0.6666666666666666, 1.0, 0.6666666666666666, 0.3333333333333333])
    """

    share: float | None = None
    slow: float | None = None
    layers: str | None = None
    biases: bool | None = None

    name = "msg"
    weighs = True
    source = "Cadet et al., arXiv 2410.01276; xcadet/deepunlearn@6830ff6 kgltop2"
    numbers = ("lr", "momentum", "weight_decay", "share", "slow")
    shares = ("share",)
    choices = MappingProxyType({"layers": ("auto", "conv", "all")})
    presets = published(
        paper={
            "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 5, "batch_size": 64, "share": 0.3, "slow": 0.1, "layers": "auto",
            "biases": False,
        },
        code={"layers": "conv", "biases": True},
    )  # fmt: skip

    def rates(self) -> list[float]:
        """Each epoch's factor on the rate."""
        assert self.epochs is not None
        up = (self.epochs + 1) // 2
        return [e / up if e <= up else (self.epochs + 1 - e) / (self.epochs + 1 - up) for e in range(1, self.epochs + 1)]

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Draws anew, then descends CE(retain)."""
        assert self.batch_size is not None and self.share is not None and self.lr is not None and self.slow is not None
        layers, forget, retain = self._layers(task.model), set_of(task, "forget"), set_of(task, "retain")
        some = retain.at_most(len(forget), task.generator(SAMPLE))
        if not task.cost.has_room(len(forget) + len(some)):
            return None
        kept, known = (importance(task, [data], self.batch_size, SUM, phase="mask") for data in (some, forget))
        apart = dict(zip(trainable(task.model), torch._foreach_sub(kept, known), strict=True))
        generator, factors, drawn = task.generator(DRAW), {}, 0
        for layer in layers:
            weight = layer.get_parameter("weight")
            again = smallest(apart[weight], self.share)
            drawn += int(again.sum())
            kaiming_(weight, again, generator)
            factors[weight] = torch.where(again, 1.0, self.slow).to(weight.dtype)
            if self.biases and getattr(layer, "bias", None) is not None and layer.get_parameter("bias").requires_grad:
                default_bias_(layer, generator)
        optimizer, rates = self.sgd(task), self.rates()
        with scaled(factors):
            for batch in (passes := self.passes(task, retain, self.name)):
                optimizer.param_groups[0]["lr"] = self.lr * rates[batch.epoch]
                passes.descend(optimizer, cross_entropy(task, batch), len(batch))
        return {"layers": len(layers), "kinds": sorted({type(layer).__name__ for layer in layers}), "drawn_anew": drawn}

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        """Those whose weights are drawn anew: a weight that two layers share comes once."""
        found: dict[int, nn.Module] = {}
        for layer in model.modules():
            weight = layer._parameters.get("weight") if isinstance(layer, (*CONVOLUTIONS, nn.Linear)) else None
            if weight is not None and weight.requires_grad:
                found.setdefault(id(weight), layer)
        convolutions: list[nn.Module] = [layer for layer in found.values() if isinstance(layer, CONVOLUTIONS)]
        chosen = list(found.values()) if self.layers == "all" or (self.layers == "auto" and not convolutions) else convolutions
        if not chosen:
            raise ValueError(f"layers: got {self.layers!r}, but the model has no such layer whose weight may be trained; accepted is 'all'")
        return chosen
