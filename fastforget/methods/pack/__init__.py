"""The standard methods that people compare with: a short file each, as its paper has it."""

from __future__ import annotations

from .amun import AMUN
from .bad_teacher import BadTeacher
from .base import Standard
from .delete import DELETE
from .fcs import FCS
from .kde import KDE
from .l1_sparse import L1Sparse
from .lotus import LoTUS
from .munba import MUNBa
from .neggrad_plus import NegGradPlus
from .plain import FineTune, GradientAscent, RandomLabels
from .salun import SalUn
from .svd_projection import SVDProjection

_METHODS: tuple[type[Standard], ...] = (
    NegGradPlus,
    SalUn,
    L1Sparse,
    FineTune,
    RandomLabels,
    GradientAscent,
    DELETE,
    LoTUS,
    BadTeacher,
    AMUN,
    MUNBa,
    FCS,
    KDE,
    SVDProjection,
)
STANDARD: dict[str, type[Standard]] = {method.name: method for method in _METHODS}
__all__ = [
    "AMUN",
    "DELETE",
    "FCS",
    "KDE",
    "STANDARD",
    "BadTeacher",
    "FineTune",
    "GradientAscent",
    "L1Sparse",
    "LoTUS",
    "MUNBa",
    "NegGradPlus",
    "RandomLabels",
    "SVDProjection",
    "SalUn",
    "Standard",
]
