"""Gradient difference: up the loss of what is to go, down the loss of what is kept.

Liu, Liu & Stone, "Continual Learning and Private Unlearning", CoLLAs'22, as Maini, Feng, Schwarzschild, Lipton & Kolter have it, "TOFU: A
Task of Fictitious Unlearning for LLMs", arXiv 2401.06121. Constants: locuslab/tofu@8c49eee, ``config/forget.yaml`` (Llama-2 7B), and its
README's batches of 4 by 4 steps of accumulation on 2 devices taken as one of 32. The papers themselves weren't at hand.
"""

from __future__ import annotations

import dataclasses

from ..pack.base import published
from ..task import Task
from .base import Language, cross_entropy


@dataclasses.dataclass
class GradientDifference(Language):
    """Gradient difference, for sequences: -CE(forget) + retain_weight * CE(retain).

    Nothing bounds the first term: too many steps wreck a model. ``retain_weight=0`` is gradient ascent.

    Args:
        preset: ``"paper"`` (a loss is the mean over sequences of their tokens' mean), or ``"code"`` (the mean over a batch's tokens).
        lr, weight_decay: of AdamW; ``momentum``: its first beta.
        epochs, batch_size: over the forget set.
        retain_weight, hold, mean, optimizer: what every method for language models has.

    >>> from fastforget.methods import GradientDifference
    >>> GradientDifference().lr, GradientDifference(preset="code").mean
    (1e-05, 'tokens')
    """

    name = "gradient_difference"
    source = "Liu et al., CoLLAs'22; Maini et al., arXiv 2401.06121; locuslab/tofu@8c49eee"
    presets = published(
        paper={
            "lr": 1e-5, "momentum": 0.9, "weight_decay": 0.01, "epochs": 5, "batch_size": 32, "retain_weight": 1.0, "mean": "sequences",
        },
        code={"mean": "tokens"},
    )  # fmt: skip

    def loop(self, task: Task) -> None:
        """Descends -CE(forget) + retain_weight * CE(retain), or the anchor."""
        mean = self.mean
        assert mean is not None
        self.train(task, lambda batch: -cross_entropy(task, task.model, batch.inputs, batch.labels, mean))
