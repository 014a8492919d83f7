"""ROC statistics and their bootstrap, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..noise import _words


def false_positive_budget(fpr: float, nonmembers: int) -> int:
    """The largest k with k / nonmembers <= fpr, compared in float64."""
    k = math.floor(fpr * nonmembers)  # the product is rounded: one up or down may be the answer
    if k / nonmembers > fpr:
        return k - 1
    return k + 1 if (k + 1) / nonmembers <= fpr else k


def roc_stats(member: Tensor, nonmember: Tensor, fprs: Sequence[float], out: Tensor) -> None:
    members = member.sort().values
    nonmembers = nonmember.sort().values
    n1, n0 = members.numel(), nonmembers.numel()

    below = torch.searchsorted(nonmembers, members, right=False)
    below_or_equal = torch.searchsorted(nonmembers, members, right=True)
    rank_sum = (below + below_or_equal).sum()  # twice the Mann-Whitney statistic
    out[0] = rank_sum.to(torch.float64) / (2.0 * n1 * n0)

    # decision "score >= t": TPR - FPR is largest at a member's value, FPR - TPR at a nonmember's; counts keep ties exact
    def gap(thresholds: Tensor) -> Tensor:
        tp = n1 - torch.searchsorted(members, thresholds, right=False)
        fp = n0 - torch.searchsorted(nonmembers, thresholds, right=False)
        return tp * n0 - fp * n1

    gain = gap(members)
    best = gain.max().clamp_min(0)
    most = torch.maximum(best, (-gap(nonmembers)).max())
    out[1] = (1.0 + best.to(torch.float64) / (n1 * n0)) / 2.0
    out[2] = most.to(torch.float64) / (n1 * n0)
    at_best = torch.where(gain == best, members.to(torch.float64), -math.inf).max()
    out[3] = torch.where(best > 0, at_best, math.inf)

    for i, fpr in enumerate(fprs):
        k = false_positive_budget(fpr, n0)
        if k >= n0:
            tp = torch.full((), n1, device=member.device)
        else:
            tp = n1 - torch.searchsorted(members, nonmembers[n0 - 1 - k], right=True)
        out[4 + i] = tp.to(torch.float64) / n1
        first = members[(n1 - tp).clamp(max=n1 - 1)].to(torch.float64)
        out[4 + len(fprs) + i] = torch.where(tp > 0, first, math.inf)
def bootstrap_indices(n: int, seed: int, stream: int, resample: int, device: torch.device) -> Tensor:
    """int64[n], drawn with replacement: word i of (seed, stream, step=resample) scaled to [0, n)."""
    words, offset = _words(0, n, seed, stream, resample, device)
    return (words.flatten()[offset : offset + n] * n) >> 32


def roc_bootstrap(member: Tensor, nonmember: Tensor, fprs: Sequence[float], seed: int, out: Tensor) -> None:
    members, nonmembers = member.sort().values, nonmember.sort().values
    n1, n0 = len(members), len(nonmembers)
    for resample in range(len(out)):
        m = members[bootstrap_indices(n1, seed, 0, resample, member.device)].sort().values
        u = nonmembers[bootstrap_indices(n0, seed, 1, resample, member.device)].sort().values
        below = torch.searchsorted(u, m, right=False) + torch.searchsorted(u, m, right=True)
        out[resample, 0] = below.sum().to(torch.float64) / (2.0 * n1 * n0)
        for i, fpr in enumerate(fprs):
            k = false_positive_budget(fpr, n0)
            # in float64: a quotient of integer tensors would be float32
            tp = float(n1) if k >= n0 else (n1 - torch.searchsorted(m, u[n0 - 1 - k], right=True)).to(torch.float64)
            out[resample, 1 + i] = tp / n1
