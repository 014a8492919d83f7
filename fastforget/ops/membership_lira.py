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

from .. import _schema
from . import _arguments as arg

_lira_stats = _schema.overload("lira_stats")
_lira_ratio = _schema.overload("lira_ratio")
_lira_loo = _schema.overload("lira_loo")
_lira_update = _schema.overload("lira_update_")

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


class Lira:
    """LiRA from a stream of shadow models: running moments, 32 bytes a sample and query whatever the number of models.

    The state is float64 and mergeable, so processes can each take some of the models. Streamed scores equal :func:`lira`'s on stored
    scores up to rounding, and so do merges in any order. The median needs all scores: use :func:`lira` for that.

    Args:
        n_samples: N, the samples in question.
        queries: A, scores a sample and model.
        device: where the state lives, and where scores must be.

    Raises:
        TypeError, ValueError: sizes out of range.

    >>> import torch
    >>> from fastforget.ops import membership
    >>> a, b = membership.Lira(1), membership.Lira(1)
    >>> for score, member in ((0.0, False), (4.0, True)):
    ...     _ = a.update(torch.tensor([score]), torch.tensor([member]))
    >>> _ = b.update(torch.tensor([[2.0], [6.0]]), torch.tensor([[False], [True]]))
    >>> a.merge(b).score(torch.tensor([5.0])).item(), a.count.tolist()
    (8.0, [[2], [2]])
    """

    def __init__(self, n_samples: int, queries: int = 1, device: torch.device | str = "cpu") -> None:
        self.n_samples = arg.integer("n_samples", n_samples, 0, 2**48)
        self.queries = arg.integer("queries", queries, 1, 2**31)
        shape = (2, self.n_samples, self.queries)
        self._count = torch.zeros(shape[:2], dtype=torch.int64, device=device)
        self._mean = torch.zeros(shape, dtype=torch.float64, device=device)
        self._m2 = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def count(self) -> Tensor:
        """int64[2, N]: OUT and IN models seen of each sample."""
        return self._count

    @property
    def device(self) -> torch.device:
        return self._count.device

    def __repr__(self) -> str:
        return f"Lira(n_samples={self.n_samples}, queries={self.queries}, device='{self.device}')"

    def _state(self) -> dict[str, Tensor]:
        return {"count": self._count, "mean": self._mean, "m2": self._m2}

    def update(self, scores: Tensor, member: Tensor) -> Lira:
        """Takes in one model's scores, [N] ([N, A] with queries > 1), or several models', [B, N] ([B, N, A]).

        Args:
            scores: any float dtype (16-bit types are widened). A NaN makes that sample's group NaN for good: skip it with -1 instead.
            member: bool or int8 with scores' shape less queries: 1 = trained with the sample (IN), 0 = without (OUT), -1 = skip.

        Returns:
            self.

        Raises:
            TypeError, ValueError: wrong dtype, shape or device (the state stays as it was).
            RuntimeError: scores requires grad outside ``torch.no_grad()``.
        """
        arg.floating("scores", scores)
        arg.not_differentiable("Lira.update", scores=scores)
        one = (self.n_samples,) if self.queries == 1 else (self.n_samples, self.queries)
        got = tuple(scores.shape)
        if got != one and (got[1:] not in (one, (self.n_samples, self.queries)) or not got):
            raise ValueError(f"scores: got shape {got}; accepted is {one}, or (B, *{one}) for several models")
        models = 1 if got == one else got[0]
        lead = (self.n_samples,) if got == one else got[:2]
        if scores.device != self.device:
            raise ValueError(f"scores: on {scores.device}, but the state is on {self.device}; move one of them")
        member = _members(member, lead, self.device, (torch.bool, torch.int8), "bool, or int8 of 1, 0 and -1")
        full = scores.to(_working_dtype(scores)).reshape(models, self.n_samples, self.queries).contiguous()
        groups = member.to(torch.int8).reshape(models, self.n_samples).contiguous()
        state = list(self._state().values())
        arg.run("lira_update_", _lira_update, state, (full, groups, *state))
        return self

    def merge(self, other: Lira) -> Lira:
        """Adds the models that ``other`` has seen (Chan et al., 1979); ``other`` stays as it is.

        Returns:
            self.

        Raises:
            TypeError, ValueError: not a :class:`Lira`, other sizes, or another device.
        """
        if not isinstance(other, Lira):
            raise TypeError(f"other: got {arg.describe(other)}; accepted is a Lira")
        facts, others = ((x.n_samples, x.queries, x.device) for x in (self, other))
        if facts != others:
            raise ValueError(f"other: got {other!r}; accepted is one like this, {self!r}")
        total = self._count + other._count
        share = (other._count.to(torch.float64) / total.clamp_min(1)).unsqueeze(-1)
        distance = other._mean - self._mean
        self._m2 += other._m2 + distance.square() * share * self._count.unsqueeze(-1)
        # from the larger side, so that the result does not depend on which of the two is self
        self._mean = torch.where(share > 0.5, other._mean - distance * (1.0 - share), self._mean + distance * share)
        self._count = total
        return self

    def score(
        self,
        target: Tensor,
        *,
        mode: str = "online",
        location: str = "mean",
        variance: str = "per_example",
        tail: str = "one_sided",
        var_floor: float = VAR_FLOOR,
        min_count: int | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """:func:`lira`'s score of one target, [N] ([N, A]), or several, [T, N] ([T, N, A]), from the moments so far.

        With ``index``, int64[n], the target holds these samples only (n in place of N); a variance that is not per example is still that of
        all samples.

        Options and result as in :func:`lira`, in the target's dtype (float32 for 16-bit ones); computed in float64. "auto" goes by the
        sample with the most models.

        Raises:
            TypeError, ValueError: as :func:`lira`; ``location="median"``, which moments don't tell.

        """
        if location == "median":
            raise ValueError(
                "location: got 'median'; accepted is 'mean': the state holds moments, which do not tell a median. Keep the scores and "
                "use lira()"
            )
        most = int(self._count.sum(dim=0).max()) if variance == "auto" and self.n_samples else 0
        rule = _rule(mode, location, variance, tail, var_floor, min_count, most)
        if index is not None and (arg.tensor("index", index).dtype != torch.int64 or index.dim() != 1):
            raise TypeError(f"index: got {arg.describe(index)}; accepted is int64[n], positions of samples")
        samples = self.n_samples if index is None else len(index)
        shape = (samples,) if self.queries == 1 else (samples, self.queries)
        if self.queries == 1 and isinstance(target, Tensor) and target.dim() == 3 and target.shape[2] == 1:
            target = target.squeeze(-1)
        targets, single = _targets(target, shape, self.device)
        n = self._count.to(torch.float64).unsqueeze(-1)
        spread = self._m2 / n
        if rule[1] != "per_example":
            spread = _one_variance(rule[1], self._mean, spread, self._count).view(2, 1, 1).contiguous()
        mean, count = self._mean, self._count
        if index is not None:
            mean, count = mean[:, index], count[:, index]
            spread = spread[:, index] if rule[1] == "per_example" else spread
        return _ratio(targets, mean, spread, count, rule, single).to(_working_dtype(target))

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the state's tensors: "count", "mean", "m2"."""
        return {name: x.clone() for name, x in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> Lira:
        """Takes over what :meth:`state_dict` of a state with the same sizes returned (any device).

        Returns:
            self.

        Raises:
            ValueError: missing or foreign entries, another shape or dtype (the state stays as it was).
        """
        mine = self._state()
        if not isinstance(state, dict) or set(state) != set(mine):
            got = sorted(state) if isinstance(state, dict) else arg.describe(state)
            raise ValueError(f"state: got {got}; accepted are the entries {', '.join(mine)} of state_dict()")
        for name, x in mine.items():
            given = arg.tensor(f"state['{name}']", state[name])
            if given.shape != x.shape or given.dtype != x.dtype:
                raise ValueError(f"state['{name}']: got {arg.describe(given)}; accepted is shape {tuple(x.shape)}, {x.dtype}")
        self._count, self._mean, self._m2 = (state[name].to(self.device, copy=True).contiguous() for name in mine)
        return self
