"""Randomness that leaves the caller's alone: torch's generators, Python's ``random`` and numpy's.

All three are global, shared by every thread of the process. So a thread that sets its own apart holds :data:`TURN` until it has put the
caller's back; a second one waits.
"""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import numpy as np
import torch

TURN = threading.RLock()


def _fresh_turn() -> None:
    """A forked process (a loader's worker) has no thread that could ever give the turn back."""
    global TURN
    TURN = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_turn)


def holds_turn() -> bool:
    """Whether this thread has the turn."""
    return bool(TURN._is_owned())  # type: ignore[attr-defined]


class Generators:
    """The global generators' states at one moment: the CPU's, those of GPUs in use, Python's and numpy's."""

    def __init__(self) -> None:
        self.cpu = torch.default_generator.get_state()
        self.gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.python = random.getstate()
        self.numpy: Any = np.random.get_state(legacy=False)

    def put_back(self) -> None:
        torch.default_generator.set_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def plain(self) -> dict[str, Any]:
        """As tensors, numbers and texts alone."""
        return {"cpu": self.cpu, "gpus": self.gpus, "python": self.python, "numpy": _plain(self.numpy)}

    @classmethod
    def of_plain(cls, value: dict[str, Any]) -> Generators:
        """From :meth:`plain`'s."""
        states = cls()
        states.cpu, states.gpus = value["cpu"].cpu(), [state.cpu() for state in value["gpus"]]
        states.python, states.numpy = value["python"], _of_plain(value["numpy"])
        return states


def _plain(state: Any) -> Any:
    """numpy's arrays of words as lists."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return {"words": state.tolist(), "dtype": str(state.dtype)} if isinstance(state, np.ndarray) else state


def _of_plain(state: Any) -> Any:
    if isinstance(state, dict) and set(state) == {"words", "dtype"}:
        return np.array(state["words"], state["dtype"])
    return {name: _of_plain(value) for name, value in state.items()} if isinstance(state, dict) else state


def seed_all(seed: int) -> None:
    """Every global generator starts from ``seed``, GPUs only where they are in use."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    bits = int(seed) % 2**64  # torch takes negative ones as well
    random.seed(bits)
    made = getattr(np.random, np.random.get_state(legacy=False)["bit_generator"], None)
    if made is not None:  # a caller may have put one that isn't numpy's in its place
        np.random.set_state(made(bits).state)


class own_randomness:
    """Augmentation, dropout, initial weights and the like draw from ``seed``; the caller's random state stays as it was: torch's (also on
    GPUs in use), Python's and numpy's. Threads take turns.

    A class, not a generator: an unfinished generator would put back its state when it is collected, which may be much later.

    >>> before = torch.get_rng_state()
    >>> with own_randomness(7):
    ...     first = torch.rand(2), random.random(), np.random.rand()
    >>> with own_randomness(7):
    ...     torch.equal(torch.rand(2), first[0]), random.random() == first[1], np.random.rand() == first[2]
    (True, True, True)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._first = not holds_turn()
        self._saved: Generators | None = None

    def __enter__(self) -> own_randomness:
        if self._first:
            TURN.acquire()
        self._saved = Generators()
        seed_all(self.seed)
        return self

    def __exit__(self, *_: Any) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Once or more often: what was put back already is left alone."""
        if self._saved is not None:
            self._saved.put_back()
            self._saved = None
        if self._first and holds_turn():
            TURN.release()
