"""Membership scores from arrays in files: a chunk of samples at a time, for which every shadow model's rows are added to running sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._progress import Progress
from ...ops.membership import membership_scores
from ...ops.membership._lira import AUTO_MODELS
from ..names import DIRECTION
from ..shadow.attacks import COMMON_RULE, CONVENTIONS, SOURCES
from ..shadow.sums import CommonVariance, ShadowSums, rmia_of_log_ratios
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
        scores = membership_scores(full, labels[:, None].expand(full.shape[:2]).contiguous())
        return {name: values for name, values in scores._asdict().items() if name != "correct"}


@dataclass
class Options:
    """The conventions in force."""

    gamma: float = 2.0
    a: float = 0.3
    strict: bool = False
    variance: str = "auto"
    tail: str = "one_sided"
    chunk: int | None = None

    def stated(self, attack: str, models: int) -> dict[str, Any]:
        """What an attack's number means, with this many shadow models."""
        facts: dict[str, Any] = {"source": SOURCES[attack]} if attack in SOURCES else {}
        if attack.startswith("lira"):
            facts |= {"location": COMMON_RULE["location"], "variance": self.variance_rule(models), "var_floor": COMMON_RULE["var_floor"]}
        if attack == "lira_offline":
            facts["tail"] = self.tail
        if attack.startswith("rmia"):
            facts |= {"gamma": self.gamma, "strict": self.strict}
        if attack == "rmia_offline":
            facts["a"] = self.a
        return facts

    def variance_rule(self, models: int) -> str:
        return self.variance if self.variance != "auto" else ("per_example" if models >= AUTO_MODELS else "global")

    def lira(self, attack: str) -> dict[str, Any]:
        """The options of LiRA's score."""
        return {"mode": CONVENTIONS[attack]["mode"], "tail": self.tail, "var_floor": COMMON_RULE["var_floor"]}


@dataclass
class Result:
    """Scores float64[N] by attack, higher = more member-like, and what was counted on the way."""

    scores: dict[str, Tensor]
    counts: dict[str, int] = field(default_factory=dict)
    conventions: dict[str, dict[str, Any]] = field(default_factory=dict)


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
        z = None if population is None else _Gathered(population, wanted & {"attack_p", "rmia", "rmia_offline"}, options)
        if z is not None:
            z.gather(sizes[1], shown)
        x = _Gathered(inputs, wanted, options)
        x.gather(sizes[0], shown)
    result = Result({}, x.counts)
    for attack in attacks:
        if attack in x.scores:
            scores = x.scores[attack]
        elif attack == "attack_p":
            assert z is not None
            scores = _attack_p(x.loss[:, 0].contiguous(), z.loss[:, 0])
        elif attack.startswith("rmia"):
            log_ratio, log_ratio_z = x.log_ratio(attack), None if z is None else z.log_ratio(attack)
            scores = rmia_of_log_ratios(log_ratio, log_ratio_z, options.gamma, options.strict)
        else:
            assert x.common_variance is not None
            scores = x.common_variance.scores(options.variance_rule(models), sizes[0], **options.lira(attack))
        result.scores[attack] = scores
        result.conventions[attack] = options.stated(attack, models)
        if attack.startswith("rmia"):
            compared = f"{len(z.loss)} samples" if z is not None else f"the {n} samples themselves"
            result.conventions[attack]["population"] = compared
    if z is not None:
        result.counts |= {f"population_{k}": v for k, v in z.counts.items()}
    return result


class _Gathered:
    """What remains of all chunks: the scores that are ready, and what the later attacks need."""

    def __init__(self, inputs: Inputs, wanted: set[str], options: Options) -> None:
        self.inputs, self.wanted, self.options = inputs, wanted, options
        n, a = len(inputs.target), inputs.queries
        self.scores: dict[str, Tensor] = {}
        self.counts = {"samples": n, "nan_target": 0}
        if inputs.shadows:
            self.counts |= {"shadow_models": len(inputs.shadows), "nan_shadow_scores": 0, "never_out": 0}
        if inputs.keep is not None:
            self.counts["never_in"] = 0
        need_loss = wanted & {"attack_p", "rmia", "rmia_offline"}
        self.loss = torch.empty((n if need_loss else 0, a), dtype=torch.float64)
        # logarithms of RMIA's reference probabilities
        self.log_reference: dict[str, Tensor] = {}
        if inputs.shadows:
            self.log_reference = {name: torch.empty((n, a), dtype=torch.float64) for name in wanted & {"rmia", "rmia_offline"}}
        self.liras = sorted(wanted & {"lira", "lira_offline"})
        own_variance = options.variance_rule(len(inputs.shadows)) == "per_example"
        self.common_variance = CommonVariance(n, a) if self.liras and inputs.shadows and not own_variance else None

    def gather(self, chunk: int, shown: Progress[int]) -> None:
        inputs, n = self.inputs, len(self.inputs.target)
        for low in range(0, n, chunk):
            high = min(low + chunk, n)
            target = inputs.read(inputs.target, low, high)
            shown.step()
            self.counts["nan_target"] += int(torch.isnan(target["loss"]).any(dim=1).sum())
            for attack in self.wanted & set(DIRECTION):
                self._put(attack, low, DIRECTION[attack] * target[attack].double().mean(dim=1))
            if len(self.loss):
                self.loss[low:high] = target["loss"].double()
            if inputs.shadows and self.wanted & set(SHADOWED):
                self._take(low, target, self._sums(low, high, target["loss"], shown))

    def _sums(self, low: int, high: int, target_loss: Tensor, shown: Progress[int]) -> ShadowSums:
        """All shadow models' sums over a chunk; a model is left out for a sample on which it has a NaN score."""
        inputs, attack_r = self.inputs, "attack_r" in self.wanted
        sums = ShadowSums(
            high - low, inputs.queries, probabilities=bool(self.log_reference), target_loss=target_loss if attack_r else None
        )
        for number, rows in enumerate(inputs.shadows):
            scores = inputs.read(rows, low, high)
            nan = torch.isnan(scores["logit_confidence"]).any(dim=1)
            self.counts["nan_shadow_scores"] += int(nan.sum())
            side = torch.zeros(high - low, dtype=torch.int8) if inputs.keep is None else inputs.keep[number, low:high].to(torch.int8)
            sums.add(scores["logit_confidence"], scores["loss"], side.masked_fill(nan, -1))
            shown.step(1, rows.path.name)
        return sums

    def _take(self, low: int, target: dict[str, Tensor], sums: ShadowSums) -> None:
        """Keeps what is needed of a chunk's sums."""
        count, phi = sums.count, target["logit_confidence"]
        self.counts["never_out"] += int((count[0] == 0).sum())
        if self.inputs.keep is not None:
            self.counts["never_in"] += int((count[1] == 0).sum())
        if self.common_variance is not None:
            self.common_variance.add(low, phi, sums)
        else:
            for attack in self.liras:
                self._put(attack, low, sums.lira_scores(phi.double(), **self.options.lira(attack)))
        if "attack_r" in self.wanted:
            self._put("attack_r", low, sums.attack_r_scores())
        for attack, place in self.log_reference.items():
            a = self.options.a if attack == "rmia_offline" else None
            # without keep these are a population that no model was trained on
            place[low : low + len(phi)] = sums.log_reference(a, never_in=self.inputs.keep is None)

    def _put(self, attack: str, low: int, values: Tensor) -> None:
        place = self.scores.setdefault(attack, torch.empty(self.counts["samples"], dtype=torch.float64))
        place[low : low + len(values)] = values

    def log_ratio(self, attack: str) -> Tensor:
        """RMIA's log(p_target / p), [A, N], in the memory of the references where that is possible: the arrays may be large."""
        return self.log_reference.pop(attack).add_(self.loss).neg_().T.contiguous()


def _attack_p(loss: Tensor, population: Tensor) -> Tensor:
    """Share of the population whose loss is above the sample's."""
    known = population[~torch.isnan(population)].sort().values
    if len(known) == 0:
        raise BadArray("--population-logits: every sample's loss is NaN")
    above = len(known) - torch.searchsorted(known, loss, right=True)
    return torch.where(torch.isnan(loss), torch.nan, above.double() / len(known))
