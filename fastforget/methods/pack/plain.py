"""The plain baselines: fine-tune on what is kept, ascend on what is to go, or teach random labels.

Golatkar, Achille & Soatto, "Eternal Sunshine of the Spotless Net", CVPR'20, and Graves, Nagisetty & Ganesh, "Amnesiac Machine Learning",
AAAI'21, describe them without constants that fit all nets; both presets have those of OPTML-Group/Unlearn-Saliency@a6e89fd,
``Classification/``.
"""

from __future__ import annotations

import dataclasses

import torch

from ..engine.passes import EPOCHS
from ..task import Task
from .base import Trained, cross_entropy, published, random_labels, set_of

LABELS = 71  # purpose of a seed
_CODE = "OPTML-Group/Unlearn-Saliency@a6e89fd"


@dataclasses.dataclass
class FineTune(Trained):
    """Fine-tuning on the retain set alone, in the hope that the rest is forgotten: what a model knows well stays known.

    Never looks at the forget set.

    Args:
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: over the retain set.

    >>> from fastforget.methods import FineTune
    >>> FineTune().lr, FineTune(epochs=2).epochs
    (0.01, 2)
    """

    name = "finetune"
    source = f"Golatkar et al., CVPR'20; {_CODE}"
    uses = ("retain",)
    presets = published(paper={"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256})

    def loop(self, task: Task) -> None:
        """Descends CE(retain)."""
        optimizer = self.sgd(task)
        for batch in (passes := self.passes(task, set_of(task, "retain"), "finetune")):
            passes.descend(optimizer, cross_entropy(task, batch), len(batch))


@dataclasses.dataclass
class GradientAscent(Trained):
    """Gradient ascent on the forget set alone (NegGrad): nothing holds the rest.

    Args:
        lr, momentum, weight_decay: of SGD. The code's authors advise 5e-4 to 1e-3 where nothing is forgotten.
        epochs, batch_size: over the forget set.

    >>> from fastforget.methods import GradientAscent
    >>> GradientAscent().epochs
    5
    """

    name = "gradient_ascent"
    source = f"Golatkar et al., CVPR'20; {_CODE}"
    uses = ("forget",)
    presets = published(paper={"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 5, "batch_size": 256})

    def loop(self, task: Task) -> None:
        """Descends -CE(forget)."""
        optimizer = self.sgd(task)
        for batch in (passes := self.passes(task, set_of(task, "forget"), "gradient_ascent")):
            passes.descend(optimizer, -cross_entropy(task, batch), len(batch))


@dataclasses.dataclass
class RandomLabels(Trained):
    """Random labels for the forget set, drawn anew in every pass; a pass over the retain set follows each.

    Doesn't read the forget set's labels.

    Args:
        lr, momentum, weight_decay: of SGD; one optimiser for both sets.
        epochs, batch_size: of a pass over each.

    >>> from fastforget.methods import RandomLabels
    >>> RandomLabels().lr
    0.013
    """

    name = "random_labels"
    source = f"Graves et al., AAAI'21; {_CODE}"
    reads_labels = False
    presets = published(paper={"lr": 0.013, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256})

    def loop(self, task: Task) -> None:
        """Descends CE(forget, random labels), then CE(retain), in turns."""
        relabel(self, task, self.sgd(task))


def relabel(method: Trained, task: Task, optimizer: torch.optim.Optimizer) -> None:
    """In every epoch a pass over the forget set with labels drawn at random, then one over the retain set."""
    assert method.epochs is not None
    forget, retain, generator = set_of(task, "forget"), set_of(task, "retain"), task.generator(LABELS)
    for epoch in range(method.epochs):
        orders = EPOCHS + 2_000 * epoch
        for batch in (passes := method.passes(task, forget, "random labels", epochs=1, purpose=orders, first=epoch + 1)):
            passes.descend(optimizer, cross_entropy(task, batch, random_labels(batch.labels, task.outputs, generator)), len(batch))
        for batch in (passes := method.passes(task, retain, "retain", epochs=1, purpose=orders + 1_000, first=epoch + 1)):
            passes.descend(optimizer, cross_entropy(task, batch), len(batch))
