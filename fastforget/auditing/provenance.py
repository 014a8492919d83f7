"""Where a model comes from: whether its weights show more than the original's under another last layer, and whether a "retrained" model was
retrained at all. The checks that the verdict's rule begins with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from . import limits
from .figures import ORIGINAL, ModelRow, WeightDistance, is_reference
from .limits import Finding
from .measure.weights import head, other_sizes

STILL = 0.01  # of the retrained model's own distance from the original, outside the last layer
SAYING_SO = "where only the last layer is ever trained, say so by frozen_body=True"


class Case(NamedTuple):
    """One model, and the ones that it is judged by.

    Attributes:
        row: the model's figures.
        original: the original's.
        retrained: those of the retrained model that its answers are compared with, the nearest where there are several.
        references: those of all retrained models that are believed, the one named "retrained" first.
        distrust: why a retrained model is not believed, by its name.
        frozen_body: whether the caller says that retraining leaves all but the last layer alone.
    """

    row: ModelRow
    original: ModelRow | None
    retrained: ModelRow
    references: tuple[ModelRow, ...] = ()
    distrust: Mapping[str, str] = MappingProxyType({})
    frozen_body: bool = False

    @property
    def judges_reference(self) -> bool:
        """Whether the model is itself a reference, whose structure the caller chose."""
        return is_reference(self.row.model) and not self.row.control

    @property
    def others(self) -> list[ModelRow]:
        """The retrained models that the row is held against together: a further one isn't held against itself."""
        references = self.references or (self.retrained,)
        return [one for one in references if one is not self.row or one is references[0]]


def check_weights(case: Case) -> list[Finding]:
    """Untouched, touched in the last layer or in biases only, or not to be compared."""
    row, moved = case.row, case.row.weight_distance.get(ORIGINAL)
    if moved is None:
        return []
    if moved.reason:
        # Models of other sizes have no weights to compare; the figures below the answers are the same for any size.
        if case.judges_reference or other_sizes(moved.reason):
            return []
        return [("PARTIAL", f"its weights can't be compared with the original's: {moved.reason}")]
    if moved.identical:
        return [("FAIL", "the weights are those of the original model: nothing was forgotten")]
    kept = "the representation is still that of a model trained on the forget set"
    last = _last_layer(row, moved)
    below = {layer.layer: layer.l2 for layer in moved.layers if layer.layer.partition(".parametrizations")[0] != last}
    # Where training leaves these layers alone (a frozen backbone, by the caller's word), they hold nothing of the forget set.
    usual = _moved_by_retraining(case.retrained, list(below))
    if usual == 0 and case.frozen_body:
        return []
    if not below:
        return [("FAIL", "only biases were changed: the weights are still those trained on the forget set")] if moved.biases_only else []
    distance = math.hypot(*below.values())
    if distance == 0:
        advice = f" ({SAYING_SO})" if usual == 0 else ""
        return [("FAIL", f"only the last layer ({last}) was changed: {kept}{advice}")]
    if moved.biases_only:
        return [("FAIL", f"only biases were changed: {kept}")]
    if row.class_wise and distance <= STILL * usual:
        text = f"below the last layer ({last}) the weights moved {100 * distance / usual:.2g} % as far as retraining moves them"
        return [("FAIL", f"{text}: {kept}")]
    return []


def _last_layer(row: ModelRow, moved: WeightDistance) -> str:
    if row.sequences is not None and row.sequences.head is not None:
        return row.sequences.head
    return head([(layer.layer, layer.rows) for layer in moved.layers], len(row.forget_predictions)) or moved.layers[-1].layer


def _moved_by_retraining(retrained: ModelRow, layers: list[str]) -> float:
    """How far these layers of the retrained model lie from the original's; infinite where the two can't be compared."""
    moved = retrained.weight_distance.get(ORIGINAL)
    if moved is None or moved.reason:
        return math.inf
    return math.hypot(*(layer.l2 for layer in moved.layers if layer.layer in layers))


def check_reference(case: Case) -> list[Finding]:
    """Whether the retrained models are what their names say; a reference answers for itself alone."""
    own = case.row.model if case.judges_reference else None
    return [
        ("PARTIAL", f"{name!r} is not believed to be retrained: {why}") for name, why in case.distrust.items() if own is None or name == own
    ]


def distrusted(reference: ModelRow, *, frozen_body: bool) -> str | None:
    """Why a retrained model is not believed by its weights and features, or None."""
    moved, below = reference.weight_distance.get(ORIGINAL), reference.below
    if moved is not None and not moved.reason:
        if moved.identical:
            return "its weights are the original's"
        last = _last_layer(reference, moved)
        body = [layer.l2 for layer in moved.layers if layer.layer.partition(".parametrizations")[0] != last]
        if body and not any(body) and not frozen_body:
            return f"only its last layer ({last}) is another than the original's; {SAYING_SO}"
        if body and moved.biases_only and not frozen_body:
            return f"only its biases are others than the original's; {SAYING_SO}"
    if below is None:
        return None
    why = limits.believed(below, None if math.isnan(below.moved) else below.moved, frozen_body=frozen_body)
    return None if why is None else f"{why} ({SAYING_SO})"
