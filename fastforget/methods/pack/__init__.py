"""The standard methods that people compare with: a short file each, as its paper has it."""

from __future__ import annotations

from .amun import AMUN
from .bad_teacher import BadTeacher
from .base import Standard
from .ct import CT
from .delete import DELETE
from .fcs import FCS
from .kde import KDE
from .l1_sparse import L1Sparse
from .lfssd import LFSSD
from .lotus import LoTUS
from .msg import MSG
from .munba import MUNBa
from .neggrad_plus import NegGradPlus
from .plain import FineTune, GradientAscent, RandomLabels
from .salun import SalUn
from .scrub import SCRUB
from .sfron import SFRon
from .ssd import SSD
from .svd_projection import SVDProjection

_METHODS: tuple[type[Standard], ...] = (
    NegGradPlus, SalUn, SSD, LFSSD, L1Sparse, SCRUB, MSG, CT, DELETE, LoTUS, BadTeacher, AMUN, SFRon,
    FineTune, RandomLabels, GradientAscent, MUNBa, FCS, KDE, SVDProjection,
)  # fmt: skip
STANDARD: dict[str, type[Standard]] = {method.name: method for method in _METHODS}
__all__ = [
    "AMUN",
    "CT",
    "DELETE",
    "FCS",
    "KDE",
    "LFSSD",
    "MSG",
    "SCRUB",
    "SSD",
    "STANDARD",
    "BadTeacher",
    "FineTune",
    "GradientAscent",
    "L1Sparse",
    "LoTUS",
    "MUNBa",
    "NegGradPlus",
    "RandomLabels",
    "SFRon",
    "SVDProjection",
    "SalUn",
    "Standard",
]
