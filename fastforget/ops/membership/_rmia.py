"""RMIA: robust membership inference by pairwise likelihood ratios (Zarifzadeh, Liu & Shokri, ICML'24)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg

__all__ = ["rmia", "rmia_counts", "rmia_vote"]

_LEAST_GAMMA = 2.0**-126  # float32 has its full precision from here on
_rmia_counts = _schema.overload("rmia_counts")
_try_counts = _schema.boxed("rmia_counts")
_rmia_vote = _schema.overload("rmia_vote")


def rmia_counts(ratio_x: Tensor, ratio_z: Tensor, *, gamma: float | Sequence[float] = 2.0, strict: bool = False) -> Tensor:
    """How many z each x dominates: those with ``ratio_x / ratio_z >= gamma``, in the tensors' own arithmetic.

    Equal to comparing all pairs, to the last count, but z is sorted once and every x searched for: O((N + Z) log Z) time and O(N + Z)
    memory. Several gammas share the sort.

    Args:
        ratio_x: [N] or [B, N], >= 0; 16-bit types are widened to float32. 0 / 0, inf / inf and NaN count as not dominated.
        ratio_z: [Z] or [B, Z], >= 0.
        gamma: > 0 (from 2**-126), or several; rounded to the ratios' dtype.
        strict: compare with ``>`` in place of ``>=`` (the published code does; the paper's equation 3 has >=).

    Returns:
        int64 of ratio_x's shape; with several gammas, one such a gamma along a new first dimension.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: the ratios require grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> membership.rmia_counts(torch.tensor([1.0, 4.0]), torch.tensor([0.5, 1.0, 2.0]), gamma=(1.0, 2.0)).tolist()
    [[2, 3], [1, 3]]
    """
    one_gamma = type(gamma) is float and _LEAST_GAMMA <= gamma < math.inf
    if one_gamma and arg.plain(ratio_x, ratio_z) and ratio_x.dim() == 1:
        counts = torch.empty((1, ratio_x.shape[0]), dtype=torch.int64, device="cpu")
        if arg.accepted(_try_counts, (ratio_x[None], ratio_z[None], (gamma,), bool(strict), counts)):
            return counts[0]
    _checked("rmia_counts", ratio_x=ratio_x, ratio_z=ratio_z)
    if ratio_x.dim() not in (1, 2) or ratio_z.dim() != ratio_x.dim() or ratio_z.shape[:-1] != ratio_x.shape[:-1]:
        raise ValueError(f"ratio_z: got {arg.describe(ratio_z)}; accepted is [Z] beside ratio_x [N], or [B, Z] beside [B, N]")
    gammas, several = _values("gamma", gamma, _LEAST_GAMMA, math.inf)
    dtype = _compute_dtype(ratio_x, ratio_z)
    counts = _counts(ratio_x.to(dtype), ratio_z.to(dtype), gammas, strict)
    return counts if several else counts[0]


def rmia(
    log_p_x: Tensor,
    ref_log_p_x: Tensor,
    log_p_z: Tensor,
    ref_log_p_z: Tensor,
    *,
    member: Tensor | None = None,
    member_z: Tensor | None = None,
    mode: str | None = None,
    gamma: float | Sequence[float] = 2.0,
    a: float | Sequence[float] = 0.3,
    strict: bool = False,
    self_in_z: Tensor | None = None,
    soft: bool = False,
) -> Tensor:
    """RMIA's membership score: the share of a population z whose likelihood ratio x's exceeds by a factor gamma (higher = member).

    score(x) = mean over z of [r_x / r_z >= gamma], r = p_target / p, equation 3 of Zarifzadeh, Liu & Shokri (ICML'24). With mean_in and
    mean_out the mean probability under the reference models trained with and without the sample, p is

    - online: (mean_in + mean_out) / 2; a population without ``member_z`` is taken to be in no model's training set, so its p is mean_out
    - offline: ((1 + a) mean_out + (1 - a)) / 2

    Means are taken in logarithms, so small probabilities don't vanish; the ratio is exponentiated once, and the predicate is evaluated on
    these ratios as ``r_x / r_z`` rounds in float32 (float64 if an input is float64), exactly as comparing all pairs would. Published
    codes differ in gamma (2, or 1 in later releases) and compare with ``>``.

    Args:
        log_p_x: [N] or [T, N], the target models' log probabilities of the samples' labels (``-membership_scores(...).loss``).
        ref_log_p_x: [M, N], those of M reference models.
        log_p_z: [Z], or [T, Z] beside [T, N], of the population.
        ref_log_p_z: [M, Z].
        member: bool[M, N], whether reference model m was trained on sample n; None: none was.
        member_z: bool[M, Z], the same for the population.
        mode: "online" or "offline"; None: online if ``member`` is given. Offline, models that were trained on a sample are left out.
        gamma: > 0; several give one score each.
        a: in [0, 1], the offline scaling (0.3 for CIFAR-10, 0.6 for CIFAR-100, 0.2 for tabular data in the paper); several give one score
            each; not used online.
        strict: ``>`` in place of ``>=``.
        self_in_z: bool[N], samples that are themselves among the z: their own pair is left out, of the count and of the Z - 1.
        soft: return log r_x minus the mean of the finite log r_z instead (no gamma): ordered like r_x, it separates samples whose share
            ties at 1.

    Returns:
        Scores in float32 (float64 if an input is), [gammas, a values, targets, N]; each of the first three dimensions is there only if the
        argument has it (a sequence of gammas or of a, 2-D log_p_x). NaN for a sample without the models that its mode needs, or whose
        ratio is NaN. A z whose ratio is NaN is never counted, but stays among the Z.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: an input requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> target = torch.tensor([0.9, 0.3]).log()
    >>> population = torch.tensor([0.2, 0.4, 0.5, 0.3]).log()
    >>> references = torch.full((2, 2), 0.3).log(), torch.full((2, 4), 0.4).log()
    >>> membership.rmia(target, references[0], population, references[1], gamma=(1.0, 2.0)).tolist()
    [[1.0, 0.5], [1.0, 0.0]]
    """
    _checked("rmia", log_p_x=log_p_x, ref_log_p_x=ref_log_p_x, log_p_z=log_p_z, ref_log_p_z=ref_log_p_z)
    if log_p_x.dim() not in (1, 2):
        raise ValueError(f"log_p_x: got {arg.describe(log_p_x)}; accepted is [N], or [T, N] for T target models")
    if log_p_z.dim() != log_p_x.dim() or log_p_z.shape[:-1] != log_p_x.shape[:-1]:
        raise ValueError(f"log_p_z: got shape {tuple(log_p_z.shape)}; accepted is [Z] beside log_p_x [N], or [T, Z] beside [T, N]")
    gammas, many_gammas = _values("gamma", gamma, _LEAST_GAMMA, math.inf)
    n = log_p_x.shape[-1]
    if self_in_z is not None and (arg.tensor("self_in_z", self_in_z).dtype != torch.bool or self_in_z.shape != (n,)):
        raise ValueError(f"self_in_z: got {arg.describe(self_in_z)}; accepted is bool[{n}]")
    sides = _log_ratios(log_p_x, ref_log_p_x, log_p_z, ref_log_p_z, member, member_z, mode, a)
    log_r_x, log_r_z = sides  # [K, T or 1, N], [K, T or 1, Z]
    if soft:
        finite = torch.isfinite(log_r_z)
        mean = log_r_z.masked_fill(~finite, 0.0).sum(dim=-1, keepdim=True) / finite.sum(dim=-1, keepdim=True)
        scores = (log_r_x - mean)[None]
    else:
        scores = _shares(log_r_x.exp(), log_r_z.exp(), gammas, strict, self_in_z)
    drop = [i for i, keep in enumerate((many_gammas and not soft, _is_several(a), log_p_x.dim() == 2)) if not keep]
    return scores.squeeze(drop) if drop else scores


def rmia_vote(
    log_p_x: Tensor,
    ref_log_p_x: Tensor,
    log_p_z: Tensor,
    ref_log_p_z: Tensor,
    *,
    member: Tensor | None = None,
    member_z: Tensor | None = None,
    mode: str | None = None,
    gamma: float = 2.0,
    a: float = 0.3,
    strict: bool = False,
) -> Tensor:
    """RMIA with several queries a sample (augmentations): z counts where more than half of the queries say r_x / r_z >= gamma.

    The majority is strict: an even split counts as not dominated. No [N, Z] array is made. Zarifzadeh, Liu & Shokri (ICML'24), whose
    code takes the majority of 18 queries and lets an even split count for the value that ``torch.mode`` returns.

    Args:
        log_p_x: [A, N], the target model's log probabilities for A queries of each sample.
        ref_log_p_x: [M, A, N], those of M reference models.
        log_p_z: [A, Z], the same queries of the population.
        ref_log_p_z: [M, A, Z].
        member, member_z, mode, gamma, a, strict: as for :func:`rmia`, one value each; membership is bool[M, N] and bool[M, Z].

    Returns:
        [N], float32 (float64 if an input is). NaN where every query's ratio is NaN; a single NaN query only loses its votes.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`rmia`.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> x, z = torch.tensor([[0.9], [0.8], [0.1]]).log(), torch.tensor([[0.2, 0.9]] * 3).log()
    >>> membership.rmia_vote(x, torch.full((1, 3, 1), 0.5).log(), z, torch.full((1, 3, 2), 0.5).log()).tolist()
    [0.5]
    """
    _checked("rmia_vote", log_p_x=log_p_x, ref_log_p_x=ref_log_p_x, log_p_z=log_p_z, ref_log_p_z=ref_log_p_z)
    if log_p_x.dim() != 2:
        raise ValueError(f"log_p_x: got {arg.describe(log_p_x)}; accepted is [A, N] for A queries of N samples")
    if log_p_z.dim() != 2 or len(log_p_z) != len(log_p_x):
        raise ValueError(f"log_p_z: got shape {tuple(log_p_z.shape)}; accepted is [{len(log_p_x)}, Z], the queries of log_p_x")
    for name, value in (("gamma", gamma), ("a", a)):
        if _is_several(value):
            raise TypeError(f"{name}: got {arg.describe(value)}; accepted is one number (rmia takes several)")
    gammas, _ = _values("gamma", gamma, _LEAST_GAMMA, math.inf)
    sides = _log_ratios(log_p_x, ref_log_p_x, log_p_z, ref_log_p_z, member, member_z, mode, a, queries=True)
    ratio_x, ratio_z = (side[0].exp().contiguous() for side in sides)
    return vote_shares(ratio_x, ratio_z, gammas[0], strict)


def vote_shares(ratio_x: Tensor, ratio_z: Tensor, gamma: float, strict: bool) -> Tensor:
    """:func:`rmia_vote` of ratios [A, N] and [A, Z], contiguous and of one dtype."""
    counts = torch.empty(ratio_x.shape[1], dtype=torch.int64, device=ratio_x.device)
    arg.run("rmia_vote", _rmia_vote, [counts], (ratio_x, ratio_z, gamma, bool(strict), counts))
    return (counts.to(ratio_x.dtype) / ratio_z.shape[1]).masked_fill(torch.isnan(ratio_x).all(dim=0), math.nan)


def _counts(ratio_x: Tensor, ratio_z: Tensor, gammas: list[float], strict: bool) -> Tensor:
    """[..., N], [..., Z] of one dtype -> [G, ..., N]."""
    rows = math.prod(ratio_x.shape[:-1])
    counts = torch.empty((len(gammas), rows, ratio_x.shape[-1]), dtype=torch.int64, device=ratio_x.device)
    x, z = (r.reshape(rows, r.shape[-1]).contiguous() for r in (ratio_x, ratio_z))
    arg.run("rmia_counts", _rmia_counts, [counts], (x, z, gammas, bool(strict), counts))
    return counts.view(len(gammas), *ratio_x.shape)


def _shares(ratio_x: Tensor, ratio_z: Tensor, gammas: list[float], strict: bool, self_in_z: Tensor | None) -> Tensor:
    """[K, T, N], [K, T, Z] -> [G, K, T, N]."""
    z = ratio_z.shape[-1]
    counts = _counts(ratio_x, ratio_z, gammas, strict)
    if self_in_z is None:
        scores = counts.to(ratio_x.dtype) / z
    else:
        own = ratio_x / ratio_x  # 1, or NaN
        levels = torch.tensor(gammas, dtype=ratio_x.dtype, device=ratio_x.device).view(-1, 1, 1, 1)
        counted = ((own > levels) if strict else (own >= levels)) & self_in_z
        scores = (counts - counted.to(torch.int64)).to(ratio_x.dtype) / (z - self_in_z.to(torch.int64)).to(ratio_x.dtype)
    return torch.where(torch.isnan(ratio_x), math.nan, scores)


def _log_ratios(
    log_p_x: Tensor,
    ref_log_p_x: Tensor,
    log_p_z: Tensor,
    ref_log_p_z: Tensor,
    member: Tensor | None,
    member_z: Tensor | None,
    mode: str | None,
    a: float | Sequence[float],
    queries: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log ratios [K, T or A or 1, N] and [K, T or A or 1, Z]."""
    if mode not in (None, "online", "offline"):
        raise ValueError(f"mode: got {mode!r}; accepted are 'online', 'offline' and None (online if member is given)")
    online = mode == "online" or (mode is None and member is not None)
    if online and member is None:
        raise ValueError("member: got None; mode='online' needs bool[M, N], which reference model was trained on which sample")
    scales, several = _values("a", a, 0.0, 1.0)
    if online and several:
        raise ValueError("a: got several values; the online mode does not use a. Give one, or mode='offline'")
    dtype = _compute_dtype(log_p_x, ref_log_p_x, log_p_z, ref_log_p_z)
    out = []
    for name, log_p, ref, inside_name, inside in (
        ("x", log_p_x, ref_log_p_x, "member", member),
        ("z", log_p_z, ref_log_p_z, "member_z", member_z),
    ):
        n = log_p.shape[-1]
        if n == 0 and name == "z":
            raise ValueError("log_p_z: got no population samples; accepted is at least one")
        shape = log_p.shape if queries else log_p.shape[-1:]
        if ref.dim() != len(shape) + 1 or ref.shape[1:] != shape or len(ref) == 0:
            expected = f"[M, {', '.join(map(str, shape))}], M >= 1 reference models"
            raise ValueError(f"ref_log_p_{name}: got shape {tuple(ref.shape)}; accepted is {expected}")
        if inside is not None and (arg.tensor(inside_name, inside).dtype != torch.bool or inside.shape != (len(ref), n)):
            raise ValueError(f"{inside_name}: got {arg.describe(inside)}; accepted is bool[{len(ref)}, {n}]")
        if inside is not None and inside.device != log_p.device:
            raise ValueError(f"{inside_name}: on {inside.device}, but log_p_{name} is on {log_p.device}; move one of them")
        log_mean = log_reference(ref.to(dtype), inside, online and (name == "x" or inside is not None), scales, online)
        wide = log_p.to(dtype)
        out.append((wide if wide.dim() == 2 else wide[None]) - (log_mean if queries else log_mean[:, None]))
    return out[0], out[1]


def log_reference(ref: Tensor, inside: Tensor | None, both: bool, scales: list[float], online: bool) -> Tensor:
    """log p of the samples, [K, ...]: K = 1 online, the values of a offline. ref is [M, ...]."""
    if inside is not None and ref.dim() == 3:
        inside = inside[:, None]
    log_out = _log_mean(ref, None if inside is None else ~inside)
    if both:
        assert inside is not None
        return (torch.logaddexp(_log_mean(ref, inside), log_out) - math.log(2.0))[None]
    if online:
        return log_out[None]
    factor = torch.tensor([(1 + s) / 2 for s in scales], dtype=ref.dtype, device=ref.device)
    rest = torch.tensor([(1 - s) / 2 for s in scales], dtype=ref.dtype, device=ref.device)
    wide = [-1] + [1] * log_out.dim()
    return torch.logaddexp(factor.log().view(wide) + log_out, rest.log().view(wide))


def _log_mean(ref: Tensor, chosen: Tensor | None) -> Tensor:
    """log of the mean of exp(ref) over the chosen models; NaN where none is."""
    if chosen is None:
        return torch.logsumexp(ref, dim=0) - math.log(len(ref))
    count = chosen.sum(dim=0)
    total = torch.logsumexp(ref.masked_fill(~chosen, -math.inf), dim=0)
    return torch.where(count > 0, total - count.to(ref.dtype).log(), math.nan)


def _is_several(value: Any) -> bool:
    return not isinstance(value, (int, float))


def _values(name: str, value: Any, low: float, high: float) -> tuple[list[float], bool]:
    """One number or a sequence of numbers, as a list, and whether it was a sequence."""
    several = _is_several(value)
    interval = f"[{low:.3g}, {high:g}]"
    if several and (not isinstance(value, (list, tuple)) or len(value) == 0):
        raise TypeError(f"{name}: got {arg.describe(value)}; accepted is a number in {interval} or a list of such")
    values = [float(v) for v in value] if several else [float(value)]
    for v in values:
        if not low <= v <= high:
            raise ValueError(f"{name}: got {v}; accepted are numbers in {interval}")
    return values, several


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _checked(op: str, **tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, t in tensors.items():
        arg.floating(name, t)
        if t.device != first.device:
            raise ValueError(f"{name}: on {t.device}, but {first_name} is on {first.device}; move one of them")
    arg.not_differentiable(op, **tensors)
