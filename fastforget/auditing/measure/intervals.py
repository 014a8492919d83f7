"""Confidence intervals of the audit's figures, at a cost that an audit does not notice."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ...ops.membership import clopper_pearson, roc_bootstrap

CONFIDENCE = 0.95
NORMAL = 1.959963984540054  # the standard normal distribution's 97.5 % quantile
MOST, LEAST, DRAWS = 1000, 200, 4_000_000

CONVENTION = (
    "95 %. Accuracies, TPRs and other shares: Clopper & Pearson (Biometrika 1934) on the counts, the threshold taken as fixed. AUC: "
    f"percentiles of a stratified bootstrap with {MOST} resamples, fewer (at least {LEAST}) where that would draw more than "
    f"{DRAWS // 1_000_000} million scores; for an AUC of 0 or 1 Clopper & Pearson on as many pairs as the smaller side has samples. "
    "Balanced accuracy: the ends of TPR and FPR combined by the square-and-add rule (Newcombe, Statistics in Medicine 1998, 17:873), "
    "the threshold taken as fixed. Forgetting rate: Clopper & Pearson among the members recognised before; where others are recognised "
    "afterwards, 1.96 standard errors of the ratio. Means over samples: 1.96 standard errors. They cover the draw of samples, not that "
    "of training another model"
)

Interval = list[float]


@lru_cache(maxsize=4096)
def _share(k: int, n: int) -> tuple[float, float]:
    return clopper_pearson(k, n, CONFIDENCE) if n else (math.nan, math.nan)


def share(k: int, n: int) -> Interval:
    """Of a proportion k / n; NaN without trials.

    >>> [round(end, 4) for end in share(5, 50)], share(0, 0)
    ([0.0333, 0.2181], [nan, nan])
    """
    return list(_share(int(k), int(n)))


def resamples(samples: int) -> int:
    """How many bootstrap resamples are worth their time.

    >>> resamples(200), resamples(7000), resamples(63000)
    (1000, 571, 200)
    """
    return max(LEAST, min(MOST, DRAWS // max(samples, 1)))


def auc_standard_error(members: int, others: int) -> float:
    """Of an AUC where both sides are alike: the Mann-Whitney statistic's, sqrt((n1 + n0 + 1) / (12 n1 n0)).

    >>> auc_standard_error(1, 1)
    0.5
    """
    return math.sqrt((members + others + 1) / (12 * members * others))


def auc(member: Tensor, nonmember: Tensor, seed: int, draws: int | None = None) -> Interval:
    """Of the AUC, by ``draws`` resamples (default: :func:`resamples`); the same seed gives the same interval.

    Resampling can't vary sides that don't overlap: there the interval is the exact one of min(n1, n0) independent pairs.

    >>> import torch
    >>> [round(end, 3) for end in auc(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]), seed=0)]
    [0.292, 1.0]
    """
    bootstrap = roc_bootstrap(
        member,
        nonmember,
        fprs=(),
        resamples=draws or resamples(member.numel() + nonmember.numel()),
        confidence=CONFIDENCE,
        seed=seed % 2**64,
    )
    value, pairs = float(bootstrap.auc), min(member.numel(), nonmember.numel())
    if value in (0.0, 1.0):
        return share(int(value) * pairs, pairs)
    return [float(bootstrap.auc_low), float(bootstrap.auc_high)]


def balanced(tp: int, members: int, fp: int, nonmembers: int) -> Interval:
    """Of (1 + TPR - FPR) / 2: the two proportions' own intervals, combined by their distances from the estimate.

    >>> low, high = balanced(60, 100, 40, 100)
    >>> 0.5 < low < 0.6 < high < 0.7
    True
    """
    tpr, fpr = tp / members, fp / nonmembers
    (low1, high1), (low0, high0) = share(tp, members), share(fp, nonmembers)
    middle = (1 + tpr - fpr) / 2
    return [middle - math.hypot(tpr - low1, high0 - fpr) / 2, middle + math.hypot(high1 - tpr, fpr - low0) / 2]


def forgetting_rate(before: Tensor, after: Tensor) -> Interval | None:
    """Of 1 - AT / BT on the same samples, by two oracle verdicts bool[N]; None where BT = 0.

    Where every sample recognised afterwards was recognised before, it is a share of BT. Otherwise by the delta method for a ratio of
    paired means.

    >>> import torch
    >>> was = torch.tensor([True, True, True, True, False])
    >>> [round(end, 3) for end in forgetting_rate(was, torch.tensor([True, False, False, False, False]))]
    [0.194, 0.994]
    """
    was, now, n = int(before.sum()), int(after.sum()), before.numel()
    if was == 0:
        return None
    if not bool((after & ~before).any()):
        return share(was - now, was)
    ratio = now / was
    rest = after.double() - ratio * before.double()
    error = NORMAL * float(rest.std()) / (math.sqrt(n) * (was / n))
    return [1 - ratio - error, min(1.0, 1 - ratio + error)]


def mean(values: Tensor, low: float = -math.inf, high: float = math.inf) -> Interval | None:
    """Of the mean of independent values, kept within the range the figure can have; None for a single value."""
    if values.numel() < 2 or not bool(torch.isfinite(values).all()):
        return None
    wide = values.double()
    middle, error = float(wide.mean()), NORMAL * float(wide.std()) / math.sqrt(values.numel())
    return [max(low, middle - error), min(high, middle + error)]
