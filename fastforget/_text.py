"""Figures and names as text, the same wherever they are shown."""

from __future__ import annotations

import math
import unicodedata

_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))  # control, format (bidirectional marks among them), half of a pair, separators
_JOINERS = "\u200c\u200d"  # words of several languages are written with them


def visible(text: object, keep: str = "") -> str:
    """A name or message from outside, fit for one line of a terminal or page: characters that could move the cursor, turn the direction
    of reading or not be seen are written as escapes, but for those in ``keep``.

    >>> visible("a\\x1b[2Jb\\nVERIFIED\\u202e")
    'a\\\\x1b[2Jb\\\\x0aVERIFIED\\\\u202e'
    """
    written = str(text)
    if written.isascii() and written.isprintable():
        return written
    return "".join(c if c in keep or c in _JOINERS or unicodedata.category(c) not in _UNSEEN else _escape(ord(c)) for c in written)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal; a dash where there is none.

    >>> percent(0.1234), percent(None), percent(math.nan)
    ('12.3 %', '-', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """Three decimals, or three digits of a large figure; a dash where there is none.

    >>> number(0.51234), number(123456.0), number(None)
    ('0.512', '1.23e+05', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
