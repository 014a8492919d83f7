"""Who makes a call of ``ff.audit.shadows``: the ranks of a process group, processes that torchrun has numbered, or one for itself."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ... import _ranks
from ..._machine import processor

STOPS = "so this rank stops too. What was trained is in out: the same call goes on from there, on any number of ranks"
REQUIRED = "Every rank of the process group must make the call"


@contextlib.contextmanager
def ranks(out: str | PathLike[str] | None) -> Iterator[_ranks.Ranks | None]:
    """The ranks of the process group, if there are several; processes without one are told apart by their claims alone.

    Raises:
        ValueError: several processes and no folder.
    """
    with _ranks.everyone("shadows", stops=STOPS, required=REQUIRED) as group:
        world = _world(group)
        if world > 1 and out is None:
            raise ValueError(f"out: got None under torchrun with {world} processes; accepted is a folder that all of them reach")
        yield group


def _world(group: _ranks.Ranks | None) -> int:
    return int(os.environ.get("WORLD_SIZE", 1)) if group is None else len(group.ranks)


def shows(group: _ranks.Ranks | None) -> bool:
    """Whether this is the one of them that shows a bar."""
    return os.environ.get("RANK", "0") == "0" if group is None else group.first


def warn_of_idle(groups: int, stack: int, group: _ranks.Ranks | None) -> None:
    """Small nets train by stacks: there may be fewer of those than processes."""
    world = _world(group)
    if stack > 1 and groups < world and shows(group):
        warnings.warn(
            f"fastforget: stack: {groups} stacks of up to {stack} models for {world} processes, so some have nothing to do. Pass a smaller "
            "stack=, the same in each process",
            stacklevel=3,
        )


def folder(out: str | PathLike[str] | None, group: _ranks.Ranks | None, settings: dict[str, Any]) -> Path | None:
    """The folder of a call that all ranks make alike.

    Raises:
        RankError: their settings differ.
        FileExistsError: it is a file.
        ValueError: their folders aren't the same one.
    """
    if out is None:
        return None
    if group is not None:
        group.options(**settings)
    place = Path(out)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise FileExistsError(f"out: {place} is a file, or a link to nothing; accepted is a folder, which is made if need be") from error
    if group is None:
        return place
    mark = place / f"shadows-mark-{secrets.token_hex(6)}"
    try:
        if group.first:
            mark.touch()
        name = group.exchange("mark", mark.name)[0]
        sees = group.exchange("folder", (place / name).exists())
    finally:
        if group.first:
            mark.unlink(missing_ok=True)
    if not all(sees):
        blind = group.ranks[sees.index(False)]
        raise ValueError(f"out: {place} isn't the same folder on rank {blind} as on rank {group.ranks[0]}; accepted is one that all reach")
    return place


def machine(device: torch.device) -> str:
    """What the last bits of a model's training depend on, beside its seed."""
    on = processor() if device.type == "cpu" else torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{on}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
