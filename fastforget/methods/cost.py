"""What a run costs: sample passes through the model and seconds, by phase and by what they were spent on; and the budget that bounds them.

A *sample pass* is one sample forward and backward; a sample that only goes forward counts a third, as a backward pass takes about twice as
long as the forward pass before it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
FORWARD = 3  # forward passes that cost as much as one pass forward and backward
SPENT_ON = ("model", "ops", "data", "other")
LOOKS = ("before", "looks", "verdict")  # phases in which the model is only looked at
EPOCHS = "epochs"


@dataclass
class Phase:
    """One phase's samples and seconds."""

    trained: int = 0  # samples that went forward and backward
    forward: int = 0  # samples that went forward alone
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT_ON, 0.0))

    @property
    def passes(self) -> int:
        """Sample passes: forward and backward, and a third of those forward alone (rounded up)."""
        return self.trained - (-self.forward // FORWARD)


class Cost:
    """Counts samples and seconds of one run, phase by phase, and knows the budget.

    Every call of the model is counted by :meth:`counting`; seconds go to the innermost of :meth:`at`'s blocks.

    >>> cost = Cost()
    >>> with cost.phase("sweep"):
    ...     cost.count(64, trained=True)
    ...     cost.count(90, trained=False)
    >>> cost.passes, cost.receipt()["phases"]["sweep"]["trained"]
    (94, 64)
    """

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self.budget: int | None = None  # sample passes
        self.asked = False  # whether the caller gave it
        self.stopped_by_budget = False
        self._name, self._spent_on, self._since = "other", "other", time.perf_counter()

    @property
    def passes(self) -> int:
        """Sample passes of the method so far: looks at the model before and after it aren't part of it."""
        return sum(phase.passes for name, phase in self.phases.items() if name not in ("before", "verdict"))

    @property
    def seconds(self) -> float:
        return sum(sum(phase.seconds.values()) for phase in self.phases.values())

    def has_room(self, passes: int) -> bool:
        """Whether the budget has room for so many sample passes more; notes it where it hasn't."""
        if self.budget is None or self.passes + passes <= self.budget:
            return True
        self.stopped_by_budget = True
        return False

    def left(self) -> float:
        """Sample passes that the budget still has room for: a look that could take more samples ends there, which doesn't end the run."""
        return math.inf if self.budget is None else self.budget - self.passes

    def count(self, samples: int, *, trained: bool) -> None:
        phase = self._current()
        if trained:
            phase.trained += samples
        else:
            phase.forward += samples

    def counting(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function that calls the model, counted: its samples by the rows of what it returns."""

        @functools.wraps(forward)
        def counted(model: Any, inputs: Any) -> Tensor:
            with self.at("model"):
                logits = forward(model, inputs)
            self.count(len(logits), trained=torch.is_grad_enabled())
            return logits

        return counted

    def reading(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; what reading them takes goes to the data."""
        iterator = iter(batches)
        while True:
            with self.at("data"):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            yield batch

    @contextlib.contextmanager
    def at(self, spent_on: str) -> Iterator[None]:
        """Seconds inside go to ``"model"``, ``"ops"``, ``"data"`` or ``"other"``."""
        self._close()
        outer, self._spent_on = self._spent_on, spent_on
        try:
            yield
        finally:
            self._close()
            self._spent_on = outer

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is counted inside belongs to this phase. A look inside of a phase is a phase of its own."""
        self._close()
        outer, self._name = (self._name, self._spent_on), name
        self._spent_on = "other"
        try:
            yield
        finally:
            self._close()
            self._name, self._spent_on = outer

    def _current(self) -> Phase:
        return self.phases.setdefault(self._name, Phase())

    def _close(self) -> None:
        now = time.perf_counter()
        self._current().seconds[self._spent_on] += now - self._since
        self._since = now

    def note(self) -> str:
        """For the progress bar."""
        return f"{self.passes:,} sample passes"

    def receipt(self) -> dict[str, Any]:
        """The counts, which the same seed gives again: no seconds."""
        phases = {name: {"trained": p.trained, "forward": p.forward} for name, p in self.phases.items() if p.trained or p.forward}
        return {"passes": self.passes, "budget": self.budget, "stopped_by_budget": self.stopped_by_budget, "phases": phases}

    def table(self) -> dict[str, dict[str, float]]:
        """Seconds by phase and by what they were spent on, up to the last block that ended: what comes after the run isn't part of it."""
        return {name: dict(phase.seconds) for name, phase in self.phases.items() if sum(phase.seconds.values()) > 0}

    def __repr__(self) -> str:
        return f"Cost(passes={self.passes}, seconds={self.seconds:.1f}, budget={self.budget})"


def budget_of(budget: Any, retain: int | None) -> int | None:
    """The budget in sample passes.

    Args:
        budget: ``None``, sample passes (an int), or epochs over the data to keep as text: ``"2 epochs"``, ``"0.5 epochs"``.
        retain: how many samples are to be kept.

    >>> budget_of("0.5 epochs", 9000), budget_of(15_000, None)
    (4500, 15000)
    """
    if budget is None:
        return None
    accepted = 'accepted is a number of sample passes, e.g. 15_000, or epochs over retain as text, e.g. "2 epochs"'
    if isinstance(budget, str):
        number, _, unit = budget.strip().partition(" ")
        try:
            epochs = float(number)
        except ValueError:
            epochs = -1.0
        if unit.strip() not in (EPOCHS, "epoch") or not 0 < epochs < float("inf"):
            raise ValueError(f"budget: got {budget!r}; {accepted}")
        if retain is None:
            raise ValueError(f"budget: got {budget!r} but no retain set, whose epochs could be counted; {accepted}")
        return max(1, round(epochs * retain))
    if isinstance(budget, bool) or not hasattr(budget, "__index__") or budget.__index__() < 1:
        raise ValueError(f"budget: got {budget!r}; {accepted}")
    return int(budget.__index__())
