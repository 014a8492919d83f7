"""What shadow models said about a pool of samples: running, mergeable sums; and the attacks that read them."""

from __future__ import annotations

import json
import math
import os
import warnings
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _data
from ..ops.membership import Lira, rmia, rmia_vote, roc_stats
from . import safetensors_io
from .shadow_design import digests

FORMAT = "fastforget shadows 1"
COMMON_RULE = {"location": "mean", "variance": "auto", "var_floor": 1e-12, "min_count": None}
# what an attack may be told, and what holds where nothing is said
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
# settings that may differ between folders that are merged: they say which models, not what was asked of them
_OF_THE_RUN = ("n", "seed", "stack")


class TunedA(NamedTuple):
    """``a`` of the best AUC, and the AUC of every value tried."""

    a: float
    auc: dict[float, float]


class Shadows:
    """Streamed state of shadow models over a pool of N samples; made by ``ff.audit.shadows``.

    Memory is O(N A) for A queries, whatever the number M of models, but for one membership flag a model and sample (and one float32 loss
    with ``keep_scores``).

    Attributes:
        settings: what was asked for; JSON-able.
        lira: :class:`fastforget.ops.membership.Lira` over logit-scaled confidences, IN against OUT.
        unlearned: the same for "trained with and then unlearned" (1) against "never had it" (0); ``None`` without ``unlearn``.
        digests: uint8[N, 16], the pool's samples by content.
    """

    def __init__(self, settings: dict[str, Any], pool_digests: Tensor, population: int = 0) -> None:
        self.settings, self.digests = settings, pool_digests
        n, a = len(pool_digests), int(settings["queries"])
        self.lira = Lira(n, a)
        self.unlearned: Lira | None = Lira(n, a) if settings["unlearn"] else None
        # log sums of probabilities: [OUT, IN] of the pool, and of the population, which no model was trained on
        self.log_p = torch.full((2, n, a), -torch.inf, dtype=torch.float64)
        self.log_p_population = torch.full((population, a), -torch.inf, dtype=torch.float64)
        self._index: list[int] = []
        self._seeds: list[int] = []
        self._member: list[Tensor] = []
        self._losses: list[Tensor] = []
        # one model's own losses, as a target whose members are known: to tune RMIA's a
        self._tuner: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ facts

    @property
    def n_models(self) -> int:
        return len(self._index)

    @property
    def n_samples(self) -> int:
        return len(self.digests)

    @property
    def queries(self) -> int:
        return self.lira.queries

    @property
    def index(self) -> Tensor:
        """int64[M]: the models' numbers, in the order in which they were taken in."""
        return torch.tensor(self._index, dtype=torch.int64)

    @property
    def seeds(self) -> Tensor:
        """int64[M]: the seed that made and trained each model."""
        return torch.tensor(self._seeds, dtype=torch.int64)

    @property
    def member(self) -> Tensor:
        """bool[M, N]: whether model m was trained on sample n."""
        return torch.stack(self._member) if self._member else torch.zeros((0, self.n_samples), dtype=torch.bool)

    @property
    def losses(self) -> Tensor | None:
        """float32[M, N] with ``keep_scores``: each model's loss on each sample (the first query); else ``None``."""
        if not self.settings["keep_scores"]:
            return None
        return torch.stack(self._losses) if self._losses else torch.zeros((0, self.n_samples))

    def __repr__(self) -> str:
        return f"Shadows({self.n_models} of {self.settings['n']} models, {self.n_samples} samples, {self.queries} queries)"

    # ------------------------------------------------------------------ filling

    def add(
        self,
        index: int,
        seed: int,
        member: Tensor,
        logit_confidence: Tensor,
        loss: Tensor,
        population_loss: Tensor | None = None,
        unlearned: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Takes in one model.

        Args:
            index, seed: its number and seed.
            member: bool[N].
            logit_confidence, loss: [N, A].
            population_loss: [Z, A], with a population.
            unlearned: (int8[N] of 1 unlearned, 0 never had, -1 skip; logit-scaled confidences [N, A] after unlearning).
        """
        self.lira.update(logit_confidence[None], member[None])
        for side, chosen in enumerate((~member, member)):
            self.log_p[side, chosen] = torch.logaddexp(self.log_p[side, chosen], -loss[chosen].double())
        if population_loss is not None:
            self.log_p_population = torch.logaddexp(self.log_p_population, -population_loss.double())
        if not self._index:
            # the population's loss goes along, so that both sides of RMIA's ratio can leave this model out
            empty = torch.zeros((0, self.queries))
            self._tuner = {"loss": loss.float(), "population": (empty if population_loss is None else population_loss).float()}
        if unlearned is not None:
            assert self.unlearned is not None
            self.unlearned.update(unlearned[1][None], unlearned[0][None])
        if self.settings["keep_scores"]:
            self._losses.append(loss[:, 0].float().clone())
        self._index.append(index)
        self._seeds.append(seed)
        self._member.append(member.clone())

    def merge(self, other: Shadows) -> Shadows:
        """Adds the models of ``other``, which stays as it is: the result is that of one run up to rounding.

        Raises:
            TypeError, ValueError: not a :class:`Shadows`, another pool or another way of training (the message says what), or models that
                both have.
        """
        if not isinstance(other, Shadows):
            raise TypeError(f"other: got {type(other).__name__}; accepted is a Shadows")
        refuse_difference("other", self.settings, other.settings, skip=_OF_THE_RUN)
        twice = sorted(set(self._seeds) & set(other._seeds))
        if twice:
            raise ValueError(f"other: {len(twice)} of its models are here already (the first has seed {twice[0]}); each may count once")
        if not self._index:
            self._tuner = dict(other._tuner)
        self.lira.merge(other.lira)
        if self.unlearned is not None and other.unlearned is not None:
            self.unlearned.merge(other.unlearned)
        self.log_p = torch.logaddexp(self.log_p, other.log_p)
        self.log_p_population = torch.logaddexp(self.log_p_population, other.log_p_population)
        self._index += other._index
        self._seeds += other._seeds
        self._member += other._member
        self._losses += other._losses
        return self

    # ------------------------------------------------------------------ files

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors by name."""
        packed = torch.from_numpy(np.packbits(self.member.numpy(), axis=1, bitorder="little"))
        found = {"digests": self.digests, "index": self.index, "seeds": self.seeds, "member": packed}
        found |= {"log_p": self.log_p, "log_p_population": self.log_p_population}
        found |= {f"lira.{k}": v for k, v in self.lira.state_dict().items()}
        found |= {f"tuner.{k}": v for k, v in self._tuner.items()}
        if self.unlearned is not None:
            found |= {f"unlearned.{k}": v for k, v in self.unlearned.state_dict().items()}
        if self.losses is not None:
            found["losses"] = self.losses
        return found

    def write(self, path: str | PathLike[str]) -> None:
        """One file with everything, written whole or not at all."""
        safetensors_io.save(path, self.tensors(), {"format": FORMAT, "settings": json.dumps(self.settings, sort_keys=True)})

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Shadows:
        """What :meth:`write` wrote.

        Raises:
            ValueError: not such a file, or cut off.
        """
        t, metadata = safetensors_io.load(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: its format is {metadata.get('format')!r}; accepted is {FORMAT!r}, a file of ff.audit.shadows")
        try:
            settings = json.loads(metadata["settings"])
            self = cls(settings, t["digests"], len(t["log_p_population"]))
            self._index, self._seeds = t["index"].tolist(), t["seeds"].tolist()
            bits = np.unpackbits(t["member"].numpy(), axis=1, count=self.n_samples, bitorder="little")
            self._member = list(torch.from_numpy(bits).bool())
            self._losses = list(t["losses"]) if settings["keep_scores"] else []
            self.log_p, self.log_p_population = t["log_p"], t["log_p_population"]
            self._tuner = {k.partition(".")[2]: v for k, v in t.items() if k.startswith("tuner.")}
            for name, lira in (("lira", self.lira), ("unlearned", self.unlearned)):
                if lira is not None:
                    lira.load_state_dict({k.partition(".")[2]: v for k, v in t.items() if k.startswith(f"{name}.")})
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: it isn't a whole file of ff.audit.shadows ({error})") from error
        return self

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes the state into a folder (made if need be) that :meth:`load` reads; returns the file's path.

        Raises:
            ValueError: the folder already holds shadow models.
            OSError: it can't be written.
        """
        place = Path(folder)
        if parts_of(place):
            raise ValueError(f"folder: {place} already holds shadow models; choose an empty one")
        place.mkdir(parents=True, exist_ok=True)
        path = place / part_name(0, 1)
        self.write(path)
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> Shadows:
        """All shadow models of a folder, those of several processes merged; errors as :meth:`read` and :meth:`merge`.

        Raises:
            FileNotFoundError: no such models there.
        """
        parts = parts_of(Path(folder))
        if not parts:
            raise FileNotFoundError(f"folder: {os.fspath(folder)} holds no shadow models (no file {part_name(0, 1)} or the like)")
        whole = cls.read(parts[0])
        for path in parts[1:]:
            part = cls.read(path)
            refuse_difference(str(path), whole.settings, part.settings)
            whole.merge(part)
        return whole

    # ------------------------------------------------------------------ reading

    def locate(self, source: Any, unpack: _data.Unpack | None = None) -> Tensor:
        """Where samples stand in the pool, found by their content: the bytes of input and label.

        Args:
            source: a DataLoader, a Dataset or an (inputs, labels) pair; the same values in the same dtype as in the pool.
            unpack: batch -> (inputs, labels), for batches that are not (x, y) or (x, _, y).

        Returns:
            int64[n] of positions in the pool, in the source's order. Equal samples get different positions while the pool has as many.

        Raises:
            ValueError: samples that are not in the pool; the message counts them.
        """
        held = _data.source(source, name="source", unpack=unpack)
        found = torch.cat([digests(x, y, "source") for x, y in held.batches()])
        places: dict[bytes, list[int]] = {}
        for at, digest in enumerate(self.digests.numpy()):
            places.setdefault(digest.tobytes(), []).append(at)
        used: dict[bytes, int] = {}
        positions, missing = [], []
        for i, digest in enumerate(found.numpy()):
            key = digest.tobytes()
            if key not in places:
                missing.append(i)
                continue
            nth = used[key] = used.get(key, -1) + 1
            positions.append(places[key][nth % len(places[key])])
        if missing:
            raise ValueError(
                f"source: {len(missing)} of {len(held)} samples are not in the shadow models' pool of {self.n_samples} (the first at "
                f"position {missing[0]}). Give the same samples as to shadows(): equal values, dtype, shape and label"
            )
        return torch.tensor(positions, dtype=torch.int64)

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
            options["variance"] = f"{'per_example' if most >= 64 else 'global'} (auto, at most {most} models a sample)"
        facts = {"shadow_models": self.n_models, "queries": self.queries, "higher_means": "member"}
        if attack.startswith("rmia"):
            facts["population"] = len(self.log_p_population)
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

    def _given(self, name: str, value: Tensor | None, n: int, of: str = "index") -> Tensor:
        """float64[n, A] of what the caller gave."""
        shape = (n,) if self.queries == 1 else (n, self.queries)
        if not isinstance(value, Tensor) or tuple(value.shape) not in (shape, (n, self.queries)):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {got}; accepted is a tensor {shape}: {of} has {n} samples and each has {self.queries} queries")
        return value.detach().cpu().double().reshape(n, self.queries)

    def _lira(self, attack: str, target: Tensor, where: Tensor, options: dict[str, Any]) -> Tensor:
        lira = self.unlearned if attack == "u_lira" else self.lira
        if lira is None:
            raise ValueError("u_lira: these shadow models were not unlearned. Train them with shadows(..., unlearn=...)")
        return lira.score(target if self.queries > 1 else target[:, 0], index=where, **options)

    def _rmia(self, loss: Tensor, where: Tensor, population_loss: Tensor | None, options: dict[str, Any]) -> Tensor:
        z = len(self.log_p_population)
        if z == 0:
            raise ValueError("rmia: these shadow models saw no population. Train them with shadows(..., population=...)")
        options, soft = dict(options), bool(options["soft"])
        losses_z = self._given("population_loss", population_loss, z, "the population")
        if options.get("a") == "tuned":
            options["a"] = self.tune_a(gamma=options["gamma"], strict=options["strict"]).a
        count = self.lira.count[:, where].double().unsqueeze(-1)
        # two reference models that answer with the mean probabilities of the OUT and of the IN models
        references = torch.where(count > 0, self.log_p[:, where] - count.log(), torch.nan)
        references_z = (self.log_p_population - math.log(self.n_models))[None]
        member = torch.tensor([[False], [True]]).expand(2, len(where))
        if self.queries == 1:
            return rmia(-loss[:, 0], references[..., 0], -losses_z[:, 0], references_z[..., 0], member=member, **options)
        if soft:
            raise ValueError("soft: RMIA with several queries is a majority vote, which has no soft form; accepted is False")
        del options["soft"]
        turned = [x.transpose(-1, -2).contiguous() for x in (-loss, references, -losses_z, references_z)]
        return rmia_vote(*turned, member=member, **options)

    def _attack_r(self, loss: Tensor, where: Tensor) -> Tensor:
        if self.losses is None:
            raise ValueError("attack_r: it compares with every shadow model's own loss. Train them with shadows(..., keep_scores=True)")
        out = ~self.member[:, where]
        above = (self.losses[:, where].double() > loss[:, 0]) & out
        return torch.where(torch.isnan(loss[:, 0]), torch.nan, above.sum(dim=0).double() / out.sum(dim=0))

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
        if self.n_models < 3 or len(self.log_p_population) == 0:
            raise ValueError(f"a: tuning it needs 3 shadow models and a population; there are {self.n_models} and "
                             f"{len(self.log_p_population)} samples. Give a number, such as a=0.3")  # fmt: skip
        log_p, log_p_z = (-self._tuner[k][:, 0].double() for k in ("loss", "population"))
        member = self._member[0]
        count = self.lira.count[0] - (~member).to(torch.int64)
        out = torch.where(member, self.log_p[0, :, 0], _less(self.log_p[0, :, 0], log_p)) - count.double().log()
        out = torch.where(count > 0, out, torch.nan)
        out_z = _less(self.log_p_population[:, 0], log_p_z) - math.log(self.n_models - 1)
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


def part_name(rank: int, world: int) -> str:
    return f"shadows-{rank:03d}-of-{world:03d}.safetensors"


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("shadows-*-of-*.safetensors"), key=lambda p: (p.stem.rpartition("-")[2], p.name))


def refuse_difference(name: str, mine: dict[str, Any], theirs: dict[str, Any], skip: tuple[str, ...] = ()) -> None:
    """An error that says in what two configurations differ, if they do."""
    keys = [k for k in dict.fromkeys((*mine, *theirs)) if k not in skip and mine.get(k) != theirs.get(k)]
    if keys:
        said = "; ".join(f"{k} is {theirs.get(k)!r}, not {mine.get(k)!r}" for k in keys)
        raise ValueError(f"{name}: these shadow models are of another configuration: {said}. Choose another folder, or the same settings")
