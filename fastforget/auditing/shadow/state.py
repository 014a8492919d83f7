"""Shadow models over a pool of samples: which there are, their sums, and the files that hold them."""

from __future__ import annotations

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import _data
from ... import _safetensors as safetensors_io
from ..._hashes import set_hashes
from .attacks import ShadowAttacks
from .design import augments, digests, positions_of
from .parts import Listing, Made, Scores, listing, loaded, packed, part_name, read_scores, steadily, unpacked
from .pool import LABELS
from .sums import Probabilities, ShadowSums

FORMAT = "fastforget shadows 1"
# settings that may differ between folders that are merged: they say which models, not what was asked of them
_OF_THE_RUN = ("n", "seed", "stack")


class Shadows(ShadowAttacks):
    """Shadow models over a pool of N samples, as sums; made by ``ff.audit.shadows``.

    Memory is O(N A) for A queries, whatever the number M of models, but for one membership flag a model and sample (and one float32 loss
    with ``keep_scores``).

    Attributes:
        settings: what was asked for; JSON-able.
        lira: :class:`fastforget.ops.membership.Lira` over logit-scaled confidences, IN against OUT.
        unlearned: the same for "trained with and then unlearned" (1) against "never had it" (0); ``None`` without ``unlearn``.
        digests: uint8[N, 16], the pool's samples by content.
        machines: processor, threads and PyTorch of the processes that trained them, each different one once. Where there are several,
            the last bits of the sums depend on which of them trained which model. Files of earlier versions name none.
    """

    def __init__(self, settings: dict[str, Any], pool_digests: Tensor, population: int = 0) -> None:
        queries = int(settings["queries"])
        sums = ShadowSums(len(pool_digests), queries, unlearned=bool(settings["unlearn"]))
        super().__init__(sums, Probabilities(population, queries, sides=1), bool(settings["keep_scores"]))
        self.settings, self.digests = settings, pool_digests
        self._index: list[int] = []
        self._seeds: list[int] = []
        self.machines: tuple[str, ...] = ()

    # ------------------------------------------------------------------ facts

    @property
    def index(self) -> Tensor:
        """int64[M]: the models' numbers, in the order in which they were taken in."""
        return torch.tensor(self._index, dtype=torch.int64)

    @property
    def seeds(self) -> Tensor:
        """int64[M]: the seed that made and trained each model."""
        return torch.tensor(self._seeds, dtype=torch.int64)

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
        self.sums.add(logit_confidence, loss, member, unlearned)
        if population_loss is not None:
            self.population.add(population_loss, torch.zeros(len(population_loss), dtype=torch.int8))
        if not self._index:
            # the population's loss goes along, so that both sides of RMIA's ratio can leave this model out
            empty = torch.zeros((0, self.queries))
            self._tuner = {"loss": loss.float(), "population": (empty if population_loss is None else population_loss).float()}
        if self._losses is not None:
            self._losses.append(loss[:, 0].float().clone())
        self._index.append(index)
        self._seeds.append(seed)
        self._member.append(member.clone())

    def take(self, scores: Scores) -> None:
        """Takes in a model with what its file says."""
        self.add(*scores.answers)
        self.made_on(*scores.made.machines)

    def made_on(self, *machines: str) -> None:
        self.machines = tuple(sorted({*self.machines, *machines}))

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
        self.sums.merge(other.sums)
        self.population.merge(other.population)
        self._index += other._index
        self._seeds += other._seeds
        self._member += other._member
        self.made_on(*other.machines)
        if self._losses is not None and other._losses is not None:
            self._losses += other._losses
        return self

    # ------------------------------------------------------------------ files

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors by name."""
        tensors = {"digests": self.digests, "index": self.index, "seeds": self.seeds, "member": packed(self.member)}
        tensors |= self.sums.state_dict()
        tensors["log_p_population"] = self.population.log_sum[0].clone()
        tensors |= {f"tuner.{name}": value for name, value in self._tuner.items()}
        if self.losses is not None:
            tensors["losses"] = self.losses
        return tensors

    def write(self, path: str | PathLike[str], *, once: bool = False) -> None:
        """One file with everything, written whole or not at all; with ``once`` a file that is there already stays."""
        save = safetensors_io.save_once if once else safetensors_io.save
        save(path, self.tensors(), Made(self.settings, self.machines).metadata(FORMAT))

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Shadows:
        """What :meth:`write` wrote.

        Raises:
            ValueError: not such a file, or cut off.
        """
        with loaded(path, FORMAT) as (tensors, metadata):
            made = Made.of(metadata)
            self = cls(made.settings, tensors["digests"], len(tensors["log_p_population"]))
            self.machines = made.machines
            self._index, self._seeds = tensors["index"].tolist(), tensors["seeds"].tolist()
            self._member = unpacked(tensors["member"], self.n_samples)
            if self._losses is not None:
                self._losses = list(tensors["losses"])
            self.sums.load_state_dict(tensors)
            self.population.log_sum = tensors["log_p_population"][None].clone()
            self._tuner = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("tuner.")}
        return self

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes the state into a folder (made if need be) that :meth:`load` reads; returns the file's path.

        Raises:
            ValueError: the folder already holds shadow models.
            OSError: it can't be written.
        """
        place = Path(folder)
        if any(listing(place)):
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
        place = Path(folder)
        return steadily(place, lambda seen: cls._load(place, seen))

    @classmethod
    def _load(cls, place: Path, seen: Listing) -> Shadows:
        known: list[dict[str, Any]] = []

        def check(path: Path, settings: dict[str, Any]) -> None:
            known.append(settings)
            refuse_difference(str(path), known[0], settings)

        whole, others = cls.read_sums(seen, check)
        waiting = [path for at, path in sorted(seen.models.items()) if whole is None or at not in whole._index]
        for path in waiting:
            scores = read_scores(path)
            check(path, scores.made.settings)
            if whole is None:
                population = scores.answers.population_loss
                whole = cls(scores.made.settings, scores.digests, 0 if population is None else len(population))
            whole.take(scores)
        if whole is None and not others:
            raise FileNotFoundError(f"folder: {os.fspath(place)} holds no shadow models (no file {part_name(0, 1)} or the like)")
        whole = whole or others.pop(0)
        for part in others:
            whole.merge(part)
        return whole

    @classmethod
    def read_sums(cls, seen: Listing, check: Callable[[Path, dict[str, Any]], None]) -> tuple[Shadows | None, list[Shadows]]:
        """The sums of a folder's first models, if there are any, and those of others that earlier versions have left there.

        Args:
            seen: its files.
            check: is called with each file and its settings.
        """
        def read(path: Path) -> Shadows:
            part = cls.read(path)
            check(path, part.settings)
            return part

        first = read(seen.firsts[seen.latest]) if seen.firsts else None
        others = []
        for part in map(read, seen.others):
            if first is None and part._index == list(range(part.n_models)):
                first = part  # of one process, cut off
            elif first is None or not set(part._index) <= set(first._index):
                others.append(part)
        return first, others

    # ------------------------------------------------------------------ reading

    def locate(self, source: Any, unpack: _data.Unpack | None = None) -> Tensor:
        """Where samples stand in the pool, found by their content: the bytes of input and label.

        Args:
            source: a DataLoader, a Dataset or an (inputs, labels) pair; the same values in the same dtype as in the pool.
            unpack: batch -> (inputs, labels), for batches that are not (x, y), (x, _, y) or dicts with "labels".

        Returns:
            int64[n] of positions in the pool, in the source's order. Equal samples get different positions while the pool has as many.

        Raises:
            ValueError: samples that are not in the pool; the message counts them.
        """
        held = _data.source(source, name="source", unpack=unpack, reading=LABELS)
        positions, missing = positions_of(digests(set_hashes(held)), self.digests)
        if missing and augments(held):
            raise ValueError(
                f"source: {len(missing)} of {len(held)} samples are not in the shadow models' pool of {self.n_samples}, and the set "
                "augments at random: read twice, its first samples differ. Give the samples without random transforms, here and to "
                "shadows(); there augmentations go into train= and queries="
            )
        if missing:
            raise ValueError(
                f"source: {len(missing)} of {len(held)} samples are not in the shadow models' pool of {self.n_samples} (the first at "
                f"position {missing[0]}). Give the same samples as to shadows(): equal values, dtype, shape and label"
            )
        return positions


def refuse_difference(name: str, here: dict[str, Any], there: dict[str, Any], skip: tuple[str, ...] = ()) -> None:
    """Raises a ValueError that names the settings in which two runs differ, if they do."""
    keys = [key for key in dict.fromkeys((*here, *there)) if key not in skip and here.get(key) != there.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {there.get(key)!r}, not {here.get(key)!r}" for key in keys)
        raise ValueError(
            f"{name}: these shadow models are of another configuration: {differences}. Choose another folder, or the same settings"
        )
