"""The unlearning methods: a dataclass of options each, and :func:`unlearn` that runs them."""

from .base import NotForgottenWarning, UnlearnResult, unlearn
from .unsir import UNSIR

__all__ = ["UNSIR", "NotForgottenWarning", "UnlearnResult", "unlearn"]
