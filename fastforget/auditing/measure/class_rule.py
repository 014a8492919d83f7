"""Membership by one threshold a class (Song & Mittal, USENIX Security'21): calibrated on the original model, then fixed."""

from __future__ import annotations

from torch import Tensor

from ...ops.membership import class_thresholds
from ..figures import Figure, ThresholdFigures
from ..names import DIRECTION
from . import intervals
from .attacks import Comparison, share_of, sides
from .passes import Scored

CONVENTION = (
    "one threshold a class for each score, of best balanced accuracy between retain and test samples on the original model (Song & Mittal, "
    "USENIX Security'21), then fixed for all models; a class that the retain or the test set lacks gets the threshold of all classes "
    "together. The test samples that calibrate are the ones judged, so the original's false-positive rate is a little low"
)


class ClassThresholds:
    """The thresholds, [classes] for each score; or the reason why there are none."""

    def __init__(self, original: dict[str, Scored] | None, retain: Comparison, names: tuple[str, ...]) -> None:
        self.names = [name for name in names if name in DIRECTION]
        self.reason = None if original else 'no model named "original" was given, so the thresholds can\'t be calibrated'
        self.thresholds: dict[str, Tensor] = {}
        if original:
            labels = original["retain"].labels, original["test"].labels[retain.keep]
            for name in self.names:
                member, other = sides(original, retain, name)
                self.thresholds[name] = class_thresholds(member, labels[0], other, labels[1], original["retain"].classes)

    def figures(self, scored: dict[str, Scored], comparison: Comparison, with_intervals: bool) -> dict[str, ThresholdFigures]:
        """Each score's verdicts on one model in one comparison."""
        return {name: self._figures(scored, comparison, name, with_intervals) for name in self.names}

    def _figures(self, scored: dict[str, Scored], comparison: Comparison, name: str, with_intervals: bool) -> ThresholdFigures:
        if self.reason:
            return ThresholdFigures.without(self.reason)
        labels = scored[comparison.members].labels, scored["test"].labels[comparison.keep]
        called = [s >= self.thresholds[name][y] for s, y in zip(sides(scored, comparison, name), labels, strict=True)]
        (tp, n1), (fp, n0) = ((int(c.sum()), c.numel()) for c in called)
        balanced = Figure((1 + tp / n1 - fp / n0) / 2, intervals.balanced(tp, n1, fp, n0) if with_intervals else None)
        tpr, fpr = (share_of(c, with_intervals) for c in called)
        return ThresholdFigures(balanced, tpr, fpr, n1, n0)
