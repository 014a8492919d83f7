"""ROC statistics of an attack's scores, and their bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastforget.ops import membership
from fastforget.reference.membership import roc as reference

from ..cases import Case, Judge, Options, Place, Work, limit

ROC_SIZES = {"10K": 10_000, "1M": 1_000_000}
FPRS = (1e-2, 1e-3)
RESAMPLES = {"1K+1K, 100 resamples": (1000, 100), "10K+10K, 1000 resamples": (10_000, 1000)}
PUBLISHED_BOOTSTRAP = "indices drawn for each resample, the ROC curve of the drawn scores by one argsort"


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
    """The fast plain form: values sorted a class, ranks by binary search."""
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


def curve_bootstrap(member: Tensor, nonmember: Tensor, fprs: Sequence[float], resamples: int) -> Tensor:
    """What audits do for an interval, in our words: draw, rank, integrate, and again."""
    n1, n0 = len(member), len(nonmember)
    out = torch.empty(resamples, 1 + len(fprs), dtype=torch.float64, device=member.device)
    wanted = torch.tensor(list(fprs), dtype=torch.float64, device=member.device)
    for row in out:
        m = member[torch.randint(n1, (n1,), device=member.device)]
        u = nonmember[torch.randint(n0, (n0,), device=member.device)]
        scores = torch.cat((m, u))
        order = scores.argsort(descending=True)
        kept = torch.nn.functional.pad(scores[order].diff() != 0, (0, 1), value=True)
        tp = (order < n1).cumsum(0)[kept]
        fp = (order >= n1).cumsum(0)[kept]
        tpr = torch.nn.functional.pad(tp.double() / n1, (1, 0))
        fpr = torch.nn.functional.pad(fp.double() / n0, (1, 0))
        row[0] = torch.trapezoid(tpr, fpr)
        row[1:] = tpr[torch.searchsorted(fpr, wanted, right=True) - 1]
    return out


def sorted_bootstrap(member: Tensor, nonmember: Tensor, fprs: Sequence[float], resamples: int) -> Tensor:
    """The definition: our draws, each side sorted anew."""
    out = torch.empty(resamples, 1 + len(fprs), dtype=torch.float64, device=member.device)
    reference.roc_bootstrap(member, nonmember, fprs, 7, out)
    return out


def _bootstrap_work(place: Place, n: int, resamples: int) -> Work:
    member, nonmember = place.normal(n).add_(0.5), place.normal(n)
    run = {
        "ours": lambda: membership.roc_bootstrap(member, nonmember, fprs=FPRS, resamples=resamples, seed=7).samples,
        "eager": lambda: sorted_bootstrap(member, nonmember, FPRS, resamples),
        "published": lambda: curve_bootstrap(member, nonmember, FPRS, resamples),
    }
    truth = sorted_bootstrap(member, nonmember, FPRS, resamples)
    return Work(run, Judge([truth], lambda _name, result: [result], exact=True), unjudged=frozenset({"published"}))


def roc_bootstrap(label: str, n: int, resamples: int, large: bool) -> Case:
    return Case(
        "roc_bootstrap",
        label,
        f"{n}+{n}, {resamples} resamples",
        "float32",
        2 * n * resamples,
        lambda place: _bootstrap_work(place, n, resamples),
        bytes_touched=8 * n,
        unit="draw",
        family="membership",
        large=large,
        published=PUBLISHED_BOOTSTRAP,
    )


def cases(options: Options) -> list[Case]:
    del options
    rows = [roc_stats(label, n, False) for label, n in ROC_SIZES.items()]
    return rows + [roc_bootstrap(label, *size, size[0] > 1000) for label, size in RESAMPLES.items()]
