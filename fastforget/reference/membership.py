"""Membership-inference scores and ROC statistics, in plain PyTorch.

Sources: loss attack (Yeom et al., CSF'18), logit-scaled confidence (Carlini et al., S&P'22, section VI-A), modified entropy (Song &
Mittal, USENIX Security'21, equation 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .update import check_labels, compute_dtype


def membership_scores(logits: Tensor, labels: Tensor, temperature: float, scores: Tensor, correct: Tensor) -> None:
    n, classes = logits.shape
    if n == 0:
        return
    valid = check_labels(labels, classes)
    z = logits.to(compute_dtype(logits.dtype)) / temperature
    y = torch.where(valid, labels, 0)[:, None]
    at_label = torch.arange(classes, device=z.device) == y

    top = z.amax(dim=1, keepdim=True)
    top_at = (z == top).to(torch.int8).argmax(dim=1, keepdim=True)  # of equal logits the first
    at_top = torch.arange(classes, device=z.device) == top_at
    distance = z - top
    e = distance.exp()
    # the arg-max adds exactly 1 to the sum of exponentials: kept out of it, the tail loses nothing to rounding
    tail = e.masked_fill(at_top, 0.0).sum(dim=1)
    total, log_total = 1.0 + tail, torch.log1p(tail)

    z_y = z.gather(1, y)[:, 0]
    others = z.masked_fill(at_label, -math.inf)
    nearest = others.amax(dim=1)
    margin = z_y - nearest
    # differences first: an offset common to all logits must not cost digits
    spread = (others - torch.where(nearest.isfinite(), nearest, 0.0)[:, None]).exp().sum(dim=1)
    logit_confidence = torch.where(nearest.isfinite(), margin - spread.log(), margin)
    loss = log_total - distance.gather(1, y)[:, 0]

    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    weighted = torch.where(e > 0, e * distance, zero).sum(dim=1)
    entropy = log_total - weighted / total

    p = e / total[:, None]
    log_tail = torch.logsumexp(distance.masked_fill(at_top, -math.inf), dim=1)
    log_not_p = torch.where(at_top, (log_tail - log_total)[:, None], torch.log1p(-p))
    elsewhere = torch.where(at_label | (p == 0), zero, p * log_not_p).sum(dim=1)
    not_p_y = e.masked_fill(at_label, 0.0).sum(dim=1) / total
    label_term = torch.where(not_p_y == 0, zero, not_p_y * loss)
    modified_entropy = label_term - elsewhere

    confidence = e.gather(1, y)[:, 0] / total
    out = torch.stack((loss, confidence, entropy, modified_entropy, margin, logit_confidence))
    # a NaN or +inf logit, or no finite logit at all, leaves no distribution to score
    defined = valid & torch.isfinite(top[:, 0]) & ~torch.isnan(z).any(dim=1)
    scores.copy_(torch.where(defined, out, math.nan))
    correct.copy_((top_at == y)[:, 0] & defined)


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
