"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them.

For a method of your own, or in a package of your own: :class:`Method` is what it must have, :mod:`fastforget.methods.engine` what it can
build on. docs/plugins.md has an example.
"""

from . import engine
from .call import unlearn
from .language import NPO, RMU, GradientDifference, SimNPO
from .pack import (
    AMUN,
    CT,
    DELETE,
    FCS,
    KDE,
    LFSSD,
    MSG,
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    GradientAscent,
    L1Sparse,
    LoTUS,
    MUNBa,
    NegGradPlus,
    RandomLabels,
    SalUn,
    SFRon,
    SVDProjection,
)
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .plugs import Available
from .registry import Method, available
from .result import NotForgottenWarning, UnlearnResult
from .sweep import Sweep
from .unsir import UNSIR

__all__ = [
    "AMUN",
    "CT",
    "DELETE",
    "FCS",
    "KDE",
    "LFSSD",
    "MSG",
    "NPO",
    "RMU",
    "SCRUB",
    "SSD",
    "UNSIR",
    "Available",
    "BadTeacher",
    "FineTune",
    "Forsaken",
    "GradientAscent",
    "GradientDifference",
    "L1Sparse",
    "Lightweight",
    "LoTUS",
    "MUNBa",
    "Method",
    "NegGradPlus",
    "NotForgottenWarning",
    "RandomLabels",
    "SFRon",
    "SVDProjection",
    "SalUn",
    "SimNPO",
    "Sweep",
    "UnlearnResult",
    "available",
    "engine",
    "unlearn",
]
