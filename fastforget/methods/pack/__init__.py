"""The standard methods that people compare with: a short file each, as its paper has it."""

from __future__ import annotations

from .bad_teacher import BadTeacher
from .base import Standard
from .delete import DELETE
from .l1_sparse import L1Sparse
from .lotus import LoTUS
from .neggrad_plus import NegGradPlus
from .plain import FineTune, GradientAscent, RandomLabels
from .salun import SalUn

STANDARD: dict[str, type[Standard]] = {
    method.name: method for method in (NegGradPlus, SalUn, L1Sparse, FineTune, RandomLabels, GradientAscent, DELETE, LoTUS, BadTeacher)
}
__all__ = [
    "DELETE",
    "STANDARD",
    "BadTeacher",
    "FineTune",
    "GradientAscent",
    "L1Sparse",
    "LoTUS",
    "NegGradPlus",
    "RandomLabels",
    "SalUn",
    "Standard",
]
