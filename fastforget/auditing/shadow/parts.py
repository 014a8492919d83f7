"""The files of a folder of shadow models: what they are called, and which of them count.

``shadows-first-K.safetensors``
    the sums of the first K models; the one with the highest K counts.
``shadows-model-I.safetensors``
    the scores of model I, which wait until all models before it are in the sums: sums are always taken in the order of the models, so that
    their bytes are the same whoever trained what, and when.
``shadows-R-of-W.safetensors``
    sums of any models: of ``Shadows.save``, and of runs of earlier versions.

A file appears whole, under a name that it alone ever has, and never changes. It goes when its models are in another one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ... import _safetensors as safetensors_io

FORMAT = "fastforget shadow scores 1"
_FIRST = re.compile(r"shadows-first-(\d+)\.safetensors")
_MODEL = re.compile(r"shadows-model-(\d+)\.safetensors")
_OTHERS = re.compile(r"shadows-(\d+)-of-(\d+)\.safetensors")
_GONE = (errno.ENOENT, errno.ESTALE)
T = TypeVar("T")


class Answers(NamedTuple):
    """What one model says about the pool; the arguments of ``Shadows.add``."""

    model: int  # its number
    seed: int
    member: Tensor
    logit_confidence: Tensor
    loss: Tensor
    population_loss: Tensor | None
    unlearned: tuple[Tensor, Tensor] | None


class Made(NamedTuple):
    """What stands in the metadata of each file."""

    settings: dict[str, Any]
    machines: tuple[str, ...]

    def metadata(self, kind: str) -> dict[str, str]:
        return {"format": kind, "settings": json.dumps(self.settings, sort_keys=True), "machines": json.dumps(self.machines)}

    @classmethod
    def of(cls, metadata: dict[str, str]) -> Made:
        # files of earlier versions name no machine
        return cls(json.loads(metadata["settings"]), tuple(json.loads(metadata.get("machines", "[]"))))


class Scores(NamedTuple):
    """What :func:`write_scores` puts into a file: a model's answers, and the digests of the pool's samples, uint8[N, 16]."""

    answers: Answers
    digests: Tensor
    made: Made


class Listing(NamedTuple):
    """The state files in a folder at one moment: sums by how many models they are of, scores by model, and the others in order."""

    firsts: dict[int, Path]
    models: dict[int, Path]
    others: list[Path]

    @property
    def latest(self) -> int:
        """How many of the first models are in sums."""
        return max(self.firsts, default=0)


def part_name(rank: int, world: int) -> str:
    return f"shadows-{rank:03d}-of-{world:03d}.safetensors"


def first_name(count: int) -> str:
    return f"shadows-first-{count:05d}.safetensors"


def model_name(index: int) -> str:
    return f"shadows-model-{index:05d}.safetensors"


def listing(folder: Path) -> Listing:
    found = Listing({}, {}, [])
    if folder.is_dir():
        for path in folder.iterdir():
            if first := _FIRST.fullmatch(path.name):
                found.firsts[int(first[1])] = path
            elif model := _MODEL.fullmatch(path.name):
                found.models[int(model[1])] = path
            elif _OTHERS.fullmatch(path.name):
                found.others.append(path)
    found.others.sort(key=lambda path: (path.stem.rpartition("-")[2], path.name))
    return found


def steadily(folder: Path, read: Callable[[Listing], T]) -> T:
    """``read`` of the files in the folder, once more where one went meanwhile: its models are in another one then."""
    while True:
        seen = listing(folder)
        try:
            return read(seen)
        except OSError as error:
            if error.errno not in _GONE or listing(folder) == seen:
                raise


def packed(member: Tensor) -> Tensor:
    """uint8 of bool[M, N], eight samples a byte."""
    return torch.from_numpy(np.packbits(member.numpy(), axis=1, bitorder="little"))


def unpacked(bits: Tensor, samples: int) -> list[Tensor]:
    return list(torch.from_numpy(np.unpackbits(bits.numpy(), axis=1, count=samples, bitorder="little")).bool())


@contextlib.contextmanager
def loaded(path: str | PathLike[str], wanted: str) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
    """Tensors and metadata of a file of shadow models.

    Raises:
        ValueError: it has another format, is cut off, or lacks what is looked for inside.
    """
    tensors, metadata = safetensors_io.load(path)
    if metadata.get("format") != wanted:
        raise ValueError(f"{path}: its format is {metadata.get('format')!r}; accepted is {wanted!r}, a file of ff.audit.shadows")
    try:
        yield tensors, metadata
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: it isn't a whole file of ff.audit.shadows ({error})") from error


def write_scores(path: Path, scores: Scores) -> None:
    """One file, whole or not at all; one that is there already stays."""
    one = scores.answers
    tensors = {
        "digests": scores.digests,
        "index": torch.tensor(one.model),
        "seed": torch.tensor(one.seed),
        "member": packed(one.member[None]),
        "logit_confidence": one.logit_confidence,
        "loss": one.loss,
    }
    if one.population_loss is not None:
        tensors["population_loss"] = one.population_loss
    if one.unlearned is not None:
        tensors["unlearned.group"], tensors["unlearned.logit_confidence"] = one.unlearned
    safetensors_io.save_once(path, tensors, scores.made.metadata(FORMAT))


def read_scores(path: Path) -> Scores:
    """What :func:`write_scores` wrote.

    Raises:
        ValueError: not such a file, or cut off.
    """
    with loaded(path, FORMAT) as (tensors, metadata):
        digests = tensors["digests"]
        (member,) = unpacked(tensors["member"], len(digests))
        unlearned = None
        if "unlearned.group" in tensors:
            unlearned = tensors["unlearned.group"], tensors["unlearned.logit_confidence"]
        scores, population = (tensors["logit_confidence"], tensors["loss"]), tensors.get("population_loss")
        answers = Answers(int(tensors["index"]), int(tensors["seed"]), member, *scores, population, unlearned)
        return Scores(answers, digests, Made.of(metadata))
