"""TPR at a fixed FPR by the conventions the field's tools use, and confidence intervals of ROC statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg

__all__ = ["CONVENTIONS", "RocBootstrap", "RocStats", "clopper_pearson", "roc_bootstrap", "roc_stats", "tpr_by_convention"]

_roc_bootstrap = _schema.overload("roc_bootstrap")
_roc_stats = _schema.overload("roc_stats")

CONVENTIONS = ("le", "lt", "nearest", "interpolated", "threshold_interpolated")


class RocStats(NamedTuple):
    """Float64 tensors on the inputs' device; decision: score >= threshold means member."""

    auc: Tensor
    balanced_accuracy: Tensor
    advantage: Tensor
    best_threshold: Tensor
    tpr: Tensor
    thresholds: Tensor
    fprs: tuple[float, ...]
    members: int
    nonmembers: int
    dropped: int


def _without_nan(name: str, x: Tensor, nan: str) -> tuple[Tensor, int]:
    bad = torch.isnan(x)
    count = int(bad.sum())
    if count == 0:
        return x, 0
    if nan == "raise":
        at = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: {count} of {x.numel()} scores are NaN (the first at index {at}). Mend them, or choose nan='drop' (leave them "
            "out) or nan='lowest' (rank them below every score)"
        )
    if nan == "drop":
        return x[~bad], count
    return torch.where(bad, -math.inf, x), 0


def roc_stats(
    member_scores: Tensor,
    nonmember_scores: Tensor,
    *,
    fprs: Sequence[float] = (1e-2, 1e-3),
    nan: str = "raise",
    convention: str = "le",
) -> RocStats:
    """AUC, balanced accuracy, advantage and TPR at fixed FPR of an attack's scores, by sorting values only.

    Conventions: a score >= threshold is called a member; tied scores share half in the AUC and are never split by a threshold; the TPR at
    FPR x is the largest with FP / n <= x (exact counts, no interpolation) unless ``convention`` says otherwise; balanced accuracy =
    max (1 + TPR - FPR) / 2; advantage = max |TPR - FPR|, the Kolmogorov-Smirnov statistic of the two samples.

    Args:
        member_scores, nonmember_scores: 1-D, any float dtype (16-bit types are widened), higher = more member-like; infinities allowed.
        fprs: false-positive rates, each in [0, 1].
        nan: ``"raise"``; ``"drop"`` (leave NaN scores out; the result counts them); ``"lowest"`` (rank them as -inf).
        convention: which TPR at FPR x. Published tools differ under the same name, by a few percent of it at FPR 0.1 %; all but "le" are
            plain PyTorch. The curve starts at (0, 0) and has one point for each distinct score.

            - ``"le"``: the largest with FP / n <= x (Privacy Meter, RMIA)
            - ``"lt"``: the last point with FP / n < x; 0 at x = 0 (LiRA's plotting code)
            - ``"nearest"``: the first point whose FPR is nearest to x, which may exceed x (RULI)
            - ``"interpolated"``: linear between the curve's points, as ``numpy.interp`` does (Opake, JAX Privacy); the
              threshold is that of the point at or left of x
            - ``"threshold_interpolated"``: the threshold is interpolated, and the TPR at it (SACRO): the TPR of ``"interpolated"``, with
              the threshold that belongs to it; +inf up to the curve's first point

    Returns:
        :class:`RocStats`; ``tpr`` and ``thresholds`` are [len(fprs)], a threshold is +inf where no score may be called a member.

    Raises:
        TypeError, ValueError: wrong dtype or shape, an empty side, a rate out of range, NaN scores with ``nan="raise"``.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> r = membership.roc_stats(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 0.0]), fprs=(0.0, 0.5))
    >>> round(r.auc.item(), 4), [round(t, 4) for t in r.tpr.tolist()]
    (0.75, [0.3333, 1.0])
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: got {convention!r}; accepted are {', '.join(map(repr, CONVENTIONS))}")
    if nan not in ("raise", "drop", "lowest"):
        raise ValueError(f"nan: got {nan!r}; accepted are 'raise', 'drop' and 'lowest'")
    rates = tuple(float(f) for f in fprs)
    for f in rates:
        if not 0.0 <= f <= 1.0:
            raise ValueError(f"fprs: got {f}; accepted are rates in [0, 1]")
    sides, dropped = [], 0
    dtype = torch.float32
    for name, x in (("member_scores", member_scores), ("nonmember_scores", nonmember_scores)):
        arg.floating(name, x)
        arg.not_differentiable("roc_stats", **{name: x})
        if x.dim() != 1:
            raise ValueError(f"{name}: got {arg.describe(x)}; accepted is a 1-D tensor of scores")
        if x.dtype == torch.float64:
            dtype = torch.float64
    if member_scores.device != nonmember_scores.device:
        raise ValueError(
            f"nonmember_scores: on {nonmember_scores.device}, but member_scores is on {member_scores.device}; move one of them"
        )
    for name, x in (("member_scores", member_scores), ("nonmember_scores", nonmember_scores)):
        x, count = _without_nan(name, x, nan)
        dropped += count
        if x.numel() == 0:
            raise ValueError(f"{name}: no scores{' but NaN' if count else ''}; accepted is at least one")
        sides.append(x.to(dtype).contiguous())
    out = torch.empty(4 + 2 * len(rates), dtype=torch.float64, device=sides[0].device)
    arg.run("roc_stats", _roc_stats, [out], (sides[0], sides[1], list(rates), out))
    auc, balanced, advantage, best = out[:4].unbind(0)
    split = 4 + len(rates)
    tpr, thresholds = out[4:split], out[split:]
    if convention != "le":
        tpr, thresholds = tpr_by_convention(sides[0], sides[1], rates, convention)
    return RocStats(auc, balanced, advantage, best, tpr, thresholds, rates, sides[0].numel(), sides[1].numel(), dropped)


class RocBootstrap(NamedTuple):
    """Float64 tensors on the inputs' device: point estimates, interval ends, and the resamples they come from."""

    auc: Tensor
    auc_low: Tensor
    auc_high: Tensor
    tpr: Tensor
    tpr_low: Tensor
    tpr_high: Tensor
    samples: Tensor


def tpr_by_convention(members: Tensor, nonmembers: Tensor, fprs: Sequence[float], convention: str) -> tuple[Tensor, Tensor]:
    """TPR and threshold at each FPR, float64[F] each; scores are 1-D without NaN. For ``"le"`` use the op."""
    m, n = members.sort(descending=True).values.double(), nonmembers.sort(descending=True).values.double()
    thresholds = torch.unique(torch.cat((m, n))).flip(0)  # the distinct ones, from the largest down
    up_m, up_n = m.flip(0), n.flip(0)
    tp = len(m) - torch.searchsorted(up_m, thresholds)
    fp = len(n) - torch.searchsorted(up_n, thresholds)
    # the curve starts where nothing is called a member
    zero = torch.zeros(1, dtype=torch.float64, device=m.device)
    tpr, fpr = (torch.cat((zero, c.double() / len(x))) for c, x in ((tp, m), (fp, n)))
    thresholds = torch.cat((zero + math.inf, thresholds))
    wanted = torch.tensor(list(fprs), dtype=torch.float64, device=m.device)
    return _PICK[convention](wanted, fpr, tpr, thresholds, up_m, up_n)


def _lt(wanted: Tensor, fpr: Tensor, tpr: Tensor, thresholds: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    at = torch.searchsorted(fpr, wanted) - 1  # the last point left of it; -1 for FPR 0, which nothing is below
    none = at < 0
    at = at.clamp_min(0)
    return tpr[at].masked_fill(none, 0.0), thresholds[at].masked_fill(none, math.inf)


def _nearest(wanted: Tensor, fpr: Tensor, tpr: Tensor, thresholds: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    # of two points as near (and of several with one FPR) the first along the curve, as argmin picks it
    right = torch.searchsorted(fpr, wanted).clamp_max(len(fpr) - 1)
    left = torch.searchsorted(fpr, fpr[(right - 1).clamp_min(0)])
    at = torch.where((wanted - fpr[left]).abs() <= (fpr[right] - wanted).abs(), left, right)
    return tpr[at], thresholds[at]


def _interpolated(wanted: Tensor, fpr: Tensor, tpr: Tensor, thresholds: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    # where the curve is vertical its upper end counts, as in numpy.interp
    low = (torch.searchsorted(fpr, wanted, right=True) - 1).clamp_max(len(fpr) - 2)
    high = low + 1
    weight = ((wanted - fpr[low]) / (fpr[high] - fpr[low])).nan_to_num(nan=1.0)
    return tpr[low] + weight * (tpr[high] - tpr[low]), thresholds[torch.where(wanted < fpr[high], low, high)]


def _threshold_interpolated(
    wanted: Tensor, fpr: Tensor, tpr: Tensor, thresholds: Tensor, up_m: Tensor, up_n: Tensor
) -> tuple[Tensor, Tensor]:
    # the threshold is linear in the FPR between two points of the curve and the TPR linear in the threshold, so the TPR is that of
    # linear interpolation; up to the first point the threshold is infinite
    low = (torch.searchsorted(fpr, wanted, right=True) - 1).clamp_max(len(fpr) - 2)
    weight = ((wanted - fpr[low]) / (fpr[low + 1] - fpr[low])).nan_to_num(nan=1.0)
    lower, upper = thresholds[low], thresholds[low + 1]
    between = lower + weight * (upper - lower)
    between = torch.where(weight <= 0, lower, torch.where(weight >= 1, upper, between.nan_to_num(nan=math.inf, posinf=math.inf)))
    return tpr[low] + weight * (tpr[low + 1] - tpr[low]), between


_PICK: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "lt": _lt,
    "nearest": _nearest,
    "interpolated": _interpolated,
    "threshold_interpolated": _threshold_interpolated,
}


def roc_bootstrap(
    member_scores: Tensor,
    nonmember_scores: Tensor,
    *,
    fprs: Sequence[float] = (1e-2, 1e-3),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RocBootstrap:
    """AUC and TPR at fixed FPRs with percentile intervals from a stratified bootstrap (Efron & Tibshirani, 1993, chapter 13).

    Members and non-members are drawn separately, each as many as there are, with replacement. The scores are sorted once; a resample counts
    draws per sorted position and takes one pass, so it costs O(n). Conventions are those of :func:`roc_stats` (FP / n <= x, ties half).
    A TPR at an FPR near 1 / n_nonmembers rests on one or two non-members: its interval is rough whatever the number of resamples.

    Args:
        member_scores, nonmember_scores: 1-D, any float dtype (16-bit types are widened), higher = more member-like, no NaN.
        fprs: false-positive rates, each in [0, 1].
        resamples: at least 2.
        confidence: in (0, 1); the interval leaves (1 - confidence) / 2 of the resamples on either side.
        seed: 0 to 2**64 - 1. The same seed gives the same resamples on every backend.

    Returns:
        :class:`RocBootstrap`: ``auc`` and its ends are 0-d, ``tpr`` and its ends [len(fprs)], ``samples`` [resamples, 1 + len(fprs)]
        with the AUC first.

    Raises:
        TypeError, ValueError: wrong dtype or shape, an empty side, NaN scores, a rate, count or confidence out of range.
        RuntimeError: the scores require grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> r = membership.roc_bootstrap(torch.arange(20.0) + 8, torch.arange(20.0), fprs=(0.1,), seed=1)
    >>> bool(r.auc_low < r.auc < r.auc_high), round(r.auc.item(), 2)
    (True, 0.82)
    """
    arg.integer("resamples", resamples, 2, 2**31)
    arg.integer("seed", seed, 0, 2**64)
    if not (isinstance(confidence, float) and 0.0 < confidence < 1.0):
        raise ValueError(f"confidence: got {confidence!r}; accepted is a number between 0 and 1, e.g. 0.95")
    point = roc_stats(member_scores, nonmember_scores, fprs=fprs)
    dtype = torch.float64 if torch.float64 in (member_scores.dtype, nonmember_scores.dtype) else torch.float32
    sides = [x.detach().to(dtype).contiguous() for x in (member_scores, nonmember_scores)]
    samples = torch.empty((resamples, 1 + len(point.fprs)), dtype=torch.float64, device=sides[0].device)
    arg.run("roc_bootstrap", _roc_bootstrap, [samples], (*sides, list(point.fprs), arg.signed64(seed), samples))
    tail = (1.0 - confidence) / 2.0
    ends = torch.quantile(samples, torch.tensor([tail, 1.0 - tail], dtype=torch.float64, device=samples.device), dim=0)
    return RocBootstrap(point.auc, ends[0, 0], ends[1, 0], point.tpr, ends[0, 1:], ends[1, 1:], samples)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion k / n (Clopper & Pearson, Biometrika 1934), such as a TPR of k among n members.

    It covers the true proportion with at least the stated probability for a fixed threshold. The ends are quantiles of beta
    distributions, found by bisection on the regularised incomplete beta function, right to about nine digits for a million trials and
    to more for fewer.

    Args:
        k: successes, 0 to n.
        n: trials, at least 1.
        confidence: in (0, 1).

    Returns:
        (low, high); low is 0 for k = 0, high is 1 for k = n.

    Raises:
        TypeError, ValueError: wrong type or range.

    >>> from fastforget.ops import membership
    >>> [round(end, 4) for end in membership.clopper_pearson(5, 50)]
    [0.0333, 0.2181]
    """
    arg.integer("n", n, 1, 2**53)
    arg.integer("k", k, 0, n + 1)
    if not (isinstance(confidence, float) and 0.0 < confidence < 1.0):
        raise ValueError(f"confidence: got {confidence!r}; accepted is a number between 0 and 1, e.g. 0.95")
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if k == 0 else _beta_quantile(tail, k, n - k + 1)
    high = 1.0 if k == n else 1.0 - _beta_quantile(tail, n - k, k + 1)
    return low, high


def _beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, to the last bit the bisection can tell."""
    low, high = 0.0, 1.0
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return middle
        if _incomplete_beta(middle, a, b) < p:
            low = middle
        else:
            high = middle


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # the continued fraction converges fast left of the mean; on the right, use I_x(a, b) = 1 - I_{1-x}(b, a)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(front) * _beta_fraction(x, a, b) / a
    return 1.0 - math.exp(front) * _beta_fraction(1.0 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), from the front by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    value = d
    # about sqrt(max(a, b)) terms are needed
    for m in range(1, 1000 + 20 * math.isqrt(int(max(a, b)))):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d, tiny)
            c = _away_from_zero(1.0 + term / c, tiny)
            change = c * d
            value *= change
        if abs(change - 1.0) < 1e-16:
            break
    return value


def _away_from_zero(x: float, tiny: float) -> float:
    return x if abs(x) > tiny else tiny
