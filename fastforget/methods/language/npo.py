"""NPO: the forget sequences as answers that are not preferred, measured against the original model's.

Zhang, Lin, Bai & Mei, "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning", arXiv 2404.05868. Loss and
constants: licong-lin/negative-preference-optimization@3bb1366, ``config/forget.yaml`` (TOFU, Llama-2 7B), batches of 4 by 4 steps of
accumulation on 2 devices taken as one of 32. The paper itself wasn't at hand.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ..._columns import Column
from ..engine.passes import Shuffled
from ..engine.teacher import forward_only
from ..pack.base import published, set_of
from ..task import Task
from .answers import log_probs
from .base import Language
from .verdict import LOOK


@dataclasses.dataclass
class NPO(Language):
    """NPO, for sequences: -(2 / beta) E[log sigmoid(-beta log(p(y) / p_ref(y)))] + retain_weight * CE(retain).

    The original model's log p_ref of the forget set is computed once, before the first step, so no second model is kept for it.
    ``retain_weight=0`` is NPO alone; with ``hold="labels"`` it is the paper's NPO+RT (the default here, as in the code), with
    ``"anchor"`` its NPO+KL. The retain term is a mean over tokens, as in the code.

    Args:
        beta: how soon a sequence that has become less probable is left alone; towards 0 it is gradient ascent.
        preset: ``"paper"``, or ``"code"``, which is the same.
        lr, weight_decay: of AdamW; ``momentum``: its first beta.
        epochs, batch_size: over the forget set.
        retain_weight, hold, mean, optimizer: what every method for language models has.

    >>> from fastforget.methods import NPO
    >>> NPO().beta, NPO(retain_weight=0).hold
    (0.1, 'labels')
    """

    beta: float | None = None

    name = "npo"
    source = "Zhang et al., arXiv 2404.05868; licong-lin/negative-preference-optimization@3bb1366"
    numbers = (*Language.numbers, "beta")
    positive = ("beta",)
    presets = published(
        paper={
            "lr": 1e-5, "momentum": 0.9, "weight_decay": 0.01, "epochs": 10, "batch_size": 32, "retain_weight": 1.0, "mean": "tokens",
            "beta": 0.1,
        },
    )  # fmt: skip

    def loop(self, task: Task) -> None:
        """log p_ref of the forget set, then steps down the loss."""
        beta = self.beta
        assert beta is not None
        reference = _reference(task)
        if reference is None:
            return

        def of_forget(batch: Shuffled) -> Tensor:
            ratio = log_probs(task, task.model, batch.inputs, batch.labels).sum(dim=1) - reference[batch.rows.to(reference.device)]
            return -2 / beta * F.logsigmoid(-beta * ratio).mean()

        self.train(task, of_forget)


def _reference(task: Task) -> Tensor | None:
    """The log-probability of each forget sequence before a step, in eval mode; None where the budget has no room for it."""
    forget, column = set_of(task, "forget"), Column()
    if not task.cost.has_room(forward_only(len(forget))):
        return None
    task.teaching = True
    try:
        with _weights.evaluating(task.model), torch.no_grad(), task.cost.phase("reference"):
            for inputs, labels in task.cost.reading(forget.batches(device=task.device, batch_size=min(forget.batch_size, LOOK))):
                column.add(log_probs(task, task.model, inputs, labels).sum(dim=1))
    finally:
        task.teaching = False
    return column.joined()
