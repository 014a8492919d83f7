"""The methods by name, and what a method is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .pack import STANDARD
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .sweep import Sweep
from .task import Task
from .unsir import UNSIR


class Method(Protocol):
    name: str
    scope: str  # "classes": classes as a whole; "samples": also any set of samples, given as forget=
    learns_noise: bool  # in the inputs' place: they must be floating point
    gradients: tuple[str, ...]  # what a first step on a copy tries before the run: "train", "eval" (fastforget/_trial.py)

    def run(self, task: Task) -> dict[str, Any]: ...

    def receipt(self) -> dict[str, Any]: ...


@dataclass
class Nothing:
    """The negative control: returns the model as it is, so that an audit of it must fail."""

    name = "none"
    scope = "samples"
    learns_noise = False
    gradients = ()

    def run(self, task: Task) -> dict[str, Any]:
        return {}

    def receipt(self) -> dict[str, Any]:
        return {}


METHODS: dict[str, Callable[..., Any]] = {
    "sweep": Sweep,
    "unsir": UNSIR,
    "forsaken": Forsaken,
    "lightweight": Lightweight,
    **STANDARD,
    "none": Nothing,
}
AUTO = "auto"


def method_of(method: Any, options: dict[str, Any]) -> Method:
    """The method that was named, with these options, or the instance that was given."""
    if isinstance(method, str):
        if method not in METHODS:
            names = ", ".join(map(repr, (AUTO, *METHODS)))
            raise ValueError(f"method: got {method!r}; accepted are {names} or an instance from ff.methods")
        return METHODS[method](**options)
    if not (hasattr(method, "run") and hasattr(method, "receipt")) or isinstance(method, type):
        raise TypeError(f"method: got {method!r}; accepted are {', '.join(map(repr, METHODS))} or an instance, e.g. UNSIR()")
    if options:
        raise TypeError(f"options {', '.join(options)}: give them to {type(method).__name__}(...) when the method is an instance")
    return method


def suitable(classes: Any, *, forget: Any, retain: Any, nonmember: Any) -> tuple[str, str]:
    """The method for a request by what is asked and given, and why: ``method="auto"``."""
    if retain is None:
        return "forsaken", "no data to keep was given; Forsaken alone can do without"
    if classes is not None and forget is None:
        return "unsir", "no samples of the classes were given; UNSIR learns noise in their place, and rehearses to know when they are gone"
    if classes is None and nonmember is None:
        return "unsir", "no data never seen was given, which single samples need; UNSIR forgets the classes of the forget set"
    return "sweep", "data to forget and to keep were given: for these the sweep comes first in the experiment (docs/experiment.md)"
