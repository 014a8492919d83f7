"""The methods by name, and what a method is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

from . import plugs
from .language import LANGUAGE
from .options import known
from .pack import STANDARD
from .perturb.forsaken import Forsaken
from .perturb.lightweight import Lightweight
from .sweep import Sweep
from .task import Task
from .unsir import UNSIR


class Method(Protocol):
    """What :func:`fastforget.unlearn` needs of a method: its options, and these. Best a dataclass; nothing needs to be inherited.

    Required are ``name``, ``scope``, ``run`` and ``receipt``. Optional, with what holds where they are missing:

    - ``learns_noise`` (False): in the inputs' place, so they must be one floating point tensor;
    - ``gradients`` (none): what a first step on a copy tries before the run, ``"train"`` and ``"eval"`` mode (fastforget/_trial.py);
    - ``needs_forget`` (True): with ``scope = "samples"``, whether ``forget`` must be given for whole classes, too;
    - ``holds_back`` (False): for samples, a third of ``nonmember`` (1,024 at most) becomes ``task.held``, for looks and the verdict.
    """

    name: str
    scope: str  # "classes": as a whole; "samples": also any set of samples, given as forget=; "sequences": of a language model
    learns_noise: bool
    gradients: tuple[str, ...]

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes``, or the samples of ``task.forget`` where that is empty, in ``task.model``; what it returns goes into
        the receipt (plain JSON values)."""

    def receipt(self) -> dict[str, Any]:
        """Every option, as plain JSON values."""


@dataclass
class Nothing:
    """The negative control: returns the model as it is, so that an audit of it must fail. ``sequences``: of a language model."""

    sequences: bool = False

    name = "none"
    learns_noise = False
    gradients = ()

    @property
    def scope(self) -> str:
        return "sequences" if self.sequences else "samples"

    def run(self, task: Task) -> dict[str, Any]:
        return {}

    def receipt(self) -> dict[str, Any]:
        return {"sequences": True} if self.sequences else {}


METHODS: dict[str, type[Any]] = {
    "sweep": Sweep,
    "unsir": UNSIR,
    "forsaken": Forsaken,
    "lightweight": Lightweight,
    **STANDARD,
    **LANGUAGE,
    "none": Nothing,
}
AUTO = "auto"
# of unlearn itself, which may have been meant where an option is unknown
ARGUMENTS = (
    "forget", "retain", "nonmember", "test", "classes", "seed", "inplace", "progress", "drop_forget", "check_overlap", "budget",
    "precision", "unpack", "forward",
)  # fmt: skip


def method_of(method: Any, options: dict[str, Any]) -> Method:
    """The method that was named, with these options, or the instance that was given."""
    if isinstance(method, str) and method in METHODS:
        known(method, options, [field.name for field in dataclasses.fields(METHODS[method]) if field.init], ARGUMENTS)
        return METHODS[method](**options)
    if isinstance(method, str):
        return plugs.made(method, options, (AUTO, *METHODS))
    plugs.refuse_other(method, f"method: got {method!r}; accepted are {', '.join(map(repr, METHODS))} or an instance, e.g. UNSIR()")
    if options:
        raise TypeError(f"options {', '.join(options)}: give them to {type(method).__name__}(...) when the method is an instance")
    return method


def names() -> list[str]:
    """Every name that ``method=`` takes: ours, then those of other packages (of which nothing is imported)."""
    return [AUTO, *METHODS, *plugs.names((AUTO, *METHODS))]


def available() -> list[plugs.Available]:
    """The methods that can be called by name, where each comes from, and what it can forget; those of other packages are imported.

    >>> from fastforget import methods
    >>> [str(method).partition(": ")[2] for method in methods.available() if method.name in ("unsir", "sweep")]
    ['classes, samples', 'classes']
    """
    return plugs.listed(METHODS, (AUTO, *METHODS))


def suitable(classes: Any, *, forget: Any, retain: Any, nonmember: Any) -> tuple[str, str]:
    """The method for a request by what is asked and given, and why: ``method="auto"``."""
    if retain is None:
        return "forsaken", "no data to keep was given; Forsaken alone can do without"
    if classes is not None and forget is None:
        return "unsir", "no samples of the classes were given; UNSIR learns noise in their place, and rehearses to know when they are gone"
    if classes is None and nonmember is None:
        return "unsir", "no data never seen was given, which single samples need; UNSIR forgets the classes of the forget set"
    return "sweep", "data to forget and to keep were given: for these the sweep comes first in the experiment (docs/experiment.md)"
