"""Methods for causal language models: a short file each, as its paper has it. Labels are token ids [N, T], evidence is a sequence's."""

from __future__ import annotations

from .base import Language
from .gradient_difference import GradientDifference
from .npo import NPO
from .rmu import RMU
from .simnpo import SimNPO

_METHODS: tuple[type[Language], ...] = (GradientDifference, NPO, SimNPO, RMU)
LANGUAGE: dict[str, type[Language]] = {method.name: method for method in _METHODS}
__all__ = ["LANGUAGE", "NPO", "RMU", "GradientDifference", "Language", "SimNPO"]
