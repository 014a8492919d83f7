"""Rewinding: of the models after each epoch, the one that errs on the forget set as the last one errs on samples it never saw.

Kurmanji et al., NeurIPS'23 (SCRUB+R). A model that errs more often than that tells who was forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..task import Task


class Rewind:
    """Keeps a copy of the weights for every epoch that :meth:`note` is called after; :meth:`end` puts the chosen one back.

    Raises:
        ValueError: whole classes are to be forgotten, of which no unseen samples are kept apart; or the non-members hold none of the
            forget set's classes.
    """

    def __init__(self, task: Task) -> None:
        if task.classes:
            raise ValueError(
                f"rewind: got True with classes={task.classes}; it compares with unseen samples of the forget set's classes, which a model "
                "that forgets them whole shouldn't answer. Pass rewind=False, or single samples as forget= without classes="
            )
        if task.nonmember is None:
            raise ValueError("nonmember: not given; rewind=True needs data the model never saw, of the forget set's classes")
        assert task.forget is not None
        inside = torch.isin(task.nonmember.labels(), task.forget.labels().unique()).nonzero()[:, 0]
        if len(inside) == 0:
            raise ValueError("nonmember: holds no sample of the forget set's classes; rewind=True compares with these")
        self.task, self.unseen, self.forget = task, task.nonmember.subset(inside), task.forget
        self.kept: list[tuple[int, float, dict[str, Tensor]]] = []  # epoch, error on the forget set, weights

    def note(self, epoch: int) -> None:
        """Keeps the model as it is after this epoch, unless the budget has no room to look at it."""
        if self.task.cost.has_room(-(-len(self.forget) // 3)):
            with self.task.cost.phase("looks"):
                error = 1 - self.task.right(self.forget)
            self.kept.append((epoch, error, _weights.save(self.task.model)))

    def end(self) -> dict[str, Any]:
        """Puts the weights back whose error is nearest to the reference (of equal ones the earliest); returns what was compared."""
        errors = {str(epoch): error for epoch, error, _ in self.kept}
        if not self.kept or not self.task.cost.has_room(-(-len(self.unseen) // 3)):
            return {"rewound_to": None, "forget_error": errors}
        with self.task.cost.phase("looks"):
            reference = 1 - self.task.right(self.unseen)
        epoch, _, weights = min(self.kept, key=lambda kept: abs(kept[1] - reference))
        _weights.put_back(self.task.model, weights)
        return {"rewound_to": epoch, "forget_error": errors, "reference_error": reference, "reference": f"{len(self.unseen)} non-members"}
