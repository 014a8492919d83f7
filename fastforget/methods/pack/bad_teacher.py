"""Bad Teacher: forget samples learn from a net that knows nothing, a share of the others from the original.

Chundawat, Tarun, Mandal & Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent Teacher",
AAAI'23, section 3. Constants: vikram2000b/bad-teaching-unlearning@961d965, as xcadet/deepunlearn@6830ff6 has them.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import torch

from ... import _tree, _weights
from ...optim import MaskedAdam
from ..engine.fresh import draw_anew
from ..engine.joint import joined, share_of
from ..engine.loop import trainable
from ..engine.teacher import Answers, forward_only
from ..engine.terms import distill
from ..task import Task, derived_seed
from .base import Trained, published, set_of

SHARE, BAD = 76, 77  # purposes of seeds


@dataclasses.dataclass
class BadTeacher(Trained):
    """Bad Teacher, for classes and for samples. Reads no labels at all. The bad teacher is the net itself with weights drawn anew.

    Args:
        preset: ``"paper"`` (the mean over samples), or ``"code"``.
        reduction: ``"batchmean"``, or ``"mean"``: also divided by the number of classes, so that with many of them hardly anything moves
            but for Adam, whose steps don't shrink with the loss.
        temperature: of all three nets' answers.
        share: of the retain set, drawn once.
        lr, momentum, weight_decay: of Adam; ``momentum`` is its first beta.
        epochs, batch_size: over the forget set and that share, shuffled into one.

    >>> from fastforget.methods import BadTeacher
    >>> BadTeacher().reduction, BadTeacher(preset="code").reduction
    ('batchmean', 'mean')
    """

    reduction: str | None = None
    temperature: float | None = None
    share: float | None = None

    name = "bad_teacher"
    source = "Chundawat et al., AAAI'23; vikram2000b/bad-teaching-unlearning@961d965, xcadet/deepunlearn@6830ff6"
    reads_labels = False
    numbers = ("lr", "momentum", "weight_decay", "temperature", "share")
    shares = ("share",)
    positive = ("temperature",)
    choices = MappingProxyType({"reduction": ("batchmean", "mean")})
    presets = published(
        paper={
            "lr": 1e-4, "momentum": 0.9, "weight_decay": 0.0, "epochs": 1, "batch_size": 256, "temperature": 1.0, "share": 0.3,
            "reduction": "batchmean",
        },
        code={"reduction": "mean"},
    )  # fmt: skip

    def loop(self, task: Task) -> dict[str, Any] | None:
        """Descends KL(teacher || p), the teacher of forget samples being the bad one, that of others the original."""
        assert self.share is not None and self.epochs is not None and self.batch_size is not None and self.temperature is not None
        assert self.lr is not None and self.momentum is not None
        forget, kept = set_of(task, "forget"), share_of(task, set_of(task, "retain"), self.share, SHARE)
        bad = _weights.working_copy(task.model)
        by_moments = draw_anew(bad.named_modules(), derived_seed(task.seed, BAD), frozen=True)
        teachers = Answers(task, forget, self.epochs, bad), Answers(task, kept, self.epochs)
        if not all(teacher.ready() for teacher in teachers):
            return None
        both, scale = joined(task.device, forget, kept), task.outputs if self.reduction == "mean" else 1
        betas = (self.momentum, 0.999)
        optimizer = MaskedAdam(trainable(task.model), self.lr, betas, weight_decay=self.weight_decay or 0.0)
        beside = 0 if all(teacher.ahead for teacher in teachers) else forward_only(min(self.batch_size, len(both)))
        for batch in (passes := self.passes(task, both, self.name, beside=beside)):
            target = torch.empty(0)
            for teacher, first, one in zip(teachers, (0, len(forget)), (batch.rows < len(forget), batch.rows >= len(forget)), strict=True):
                if one.any():
                    answers = teacher.of(_tree.index(batch.inputs, one), batch.rows[one] - first)
                    target = target if len(target) else answers.new_empty(len(batch), task.outputs)
                    target[one.to(target.device)] = answers
            loss = distill(task.forward(task.model, batch.inputs), target, self.temperature) / scale
            passes.descend(optimizer, loss, len(batch))
        return {"drawn_by_moments": by_moments} if by_moments else None
