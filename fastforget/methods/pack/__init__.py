"""The standard methods that people compare with: a short file each, as its paper has it."""

from __future__ import annotations

from .base import Standard
from .ct import CT
from .l1_sparse import L1Sparse
from .lfssd import LFSSD
from .msg import MSG
from .neggrad_plus import NegGradPlus
from .plain import FineTune, GradientAscent, RandomLabels
from .salun import SalUn
from .scrub import SCRUB
from .sfron import SFRon
from .ssd import SSD

_METHODS: tuple[type[Standard], ...] = (
    NegGradPlus, SalUn, SSD, LFSSD, L1Sparse, SCRUB, MSG, CT, SFRon,
    FineTune, RandomLabels, GradientAscent,
)  # fmt: skip
STANDARD: dict[str, type[Standard]] = {method.name: method for method in _METHODS}
__all__ = [
    "CT",
    "LFSSD",
    "MSG",
    "SCRUB",
    "SSD",
    "STANDARD",
    "FineTune",
    "GradientAscent",
    "L1Sparse",
    "NegGradPlus",
    "RandomLabels",
    "SFRon",
    "SalUn",
    "Standard",
]
