"""What the figures of a language model's sequences rest on, and how the model is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fields import Fields, by_name, integer, number, optional_text

SETS = ("forget", "retain", "test")


@dataclass
class SequenceFigures:
    """Of one model, by set: scored ``tokens``; standard errors of the mean over sequences of token accuracy (``accuracy_error``) and of the
    loss (``loss_error``), NaN of a single sequence. ``head``: the layer whose product makes the logits, by its name among the weights, or
    None where that isn't known. ``structure``: how the model is built otherwise than the original, or None.
    """

    tokens: dict[str, int]
    accuracy_error: dict[str, float]
    loss_error: dict[str, float]
    head: str | None = None
    structure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN stays NaN."""
        by_set = {"tokens": dict(self.tokens), "accuracy_error": dict(self.accuracy_error), "loss_error": dict(self.loss_error)}
        return {**by_set, "head": self.head, "structure": self.structure}

    @classmethod
    def from_dict(cls, value: Any, where: str = "sequences") -> SequenceFigures:
        entries = Fields(value, where)
        return cls(
            tokens=entries.get("tokens", by_name(integer)),
            accuracy_error=entries.get("accuracy_error", by_name(number)),
            loss_error=entries.get("loss_error", by_name(number)),
            head=entries.get("head", optional_text),
            structure=entries.get("structure", optional_text),
        )
