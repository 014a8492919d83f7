"""Membership scores from arrays in files: a chunk of samples at a time, each shadow model's rows folded into running sums at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._progress import Progress
from ...ops.membership import Lira, membership_scores, rmia
from ...ops.membership._lira import AUTO_MODELS
from ...ops.membership._rmia import vote_shares
from ..measure.attacks import DIRECTION
from ..shadow.reading import SOURCES
from .files import BadArray, Rows

SHADOWED = ("lira", "lira_offline", "rmia", "rmia_offline", "attack_r")
NEED_KEEP = ("lira", "rmia")
OF_SCORES = ("loss", "confidence", "logit_confidence")
ATTACKS = (*DIRECTION, "attack_p", *SHADOWED)
CHUNK_BYTES = 8 << 20  # of a file's rows, and of the sums beside them
STATE_BYTES = 100  # about what the sums and their temporaries take for one sample and query


@dataclass
class Inputs:
    """The opened and checked files. ``scores``: they hold logit-scaled confidences, not logits."""

    target: Rows
    labels: Tensor | None
    shadows: list[Rows]
    keep: Tensor | None
    scores: bool

    @property
    def queries(self) -> int:
        shape = self.target.shape
        if self.scores:
            return shape[1] if len(shape) == 2 else 1
        return shape[1] if len(shape) == 3 else 1

    def chunk(self) -> int:
        widest = max([STATE_BYTES * self.queries, self.target.row_bytes, *(s.row_bytes for s in self.shadows)])
        return max(1, min(len(self.target), CHUNK_BYTES // widest))

    def read(self, rows: Rows, low: int, high: int) -> dict[str, Tensor]:
        """Scores [high - low, A] by name."""
        raw = rows.read(low, high)
        wide = raw if raw.dtype == torch.float64 else raw.float()
        if self.scores:
            phi = wide.reshape(len(wide), self.queries)
            loss = torch.nn.functional.softplus(-phi)
            return {"logit_confidence": phi, "loss": loss, "confidence": (-loss).exp()}
        assert self.labels is not None
        labels = self.labels[low:high]
        full = wide if wide.dim() == 3 else wide.unsqueeze(1)
        found = membership_scores(full, labels[:, None].expand(full.shape[:2]).contiguous())
        return {k: v for k, v in found._asdict().items() if k != "correct"}


@dataclass
class Options:
    """The conventions in force."""

    gamma: float = 2.0
    a: float = 0.3
    strict: bool = False
    variance: str = "auto"
    tail: str = "one_sided"
    chunk: int | None = None

    def of(self, attack: str, models: int) -> dict[str, Any]:
        found: dict[str, Any] = {"source": SOURCES[attack]} if attack in SOURCES else {}
        if attack.startswith("lira"):
            found |= {"location": "mean", "variance": self.rule(models), "var_floor": 1e-12}
        if attack == "lira_offline":
            found["tail"] = self.tail
        if attack.startswith("rmia"):
            found |= {"gamma": self.gamma, "strict": self.strict}
        if attack == "rmia_offline":
            found["a"] = self.a
        return found

    def rule(self, models: int) -> str:
        return self.variance if self.variance != "auto" else ("per_example" if models >= AUTO_MODELS else "global")


@dataclass
class Result:
    """Scores float64[N] by attack, higher = more member-like, and what was counted on the way."""

    scores: dict[str, Tensor]
    counts: dict[str, int] = field(default_factory=dict)
    conventions: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Sums:
    """What a chunk's shadow models are folded into; ``keep`` bool[M, n] or None: none was trained on any."""

    def __init__(self, n: int, queries: int, target_loss: Tensor, wanted: set[str]) -> None:
        self.lira = Lira(n, queries)
        self.log_p, self.above = None, None
        if wanted & {"rmia", "rmia_offline"}:
            self.log_p = torch.full((2, n, queries), -torch.inf, dtype=torch.float64)
        if "attack_r" in wanted:
            self.above = torch.zeros((n, queries), dtype=torch.float64)
        self.target_loss, self.bad = target_loss, 0

    def add(self, found: dict[str, Tensor], inside: Tensor) -> None:
        phi, loss = found["logit_confidence"], found["loss"]
        bad = torch.isnan(phi).any(dim=1)
        self.bad += int(bad.sum())
        groups = torch.where(bad, -1, inside.to(torch.int8)).to(torch.int8)
        self.lira.update(phi[None], groups[None])
        if self.log_p is not None:
            for side in (0, 1):
                chosen = groups == side
                self.log_p[side, chosen] = torch.logaddexp(self.log_p[side, chosen], -loss[chosen].double())
        if self.above is not None:
            self.above += ((groups == 0)[:, None] & (loss > self.target_loss)).double()


def run(inputs: Inputs, population: Inputs | None, attacks: list[str], options: Options, bar: Callable[[int], Progress[int]]) -> Result:
    """Scores of every sample by every attack.

    Raises:
        BadArray: a file turns out unusable.
    """
    n, models = len(inputs.target), len(inputs.shadows)
    wanted = set(attacks)
    work = [inputs, *([population] if population is not None else [])]
    sizes = [options.chunk or part.chunk() for part in work]
    with bar(sum(-(-len(p.target) // c) * (1 + len(p.shadows)) for p, c in zip(work, sizes, strict=True))) as shown:
        # of the population only its losses and reference probabilities are needed
        z = None if population is None else _fold(population, sizes[1], wanted & {"attack_p", "rmia", "rmia_offline"}, options, shown)
        x = _fold(inputs, sizes[0], wanted, options, shown)
    result = Result({}, x.counts)
    for attack in attacks:
        if attack in x.scores:
            found = x.scores[attack]
        elif attack == "attack_p":
            assert z is not None
            found = _attack_p(x.loss[:, 0].contiguous(), z.loss[:, 0])
        elif attack.startswith("rmia"):
            found = _rmia(attack, x, z, options)
        else:
            assert x.late is not None
            found = x.late.score("offline" if attack == "lira_offline" else "online", options.rule(models), options.tail, sizes[0])
        result.scores[attack] = found
        result.conventions[attack] = options.of(attack, models)
        if attack.startswith("rmia"):
            of = f"{len(z.loss)} samples" if z is not None else f"the {n} samples themselves"
            result.conventions[attack]["population"] = of
    if z is not None:
        result.counts |= {f"population_{k}": v for k, v in z.counts.items()}
    return result


class _Folded:
    """What remains of all chunks: scores that are ready, and what the later attacks need."""

    def __init__(self, inputs: Inputs, wanted: set[str], options: Options) -> None:
        n, a = len(inputs.target), inputs.queries
        self.scores: dict[str, Tensor] = {}
        self.counts = {"samples": n, "nan_target": 0}
        if inputs.shadows:
            self.counts |= {"shadow_models": len(inputs.shadows), "nan_shadow_scores": 0, "never_out": 0}
        if inputs.keep is not None:
            self.counts["never_in"] = 0
        self.own_variance = options.rule(len(inputs.shadows)) == "per_example"
        need_loss = wanted & {"attack_p", "rmia", "rmia_offline"}
        self.loss = torch.empty((n if need_loss else 0, a), dtype=torch.float64)
        rmias = wanted & {"rmia", "rmia_offline"} if inputs.shadows else set()
        self.log_ref: dict[str, Tensor] = {m: torch.empty((n, a), dtype=torch.float64) for m in rmias}
        self.late: _Late | None = None
        if wanted & {"lira", "lira_offline"} and inputs.shadows and not self.own_variance:
            self.late = _Late(n, a)

    def put(self, attack: str, low: int, values: Tensor) -> None:
        place = self.scores.setdefault(attack, torch.empty(self.counts["samples"], dtype=torch.float64))
        place[low : low + len(values)] = values


class _Late:
    """LiRA with one variance a side, which is known only when all chunks were seen: means, counts, and running sums of the spread."""

    def __init__(self, n: int, queries: int) -> None:
        self.target = torch.empty((n, queries), dtype=torch.float64)
        self.mean = torch.empty((2, n, queries), dtype=torch.float64)
        self.count = torch.empty((2, n), dtype=torch.int64)
        self.weight, self.grand, self.within, self.between, self.deviations, self.there = torch.zeros((6, 2), dtype=torch.float64)

    def take(self, low: int, high: int, target: Tensor, state: dict[str, Tensor]) -> None:
        self.target[low:high], self.mean[:, low:high], self.count[:, low:high] = target.double(), state["mean"], state["count"]
        n, queries = state["count"].double().unsqueeze(-1), target.shape[1]
        weight = n.sum(dim=(1, 2)) * queries
        grand = (n * state["mean"]).sum(dim=(1, 2)) / weight.clamp_min(1.0)
        between = (n * (state["mean"] - grand.view(2, 1, 1)).square()).sum(dim=(1, 2))
        # two parts' spreads about their common mean: Chan et al., 1979
        total, distance = (self.weight + weight).clamp_min(1.0), grand - self.grand
        self.between += between + distance.square() * self.weight * weight / total
        self.grand += distance * weight / total
        self.weight += weight
        self.within += state["m2"].sum(dim=(1, 2))
        self.deviations += (state["m2"] / n.clamp_min(1.0)).sqrt().sum(dim=(1, 2))
        self.there += (n > 0).sum(dim=(1, 2)) * queries

    def variance(self, rule: str) -> Tensor:
        """[2], as ``ff.ops.membership.lira`` defines the rules."""
        if rule == "mean_std":
            return (self.deviations / self.there).square()
        if rule == "pooled":
            return self.within / self.weight
        both = (self.within + self.between) / self.weight
        return both[1:].expand(2) if rule == "global_in" else both

    def score(self, mode: str, rule: str, tail: str, chunk: int) -> Tensor:
        common, (n, queries) = self.variance(rule).view(2, 1, 1), self.target.shape
        out = torch.empty(n, dtype=torch.float64)
        for low in range(0, n, chunk):
            part = slice(low, min(low + chunk, n))
            count, target = self.count[:, part], self.target[part]
            # a state whose samples all have the common variance
            state = {"count": count, "mean": self.mean[:, part], "m2": (common * count.unsqueeze(-1)).expand_as(self.mean[:, part])}
            lira = Lira(len(target), queries).load_state_dict(state)
            out[part] = lira.score(target if queries > 1 else target[:, 0], mode=mode, tail=tail, min_count=1)
        return out


def _fold(inputs: Inputs, chunk: int, wanted: set[str], options: Options, shown: Progress[int]) -> _Folded:
    whole = _Folded(inputs, wanted, options)
    n = len(inputs.target)
    for low in range(0, n, chunk):
        high = min(low + chunk, n)
        found = inputs.read(inputs.target, low, high)
        shown.step()
        whole.counts["nan_target"] += int(torch.isnan(found["loss"]).any(dim=1).sum())
        for attack in wanted & set(DIRECTION):
            whole.put(attack, low, DIRECTION[attack] * found[attack].double().mean(dim=1))
        if len(whole.loss):
            whole.loss[low:high] = found["loss"].double()
        if inputs.shadows and wanted & set(SHADOWED):
            sums = _Sums(high - low, inputs.queries, found["loss"], wanted)
            for i, rows in enumerate(inputs.shadows):
                inside = torch.zeros(high - low, dtype=torch.bool) if inputs.keep is None else inputs.keep[i, low:high]
                sums.add(inputs.read(rows, low, high), inside)
                shown.step(1, rows.path.name)
            _take(whole, sums, found, low, wanted, options, inputs)
    return whole


def _take(whole: _Folded, sums: _Sums, found: dict[str, Tensor], low: int, wanted: set[str], options: Options, inputs: Inputs) -> None:
    """Moves what a chunk came to into the whole."""
    count, high = sums.lira.count, low + len(found["loss"])
    whole.counts["nan_shadow_scores"] += sums.bad
    whole.counts["never_out"] += int((count[0] == 0).sum())
    if inputs.keep is not None:
        whole.counts["never_in"] += int((count[1] == 0).sum())
    if whole.late is not None:
        whole.late.take(low, high, found["logit_confidence"], sums.lira.state_dict())
    elif wanted & {"lira", "lira_offline"}:
        target = found["logit_confidence"].double()
        for attack, mode in (("lira", "online"), ("lira_offline", "offline")):
            if attack in wanted:
                whole.put(attack, low, sums.lira.score(target if inputs.queries > 1 else target[:, 0], mode=mode, tail=options.tail))
    if sums.above is not None:
        share = (sums.above / count[0].double()[:, None]).mean(dim=1)
        whole.put("attack_r", low, torch.where(torch.isnan(found["loss"]).any(dim=1), torch.nan, share))
    if sums.log_p is None:
        return
    times = count.double().unsqueeze(-1)
    out, inside = torch.where(times > 0, sums.log_p - times.log(), torch.nan)
    for attack, place in whole.log_ref.items():
        if attack == "rmia_offline":
            factor, rest = (torch.tensor(v, dtype=torch.float64).log() for v in ((1 + options.a) / 2, (1 - options.a) / 2))
            place[low:high] = torch.logaddexp(factor + out, rest)
        elif inputs.keep is None:  # a population that no model was trained on
            place[low:high] = out
        else:
            place[low:high] = torch.logaddexp(out, inside) - math.log(2.0)


def _rmia(attack: str, x: _Folded, z: _Folded | None, options: Options) -> Tensor:
    """The log ratios are ready: several queries are voted on, and one query's ratios are the target's probabilities beside a reference
    model of probability 1."""
    log_r = _log_ratios(attack, x)
    log_r_z = log_r if z is None else _log_ratios(attack, z)
    if len(log_r) > 1:
        ratio = log_r.exp_()
        return vote_shares(ratio, ratio if z is None else log_r_z.exp_(), options.gamma, options.strict)
    ones, ones_z = (torch.zeros((), dtype=torch.float64).expand(1, r.shape[1]) for r in (log_r, log_r_z))
    own = torch.ones(log_r.shape[1], dtype=torch.bool) if z is None and log_r.shape[1] > 1 else None
    how: dict[str, Any] = {"mode": "offline", "a": 1.0, "gamma": options.gamma, "strict": options.strict}
    return rmia(log_r[0], ones, log_r_z[0], ones_z, self_in_z=own, **how)


def _log_ratios(attack: str, of: _Folded) -> Tensor:
    """[A, N], in the memory of the references where that is possible: the arrays may be large."""
    return of.log_ref.pop(attack).add_(of.loss).neg_().T.contiguous()


def _attack_p(loss: Tensor, population: Tensor) -> Tensor:
    """Share of the population whose loss is above the sample's."""
    known = population[~torch.isnan(population)].sort().values
    if len(known) == 0:
        raise BadArray("--population-logits: every sample's loss is NaN")
    above = len(known) - torch.searchsorted(known, loss, right=True)
    return torch.where(torch.isnan(loss), torch.nan, above.double() / len(known))
