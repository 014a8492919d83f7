"""What the figures of a language model's sequences rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fields import Fields, by_name, integer, number

SETS = ("forget", "retain", "test")


@dataclass
class SequenceFigures:
    """Of one model, by set: scored ``tokens``; standard errors of the mean over sequences of token accuracy (``accuracy_error``) and of the
    loss (``loss_error``), NaN of a single sequence.
    """

    tokens: dict[str, int]
    accuracy_error: dict[str, float]
    loss_error: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN stays NaN."""
        return {"tokens": dict(self.tokens), "accuracy_error": dict(self.accuracy_error), "loss_error": dict(self.loss_error)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "sequences") -> SequenceFigures:
        entries = Fields(value, where)
        errors = (entries.get(name, by_name(number)) for name in ("accuracy_error", "loss_error"))
        return cls(entries.get("tokens", by_name(integer)), *errors)
