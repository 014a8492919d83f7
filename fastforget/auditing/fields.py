"""Reading the entries of a report or a receipt from JSON, with errors that name the entry by its path in the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
Read = Callable[[Any, str], T]


def number(value: Any, where: str) -> float:
    """A float; null, which stands for NaN and infinity in JSON, becomes NaN."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(where, value, "a number or null")
    return float(value)


def integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, value, "a whole number")
    return value


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "a string")
    return value


def optional_text(value: Any, where: str) -> str | None:
    return None if value is None else text(value, where)


def interval(value: Any, where: str) -> list[float] | None:
    """The two ends of an interval, or None."""
    if value is None:
        return None
    ends = listed(number)(value, where)
    if len(ends) != 2:
        raise _wrong(where, value, "[low, high] or null")
    return ends


def listed(read: Read[T]) -> Read[list[T]]:
    """Reads a list whose entries ``read`` reads."""

    def read_list(value: Any, where: str) -> list[T]:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, value, "a list")
        return [read(entry, f"{where}[{i}]") for i, entry in enumerate(value)]

    return read_list


def by_name(read: Read[T]) -> Read[dict[str, T]]:
    """Reads an object whose values ``read`` reads."""

    def read_object(value: Any, where: str) -> dict[str, T]:
        return {str(name): read(entry, f"{where}.{name}") for name, entry in _mapping(value, where).items()}

    return read_object


def by_class(read: Read[T]) -> Read[dict[int, T]]:
    """Reads an object from class ids, which JSON writes as strings."""

    def read_object(value: Any, where: str) -> dict[int, T]:
        try:
            return {int(name): read(entry, f"{where}.{name}") for name, entry in _mapping(value, where).items()}
        except ValueError as error:
            if str(error).startswith(where):
                raise
            raise ValueError(f"{where}: {error}; accepted are class ids as names") from error

    return read_object


class Fields:
    """One JSON object that is being read. Entries that nobody asks for are left alone, so a newer file may hold more."""

    def __init__(self, value: Any, where: str) -> None:
        self.entries, self.where = _mapping(value, where), where

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def get(self, name: str, read: Read[T]) -> T:
        """An entry that must be there.

        >>> Fields({"auc": "high"}, "rows[0]").get("auc", number)
        Traceback (most recent call last):
        ValueError: rows[0].auc: got 'high'; accepted is a number or null
        """
        if name not in self.entries:
            raise ValueError(f"{self.where}.{name}: the entry is missing")
        return read(self.entries[name], f"{self.where}.{name}")

    def get_or(self, name: str, read: Read[T], otherwise: T) -> T:
        """An entry that an older file may lack."""
        return self.get(name, read) if name in self.entries else otherwise


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(where, value, "an object")
    return value


def _wrong(where: str, value: Any, accepted: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{where}: got {shown if len(shown) <= 40 else type(value).__name__}; accepted is {accepted}")
