"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .call import unlearn
from .pack import CT, LFSSD, MSG, SCRUB, SSD, FineTune, GradientAscent, L1Sparse, NegGradPlus, RandomLabels, SalUn, SFRon
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .result import NotForgottenWarning, UnlearnResult
from .sweep import Sweep
from .unsir import UNSIR

__all__ = [
    "CT",
    "LFSSD",
    "MSG",
    "SCRUB",
    "SSD",
    "UNSIR",
    "FineTune",
    "Forsaken",
    "GradientAscent",
    "L1Sparse",
    "Lightweight",
    "NegGradPlus",
    "NotForgottenWarning",
    "RandomLabels",
    "SFRon",
    "SalUn",
    "Sweep",
    "UnlearnResult",
    "unlearn",
]
