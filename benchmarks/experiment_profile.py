"""Where a method's time goes, and how it compares with itself on plain PyTorch (the reference backend).

    python -m fastforget experiment --profile
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget.ops import mask, membership, noise, update

from .experiment_cells import SUBSET, Run, some
from .experiment_data import PROBLEMS

CASES = (("mnist5k", "cnn"), ("mnist5k", "mlp"))
# the options of a run of few steps, in which the two backends must agree up to rounding before any time is taken
SHORT: dict[str, dict[str, Any]] = {
    "unsir": {"noise_steps": 5, "impair_lr": 1e-3, "repair_lr": 5e-4, "repair_epochs": 1},
    "forsaken": {"steps": 5},
    "lightweight": {"steps": 4},
}
AGREE = 1e-2  # of the way that the weights went, between the backends after a short run
RUNS = 3
PARTS = ("ops", "forward", "backward")


class Clock:
    """Seconds of this thread by part; inner calls of another part are taken out of the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._stack: list[float] = []

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._stack.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.seconds[part] += took - self._stack.pop()
                if self._stack:
                    self._stack[-1] += took

        return timed


@contextmanager
def clocked(clock: Clock) -> Iterator[Callable[[nn.Module, Any], Tensor]]:
    """Every public op and every backward pass under the clock; gives the forward call that is under it too."""
    kept: list[tuple[Any, str, Any]] = []
    for module in (noise, update, mask, membership):
        for name, value in vars(module).items():
            if isinstance(value, FunctionType) and not name.startswith("_") and value.__module__.startswith("fastforget.ops"):
                kept.append((module, name, value))
    spots = [*kept, (torch.autograd, "grad", torch.autograd.grad), (Tensor, "backward", Tensor.backward)]
    try:
        for owner, name, function in spots:
            part = "ops" if (owner, name, function) in kept else "backward"
            setattr(owner, name, clock.wrap(part, function))
        yield clock.wrap("forward", lambda model, x: model(x))
    finally:
        for owner, name, function in spots:
            setattr(owner, name, function)


def measured(out: Path) -> list[dict[str, Any]]:
    """One row for each method and case."""
    rows = []
    for data, net in CASES:
        run = Run(PROBLEMS[data](), net, "class", 0, out, True)
        assert run.cell is not None
        for method in SHORT:
            rows.append({"method": method, "case": f"{net}, {data}", **_row(run, method)})
            print(rows[-1], flush=True)
    return rows


def _row(run: Run, method: str) -> dict[str, Any]:
    def once(backend: str, **options: Any) -> tuple[ff.methods.UnlearnResult, float]:
        cell = run.cell
        assert cell is not None
        retain = some(cell.retain, SUBSET, 0) if method == "lightweight" else cell.retain
        sets: dict[str, Any] = {"classes": cell.classes, "retain": retain, "nonmember": cell.nonmember, "seed": 0, "progress": False}
        if method != "unsir":
            sets["forget"] = cell.forget
        with warnings.catch_warnings(), ff.use_backend(backend):
            warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
            began = time.process_time()
            result = ff.unlearn(run.original, method, **sets, **options)
            return result, time.process_time() - began

    apart = _apart(run.original, *(once(b, **SHORT[method])[0].model for b in ("native", "reference")))
    if apart > AGREE:
        raise RuntimeError(f"{method}: after a short run the backends are {apart:.1e} of the way apart; no time is given for wrong results")
    times: dict[str, list[float]] = {"native": [], "reference": []}
    last = {}
    for _ in range(RUNS):  # in turn, so that a busy moment hits both
        for backend, kept in times.items():
            last[backend], took = once(backend)
            kept.append(took)
    clock = Clock()
    with clocked(clock) as forward:
        began = time.thread_time()
        once("native", forward=forward)
        total = time.thread_time() - began
    shares = {part: clock.seconds[part] / total for part in PARTS}
    ours, plain = statistics.median(times["native"]), statistics.median(times["reference"])
    same = {b: (r.forgot, (r.receipt.get("measured") or {}).get("steps")) for b, r in last.items()}
    text = f"{apart:.0e} apart after a short run; whole run: {'same' if same['native'] == same['reference'] else 'other'} verdict and steps"
    return shares | {"rest": 1 - sum(shares.values()), "seconds": ours, "reference_seconds": plain, "ratio": plain / ours, "results": text}


def _apart(start: nn.Module, one: nn.Module, other: nn.Module) -> float:
    """Distance of two results, as a share of the way that the first one went."""
    a, b, c = (torch.cat([p.detach().reshape(-1).double() for p in m.parameters()]) for m in (start, one, other))
    return float((b - c).norm() / (b - a).norm())
