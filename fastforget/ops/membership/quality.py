"""Verdicts on an unlearning method: the forgetting quality of the NeurIPS'23 challenge, and thresholds a class for metric attacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _arguments as arg

__all__ = ["ForgetQuality", "class_thresholds", "forget_quality", "forgetting_rate"]

_CELLS = 1 << 22  # table look-ups at a time: bounds the temporaries
_BIN = 0.5


class ForgetQuality(NamedTuple):
    """Float64 on the inputs' device: epsilon of each forgotten example, [F], and the score, 0-d."""

    epsilon: Tensor
    score: Tensor


def forget_quality(
    unlearned: Tensor,
    retrained: Tensor,
    *,
    delta: float = 1e-5,
    rules: Sequence[str] = ("single", "double"),
    cap: float = 50.0,
) -> ForgetQuality:
    """Forgetting quality of the NeurIPS'23 machine-unlearning challenge, exactly, by counting.

    For each forgotten example, S unlearned and S' retrained models give one number each; an attack tells the two groups apart by a
    decision rule with false-positive and false-negative rates FPR and FNR, and

        epsilon = max over rules of max(log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR)

    (Triantafillou et al., "Are we making progress in unlearning?", arXiv 2406.09073, section 3). The score is the mean over the examples of
    2 ** -floor(epsilon / 0.5); the challenge multiplies it by the ratios of retain and test accuracy to those of retraining.

    All rules of a kind are tried, not a grid of them: ``"single"`` calls one side of a threshold unlearned, ``"double"`` one side of an
    interval's border, both ways round; equal values are never separated. Edge rules, as in the challenge's code: no error at all makes
    epsilon infinite, written as ``cap``; a rule with exactly one of FPR and FNR zero is left out (an estimate of zero is not evidence);
    the logarithm of what is not positive is left out. Ours: epsilon is at least 0, and 0 if every rule is left out; an epsilon above
    ``cap`` becomes ``cap``. The challenge code's shortcut for samples of nearly no spread is not copied.

    Args:
        unlearned: [S, F], any float dtype, no NaN: e.g. logit-scaled confidences of F examples under S unlearned models.
        retrained: [S', F].
        delta: in [0, 1).
        rules: "single", "double" or both. "double" contains "single".
        cap: what infinity is written as, > 0.

    Returns:
        :class:`ForgetQuality`. O((S + S')^2) integer work an example for "double", in bounded memory.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range; NaN.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> same, apart = torch.arange(8.0), torch.arange(8.0) + 100
    >>> q = membership.forget_quality(torch.stack((same, same), 1), torch.stack((same, apart), 1), delta=0.0, rules=("single",))
    >>> [round(e, 3) for e in q.epsilon.tolist()], round(q.score.item(), 3)
    ([0.0, 50.0], 0.5)
    """
    for name, x in (("unlearned", unlearned), ("retrained", retrained)):
        _scores("forget_quality", name, x, 2)
    if unlearned.shape[1] != retrained.shape[1] or 0 in (len(unlearned), len(retrained)):
        raise ValueError(
            f"retrained: got shape {tuple(retrained.shape)}; accepted is [S', {unlearned.shape[1]}] like unlearned, which is "
            f"{tuple(unlearned.shape)}, each with at least one model"
        )
    if retrained.device != unlearned.device:
        raise ValueError(f"retrained: on {retrained.device}, but unlearned is on {unlearned.device}; move one of them")
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta: got {delta}; accepted is a number in [0, 1)")
    if not cap > 0.0:
        raise ValueError(f"cap: got {cap}; accepted is a number above 0")
    rules = tuple(rules)
    if not rules or not set(rules) <= {"single", "double"}:
        raise ValueError(f"rules: got {rules!r}; accepted are 'single', 'double' or both")
    table = _epsilon_table(len(unlearned), len(retrained), delta, cap, unlearned.device)
    models, examples = len(unlearned) + len(retrained), unlearned.shape[1]
    step = max(1, _CELLS // (models + 1))
    parts = [
        _epsilons(unlearned[:, i : i + step].detach(), retrained[:, i : i + step].detach(), table, "double" in rules)
        for i in range(0, examples, step)
    ]
    epsilon = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=unlearned.device)
    return ForgetQuality(epsilon, torch.exp2(-torch.floor(epsilon / _BIN)).mean())


def _epsilon_table(positives: int, negatives: int, delta: float, cap: float, device: torch.device) -> Tensor:
    """[(positives + 1) * (negatives + 1)]: epsilon of the better of the two rules that tell apart a region with a positives and b negatives
    from the rest; -inf where both are left out."""
    inside_a = torch.arange(positives + 1, dtype=torch.float64, device=device)[:, None] / positives
    inside_b = torch.arange(negatives + 1, dtype=torch.float64, device=device)[None] / negatives
    outside_a, outside_b = inside_a.flip(0), inside_b.flip(1)

    def log(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, math.nan).log()

    def epsilon(fpr: Tensor, fnr: Tensor) -> Tensor:
        first, second = log(1 - delta - fpr) - log(fnr), log(1 - delta - fnr) - log(fpr)
        best = torch.fmax(first, second).nan_to_num(nan=-math.inf, neginf=-math.inf).clamp_max(cap)
        either = (fpr == 0) | (fnr == 0)
        return torch.where((fpr == 0) & (fnr == 0), cap, torch.where(either, -math.inf, best))

    return torch.maximum(epsilon(inside_b, outside_a), epsilon(outside_b, inside_a)).flatten()


def _epsilons(unlearned: Tensor, retrained: Tensor, table: Tensor, double: bool) -> Tensor:
    """float64[F]. A cut of the sorted values is written as a * (negatives + 1) + b, its counts below: the difference of two cuts is then
    the table's index of the interval between them."""
    dtype = torch.promote_types(unlearned.dtype, retrained.dtype)
    values, order = torch.cat((unlearned, retrained)).to(dtype).T.sort(dim=1)
    steps = torch.where(order < len(unlearned), len(retrained) + 1, 1)
    cuts = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    splits_a_tie = torch.nn.functional.pad(values[:, 1:] == values[:, :-1], (1, 1))
    # a cut inside a tie is no cut: the one before it stands in
    cuts = cuts.masked_fill(splits_a_tie, 0).cummax(1).values
    best = table[cuts].amax(1)
    if double:
        for width in range(1, cuts.shape[1] - 1):
            best = torch.maximum(best, table[cuts[:, width:] - cuts[:, :-width]].amax(1))
    return best.clamp_min(0.0)


def class_thresholds(
    member_scores: Tensor, member_labels: Tensor, nonmember_scores: Tensor, nonmember_labels: Tensor, num_classes: int
) -> Tensor:
    """For each class the threshold that maximises (TPR + TNR) / 2 of "score >= threshold means member" (Song & Mittal, USENIX Security'21),
    from one sort of all scores.

    The threshold is one of the class's scores; of several as good, the largest. The published code scans every score against every other.
    A class without members or without non-members has no best threshold and gets that of all classes together.

    Args:
        member_scores: [N1], any float dtype, higher = more member-like, no NaN; e.g. the negative modified entropy on shadow data.
        member_labels: int64 or int32 [N1], in [0, num_classes).
        nonmember_scores, nonmember_labels: [N0].
        num_classes: at least 1; 1 with all labels 0 gives the single best threshold.

    Returns:
        [num_classes], float32 (float64 if an input is).

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range; NaN; an empty side.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> members, others = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.5, 0.1, 0.2])
    >>> labels = torch.tensor([0, 0, 1])
    >>> [round(t, 2) for t in membership.class_thresholds(members, labels, others, labels, 2).tolist()]
    [0.8, 0.3]
    """
    arg.integer("num_classes", num_classes, 1, 2**31)
    sides = []
    for side, scores, labels in (("member", member_scores, member_labels), ("nonmember", nonmember_scores, nonmember_labels)):
        _scores("class_thresholds", f"{side}_scores", scores, 1)
        if len(scores) == 0:
            raise ValueError(f"{side}_scores: no scores; accepted is at least one")
        if scores.device != member_scores.device:
            raise ValueError(f"{side}_scores: on {scores.device}, but member_scores is on {member_scores.device}; move one of them")
        if arg.tensor(f"{side}_labels", labels).dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{side}_labels: got {arg.describe(labels)}; accepted dtypes are int64 and int32 (class ids)")
        if labels.shape != scores.shape or labels.device != scores.device:
            raise ValueError(f"{side}_labels: got {arg.describe(labels)}; accepted is one label a score, on {scores.device}")
        if not bool(((labels >= 0) & (labels < num_classes)).all()):
            raise ValueError(f"{side}_labels: a label is outside [0, {num_classes}); accepted are class ids below num_classes")
        sides.append((scores.detach(), labels.to(torch.int64)))
    dtype = torch.float64 if any(s.dtype == torch.float64 for s, _ in sides) else torch.float32
    values = torch.cat([s.to(dtype) for s, _ in sides])
    labels = torch.cat([y for _, y in sides])
    member = torch.arange(len(values), device=values.device) < len(sides[0][0])
    best, defined = _best_thresholds(values, labels, member, num_classes)
    if num_classes > 1:
        overall, _ = _best_thresholds(values, torch.zeros_like(labels), member, 1)
        best = torch.where(defined, best, overall)
    return best


def _best_thresholds(values: Tensor, labels: Tensor, member: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """[classes], and whether a class has samples of both kinds."""
    order = values.argsort(descending=True)
    order = order[labels[order].argsort(stable=True)]
    values, labels, member = values[order], labels[order], member[order].to(torch.int64)
    sizes = torch.zeros((2, classes), dtype=torch.int64, device=values.device)
    sizes[1].scatter_add_(0, labels, member)
    sizes[0].scatter_add_(0, labels, 1 - member)
    starts = sizes.cumsum(1) - sizes
    tp = member.cumsum(0) - starts[1][labels]
    fp = (1 - member).cumsum(0) - starts[0][labels]
    gain = tp * sizes[0][labels] - fp * sizes[1][labels]  # (TPR - FPR) n1 n0 at "score >= this", once the ties are in
    last = torch.nn.functional.pad((values[1:] != values[:-1]) | (labels[1:] != labels[:-1]), (0, 1), value=True)
    gain = gain.masked_fill(~last, torch.iinfo(torch.int64).min)
    top = torch.full((classes,), torch.iinfo(torch.int64).min, device=values.device).scatter_reduce(0, labels, gain, "amax")
    place = torch.arange(len(values), device=values.device).masked_fill(gain != top[labels], len(values))
    first = torch.full((classes,), len(values), device=values.device).scatter_reduce(0, labels, place, "amin")
    return values[first.clamp_max(len(values) - 1)], (sizes > 0).all(0)


def _scores(op: str, name: str, x: Tensor, dimensions: int) -> None:
    arg.floating(name, x)
    arg.not_differentiable(op, **{name: x})
    if x.dim() != dimensions:
        raise ValueError(f"{name}: got {arg.describe(x)}; accepted is a tensor of {dimensions} dimension{'s' * (dimensions > 1)}")
    if bool(torch.isnan(x).any()):
        raise ValueError(f"{name}: {int(torch.isnan(x).sum())} of {x.numel()} values are NaN; leave them out, or mend them")


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
