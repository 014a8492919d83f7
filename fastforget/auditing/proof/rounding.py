"""Equality of figures that were computed on two ways."""

from __future__ import annotations

import math

TINY = 1e-6  # relative; what a receipt holds are 64-bit floats in full


def near(one: float, other: float) -> bool:
    """Equal but for rounding; NaN equals NaN."""
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=TINY, abs_tol=TINY)


def is_share(value: float, count: int) -> bool:
    """Whether it is k / count for a whole k; of nothing there is no share."""
    if count == 0 or math.isnan(value):
        return count == 0 and math.isnan(value)
    return 0 <= value <= 1 and abs(value * count - round(value * count)) <= TINY
