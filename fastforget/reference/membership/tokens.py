"""Scores of next-token answers, in plain PyTorch: one [N, T, V] table of log-probabilities, and a loop over the sequences.

Sources: min-k% (Shi et al., "Detecting pretraining data from large language models", ICLR'24), min-k%++ (Zhang et al.,
"Min-K%++: improved baseline for pre-training data detection from large language models", ICLR'25; zjysteven/mink-plus-plus@62281ab).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..update import compute_dtype


def token_scores(
    logits: Tensor,
    labels: Tensor,
    k: Sequence[float],
    ignore_index: int,
    shift: bool,
    tokens: Tensor,
    sequences: Tensor,
    count: Tensor,
) -> None:
    """Fills ``tokens`` [3, N, T] (log p, its mean and its variance under p), ``sequences`` [1 + 2 K, N] (loss, min-k% and min-k%++ for
    each k) and ``count`` int64[N].
    """
    log_p = logits.to(compute_dtype(logits.dtype)).log_softmax(dim=2)
    if shift:  # the token at t is answered at t - 1
        log_p = F.pad(log_p, (0, 0, 1, 0))[:, :-1]
    scored = labels != ignore_index
    if shift:
        scored = scored & (torch.arange(labels.shape[1], device=labels.device) > 0)
    p = log_p.exp()
    weighted = torch.where(p > 0, p * log_p, 0.0)
    unknown = log_p.isnan().any(dim=2)
    mean = torch.where(unknown, math.nan, weighted.sum(dim=2))
    variance = torch.where(p > 0, p * (log_p - mean[..., None]).square(), 0.0).sum(dim=2)
    of_label = log_p.gather(2, torch.where(scored, labels, 0)[..., None])[..., 0]
    tokens.copy_(torch.where(scored, torch.stack((of_label, mean, variance)), math.nan))
    smallest = torch.finfo(variance.dtype).tiny
    standard = (of_label - mean) / variance.clamp_min(smallest).sqrt()
    for n in range(len(labels)):
        own, standardised = of_label[n][scored[n]], standard[n][scored[n]]
        count[n] = len(own)
        if len(own) == 0:
            sequences[:, n] = math.nan
            continue
        if bool(own.isnan().any()):
            sequences[:, n] = math.nan
            continue
        sequences[0, n] = -own.mean()
        for i, share in enumerate(k):
            lowest = max(1, int(len(own) * share))
            sequences[1 + i, n] = own.sort().values[:lowest].mean()
            sequences[1 + len(k) + i, n] = standardised.sort().values[:lowest].mean()
