"""SVD projection: weights are projected away from what the forget class spans in each layer's inputs and the others don't.

Kodge, Saha & Roy, "Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting", TMLR 2024, arXiv 2312.00761. Constants:
sangamesh-kodge/class_forgetting@e27aeb2, ``main.py`` and ``models/model_utils.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ..._data import Source
from ..engine.projection import important, inputs_of, layers, project
from ..engine.teacher import forward_only
from ..task import Task
from .base import Standard, published, set_of

SAMPLES, PATCHES = 81, 82  # purposes of seeds


@dataclasses.dataclass
class SVDProjection(Standard):
    """SVD projection, for whole classes: no gradients, no training, two passes over a few samples. Single samples span what their class
    does, so it can't tell them from it.

    Linear layers and 1- and 2-d convolutions are projected, group by group; biases, norms, frozen weights, and weights that are used by
    another module than their own (those inside ``nn.MultiheadAttention``) or are parametrised stay; the receipt names the matrices
    among them.

    Args:
        preset: ``"paper"`` and ``"code"`` (CIFAR-10), ``"cifar100"`` or ``"imagenet"``.
        alpha_retain, alpha_forget: how soon a direction counts as used by the set.
        samples: of the retain set, as many of each class, and at most as many of the forget set.
        patches: of a convolution's inputs, at most, for each set.

    >>> from fastforget.methods import SVDProjection
    >>> SVDProjection().alpha_retain, SVDProjection(preset="imagenet").samples
    (100.0, 999)
    """

    alpha_retain: float | None = None
    alpha_forget: float | None = None
    samples: int | None = None
    patches: int | None = None

    name = "svd_projection"
    source = "Kodge et al., TMLR 2024; sangamesh-kodge/class_forgetting@e27aeb2"
    scope = "classes"
    reads_labels = False
    whole = ("samples", "patches")
    numbers = ("alpha_retain", "alpha_forget")
    presets = published(
        paper={"alpha_retain": 100.0, "alpha_forget": 3.0, "samples": 900, "patches": 10_000},
        cifar100={"alpha_retain": 1000.0, "alpha_forget": 30.0, "samples": 990},
        imagenet={"alpha_forget": 10.0, "samples": 999},
    )

    @property
    def trains_in(self) -> str:
        """Statistics stay."""
        return "eval"

    @property
    def gradients(self) -> tuple[str, ...]:
        """None is taken."""
        return ()

    def loop(self, task: Task) -> dict[str, Any] | None:
        """W <- W (1 - M_f + M_f M_r)^T for every layer."""
        assert self.alpha_retain is not None and self.alpha_forget is not None and self.samples is not None and self.patches is not None
        generator = task.generator(SAMPLES)
        retain = by_class(set_of(task, "retain"), self.samples, generator)
        forget = set_of(task, "forget").at_most(self.samples, generator)
        if not task.cost.has_room(forward_only(len(retain) + len(forget))):
            return None
        generator = task.generator(PATCHES)
        with task.cost.phase("inputs"):
            kept, gone = (inputs_of(task, data, self.patches, generator) for data in (retain, forget))
        used = [(name, layer) for name, layer in layers(task.model).items() if name in kept.sums and name in gone.sums]
        if not used:
            raise ValueError("model: no linear or convolution layer was called whose weight may change; svd_projection projects these")
        with task.cost.at("ops"):
            for name, layer in used:
                project(layer, important(gone.sums[name], self.alpha_forget), important(kept.sums[name], self.alpha_retain))
        names = {f"{name}.weight".lstrip(".") for name, _ in used}
        left = [name for name, p in task.model.named_parameters() if p.dim() > 1 and name not in names]
        return {"projected": len(names), "left": left}


def by_class(data: Source, samples: int, generator: torch.Generator) -> Source:
    """As many samples of each class that the set holds, drawn at random: together at most ``samples``, but one of each."""
    labels = data.labels()
    each = max(1, samples // len(labels.unique()))
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == c][:each] for c in labels.unique()]
    return data.subset(torch.cat(chosen).sort().values)
