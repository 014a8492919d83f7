"""Membership inference: six scores a sample from the logits, and ROC statistics of an attack's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastforget.ops import membership
from fastforget.reference import membership as reference

from .cases import Case, Judge, Options, Place, Work, compiled, limit

SCORE_SHAPES = {
    "1000x10": (1000, 10),
    "50000x10": (50000, 10),
    "50000x100": (50000, 100),
    "10000x1000": (10000, 1000),
}
ROC_SIZES = {"10K": 10_000, "1M": 1_000_000}
FPRS = (1e-2, 1e-3)


def eager_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The scores one after the other, as audits write them (loss, confidence, two entropies, margin, LiRA's
    logit, correct)."""
    index = labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    confidence = p.gather(1, index)[:, 0]
    entropy = -(p * log_p).sum(dim=1)
    others = p.scatter(1, index, 0.0)
    modified = -(1.0 - confidence) * log_p.gather(1, index)[:, 0] - (others * (1.0 - others).clamp_min(1e-30).log()).sum(1)
    z_y = logits.gather(1, index)[:, 0]
    rivals = logits.scatter(1, index, -math.inf)
    margin = z_y - rivals.amax(dim=1)
    logit_confidence = z_y - rivals.logsumexp(dim=1)
    return loss, confidence, entropy, modified, margin, logit_confidence, logits.argmax(dim=1) == labels


def _scores_work(place: Place, n: int, classes: int, options: Options) -> Work:
    labels = place.integers(classes, n)
    logits = place.normal(n, classes, scale=2.0)
    logits.scatter_add_(1, labels[:, None], torch.full((n, 1), 4.0, device=logits.device))  # a trained model: mostly right
    run = {
        "ours": lambda: membership.membership_scores(logits, labels),
        "eager": lambda: eager_scores(logits, labels),
        **limit([logits], "read"),
    }
    if options.compiled:
        form = compiled(eager_scores)
        run["compiled"] = lambda: form(logits, labels)
    scores = torch.empty(6, n, dtype=torch.float64, device=logits.device)
    correct = torch.empty(n, dtype=torch.bool, device=logits.device)
    for begin in range(0, n, 10_000):  # bounds the reference's float64 temporaries
        part = slice(begin, begin + 10_000)
        reference.membership_scores(logits[part].double(), labels[part], 1.0, scores[:, part], correct[part])
    return Work(run, Judge([*scores.unbind(0), correct], lambda _name, result: result))


def membership_scores(label: str, n: int, classes: int, options: Options, large: bool) -> Case:
    return Case(
        "membership_scores",
        label,
        f"{n}x{classes}",
        "float32",
        n * classes,
        lambda place: _scores_work(place, n, classes, options),
        bytes_touched=4 * n * classes + 33 * n,
        unit="logit",
        family="membership",
        large=large,
    )


def argsort_roc(member: Tensor, nonmember: Tensor, fprs: Sequence[float]) -> list[Tensor]:
    """The ROC curve as scikit-learn builds it: argsort all scores, gather the labels, cumulate, keep
    distinct thresholds, trapezoids."""
    scores = torch.cat((member, nonmember))
    is_member = torch.zeros(scores.numel(), device=scores.device)
    is_member[: member.numel()] = 1.0
    order = torch.argsort(scores, descending=True)
    scores, is_member = scores[order], is_member[order].double()
    last = torch.cat((torch.where(scores.diff())[0], torch.tensor([scores.numel() - 1], device=scores.device)))
    tp = is_member.cumsum(0)[last]
    fp = 1.0 + last - tp
    zero = torch.zeros(1, dtype=torch.float64, device=scores.device)
    tpr, fpr = torch.cat((zero, tp / tp[-1])), torch.cat((zero, fp / fp[-1]))
    auc = torch.trapezoid(tpr, fpr)
    gain = tpr - fpr
    at = torch.searchsorted(fpr, torch.tensor(fprs, dtype=torch.float64, device=scores.device), right=True) - 1
    return [auc, (1.0 + gain.max()) / 2.0, gain.abs().max(), tpr[at]]


def sorted_roc(member: Tensor, nonmember: Tensor, fprs: Sequence[float]) -> list[Tensor]:
    """The careful form: values sorted a class, ranks by binary search."""
    out = torch.empty(4 + 2 * len(fprs), dtype=torch.float64, device=member.device)
    reference.roc_stats(member, nonmember, fprs, out)
    return [out[0], out[1], out[2], out[4 : 4 + len(fprs)]]


def _roc_work(place: Place, n: int) -> Work:
    member, nonmember = place.normal(n // 2).add_(0.5), place.normal(n - n // 2)
    run = {
        "ours": lambda: membership.roc_stats(member, nonmember, fprs=FPRS),
        "eager": lambda: argsort_roc(member, nonmember, FPRS),
        "sort": lambda: sorted_roc(member, nonmember, FPRS),
    }
    first, second = limit([member], "read"), limit([nonmember], "read")
    if first and second:
        run["limit"] = lambda: (first["limit"](), second["limit"]())
    truth = [t.clone() for t in sorted_roc(member.double(), nonmember.double(), FPRS)]

    def read(_name: str, result: object) -> list[Tensor]:
        if isinstance(result, membership.RocStats):
            return [result.auc, result.balanced_accuracy, result.advantage, result.tpr]
        return list(result)  # type: ignore[call-overload]

    return Work(run, Judge(truth, read))


def roc_stats(label: str, n: int, large: bool) -> Case:
    return Case(
        "roc_stats",
        label,
        f"{n // 2}+{n - n // 2}",
        "float32",
        n,
        lambda place: _roc_work(place, n),
        bytes_touched=4 * n,
        unit="score",
        family="membership",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    large = {"50000x100", "10000x1000"}
    rows = [membership_scores(label, *shape, options, label in large) for label, shape in SCORE_SHAPES.items()]
    return [*rows, *(roc_stats(label, n, False) for label, n in ROC_SIZES.items())]
