"""What checking a receipt ends in."""

from __future__ import annotations

from typing import Any, NamedTuple


class Unreadable(Exception):
    """A file can't be read, so nothing can be said; the message names it and what would do."""


class Finding(NamedTuple):
    """One thing that was looked at; ``why`` is empty where it holds, and ``unchecked`` says why it could not be checked."""

    field: str
    why: str = ""
    unchecked: str = ""


def same(field: str, stated: Any, given: Any, otherwise: str) -> Finding:
    """Whether what a receipt states is what is at hand."""
    if stated is None:
        return Finding(field, "the receipt doesn't say")
    return Finding(field, "" if stated == given else f"{otherwise}: the receipt says {short(stated)}, here it is {short(given)}")


def short(value: Any) -> str:
    """A value for a message, hashes by their beginning."""
    text = str(value)
    return f"{text[:16]}…" if len(text) > 40 else text
