"""Shadow models over a pool of samples: which there are, their sums, and the files that hold them."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import _data
from ... import _safetensors as safetensors_io
from ..._hashes import set_hashes
from .attacks import ShadowAttacks
from .design import augments, digests, positions_of
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
    """

    def __init__(self, settings: dict[str, Any], pool_digests: Tensor, population: int = 0) -> None:
        queries = int(settings["queries"])
        sums = ShadowSums(len(pool_digests), queries, unlearned=bool(settings["unlearn"]))
        super().__init__(sums, Probabilities(population, queries, sides=1), bool(settings["keep_scores"]))
        self.settings, self.digests = settings, pool_digests
        self._index: list[int] = []
        self._seeds: list[int] = []

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
        if self._losses is not None and other._losses is not None:
            self._losses += other._losses
        return self

    # ------------------------------------------------------------------ files

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors by name."""
        packed = torch.from_numpy(np.packbits(self.member.numpy(), axis=1, bitorder="little"))
        tensors = {"digests": self.digests, "index": self.index, "seeds": self.seeds, "member": packed}
        tensors |= self.sums.state_dict()
        tensors["log_p_population"] = self.population.log_sum[0].clone()
        tensors |= {f"tuner.{name}": value for name, value in self._tuner.items()}
        if self.losses is not None:
            tensors["losses"] = self.losses
        return tensors

    def write(self, path: str | PathLike[str]) -> None:
        """One file with everything, written whole or not at all."""
        safetensors_io.save(path, self.tensors(), {"format": FORMAT, "settings": json.dumps(self.settings, sort_keys=True)})

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Shadows:
        """What :meth:`write` wrote.

        Raises:
            ValueError: not such a file, or cut off.
        """
        tensors, metadata = safetensors_io.load(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: its format is {metadata.get('format')!r}; accepted is {FORMAT!r}, a file of ff.audit.shadows")
        try:
            settings = json.loads(metadata["settings"])
            self = cls(settings, tensors["digests"], len(tensors["log_p_population"]))
            self._index, self._seeds = tensors["index"].tolist(), tensors["seeds"].tolist()
            bits = np.unpackbits(tensors["member"].numpy(), axis=1, count=self.n_samples, bitorder="little")
            self._member = list(torch.from_numpy(bits).bool())
            if self._losses is not None:
                self._losses = list(tensors["losses"])
            self.sums.load_state_dict(tensors)
            self.population.log_sum = tensors["log_p_population"][None].clone()
            self._tuner = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("tuner.")}
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
        if part_files(place):
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
        parts = part_files(Path(folder))
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
            unpack: batch -> (inputs, labels), for batches that are not (x, y), (x, _, y) or dicts with "labels".

        Returns:
            int64[n] of positions in the pool, in the source's order. Equal samples get different positions while the pool has as many.

        Raises:
            ValueError: samples that are not in the pool; the message counts them.
        """
        held = _data.source(source, name="source", unpack=unpack)
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


def part_name(rank: int, world: int) -> str:
    return f"shadows-{rank:03d}-of-{world:03d}.safetensors"


def part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shadows-*-of-*.safetensors"), key=lambda p: (p.stem.rpartition("-")[2], p.name))


def refuse_difference(name: str, here: dict[str, Any], there: dict[str, Any], skip: tuple[str, ...] = ()) -> None:
    """Raises a ValueError that names the settings in which two runs differ, if they do."""
    keys = [key for key in dict.fromkeys((*here, *there)) if key not in skip and here.get(key) != there.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {there.get(key)!r}, not {here.get(key)!r}" for key in keys)
        raise ValueError(
            f"{name}: these shadow models are of another configuration: {differences}. Choose another folder, or the same settings"
        )
