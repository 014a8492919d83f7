"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .base import NotForgottenWarning, UnlearnResult, unlearn
from .forsaken import Forsaken
from .lightweight import Lightweight
from .unsir import UNSIR

__all__ = ["UNSIR", "Forsaken", "Lightweight", "NotForgottenWarning", "UnlearnResult", "unlearn"]
