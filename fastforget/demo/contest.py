"""The methods of one demonstration: the chosen one, and those that run beside it on the same original and the same sets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..methods import NotForgottenWarning, UnlearnResult, unlearn
from ..methods.registry import method_of

SIDE_BY_SIDE = ("sweep", "unsir", "lightweight")
MAIN = "unlearned"  # the name of the chosen method's model in audit, receipt and figures; the others are called by their methods


@dataclass
class Entrant:
    """One method's run.

    Attributes:
        model: its model's name in the audit.
        method: the method's name; of ``"auto"`` the one that it chose.
        result: what the run gave.
    """

    model: str
    method: str
    result: UnlearnResult

    @property
    def seconds(self) -> float:
        return 0.0 if self.method == "none" else self.result.seconds

    @property
    def reason(self) -> str | None:
        """Why ``"auto"`` chose this method; None where it was named."""
        return self.result.receipt.get("method_chosen")


@dataclass
class Step:
    """What a model came from: the method or the training, its seconds and sample passes, and how many times as fast as retraining."""

    method: str
    seconds: float
    passes: int
    speedup: float = math.nan


def usable(chosen: Sequence[str]) -> None:
    """Refuses a method of another package that can't be made, before anything is trained (ImportError, TypeError, ValueError)."""
    for name in chosen:
        if name != "auto":
            method_of(name, {})


def beside(chosen: str, wanted: Sequence[str] | None) -> list[str]:
    """The methods to run beside the chosen one: those that were named, else so many of :data:`SIDE_BY_SIDE` that three stand side by
    side. The chosen one isn't run twice, and nothing is put beside the negative control unasked.

    >>> beside("sweep", None), beside("forsaken", None), beside("sweep", ["forsaken", "sweep"]), beside("none", None)
    (['unsir', 'lightweight'], ['sweep', 'unsir'], ['forsaken'], [])
    """
    if wanted is None:
        wanted = [] if chosen == "none" else [name for name in SIDE_BY_SIDE if name != chosen][: len(SIDE_BY_SIDE) - 1]
    return [name for name in dict.fromkeys(wanted) if name != chosen]


def run(original: nn.Module, chosen: str, wanted: Sequence[str] | None, **request: Any) -> list[Entrant]:
    """Runs the chosen method, then those beside it; every one is given the same request."""
    first = _run(original, chosen, MAIN, request)
    return [first, *(_run(original, name, name, request) for name in beside(first.method, wanted))]


def _run(original: nn.Module, method: str, model: str, request: dict[str, Any]) -> Entrant:
    with warnings.catch_warnings():
        # the text at the end says whether the run forgot, and so does the exit status
        warnings.simplefilter("ignore", NotForgottenWarning)
        result = unlearn(original, method, **request)
    return Entrant(model, result.receipt["method"], result)
