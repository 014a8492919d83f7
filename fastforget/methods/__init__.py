"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .call import unlearn
from .pack import (
    AMUN,
    DELETE,
    FCS,
    KDE,
    BadTeacher,
    FineTune,
    GradientAscent,
    L1Sparse,
    LoTUS,
    MUNBa,
    NegGradPlus,
    RandomLabels,
    SalUn,
    SVDProjection,
)
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .result import NotForgottenWarning, UnlearnResult
from .sweep import Sweep
from .unsir import UNSIR

__all__ = [
    "AMUN",
    "DELETE",
    "FCS",
    "KDE",
    "UNSIR",
    "BadTeacher",
    "FineTune",
    "Forsaken",
    "GradientAscent",
    "L1Sparse",
    "Lightweight",
    "LoTUS",
    "MUNBa",
    "NegGradPlus",
    "NotForgottenWarning",
    "RandomLabels",
    "SVDProjection",
    "SalUn",
    "Sweep",
    "UnlearnResult",
    "unlearn",
]
