"""Attacks and intervals that come down to counting: RMIA and the bootstrap of ROC statistics, in plain PyTorch.

Sources: RMIA (Zarifzadeh, Liu & Shokri, ICML'24), equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .membership import false_positive_budget
from .noise import _words

_PAIRS = 1 << 22  # pairs at a time: bounds the temporaries


def _dominates(x: Tensor, z: Tensor, gamma: float, strict: bool) -> Tensor:
    """[..., N], [..., Z] -> bool [..., N, Z]: whether fl(x / z) >= gamma (or >), in the tensors' own dtype."""
    quotient = x[..., :, None] / z[..., None, :]
    return quotient > gamma if strict else quotient >= gamma


def rmia_counts(ratio_x: Tensor, ratio_z: Tensor, gammas: Sequence[float], strict: bool, counts: Tensor) -> None:
    rows = max(1, _PAIRS // max(1, ratio_z.shape[1]))
    for g, gamma in enumerate(gammas):
        for b, (x, z) in enumerate(zip(ratio_x, ratio_z, strict=True)):
            for begin in range(0, len(x), rows):
                counts[g, b, begin : begin + rows] = _dominates(x[begin : begin + rows], z, gamma, strict).sum(dim=1)


def rmia_vote(ratio_x: Tensor, ratio_z: Tensor, gamma: float, strict: bool, counts: Tensor) -> None:
    # a pair counts when more than half of the queries say so: an even split is no majority
    queries = len(ratio_x)
    rows = max(1, _PAIRS // max(1, ratio_z.numel()))
    for begin in range(0, ratio_x.shape[1], rows):
        votes = _dominates(ratio_x[:, begin : begin + rows], ratio_z, gamma, strict).sum(dim=0)
        counts[begin : begin + rows] = (2 * votes > queries).sum(dim=1)


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
