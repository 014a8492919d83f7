"""A long run's state in a file: the same call goes on from there after it was interrupted, and ends with the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._files import write_whole
from ..._hashes import set_hashes
from ..._random import Generators, own_randomness
from ..cost import Phase
from ..task import Task

ENTRIES = {"call", "step", "model", "optimizer", "generators", "cost", "history", "losses"}


class Checkpoint:
    """A run's state at one step.

    Args:
        path: of the file; where it is there already, it must be one of the same call.
        every: seconds from one writing to the next, whichever process writes (the ranks of a group write the same).
        task: the run; its model is still the original.
        optimizer: of its only loop.
        options: those that make the call what it is.

    Attributes:
        step: from which the loop goes on; 0 where there is no file.

    Raises:
        ValueError: the file is of another call, or no checkpoint; ``precision="auto"``, which might choose otherwise when it goes on.
    """

    def __init__(self, path: str | os.PathLike[str], every: float, task: Task, optimizer: torch.optim.Optimizer, options: Any) -> None:
        self.path, self.every, self.task, self.optimizer = Path(path), every, task, optimizer
        if task.precision == "auto":
            raise ValueError("checkpoint: got precision='auto', which may choose otherwise next time; name 'float32' or 'bfloat16'")
        if not self.path.parent.is_dir():
            raise ValueError(f"checkpoint: got {os.fspath(path)!r}, whose folder is not there; make it first")
        self.call = _call(task, options)
        self._saved = self._read()
        self.step: int = 0 if self._saved is None else self._saved["step"]
        self._written = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            saved = torch.load(self.path, map_location=self.task.device, weights_only=True)
        except Exception as error:
            raise ValueError(f"checkpoint: {self.path} can't be read ({type(error).__name__}: {error}); name another file") from error
        if not isinstance(saved, dict) or set(saved) != ENTRIES:
            raise ValueError(f"checkpoint: {self.path} is no checkpoint of an unlearning call; name another file")
        if saved["call"] != self.call:
            raise ValueError(
                f"checkpoint: {self.path} is of another call (model, sets, seed, budget and options must be the same); remove it, or name "
                "another file"
            )
        return saved

    def restore(self) -> tuple[Any, ...] | None:
        """Puts model, optimiser, generators, cost and history where they were; returns what the loop had summed up, None where there is no
        file. Nothing may draw between this and the step."""
        if self._saved is None:
            return None
        task, saved = self.task, self._saved
        self._saved = None
        with torch.no_grad():
            for name, value in _state(task).items():
                value.copy_(saved["model"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        task.cost.phases |= {name: Phase(**phase) for name, phase in saved["cost"].items()}
        task.history[:] = saved["history"]
        Generators.of_plain(saved["generators"]).put_back()
        return tuple(saved["losses"])

    def write(self, step: int, losses: tuple[Any, ...]) -> None:
        """The state before this step, if it is time: as a whole file or not at all."""
        if not self._due():
            return
        state = {
            "call": self.call,
            "step": step,
            "model": _state(self.task),
            "optimizer": self.optimizer.state_dict(),
            "generators": Generators().plain(),
            "cost": {name: dataclasses.asdict(phase) for name, phase in self.task.cost.phases.items()},
            "history": self.task.history,
            "losses": losses,
        }
        write_whole(self.path, functools.partial(torch.save, state))
        self._written = time.monotonic()

    def _due(self) -> bool:
        if time.monotonic() - self._written < self.every:
            return False
        with contextlib.suppress(OSError):  # another rank may have written it
            return not 0 <= time.time() - self.path.stat().st_mtime < self.every
        return True


def _state(task: Task) -> dict[str, Tensor]:
    """What training may change: trained parameters and all buffers."""
    trained = {name: p.detach() for name, p in task.model.named_parameters() if p.requires_grad}
    return trained | dict(task.model.named_buffers())


def _call(task: Task, options: Any) -> str:
    """sha256 over what makes the call what it is."""
    digest = hashlib.sha256(repr((options, task.seed, task.classes, task.cost.budget, task.precision)).encode())
    digest.update(_weights.fingerprint(task.model).encode())
    for data in (task.forget, task.retain):
        if data is not None:
            digest.update(f"{data.name} {len(data)}".encode())
            with own_randomness(0):  # of sets that augment
                for one in set_hashes(data):
                    digest.update(one)
    return digest.hexdigest()
