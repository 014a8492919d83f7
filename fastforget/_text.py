"""Figures as text, the same wherever they are shown."""

from __future__ import annotations

import math


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
