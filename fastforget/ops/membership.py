"""Membership-inference scores and ROC statistics, batched.

Conventions are named in each function: the field's tools disagree under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _schema
from . import _arguments as arg
from .membership_lira import Lira, lira, lira_probability  # noqa: F401
from .membership_quality import ForgetQuality, class_thresholds, forget_quality  # noqa: F401
from .membership_rmia import rmia, rmia_counts, rmia_vote  # noqa: F401
from .membership_roc import CONVENTIONS, RocBootstrap, clopper_pearson, roc_bootstrap, tpr_by_convention  # noqa: F401

_membership_scores = _schema.overload("membership_scores")
_try_membership_scores = _schema.boxed("membership_scores")
_roc_stats = _schema.overload("roc_stats")


class MembershipScores(NamedTuple):
    """Per-sample scores, each with the labels' shape (float32; float64 for float64 logits), and ``correct`` (bool)."""

    loss: Tensor
    confidence: Tensor
    entropy: Tensor
    modified_entropy: Tensor
    margin: Tensor
    logit_confidence: Tensor
    correct: Tensor


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


def membership_scores(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> MembershipScores:
    """All per-sample membership-inference scores in one pass over the logits.

    With p = softmax(logits / temperature) and y the label:

    - ``loss`` = -log p_y (Yeom et al., CSF'18), exact down to the smallest losses
    - ``confidence`` = p_y
    - ``entropy`` = -sum_k p_k log p_k
    - ``modified_entropy`` = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) (Song & Mittal, USENIX Security'21, eq. 8), no clipping
    - ``margin`` = z_y - max_{k != y} z_k
    - ``logit_confidence`` = z_y - logsumexp_{k != y} z_k = log(p_y / (1 - p_y)) (LiRA: Carlini et al., S&P'22, VI-A), no saturation
    - ``correct``: the arg-max is the label (the first index wins a tie)

    Args:
        logits: [..., K], K >= 2; float32, bfloat16, float16 or float64. ``-inf`` marks a class of probability 0. A row with NaN, +inf or
            nothing but -inf scores NaN and counts as not correct.
        labels: [...], int64 or int32, in [0, K).
        temperature: divides the logits first; > 0.

    Returns:
        :class:`MembershipScores`.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: logits require grad outside ``torch.no_grad()`` (the scores have no gradient); on the CPU, a label out of range
            (on CUDA that sample scores NaN instead).

    >>> import torch
    >>> from fastforget.ops import membership
    >>> s = membership.membership_scores(torch.tensor([[2.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 1]))
    >>> [round(v, 4) for v in s.loss.tolist()], s.margin.tolist(), s.correct.tolist()
    ([0.1269, 0.0], [2.0, 50.0], [True, True])
    """
    if arg.plain(logits, labels) and logits.dim() == 2 and isinstance(temperature, (int, float)):
        n = logits.shape[0]
        scores = torch.empty((6, n), dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32, device="cpu")
        correct = torch.empty(n, dtype=torch.bool, device="cpu")
        if arg.accepted(_try_membership_scores, (logits, labels, temperature, scores, correct)):
            return MembershipScores(*scores.unbind(0), correct)  # type: ignore[call-arg]
    if not (isinstance(temperature, (int, float)) and temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: got {temperature!r}; accepted is a finite number > 0")
    arg.floating("logits", logits)
    arg.not_differentiable("membership_scores", logits=logits)
    if logits.dim() < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits: got {arg.describe(logits)}; accepted is [..., classes] with at least 2 classes")
    shape = logits.shape[:-1]
    labels = arg.label_vector(labels, shape, logits)
    flat = logits.dim() == 2
    rows = (logits if flat else logits.reshape(-1, logits.shape[-1])).contiguous()
    n = rows.shape[0]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = torch.empty((6, n), dtype=dtype, device=logits.device)
    correct = torch.empty(n, dtype=torch.bool, device=logits.device)
    inputs = (rows, labels if flat else labels.reshape(-1), float(temperature), scores, correct)
    arg.run("membership_scores", _membership_scores, [scores, correct], inputs)
    if not flat:
        scores, correct = scores.view(6, *shape), correct.view(shape)
    return MembershipScores(*scores.unbind(0), correct)  # type: ignore[call-arg]


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


def forgetting_rate(before: Tensor, after: Tensor) -> float:
    """Forsaken's forgetting rate: the share of the recognised members that are no longer recognised (Liu et al., arXiv 2003.10933).

    FR = (AF - BF) / BT, with BT = members before, BF and AF = non-members before and after; the same oracle judges both times.
    It equals 1 - AT / BT, can be negative, and 1.0 is not the ideal: an exactly retrained model still has false positives, so report
    its rate beside this one.

    Args:
        before: bool[N], the membership oracle's verdicts (True = member) on the forget set before unlearning.
        after: bool[N], its verdicts afterwards.

    Returns:
        The rate as a float; NaN when the oracle found no member before (the rate is then undefined).

    Raises:
        TypeError, ValueError: not boolean, or shapes differ.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> membership.forgetting_rate(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
    0.5
    """
    for name, x in (("before", before), ("after", after)):
        if arg.tensor(name, x).dtype != torch.bool:
            raise TypeError(f"{name}: got {arg.describe(x)}; accepted are boolean verdicts (scores >= threshold)")
    if before.shape != after.shape:
        raise ValueError(f"after: got shape {tuple(after.shape)}; accepted is that of before, {tuple(before.shape)}")
    was_member = int(before.sum())
    if was_member == 0:
        return math.nan
    return (was_member - int(after.sum())) / was_member
