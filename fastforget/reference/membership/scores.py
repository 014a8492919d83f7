"""Membership-inference scores, in plain PyTorch.

Sources: loss attack (Yeom et al., CSF'18), logit-scaled confidence (Carlini et al., S&P'22, section VI-A), modified entropy (Song &
Mittal, USENIX Security'21, equation 8).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..update import check_labels, compute_dtype


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
