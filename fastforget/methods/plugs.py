"""Methods of other packages: found by their entry points in the group ``fastforget.methods``, when a name is asked for that isn't ours.

    [project.entry-points."fastforget.methods"]
    my_method = "package.module:MyMethod"

What a method must have is :class:`fastforget.methods.Method`; docs/plugins.md has an example. Nothing is looked up, or imported, before
somebody asks for such a name: a broken package breaks its own method alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .._files import jsonable
from .._version import __version__

GROUP = "fastforget.methods"
SCOPES = {"classes": ("classes",), "samples": ("classes", "samples"), "sequences": ("sequences",)}
OWN = __name__.partition(".")[0]
_WARNED: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Available:
    """One method that can be called by its name.

    Attributes:
        name: what to pass as ``method=``.
        origin: the distribution that it comes from, with its version.
        serves: what it can forget, by its defaults: ``"classes"`` as a whole, ``"samples"`` of any class, ``"sequences"`` of a language
            model.
        problem: why it can't be called, where it can't.
    """

    name: str
    origin: str
    serves: tuple[str, ...]
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.origin}): {self.problem or ', '.join(self.serves)}"


def names(taken: Iterable[str]) -> list[str]:
    """Names that other packages declare, sorted; nothing of them is imported."""
    return sorted(_declared(taken))


def made(name: str, options: dict[str, Any], taken: Iterable[str]) -> Any:
    """The method that another package declares by this name, with these options.

    Args:
        name: of the entry point.
        options: passed to what the entry point names.
        taken: names that no other package can have.

    Raises:
        ImportError: what the entry point names can't be imported.
        TypeError: what it makes isn't a method.
        ValueError: no package declares the name, or more than one does.
    """
    taken = list(taken)
    declared = _declared(taken)
    if name not in declared:
        known = ", ".join(map(repr, (*taken, *sorted(declared))))
        raise ValueError(f"method: got {name!r}; accepted are {known} or an instance from ff.methods")
    point = _only(name, declared[name])
    method = _loaded(point)(**options)
    about = f"method: {name!r} of {_title(point)} ({point.value})"
    refuse_other(method, about)
    if method.name != name:
        raise TypeError(f"{about} is called {method.name!r} by its own attribute; accepted is one name, as receipts show it")
    return method


def refuse_other(method: Any, about: str) -> None:
    """Refuses what isn't a method, with what it lacks."""
    if isinstance(method, type):
        raise TypeError(f"{about}: got a class; accepted is an instance, e.g. {method.__name__}()")
    lacking = [f"{call}()" for call in ("run", "receipt") if not callable(getattr(method, call, None))]
    lacking += ["name (text)"] if not isinstance(getattr(method, "name", None), str) else []
    lacking += ['scope ("classes", "samples" or "sequences")'] if getattr(method, "scope", None) not in SCOPES else []
    if lacking:
        raise TypeError(f"{about}: {type(method).__name__} is no method, it lacks {', '.join(lacking)}; see fastforget.methods.Method")


def entries(method: Any, details: Any) -> dict[str, Any]:
    """What ``run`` returned, for the receipt; refuses what can't stand there."""
    of = f"method: {type(method).__name__}.run returned"
    if not isinstance(details, dict):
        raise TypeError(f"{of} {type(details).__name__}; accepted is a dict of entries for the receipt, {{}} for none")
    try:
        json.dumps(jsonable(details))
    except TypeError as error:
        raise TypeError(f"{of} what a receipt can't hold: {error}; accepted are plain JSON values") from None
    return details


def joined(method: Any, receipt: dict[str, Any], details: dict[str, Any]) -> dict[str, Any]:
    """The receipt with the method's own entries, none of which may stand in the place of what was measured."""
    written = sorted(set(details) & set(receipt))
    if written:
        raise ValueError(
            f"method: {type(method).__name__}.run returned {', '.join(map(repr, written))}, which ff.unlearn puts into the receipt itself; "
            "accepted are other names"
        )
    return receipt | details


def provenance(given: Any, method: Any) -> dict[str, Any]:
    """For the receipt, of a method that isn't ours: ``distribution`` and ``version`` (None where no entry point of the group leads to its
    package), and ``object``, its class.

    Args:
        given: what the user passed as ``method=``: a name or an instance.
        method: the instance.
    """
    kind = type(method)
    root = kind.__module__.partition(".")[0]
    if root == OWN:
        return {}
    points = list(metadata.entry_points(group=GROUP))
    if isinstance(given, str):
        found = [point for point in points if point.name == given]
    else:
        found = [point for point in points if point.module.partition(".")[0] == root]
    dist = found[0].dist if found else None
    named = {"distribution": dist.name if dist else None, "version": dist.version if dist else None}
    return {"method_from": {**named, "object": f"{kind.__module__}:{kind.__qualname__}"}}


def listed(own: Mapping[str, Callable[..., Any]], taken: Iterable[str]) -> list[Available]:
    """Our methods, then those of other packages; one that can't be loaded is listed with its problem."""
    rows = [Available(name, f"{OWN} {__version__}", SCOPES[make().scope]) for name, make in own.items()]
    for name, points in sorted(_declared(taken).items()):
        origin = " and ".join(map(_title, points))
        try:
            rows.append(Available(name, origin, SCOPES[made(name, {}, taken).scope]))
        except Exception as error:
            rows.append(Available(name, origin, (), str(error)))
    return rows


def _declared(taken: Iterable[str]) -> dict[str, list[metadata.EntryPoint]]:
    """Entry points by name; those whose name is taken are left out, and warned of once."""
    taken = set(taken)
    declared: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        if point.name not in taken:
            declared.setdefault(point.name, {})[_title(point), point.value] = point
        elif (point.name, _title(point)) not in _WARNED:
            _WARNED.add((point.name, _title(point)))
            warnings.warn(
                f"fastforget: {_title(point)} declares the method {point.name!r}, which is fastforget's own name: its own is taken. Call "
                f"the other one by an instance ({point.value})",
                UserWarning,
                stacklevel=2,
            )
    return {name: list(points.values()) for name, points in declared.items()}


def _only(name: str, points: list[metadata.EntryPoint]) -> metadata.EntryPoint:
    if len(points) > 1:
        both = " and ".join(f"{_title(point)} ({point.value})" for point in points)
        raise ValueError(f"method: {name!r} is declared by {both}; uninstall one, or pass an instance of the one that is meant")
    return points[0]


def _loaded(point: metadata.EntryPoint) -> Callable[..., Any]:
    about = f"method: {point.name!r} of {_title(point)} ({point.value})"
    try:
        make = point.load()
    except Exception as error:  # whatever a package does when it is imported
        raise ImportError(
            f"{about} can't be imported: {type(error).__name__}: {error}. Mend or uninstall that package; other methods don't need it"
        ) from error
    if not callable(make):
        raise TypeError(f"{about}: got {type(make).__name__}; accepted is a class, or a function that makes a method")
    return make


def _title(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"
