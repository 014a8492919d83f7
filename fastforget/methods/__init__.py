"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them.

For a method of your own, or in a package of your own: :class:`Method` is what it must have, :mod:`fastforget.methods.engine` what it can
build on. docs/plugins.md has an example.
"""

from . import engine
from .call import unlearn
from .pack import CT, LFSSD, MSG, SCRUB, SSD, FineTune, GradientAscent, L1Sparse, NegGradPlus, RandomLabels, SalUn, SFRon
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .plugs import Available
from .registry import Method, available
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
    "Available",
    "FineTune",
    "Forsaken",
    "GradientAscent",
    "L1Sparse",
    "Lightweight",
    "Method",
    "NegGradPlus",
    "NotForgottenWarning",
    "RandomLabels",
    "SFRon",
    "SalUn",
    "Sweep",
    "UnlearnResult",
    "available",
    "engine",
    "unlearn",
]
