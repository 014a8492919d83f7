"""LiRA over the scores of shadow models, stored or streamed (Carlini et al., S&P'22).

Two groups of models, OUT (0, trained without the sample) and IN (1), each give a sample a normal distribution of scores; a target's
score is compared with both. Variances are population variances (divided by the count) about the mean, also where the location is the
median, as in the paper's code. Where several queries of a sample were scored, the result is the mean over them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg

__all__ = ["lira", "lira_probability"]

_lira_stats = _schema.overload("lira_stats")
_lira_ratio = _schema.overload("lira_ratio")
_lira_loo = _schema.overload("lira_loo")
MODES = ("online", "offline")
LOCATIONS = ("mean", "median")
VARIANCES = ("per_example", "global", "global_in", "pooled", "mean_std", "auto")
TAILS = ("one_sided", "density")
VAR_FLOOR = 1e-12  # a standard deviation of 1e-6
AUTO_MODELS = 64  # LeakPro's switch: 32 models a side


def _choice(name: str, value: Any, accepted: tuple[str, ...]) -> str:
    if value not in accepted:
        raise ValueError(f"{name}: got {value!r}; accepted are {', '.join(map(repr, accepted))}")
    return value


def _rule(
    mode: str, location: str, variance: str, tail: str, var_floor: float, min_count: int | None, models: int
) -> tuple[int, str, float, int]:
    """The op's mode, the variance in force, the floor and the count."""
    _choice("mode", mode, MODES)
    _choice("location", location, LOCATIONS)
    _choice("variance", variance, VARIANCES)
    _choice("tail", tail, TAILS)
    if not (isinstance(var_floor, (int, float)) and 0.0 <= var_floor < math.inf):
        raise ValueError(f"var_floor: got {var_floor!r}; accepted is a finite number >= 0")
    if variance == "auto":
        variance = "per_example" if models >= AUTO_MODELS else "global"
    least = (2 if variance == "per_example" else 1) if min_count is None else arg.integer("min_count", min_count, 1, 2**31)
    number = 0 if mode == "online" else 1 + TAILS.index(tail)
    return number, variance, float(var_floor), least


def _working_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _members(member: Any, shape: tuple[int, ...], device: torch.device, dtypes: tuple[torch.dtype, ...], accepted: str) -> Tensor:
    arg.tensor("member", member)
    if member.dtype not in dtypes:
        raise TypeError(f"member: got {arg.describe(member)}; accepted is {accepted}")
    if tuple(member.shape) != shape:
        raise ValueError(f"member: got shape {tuple(member.shape)}; accepted is {shape}, one for each model and sample of scores")
    if member.device != device:
        raise ValueError(f"member: on {member.device}, but scores is on {device}; move one of them")
    return member


def _targets(target: Any, sample_shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, bool]:
    """target as [T, N, A], and whether it was a single one."""
    arg.floating("target", target)
    arg.not_differentiable("lira", target=target)
    single = tuple(target.shape) == sample_shape
    if not single and (target.dim() != len(sample_shape) + 1 or tuple(target.shape[1:]) != sample_shape):
        raise ValueError(
            f"target: got shape {tuple(target.shape)}; accepted is {sample_shape}, or several targets, (T, "
            f"{', '.join(map(str, sample_shape))}): the shape of one model's scores"
        )
    if target.device != device:
        raise ValueError(f"target: on {target.device}, but the shadow models' scores are on {device}; move one of them")
    full = target.unsqueeze(0) if single else target
    return (full if len(sample_shape) == 2 else full.unsqueeze(-1)), single


def _one_variance(variance: str, mean: Tensor, per_example: Tensor, count: Tensor) -> Tensor:
    """One float64 number a side, [2], from each example's mean and variance [2, N, A] and count [2, N]."""
    n = count.to(torch.float64).unsqueeze(-1)
    there = n > 0
    mean, per_example = (torch.where(there, x.to(torch.float64), 0.0) for x in (mean, per_example))
    queries = mean.shape[-1]
    if variance == "mean_std":
        return (per_example.sqrt().sum(dim=(1, 2)) / (there.sum(dim=(1, 2)) * queries)).square()
    weight = n.sum(dim=(1, 2)) * queries
    within = (n * per_example).sum(dim=(1, 2)) / weight
    if variance == "pooled":
        return within
    grand = ((n * mean).sum(dim=(1, 2)) / weight).view(2, 1, 1)
    between = (n * (mean - grand).square()).sum(dim=(1, 2)) / weight
    both = within + between
    return both[1:].expand(2) if variance == "global_in" else both


def _ratio(
    target: Tensor, center: Tensor, variance: Tensor, count: Tensor, rule: tuple[int, str, float, int], single: bool
) -> Tensor:
    mode, _, floor, least = rule
    out = torch.empty(target.shape[:2], dtype=center.dtype, device=center.device)
    arg.run(
        "lira_ratio",
        _lira_ratio,
        [out],
        (target.to(center.dtype).contiguous(), center, variance, count, mode, floor, least, out),
    )
    return out[0] if single else out


def lira(
    target: Tensor | str,
    scores: Tensor,
    member: Tensor,
    *,
    mode: str = "online",
    location: str = "mean",
    variance: str = "per_example",
    tail: str = "one_sided",
    var_floor: float = VAR_FLOOR,
    min_count: int | None = None,
) -> Tensor:
    """Likelihood-ratio attack (Carlini et al., S&P'22, algorithm 1; offline: equation 4); higher = more member-like.

    With mean (or median) m, variance s^2 of the scores of the IN and OUT models of a sample, and target score t:

    - ``mode="online"``: log N(t; m_in, s_in^2) - log N(t; m_out, s_out^2)
    - ``mode="offline"``, ``tail="one_sided"``: z = (t - m_out) / s_out. It ranks as the paper's 1 - Pr[Z > t] does, which itself is
      exactly 1 from z = 8.3 up. ``tail="density"``: -log N(t; m_out, s_out^2), two-sided, as the paper's code has it.

    ``variance``:

    - ``"per_example"``: each sample's (and query's) own
    - ``"global"``: of all scores of a side around their common mean, the spread between samples included; IN and OUT separate (LeakPro,
      SACRO)
    - ``"global_in"``: the same, but the IN value serves both sides (the paper's code)
    - ``"pooled"``: within samples only, averaged with the counts as weights (TensorFlow Privacy)
    - ``"mean_std"``: the square of the mean standard deviation of the samples (PrivacyGuard)
    - ``"auto"``: ``"global"`` below 64 shadow models, else ``"per_example"`` (LeakPro's switch)

    One NaN score makes every variance but ``"per_example"`` NaN, and with it all results.

    Args:
        target: one model's scores, with the shape of ``scores[0]``; several, [T, ...]; or ``"loo"``: every shadow model in turn is the
            target and the others are its shadow models (a variance that is not per example is taken from all of them).
        scores: [M, N] or [M, N, A] (A queries a sample), for instance ``logit_confidence``; float32, float64, or a 16-bit type, which
            is widened.
        member: bool[M, N], whether model m was trained on sample n. The counts may differ between samples.
        mode: ``"online"`` or ``"offline"`` (only OUT models count).
        location: ``"mean"`` (the paper's text, most tools) or ``"median"`` (the paper's code), of an even count the mean of the middle two.
        variance, tail: as above.
        var_floor: lower bound of every variance, >= 0. At 0, equal scores give infinities or NaN.
        min_count: a sample with fewer models on a side (offline: OUT) scores NaN; default 2 for per-example variances, else 1. "loo"
            counts without the target.

    Returns:
        float32 (float64 if target or scores are): [N] for one target, [T, N] for several, [M, N] for "loo".

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.
        RuntimeError: an input requires grad outside ``torch.no_grad()`` (the score has no gradient).

    >>> import torch
    >>> from fastforget.ops import membership
    >>> scores = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    >>> member = torch.tensor([[False], [False], [True], [True]])
    >>> membership.lira(torch.tensor([5.0]), scores, member).item()  # ((5 - 1)^2 - (5 - 5)^2) / 2
    8.0
    >>> membership.lira("loo", scores, member, mode="offline", variance="global").shape
    torch.Size([4, 1])
    """
    arg.floating("scores", scores)
    arg.not_differentiable("lira", scores=scores)
    if scores.dim() not in (2, 3) or (scores.dim() == 3 and scores.shape[2] == 0):
        raise ValueError(f"scores: got {arg.describe(scores)}; accepted is [models, samples] or [models, samples, queries >= 1]")
    shape = tuple(scores.shape)
    member = _members(member, shape[:2], scores.device, (torch.bool,), "bool[models, samples]").contiguous()
    loo = isinstance(target, str)
    if loo and target != "loo":
        raise ValueError(f"target: got {target!r}; accepted is a tensor of scores or 'loo'")
    rule = _rule(mode, location, variance, tail, var_floor, min_count, shape[0])
    dtype = _working_dtype(scores) if isinstance(target, str) else _working_dtype(scores, arg.tensor("target", target))
    full = (scores if scores.dim() == 3 else scores.unsqueeze(-1)).to(dtype).contiguous()
    device, (models, samples, queries) = full.device, full.shape
    median, own = location == "median", rule[1] == "per_example"

    def stats(median: bool) -> tuple[Tensor, Tensor, Tensor]:
        center, spread = (torch.empty((2, samples, queries), dtype=dtype, device=device) for _ in range(2))
        count = torch.empty((2, samples), dtype=torch.int64, device=device)
        arg.run("lira_stats", _lira_stats, [center, spread, count], (full, member, median, center, spread, count))
        return center, spread, count

    if isinstance(target, str):
        given = torch.empty(0, dtype=dtype, device=device) if own else _one_variance(rule[1], *stats(False)).to(dtype)
        out = torch.empty((models, samples), dtype=dtype, device=device)
        arg.run(
            "lira_loo", _lira_loo, [out], (full, member, median, given.contiguous(), rule[0], rule[2], rule[3], out)
        )
        return out
    targets, single = _targets(target, shape[1:], device)
    center, spread, count = stats(median)
    if not own:
        mean = stats(False)[0] if median else center
        spread = _one_variance(rule[1], mean, spread, count).to(dtype).view(2, 1, 1).contiguous()
    return _ratio(targets, center, spread, count, rule, single)


def lira_probability(ratio: Tensor) -> Tensor:
    """U-LiRA's membership probability N_in / (N_in + N_out) from online LiRA's log ratio (Hayes et al., SaTML'25).

    It is the logistic function of the log ratio: no densities are formed, so there is no 0 / 0 in the tails. Above one half means member.

    Args:
        ratio: log N_in - log N_out, from :func:`lira` or :meth:`Lira.score` in mode "online"; any shape.

    Returns:
        The probability, with ratio's shape and dtype; NaN where ratio is.

    Raises:
        TypeError: not a floating tensor.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> membership.lira_probability(torch.tensor([0.0, 200.0, -200.0])).tolist()
    [0.5, 1.0, 0.0]
    """
    return torch.sigmoid(arg.floating("ratio", ratio))
