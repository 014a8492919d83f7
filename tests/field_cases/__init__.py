"""Small set-ups as people have them, each with what is right: ``python -m tests.field_cases`` prints case, expected, got.

A case is a function without arguments that returns what it got, under ``@case(name, expected)``; a new file of cases is one more import
at the end. ``tests/test_field_cases.py`` runs them all.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One set-up: its name (kind, then what is special), what is right, and what gets it."""

    name: str
    expected: Any
    run: Callable[[], Any]

    def got(self) -> Any:
        """What comes out, without warnings: a case that is about warnings records them itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self.run()
            except Exception as error:
                return f"{type(error).__name__}: {error}"


CASES: list[Case] = []


def case(name: str, expected: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers a function as a case."""

    def register(run: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(name, expected, run))
        return run

    return register


def refusal(call: Callable[[], Any], *words: str) -> str:
    """ "refused", where an error says all these words; else what came instead."""
    try:
        return f"not refused: {call()!r}"
    except (TypeError, ValueError, RuntimeError) as error:
        missing = [word for word in words if word not in str(error)]
        return f"refused, but without {missing}: {error}" if missing else "refused"


for _name in ("batches", "labels", "loaders", "networks", "state"):
    importlib.import_module(f".{_name}", __name__)
