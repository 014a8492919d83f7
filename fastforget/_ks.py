"""The two-sample Kolmogorov-Smirnov test: could two samples of numbers be of one distribution?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CRITICAL = 1.358  # times sqrt((n + m) / (n m)): the distance that 5 % of such pairs of samples exceed (Smirnov 1948)
EXACT = 10**8  # n times m, up to which the p-value is the exact one


class KS(NamedTuple):
    """The largest distance between two empirical distributions, and its p-value."""

    statistic: float
    pvalue: float


def two_samples(one: Floats, other: Floats) -> KS:
    """Of two samples [N], [M].

    >>> two_samples(np.array([1.0, 2.0]), np.array([3.0, 4.0]))  # 2 of 6 orders
    KS(statistic=1.0, pvalue=0.3333333333333333)
    """
    statistic = distance(one, other)
    return KS(statistic, pvalue(statistic, len(one), len(other)))


def distance(one: Floats, other: Floats) -> float:
    """The largest distance between two samples' empirical distributions.

    >>> distance(np.array([1.0, 2.0]), np.array([2.0, 4.0]))
    0.5
    """
    a, b = np.sort(one), np.sort(other)
    n, m = len(a), len(b)
    points = np.concatenate((a, b))
    # in whole numbers: |i / n - j / m| times n * m
    apart = int(np.abs(np.searchsorted(a, points, "right") * m - np.searchsorted(b, points, "right") * n).max())
    return apart / (n * m)


def pvalue(statistic: float, n: int, m: int) -> float:
    """Of a distance: the exact one; for large samples Kolmogorov's limit 2 sum_k (-1)^(k-1) exp(-2 k^2 z^2).

    >>> pvalue(1.0, 2, 2), round(pvalue(0.01358, 20_000, 20_000), 3)
    (0.3333333333333333, 0.05)
    """
    if n * m <= EXACT:
        return _exact(round(statistic * n * m), n, m)
    square = statistic**2 * n * m / (n + m)
    if square < 0.04:  # the sum is 1 to all digits, and hardly converges
        return 1.0
    return min(1.0, 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * k * k * square) for k in range(1, 101)))


def _exact(apart: int, n: int, m: int) -> float:
    """The share of all orders of n + m different values with a distance of ``apart`` / (n m) or more (Hodges, Arkiv för Matematik 3, 1958),
    summed without cancellation, so that tiny ones are right. Time grows with n x m.
    """
    if apart == 0:
        return 1.0
    outside = np.zeros(n + 1)  # of all orders of the first i + j values, i of them from a: the share that was that far apart
    for both in range(1, n + m + 1):
        i = np.arange(max(0, both - m), min(n, both) + 1)
        before = np.concatenate(([0.0], outside[:-1]))  # the last value is from a
        outside[i] = before[i] * (i / both) + outside[i] * ((both - i) / both)
        outside[i[np.abs(i * m - (both - i) * n) >= apart]] = 1.0
    return float(min(1.0, outside[n]))


def critical(n: int, m: int) -> float:
    """The distance that two samples of one distribution exceed in 5 % of cases.

    >>> round(critical(100, 100), 3)
    0.192
    """
    return CRITICAL * math.sqrt((n + m) / (n * m))
