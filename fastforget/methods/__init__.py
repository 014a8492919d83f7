"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .call import unlearn
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .result import NotForgottenWarning, UnlearnResult
from .unsir import UNSIR

__all__ = ["UNSIR", "Forsaken", "Lightweight", "NotForgottenWarning", "UnlearnResult", "unlearn"]
