"""Membership by one threshold a class (Song & Mittal, USENIX Security'21): calibrated on the original model, then fixed."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ...ops.membership import class_thresholds
from . import attacks as atk
from . import intervals
from .passes import Scored

CONVENTION = (
    "one threshold a class for each score, of best balanced accuracy between retain and test samples on the original model (Song & Mittal, "
    "USENIX Security'21), then fixed for all models; a class that the retain or the test set lacks gets the threshold of all classes "
    "together. The test samples that calibrate are the ones judged, so the original's false-positive rate is a little low"
)


class Rule:
    """The thresholds, [classes] for each attack; or the reason why there are none."""

    def __init__(self, original: dict[str, Scored] | None, retain: atk.Duel, names: tuple[str, ...]) -> None:
        self.names = [name for name in names if name in atk.DIRECTION]
        self.reason = None if original else 'no model named "original" was given, so the thresholds can\'t be calibrated'
        self.thresholds: dict[str, Tensor] = {}
        if original:
            labels = original["retain"].labels, original["test"].labels[retain.keep]
            for name in self.names:
                member, other = atk.sides(original, retain, name)
                self.thresholds[name] = class_thresholds(member, labels[0], other, labels[1], original["retain"].classes)

    def figures(self, scored: dict[str, Scored], duel: atk.Duel, with_intervals: bool) -> dict[str, dict[str, Any]]:
        """``{attack: verdict figures}`` of one model in one duel."""
        return {name: self._figures(scored, duel, name, with_intervals) for name in self.names}

    def _figures(self, scored: dict[str, Scored], duel: atk.Duel, name: str, with_intervals: bool) -> dict[str, Any]:
        if self.reason:
            return {"balanced_accuracy": math.nan, "tpr": math.nan, "fpr": math.nan, "reason": self.reason}
        labels = scored[duel.members].labels, scored["test"].labels[duel.keep]
        called = [s >= self.thresholds[name][y] for s, y in zip(atk.sides(scored, duel, name), labels, strict=True)]
        (tp, n1), (fp, n0) = ((int(c.sum()), c.numel()) for c in called)
        found: dict[str, Any] = {"balanced_accuracy": (1 + tp / n1 - fp / n0) / 2, "tpr": tp / n1, "fpr": fp / n0}
        found |= {"members": n1, "nonmembers": n0}
        if with_intervals:
            found |= {
                "balanced_accuracy_interval": intervals.balanced(tp, n1, fp, n0),
                "tpr_interval": intervals.share(tp, n1),
                "fpr_interval": intervals.share(fp, n0),
            }
        return found | {"reason": None}
