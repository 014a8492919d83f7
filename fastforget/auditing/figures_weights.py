"""How far a model's weights lie from another's, as figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .fields import Fields, flag, integer, listed, number, optional_text, text


@dataclass
class LayerDistance:
    """How far one layer (a module's own weight and bias together) lies from another model's.

    Attributes:
        layer: the module's name.
        l2: Euclidean distance.
        relative: ``l2`` divided by the norm of the other model's layer; infinite where that is 0 and ``l2`` isn't.
        rows: the first size of its weight, such as the number of classes in a classifier's head.
    """

    layer: str
    l2: float
    relative: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, "l2": self.l2, "relative": self.relative, "rows": self.rows}

    @classmethod
    def from_dict(cls, value: Any, where: str = "layer") -> LayerDistance:
        entries = Fields(value, where)
        return cls(entries.get("layer", text), entries.get("l2", number), entries.get("relative", number), entries.get("rows", integer))


@dataclass
class WeightDistance:
    """How far a model's weights lie from another's.

    Attributes:
        total, relative: over all layers, as in :class:`LayerDistance`.
        identical: whether all weights and buffers are equal.
        layers: in the model's own order; empty where the models can't be laid on each other.
        reason: why they can't.
        biases_only: whether nothing but biases differs.
    """

    total: float
    relative: float
    identical: bool
    layers: list[LayerDistance]
    reason: str | None = None
    biases_only: bool = False

    def to_dict(self) -> dict[str, Any]:
        layers = [layer.to_dict() for layer in self.layers]
        whole = {"total": self.total, "relative": self.relative, "identical": self.identical}
        return whole | {"layers": layers, "reason": self.reason, "biases_only": self.biases_only}

    @classmethod
    def from_dict(cls, value: Any, where: str = "weight distance") -> WeightDistance:
        entries = Fields(value, where)
        layers, reason = entries.get("layers", listed(LayerDistance.from_dict)), entries.get_or("reason", optional_text, None)
        whole = entries.get("total", number), entries.get("relative", number), entries.get("identical", flag)
        return cls(*whole, layers, reason, entries.get_or("biases_only", flag, False))
