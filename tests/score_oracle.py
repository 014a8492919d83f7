"""The six membership scores as a user writes them in PyTorch, and in extended precision."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

NAMES = ("loss", "confidence", "entropy", "modified_entropy", "margin", "logit_confidence")


def plain_scores(z, y):
    """The six scores as a user writes them in PyTorch."""
    log_p = F.log_softmax(z, 1)
    p = log_p.exp()
    p_y = p.gather(1, y[:, None])[:, 0]
    others = z.scatter(1, y[:, None], -math.inf)
    reverse = torch.log1p(-p).clamp_min(-1e4)
    modified = -(p * reverse).scatter(1, y[:, None], 0).sum(1) - (1 - p_y) * log_p.gather(1, y[:, None])[:, 0]
    z_y = z.gather(1, y[:, None])[:, 0]
    return (
        F.cross_entropy(z, y, reduction="none"),
        p_y,
        -(p * log_p).nan_to_num(0.0).sum(1),
        modified,
        z_y - others.amax(1),
        z_y - torch.logsumexp(others, 1),
    )


def exact_scores(z, y):
    """The definitions in extended precision, from the logits as stored; the arg-max's tail is summed, not subtracted."""
    z = z.to(torch.float64).numpy().astype(np.longdouble)
    rows = np.arange(len(z))
    y = y.numpy()
    top = z.argmax(1)

    def lse_without(columns):
        masked = z.copy()
        masked[rows, columns] = -np.inf
        m = masked.max(1)
        return np.log(np.exp(masked - m[:, None]).sum(1)), m

    z_y, z_top = z[rows, y], z[rows, top]
    spread, other_max = lse_without(y)
    phi = (z_y - other_max) - spread  # differences first: an offset common to all logits costs no digits
    other = (other_max - z_top) + spread
    spread, tail_max = lse_without(top)
    tail = (tail_max - z_top) + spread
    loss = np.logaddexp(np.longdouble(0), -phi)
    log_total = np.log1p(np.exp(tail))
    d = z - z_top[:, None]
    p = np.exp(d - log_total[:, None])
    entropy = log_total - (p * d).sum(1)
    log_not_p = np.log1p(-np.where(np.arange(z.shape[1]) == top[:, None], 0, p))
    log_not_p[rows, top] = tail - log_total
    terms = p * log_not_p
    terms[rows, y] = 0
    not_p_y = np.exp(other - log_total)
    modified = not_p_y * loss - terms.sum(1)
    values = (loss, np.exp(-loss), entropy, modified, z_y - other_max, phi)
    return tuple(torch.from_numpy(v.astype(np.float64)) for v in values)
