"""Checks of a method's options: each error names the option, what came and what is accepted."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any


def check(
    options: Any,
    choices: Mapping[str, Iterable[str]] | None = None,
    whole: Iterable[str] = (),
    numbers: Iterable[str] = (),
    shares: Iterable[str] = (),
    positive: Iterable[str] = (),
) -> None:
    """``choices``: names and what each may be; ``whole``: ints >= 1; ``numbers``: finite numbers >= 0, ``shares`` at most 1, ``positive``
    above 0."""
    for name, accepted in (choices or {}).items():
        if getattr(options, name) not in tuple(accepted):
            raise ValueError(f"{name}: got {getattr(options, name)!r}; accepted are {', '.join(map(repr, accepted))}")
    for name in whole:
        value = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: got {value!r}; accepted is an int >= 1")
    for name in numbers:
        value = getattr(options, name)
        if not (isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")
    for names, fits, accepted in (
        (shares, lambda value: value <= 1, "a number from 0 to 1"),
        (positive, lambda value: value > 0, "a finite number > 0"),
    ):
        for name in names:
            if not fits(getattr(options, name)):
                raise ValueError(f"{name}: got {getattr(options, name)!r}; accepted is {accepted}")


def known(owner: str, options: Iterable[str], names: Iterable[str], beside: Iterable[str] = ()) -> None:
    """Refuses an option that isn't among the names. ``beside``: what may have been meant beside them."""
    names = list(names)
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, (*names, *beside), 1)
            raise TypeError(f"{owner}: unknown option {name!r}{f', did you mean {near[0]!r}?' if near else '.'} Known: {', '.join(names)}")


def given(options: Any, names: Iterable[str]) -> list[str]:
    """Those of the names whose option isn't None."""
    return [name for name in names if getattr(options, name) is not None]
