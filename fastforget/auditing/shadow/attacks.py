"""The attacks on shadow models' sums: their conventions, the scores of a target, and their place among the scores of an audit."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._data import Source
from ...ops.membership import Lira, rmia, rmia_vote, roc_stats
from ...ops.membership._lira import AUTO_MODELS
from ..measure.passes import Scored
from .sums import LargerLosses, Probabilities, ShadowSums

NAMES = ("lira", "lira_offline", "u_lira", "rmia", "rmia_offline", "attack_r")
# the field reports these; offline RMIA asks for no more than online RMIA does, so it runs only where it is named
USUAL = ("lira", "lira_offline", "rmia", "attack_r", "u_lira")
COMMON_RULE = {"location": "mean", "variance": "auto", "var_floor": 1e-12, "min_count": None}
# the options of each attack, with their defaults
CONVENTIONS: dict[str, dict[str, Any]] = {
    "lira": {"mode": "online", **COMMON_RULE},
    "lira_offline": {"mode": "offline", "tail": "one_sided", **COMMON_RULE},
    "u_lira": {"mode": "online", **COMMON_RULE},
    "rmia": {"mode": "online", "gamma": 2.0, "strict": False, "soft": False},
    "rmia_offline": {"mode": "offline", "gamma": 2.0, "a": "tuned", "strict": False, "soft": False},
    "attack_r": {},
}
SOURCES = {
    "lira": "Carlini et al., S&P'22, algorithm 1: log N(t; in) - log N(t; out)",
    "lira_offline": "Carlini et al., S&P'22, equation 4, from the OUT models alone",
    "u_lira": "Hayes et al., SaTML'25: log N(t; trained with and unlearned) - log N(t; never had it)",
    "rmia": "Zarifzadeh et al., ICML'24: share of the population z with r_x / r_z >= gamma, p = (in + out) / 2",
    "rmia_offline": "Zarifzadeh et al., ICML'24: the same with p = ((1 + a) out + (1 - a)) / 2",
    "attack_r": "Ye et al., CCS'22: share of the OUT models whose loss is above the target's",
}
GRID = tuple(i / 10 for i in range(11))


class TunedA(NamedTuple):
    """``a`` of the best AUC, and the AUC of every value tried."""

    a: float
    auc: dict[float, float]


class ShadowAttacks:
    """The reading half of :class:`fastforget.audit.Shadows`.

    Attributes:
        sums: of the pool.
        population: RMIA's sums of samples that no model was trained on; empty without a population.
    """

    def __init__(self, sums: ShadowSums, population: Probabilities, keep_losses: bool) -> None:
        self.sums, self.population = sums, population
        self._member: list[Tensor] = []
        # every model's own losses, for attack R, whose target comes after them
        self._losses: list[Tensor] | None = [] if keep_losses else None
        # one model's losses, as those of a target whose members are known: to tune RMIA's a
        self._tuner: dict[str, Tensor] = {}

    @property
    def lira(self) -> Lira:
        """Moments of the logit-scaled confidences, IN against OUT."""
        return self.sums.lira

    @property
    def unlearned(self) -> Lira | None:
        """The same for "trained with and then unlearned" (1) against "never had it" (0); ``None`` without ``unlearn``."""
        return self.sums.unlearned

    @property
    def n_models(self) -> int:
        return len(self._member)

    @property
    def n_samples(self) -> int:
        return self.lira.n_samples

    @property
    def queries(self) -> int:
        """A, scores a sample and model."""
        return self.lira.queries

    @property
    def member(self) -> Tensor:
        """bool[M, N]: whether model m was trained on sample n."""
        return torch.stack(self._member) if self._member else torch.zeros((0, self.n_samples), dtype=torch.bool)

    @property
    def losses(self) -> Tensor | None:
        """float32[M, N] with ``keep_scores``: each model's loss on each sample (the first query); else ``None``."""
        if self._losses is None:
            return None
        return torch.stack(self._losses) if self._losses else torch.zeros((0, self.n_samples))

    def conventions(self, attack: str, **given: Any) -> dict[str, Any]:
        """What an attack's number means here: formula, options in force, models behind it; JSON-able.

        Args:
            attack: "lira", "lira_offline", "u_lira", "rmia", "rmia_offline" or "attack_r".
            given: options other than the default, as for :meth:`score`.
        """
        options = self._options(attack, given)
        if options.get("a") == "tuned":
            options["a"], options["a_is"] = self.tune_a(gamma=options["gamma"], strict=options["strict"]).a, "tuned on a shadow model"
        if options.get("variance") == "auto":
            lira = self.unlearned if attack == "u_lira" else self.lira
            most = int(lira.count.sum(dim=0).max()) if lira is not None else 0
            options["variance"] = f"{'per_example' if most >= AUTO_MODELS else 'global'} (auto, at most {most} models a sample)"
        facts = {"shadow_models": self.n_models, "queries": self.queries, "higher_means": "member"}
        if attack.startswith("rmia"):
            facts["population"] = len(self.population)
        return {"attack": attack, "source": SOURCES[attack], **options, **facts}

    def _options(self, attack: str, given: dict[str, Any]) -> dict[str, Any]:
        if attack not in CONVENTIONS:
            raise ValueError(f"attack: got {attack!r}; accepted are {', '.join(map(repr, CONVENTIONS))}")
        known = CONVENTIONS[attack]
        foreign = [k for k in given if k not in known or k == "mode"]
        if foreign:
            accepted = ", ".join(k for k in known if k != "mode") or "none"
            raise ValueError(f"{foreign[0]}: not a convention of {attack}; accepted are: {accepted}")
        return {**known, **given}

    def score(
        self,
        attack: str,
        *,
        index: Tensor,
        logit_confidence: Tensor | None = None,
        loss: Tensor | None = None,
        population_loss: Tensor | None = None,
        **conventions: Any,
    ) -> Tensor:
        """A target model's membership scores for samples of the pool, float64[n]; higher = more member-like.

        Args:
            attack: "lira", "lira_offline", "u_lira" (trained with ``unlearn``), "rmia", "rmia_offline" (with a ``population``) or
                "attack_r" (with ``keep_scores``).
            index: int64[n], positions in the pool, from :meth:`locate`.
            logit_confidence, loss: the target's, [n] ([n, A] with A queries); LiRA reads the first, the others the second.
            population_loss: the target's on the population, [Z] ([Z, A]), in the population's order; for RMIA.
            conventions: options of ``ff.ops.membership.lira`` or ``rmia``; see :meth:`conventions`. ``a="tuned"`` is :meth:`tune_a`'s.

        Returns:
            float64[n] on the CPU. NaN, with a warning that counts them, for samples that no model, or every model, was trained on.

        Raises:
            ValueError, TypeError: fewer than 2 shadow models, a missing or misshapen argument, an unknown attack or convention.
        """
        options = self._options(attack, conventions)
        if self.n_models < 2:
            raise ValueError(f"shadow models: there are {self.n_models}; every attack needs at least 2. Train more: shadows(..., n=64)")
        where = _positions(index, self.n_samples)
        if attack in ("lira", "lira_offline", "u_lira"):
            scores = self._lira(attack, self._given("logit_confidence", logit_confidence, len(where)), where, options)
        else:
            losses = self._given("loss", loss, len(where))
            scores = self._attack_r(losses, where) if attack == "attack_r" else self._rmia(losses, where, population_loss, options)
        self._report_missing(attack, scores, where)
        return scores

    def _given(self, name: str, value: Tensor | None, n: int, whose: str = "index") -> Tensor:
        """float64[n, A] of what the caller gave."""
        shape = (n,) if self.queries == 1 else (n, self.queries)
        if not isinstance(value, Tensor) or tuple(value.shape) not in (shape, (n, self.queries)):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            sizes = f"{whose} has {n} samples and each has {self.queries} queries"
            raise ValueError(f"{name}: got {got}; accepted is a tensor {shape}: {sizes}")
        return value.detach().cpu().double().reshape(n, self.queries)

    def _lira(self, attack: str, target: Tensor, where: Tensor, options: dict[str, Any]) -> Tensor:
        if attack == "u_lira" and self.unlearned is None:
            raise ValueError("u_lira: these shadow models were not unlearned. Train them with shadows(..., unlearn=...)")
        return self.sums.lira_scores(target, unlearned=attack == "u_lira", index=where, **options)

    def _rmia(self, loss: Tensor, where: Tensor, population_loss: Tensor | None, options: dict[str, Any]) -> Tensor:
        z = len(self.population)
        if z == 0:
            raise ValueError("rmia: these shadow models saw no population. Train them with shadows(..., population=...)")
        options, soft = dict(options), bool(options["soft"])
        losses_z = self._given("population_loss", population_loss, z, "the population")
        if options.get("a") == "tuned":
            options["a"] = self.tune_a(gamma=options["gamma"], strict=options["strict"]).a
        references, member = self.sums.log_means(where)
        references_z = self.population.log_mean(torch.full((1, z), self.n_models))
        if self.queries == 1:
            return rmia(-loss[:, 0], references[..., 0], -losses_z[:, 0], references_z[..., 0], member=member, **options)
        if soft:
            raise ValueError("soft: RMIA with several queries is a majority vote, which has no soft form; accepted is False")
        del options["soft"]
        turned = [x.transpose(-1, -2).contiguous() for x in (-loss, references, -losses_z, references_z)]
        return rmia_vote(*turned, member=member, **options)

    def _attack_r(self, loss: Tensor, where: Tensor) -> Tensor:
        if self._losses is None:
            raise ValueError("attack_r: it compares with every shadow model's own loss. Train them with shadows(..., keep_scores=True)")
        larger = LargerLosses(loss[:, :1])
        for member, losses in zip(self._member, self._losses, strict=True):
            larger.add(losses[where, None], member[where])
        return larger.share(self.sums.count[0, where])

    def _report_missing(self, attack: str, scores: Tensor, where: Tensor) -> None:
        bad = int(torch.isnan(scores).sum())
        if bad:
            lira = self.unlearned if attack == "u_lira" and self.unlearned is not None else self.lira
            never = [int((lira.count[side, where] == 0).sum()) for side in (0, 1)]
            warnings.warn(
                f"{attack}: {bad} of {len(where)} samples score NaN ({never[0]} have no model without them, {never[1]} none with them)",
                stacklevel=3,
            )

    def tune_a(self, *, gamma: float = 2.0, strict: bool = False, grid: tuple[float, ...] = GRID) -> TunedA:
        """RMIA's offline ``a``, tuned as the paper does (ICML'24, appendix): one shadow model, whose members are known, is the target, the
        others are its references, and the ``a`` of the best AUC is taken (the smallest of equals). With several queries the first is used.

        Raises:
            ValueError: fewer than 3 shadow models, or no population.

        """
        if self.n_models < 3 or len(self.population) == 0:
            raise ValueError(f"a: tuning it needs 3 shadow models and a population; there are {self.n_models} and "
                             f"{len(self.population)} samples. Give a number, such as a=0.3")  # fmt: skip
        log_p, log_p_z = (-self._tuner[k][:, 0].double() for k in ("loss", "population"))
        member = self._member[0]
        count = self.lira.count[0] - (~member).to(torch.int64)
        assert self.sums.probabilities is not None
        log_sum, log_sum_z = self.sums.probabilities.log_sum[0, :, 0], self.population.log_sum[0, :, 0]
        out = torch.where(member, log_sum, _less(log_sum, log_p)) - count.double().log()
        out = torch.where(count > 0, out, torch.nan)
        out_z = _less(log_sum_z, log_p_z) - math.log(self.n_models - 1)
        scores = rmia(log_p, out[None], log_p_z, out_z[None], mode="offline", a=list(grid), gamma=gamma, strict=strict)
        auc = {a: float(roc_stats(s[member], s[~member], fprs=(), nan="drop").auc) for a, s in zip(grid, scores, strict=True)}
        return TunedA(max(auc, key=lambda a: auc[a]), auc)


def _less(log_sum: Tensor, log_part: Tensor) -> Tensor:
    """log(exp(log_sum) - exp(log_part)); -inf where the part is all of it."""
    return log_sum + torch.log1p(-(log_part - log_sum).exp().clamp_max(1.0))


def _positions(index: Any, n: int) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        got = f"{index.dtype}{tuple(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index: got {got}; accepted is int64[n], positions in the pool, from locate()")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
        raise ValueError(f"index: got positions {int(index.min())} to {int(index.max())}; accepted are 0 to {n - 1}")
    return index.cpu()


def chosen(named: tuple[str, ...], shadows: Any, population: bool) -> tuple[str, ...]:
    """Which of them to run: those named, or else all that these shadow models can serve.

    Raises:
        ValueError: one is named, but there are no shadow models for it, or no population for RMIA.
    """
    wanted = tuple(name for name in named if name in NAMES)
    if shadows is None:
        if wanted:
            raise ValueError(f"attacks: {wanted[0]!r} needs shadow models; pass shadows=ff.audit.shadows(...)")
        if population:
            raise ValueError("population: only RMIA reads it, which needs shadow models; pass shadows=ff.audit.shadows(...) too")
        return ()
    queries = getattr(shadows, "queries", 1)
    if queries != 1:
        raise ValueError(f"shadows: they were asked {queries} queries a sample; accepted is 1, the samples as they are")
    if not wanted:
        serves = {
            "u_lira": getattr(shadows, "unlearned", None) is not None,
            "attack_r": getattr(shadows, "losses", True) is not None,
            "rmia": population,
        }
        return tuple(name for name in USUAL if serves.get(name, True))
    for name in wanted:
        if name.startswith("rmia") and not population:
            raise ValueError(f"attacks: {name!r} compares with a population; pass population=, the same samples as to ff.audit.shadows")
    return wanted


def add(shadows: Any, names: tuple[str, ...], sets: dict[str, Source], done: dict[str, dict[str, Scored]]) -> dict[str, str]:
    """Puts the attacks' scores among those of every model and set, float64, NaN where undefined.

    Returns:
        For each set whose samples are not in the shadow models' pool, why; its scores are NaN. The forget and the test set must be there.

    Raises:
        ValueError: samples of the forget or the test set are not in the pool, fewer than 2 shadow models, a wrong population.
    """
    missing: dict[str, str] = {}
    for set_name in ("forget", "retain", "test"):
        index = _located(shadows, sets[set_name], set_name, missing)
        for by_set in done.values():
            scored = by_set[set_name]
            for name in names:
                if index is None:
                    scored.scores[name] = torch.full((len(scored.labels),), math.nan, dtype=torch.float64)
                else:
                    scored.scores[name] = _scores(shadows, name, index, scored, by_set.get("population"))
    return missing


def _located(shadows: Any, source: Source, set_name: str, missing: dict[str, str]) -> Tensor | None:
    try:
        return shadows.locate(source)
    except ValueError as error:
        if set_name != "retain":
            raise ValueError(f"{set_name} set: {error}") from error
        missing[set_name] = f"the retain set is not all in the shadow models' pool: {error}"
        return None


def _scores(shadows: Any, name: str, index: Tensor, scored: Scored, population: Scored | None) -> Tensor:
    with warnings.catch_warnings():
        # the audit counts undefined scores beside the figures
        warnings.simplefilter("ignore")
        scores = shadows.score(
            name,
            index=index,
            logit_confidence=scored.scores["logit_confidence"],
            loss=scored.scores["loss"],
            population_loss=population.scores["loss"] if population is not None and name.startswith("rmia") else None,
        )
    if not isinstance(scores, Tensor) or scores.shape != scored.labels.shape:
        raise TypeError(f"shadows.score({name!r}): returned {type(scores).__name__}; accepted is a tensor [{len(scored.labels)}]")
    return scores.detach().cpu().double()


def convention(shadows: Any, name: str) -> str:
    """What the attack's number means here, in words."""
    stated = shadows.conventions(name)
    if not isinstance(stated, dict):
        return str(stated)
    options = [f"{key} {value}" for key, value in stated.items() if key not in ("attack", "source") and value is not None]
    return "; ".join([*([str(stated["source"])] if "source" in stated else []), *options])
