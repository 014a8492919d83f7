"""The figures below the answers: what a model's features, and its answers around the samples, still tell of what it was to forget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from .fields import Fields, by_class, by_name, integer, number, optional_text, text

NUMBERS = ("class_cka", "readable", "cka", "probe_auc", "noised_auc", "halves_auc", "new_head_auc", "neighbours", "moved")
COUNTS = ("members", "others", "forget", "unseen")


@dataclass
class Below:
    """One model's figures; NaN comes with an entry in ``reasons`` under the figure's name.

    ``class_cka``: likeness of its features to the original's, inside the forgotten classes (test samples). ``readable``: the share of the
    original's features that can be read linearly off its own, there. ``cka``: as ``class_cka``, over the whole test set. ``probe_auc``: of
    the linear probe. ``noised_auc``, ``halves_auc``, ``new_head_auc``: of the loss attack. ``relearned``: accuracy on the forgotten classes
    after steps on k samples. ``neighbours``: accuracy on the classes near the forgotten ones. ``structure``: how the model is built
    otherwise than the original, or None. ``moved``: its weights' distance from the original's below the last layer, relative to both norms
    together. ``members``, ``others``: test samples of the forgotten and of the kept classes; ``forget``, ``unseen``: the attack's two
    sides.
    """

    class_cka: float = math.nan
    readable: float = math.nan
    cka: float = math.nan
    probe_auc: float = math.nan
    noised_auc: float = math.nan
    halves_auc: float = math.nan
    new_head_auc: float = math.nan
    relearned: dict[int, float] = field(default_factory=dict)
    neighbours: float = math.nan
    structure: str | None = None
    moved: float = math.nan
    members: int = 0
    others: int = 0
    forget: int = 0
    unseen: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN stays NaN."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"relearned": dict(self.relearned), "reasons": dict(self.reasons)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "below") -> Below:
        entries = Fields(value, where)
        found = cls(
            relearned=entries.get("relearned", by_class(number)),
            structure=entries.get("structure", optional_text),
            reasons=entries.get("reasons", by_name(text)),
        )
        for names, read in ((NUMBERS, number), (COUNTS, integer)):
            for name in names:
                setattr(found, name, entries.get(name, read))
        return found
