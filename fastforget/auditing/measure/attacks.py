"""Membership attacks on stored scores: who is compared with whom, ROC figures, the forgetting rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...ops.membership import forgetting_rate, roc_stats
from ..figures import FORGET, FPRS, RETAIN, AttackFigures, Figure, Interval, RateAtFpr
from ..names import RATIOS, THRESHOLDS
from . import intervals

DEFAULT = ("loss", "confidence", "entropy")
POPULATION = "attack_p"
CONVENTION = {
    "loss": "minus the cross-entropy -log p_y (Yeom et al., CSF'18)",
    "confidence": "the label's softmax probability p_y (Salem et al., NDSS'19)",
    "entropy": "minus the entropy of the softmax output, without the label (Shokri et al., S&P'17; Salem et al., NDSS'19)",
    "modified_entropy": "minus the modified entropy -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) (Song & Mittal, USENIX Security'21)",
    "margin": "z_y - max_{k != y} z_k, the hinge score (Carlini et al., S&P'22)",
    "logit_confidence": "log(p_y / (1 - p_y)) = z_y - logsumexp_{k != y} z_k (Carlini et al., S&P'22)",
    POPULATION: "the share of a population whose loss is above the sample's (attack P: Ye et al., CCS'22). The population: every other one "
    "of the duel's non-members, from the first; the others are the non-members judged, so there are half as many. Samples with more than "
    "the population's largest or less than its smallest loss tie",
}


class Scored(Protocol):
    """A model's scores on a set by their names, [N] each."""

    scores: dict[str, Tensor]


class Comparison(NamedTuple):
    """Samples a model was trained on (members) against samples it never saw, of the same classes."""

    name: str
    members: str
    keep: Tensor
    convention: str


def comparisons(labels: dict[str, Tensor]) -> list[Comparison]:
    """Forget against test, and retain against test, each with the test samples of the same classes as
    non-members.

    A model that lost a class gives every sample of that class, seen or unseen, a high loss. Against test
    samples of other classes an attack would therefore look perfect (AUC near 0) even on an exactly retrained
    model; only samples of the same classes tell memory of the samples from knowledge of the class.
    """
    result = []
    for comparison, name in ((FORGET, "forget"), (RETAIN, "retain")):
        classes = labels[name].unique()
        keep = torch.isin(labels["test"], classes)
        if keep.any():
            convention = f"members: the {name} set; non-members: the test samples of the same classes"
        else:
            keep = torch.ones_like(keep)
            convention = (
                f"members: the {name} set; non-members: ALL test samples, because the test set holds none "
                f"of the {name} set's classes. The attack then compares different classes, and a perfectly "
                "retrained model is far from 0.5"
            )
        result.append(Comparison(comparison, name, keep, convention))
    return result


def sides(scored: Mapping[str, Scored], comparison: Comparison, attack: str) -> tuple[Tensor, Tensor]:
    """Member and non-member scores, higher = more member-like."""
    if attack == POPULATION:
        return _population_ranks(*(-side for side in sides(scored, comparison, "loss")))
    sign = THRESHOLDS.get(attack, 1)
    return sign * scored[comparison.members].scores[attack], sign * scored["test"].scores[attack][comparison.keep]


def _population_ranks(member: Tensor, nonmember: Tensor) -> tuple[Tensor, Tensor]:
    """Attack P's scores from losses; NaN where there are too few non-members to be split."""
    population, rest = nonmember[::2].sort().values, nonmember[1::2].contiguous()
    if rest.numel() == 0:
        return torch.full_like(member, math.nan), torch.full_like(nonmember, math.nan)
    n = population.numel()
    first, second = ((n - torch.searchsorted(population, side, right=True)).double() / n for side in (member, rest))
    return first, second


def figures(
    member: Tensor, nonmember: Tensor, *, ratio: bool = False, seed: int = 0, with_intervals: bool = True, draws: int | None = None
) -> AttackFigures:
    """One attack's figures; samples whose score is undefined (NaN) are left out and counted.

    Args:
        member, nonmember: [N] scores of each side, higher = more member-like.
        ratio: the scores are log likelihood ratios, so there is also the accuracy of calling a probability above one half a member.
        seed: of the bootstrap behind the AUC's interval.
        with_intervals: whether the figures get intervals.
        draws: the AUC's resamples, where not the usual number.

    Returns:
        The figures; NaN with a ``reason`` where a side has no score left.
    """
    undefined = [int(torch.isnan(side).sum()) for side in (member, nonmember)]
    if undefined[0] == member.numel() or undefined[1] == nonmember.numel():
        side = "member" if undefined[0] == member.numel() else "non-member"
        return AttackFigures.without(f"no {side} has a score", sum(undefined))
    member, nonmember = (side[~torch.isnan(side)] if k else side for side, k in zip((member, nonmember), undefined, strict=True))
    stats = roc_stats(member, nonmember, fprs=tuple(FPRS.values()))
    n1, n0 = stats.members, stats.nonmembers
    rates = {}
    for (name, rate), tpr in zip(FPRS.items(), stats.tpr.tolist(), strict=True):
        ends = intervals.share(round(tpr * n1), n1) if with_intervals else None
        rates[name] = RateAtFpr(Figure(tpr, ends), resolves=n0 * rate >= 1 - 1e-9)
    auc, balanced = Figure(float(stats.auc)), Figure(float(stats.balanced_accuracy))
    if with_intervals:
        called = [int((side >= float(stats.best_threshold)).sum()) for side in (member, nonmember)]
        auc.interval = intervals.auc(member, nonmember, seed, draws)
        balanced.interval = intervals.balanced(called[0], n1, called[1], n0)
    return AttackFigures(
        auc=auc,
        auc_standard_error=intervals.auc_standard_error(n1, n0),
        balanced_accuracy=balanced,
        tpr_at=rates,
        members=n1,
        nonmembers=n0,
        undefined=sum(undefined),
        balanced_accuracy_at_half=_at_half(member, nonmember, with_intervals) if ratio else None,
    )


def figures_of(
    scored: Mapping[str, Scored], comparison: Comparison, attack: str, *, seed: int = 0, with_intervals: bool = True
) -> AttackFigures:
    """One attack's figures of one model in one comparison."""
    member, nonmember = sides(scored, comparison, attack)
    return figures(member, nonmember, ratio=attack in RATIOS, seed=seed, with_intervals=with_intervals)


def _at_half(member: Tensor, nonmember: Tensor, with_interval: bool) -> Figure:
    (tp, n1), (fp, n0) = ((int((side > 0).sum()), side.numel()) for side in (member, nonmember))
    return Figure((1 + tp / n1 - fp / n0) / 2, intervals.balanced(tp, n1, fp, n0) if with_interval else None)


def curve(member: Tensor, nonmember: Tensor, points: int = 120) -> dict[str, list[float]]:
    """The ROC curve's steps at up to ``points`` false-positive counts, spread evenly on a log axis; the first
    is FPR 0."""
    n0 = nonmember.numel()
    spread = torch.logspace(0, math.log10(max(n0, 2)), points, dtype=torch.float64).round().long().clamp(max=n0)
    rates = [0.0] + [k / n0 for k in spread.unique().tolist()]
    return {"fpr": rates, "tpr": roc_stats(member, nonmember, fprs=rates).tpr.tolist()}


class Oracle(NamedTuple):
    """A fixed membership test: member if the loss is at most ``threshold``; NaN with a reason when there is
    none."""

    threshold: float
    reason: str | None


def calibrate(original: Mapping[str, Scored] | None, comparison: Comparison) -> Oracle:
    """The loss threshold of best balanced accuracy between retain and test samples, on the original model."""
    if original is None:
        return Oracle(math.nan, 'no model named "original" was given, so the oracle can\'t be calibrated')
    stats = roc_stats(*sides(original, comparison, "loss"), fprs=())
    score = float(stats.best_threshold)
    if math.isinf(score) and score > 0:
        return Oracle(math.nan, "on the original model no loss threshold tells retained samples from test samples")
    return Oracle(-score, None)


def verdicts(scored: Scored, oracle: Oracle) -> Tensor:
    return scored.scores["loss"] <= oracle.threshold


def rate(before: Mapping[str, Scored] | None, after: Mapping[str, Scored], oracle: Oracle, with_interval: bool = False) -> Figure:
    """Forsaken's forgetting rate on the forget set, or NaN and why."""
    if oracle.reason is not None or before is None:
        return Figure(math.nan, reason=oracle.reason)
    was, now = verdicts(before["forget"], oracle), verdicts(after["forget"], oracle)
    ends: Interval | None = intervals.forgetting_rate(was, now) if with_interval else None
    if not was.any():
        return Figure(math.nan, ends, "the oracle recognises no forget sample as a member on the original model (BT = 0)")
    return Figure(forgetting_rate(was, now), ends)


def oracle_members(scored: Mapping[str, Scored], comparison: Comparison, oracle: Oracle, with_intervals: bool) -> dict[str, Figure]:
    """The shares of forget samples, and of unseen samples of the same classes, that the fixed oracle calls members."""
    if oracle.reason is not None:
        return {"forget": Figure(math.nan), "unseen": Figure(math.nan)}
    called = {"forget": verdicts(scored["forget"], oracle), "unseen": verdicts(scored["test"], oracle)[comparison.keep]}
    return {side: share_of(members, with_intervals) for side, members in called.items()}


def share_of(flags: Tensor, with_interval: bool) -> Figure:
    """The share of true ones among bool[N], NaN of none."""
    n = flags.numel()
    value = float(flags.double().mean()) if n else math.nan
    return Figure(value, intervals.share(int(flags.sum()), n) if with_interval else None)
