"""The standard methods that people compare with: a short file each, as its paper has it."""

from __future__ import annotations

from .base import Standard
from .delete import DELETE
from .l1_sparse import L1Sparse
from .neggrad_plus import NegGradPlus
from .plain import FineTune, GradientAscent, RandomLabels
from .salun import SalUn

STANDARD: dict[str, type[Standard]] = {
    method.name: method for method in (NegGradPlus, SalUn, L1Sparse, FineTune, RandomLabels, GradientAscent, DELETE)
}
__all__ = ["DELETE", "STANDARD", "FineTune", "GradientAscent", "L1Sparse", "NegGradPlus", "RandomLabels", "SalUn", "Standard"]
