"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .call import unlearn
from .pack import DELETE, FineTune, GradientAscent, L1Sparse, NegGradPlus, RandomLabels, SalUn
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .result import NotForgottenWarning, UnlearnResult
from .sweep import Sweep
from .unsir import UNSIR

__all__ = [
    "DELETE",
    "UNSIR",
    "FineTune",
    "Forsaken",
    "GradientAscent",
    "L1Sparse",
    "Lightweight",
    "NegGradPlus",
    "NotForgottenWarning",
    "RandomLabels",
    "SalUn",
    "Sweep",
    "UnlearnResult",
    "unlearn",
]
