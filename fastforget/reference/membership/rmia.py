"""RMIA by comparing all pairs, in plain PyTorch (Zarifzadeh, Liu & Shokri, ICML'24, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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
