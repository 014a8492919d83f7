"""SimNPO: NPO without a reference, by the length-normalised log-probability of each forget sequence.

Fan, Liu, Lin, Jia, Zhang, Mei & Liu, "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning", arXiv
2410.07163. Constants: OPTML-Group/Unlearn-Simple@309d122, ``TOFU/README.md`` (forget05: ``beta`` and ``forget_weight``) and
``TOFU/config/forget.yaml`` (Llama-2 7B), batches of 1 by 4 steps of accumulation on 8 devices taken as one of 32.
The paper itself wasn't at hand: its 10 epochs are as this package's authors remember them.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from ..._causal.answers import scored
from ..engine.passes import Shuffled
from ..pack.base import published
from ..task import Task
from .answers import log_probs
from .base import Language


@dataclasses.dataclass
class SimNPO(Language):
    """SimNPO, for sequences: -(2 / beta) E[log sigmoid(-(beta / |y|) log p(y) - gamma)], with the weights of both terms.

    Args:
        beta: how soon a sequence that has become improbable is left alone.
        gamma: the margin by which it must be. The code subtracts it before it multiplies by ``beta``: its ``gamma`` is
            ours over ``beta``.
        forget_weight: of the first term; the code's ``npo_coeff``.
        preset: ``"paper"`` (10 epochs), ``"code"`` (20 epochs, as its configuration says), or ``"forget10"``, the code's constants for
            that split.
        lr, weight_decay: of AdamW; ``momentum``: its first beta.
        epochs, batch_size: over the forget set.
        retain_weight, hold, mean, optimizer: what every method for language models has.

    >>> from fastforget.methods import SimNPO
    >>> SimNPO().beta, SimNPO(preset="forget10").beta
    (2.5, 4.5)
    """

    beta: float | None = None
    gamma: float | None = None
    forget_weight: float | None = None

    name = "simnpo"
    source = "Fan et al., arXiv 2410.07163; OPTML-Group/Unlearn-Simple@309d122"
    numbers = (*Language.numbers, "beta", "gamma", "forget_weight")
    positive = ("beta",)
    presets = published(
        paper={
            "lr": 1e-5, "momentum": 0.9, "weight_decay": 0.01, "epochs": 10, "batch_size": 32, "retain_weight": 1.0, "mean": "tokens",
            "beta": 2.5, "gamma": 0.0, "forget_weight": 0.1375,
        },
        code={"epochs": 20},
        forget10={"epochs": 20, "beta": 4.5, "forget_weight": 0.125},
    )  # fmt: skip

    def loop(self, task: Task) -> None:
        """Steps down forget_weight * the loss + what holds the model on retain sequences."""
        beta, gamma, weight = self.beta, self.gamma, self.forget_weight
        assert beta is not None and gamma is not None and weight is not None

        def of_forget(batch: Shuffled) -> Tensor:
            log_p = log_probs(task, task.model, batch.inputs, batch.labels).sum(dim=1) / scored(batch.labels).sum(dim=1)
            return -2 * weight / beta * F.logsigmoid(-beta * log_p - gamma).mean()

        self.train(task, of_forget)
