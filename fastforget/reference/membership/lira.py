"""LiRA over the scores of shadow models, in plain PyTorch (Carlini et al., S&P'22, algorithm 1 and equation 4).

Index 0 of every pair is OUT (models trained without the sample), index 1 is IN. Variances are population variances about the mean,
whichever location is used (the reference code pairs the median with numpy's std).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ONLINE, ONE_SIDED, DENSITY = 0, 1, 2


def _group(scores: Tensor, chosen: Tensor, median: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Location [N, A], variance [N, A] and count [N] of the scores [M, N, A] of the chosen [M, N] models; NaN where there is none."""
    values, on = scores.to(torch.float64), chosen[:, :, None]
    count = chosen.sum(dim=0)
    n = count[:, None].to(torch.float64)
    mean = torch.where(on, values, 0.0).sum(dim=0) / n
    variance = torch.where(on, values - mean, 0.0).square().sum(dim=0) / n
    if not median or len(scores) == 0:
        return mean, variance, count
    ordered = torch.where(on, values, math.inf).sort(dim=0).values
    low = ((count - 1).clamp_min(0) // 2)[None, :, None].expand(1, *mean.shape)
    high = (count // 2).clamp(max=len(ordered) - 1)[None, :, None].expand(1, *mean.shape)
    middle = (ordered.gather(0, low) + ordered.gather(0, high))[0] / 2.0
    return torch.where(torch.isnan(mean), math.nan, middle), variance, count


def lira_stats(
    scores: Tensor, member: Tensor, median: bool, center: Tensor, variance: Tensor, count: Tensor
) -> None:
    for side, chosen in enumerate((~member, member)):
        if len(scores) == 0:
            center[side], variance[side], count[side] = math.nan, math.nan, 0
        else:
            center[side], variance[side], count[side] = _group(scores, chosen, median)


def _ratio(
    target: Tensor, center: Tensor, variance: Tensor, count: Tensor, mode: int, var_floor: float, min_count: int
) -> Tensor:
    """target [..., N, A] against float64 center, variance [2, N, A] (or [2, 1, 1]) and count [2, N] -> [..., N]."""
    t, s2 = target.to(torch.float64), variance.clamp_min(var_floor)
    enough = count[0] >= min_count
    z_out = (t - center[0]) / s2[0].sqrt()
    if mode == ONE_SIDED:
        score = z_out
    elif mode == DENSITY:
        score = 0.5 * z_out.square() + 0.5 * torch.log(2.0 * math.pi * s2[0])
    else:
        z_in = (t - center[1]) / s2[1].sqrt()
        score = 0.5 * (z_out.square() - z_in.square()) + 0.5 * torch.log(s2[0] / s2[1])
        enough = enough & (count[1] >= min_count)
    return torch.where(enough, score.mean(dim=-1), math.nan)


def lira_ratio(
    target: Tensor,
    center: Tensor,
    variance: Tensor,
    count: Tensor,
    mode: int,
    var_floor: float,
    min_count: int,
    out: Tensor,
) -> None:
    stats = center.to(torch.float64), variance.to(torch.float64), count
    out.copy_(_ratio(target, *stats, mode, var_floor, min_count))


def lira_loo(
    scores: Tensor,
    member: Tensor,
    median: bool,
    variance: Tensor,
    mode: int,
    var_floor: float,
    min_count: int,
    out: Tensor,
) -> None:
    # every model in turn is the target, the others are its shadow models
    for s in range(len(scores)):
        others = [i for i in range(len(scores)) if i != s]
        groups = [_group(scores[others], chosen[others], median) for chosen in (~member, member)]
        center, own, count = (torch.stack(pair) for pair in zip(*groups, strict=True))
        used = variance.to(torch.float64).view(2, 1, 1) if variance.numel() else own
        out[s] = _ratio(scores[s], center, used, count, mode, var_floor, min_count)


def lira_update_(scores: Tensor, member: Tensor, count: Tensor, mean: Tensor, m2: Tensor) -> None:
    # Welford, Technometrics 4 (1962): one more model at a time; member -1 skips the sample
    for values, group in zip(scores.to(torch.float64), member, strict=True):
        for side in (0, 1):
            on = group == side
            count[side] += on
            distance = values - mean[side]
            moved = mean[side] + distance / count[side].clamp_min(1)[:, None]
            m2[side] = torch.where(on[:, None], m2[side] + distance * (values - moved), m2[side])
            mean[side] = torch.where(on[:, None], moved, mean[side])
