"""The diagonal Fisher: by layers, against the loop over samples as users write it, and against ``torch.func.vmap(grad)``.

    python -m fastforget._bench.fisher                      prints the table
    python -m fastforget._bench.fisher --out FILE.json      and writes it, e.g. to benchmarks/results/fisher.json

One process, each way in turn, medians of the rounds, each call with the caches as another way left them, memory reused (the allocator's
settled state: README.md in this folder). With one thread it is the thread's CPU seconds, which other load moves little, else wall seconds.
Beside them, what no way can go far below: a plain forward and backward pass over the whole batch, its multiplications alone at the speed
of a large matrix product. ``model``: the labels are the model's own, a backward pass for each class (of the MLP's ten).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastforget._files import write_whole
from fastforget._random import own_randomness
from fastforget.methods.engine.fisher import fisher_diagonal

from . import machine
from .cifar40 import resnet20
from .timing import set_allocator

ROUNDS = 7
GOALS = {"MLP 784-256-128-10": 50.0, "ResNet-20": 10.0}  # times as fast as the loop
AGREE = 2.0  # of the loop's own distance from float64, that ours may be away from it
FEW = 10  # classes, up to which the model's own labels are timed too
PRODUCT = 1024  # rows of the matrix product that shows the processor's speed


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 784-256-128-10": (mlp, (512, 784), 10),
    "ResNet-20": (lambda: resnet20(0), (64, 3, 32, 32), 40),
}


def loop(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """As users write it: one sample, one backward pass, the squares added up."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(len(y)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for t, p in zip(total, model.parameters(), strict=True):
            assert p.grad is not None
            t += p.grad**2
    return [t / len(y) for t in total]


def vmapped(model: nn.Module) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Every sample's gradients at once, by ``torch.func``, then squared."""
    params = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, (params, buffers), (x[None],)), y[None])

    every = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    return lambda x, y: [g.square().mean(0) for g in every(params, x, y).values()]


def _ours(model: nn.Module, x: Tensor, y: Tensor, labels: str = "true") -> list[Tensor]:
    found = fisher_diagonal(model, (x, y), batch_size=len(y), labels=labels)
    if found.way != "by layers":
        raise RuntimeError(f"the way taken is {found.way}")
    return found.diagonal


def _apart(found: list[Tensor], truth: list[Tensor]) -> float:
    """Distance over all weights, as a share of the truth's length."""
    flat = [torch.cat([t.double().flatten() for t in side]) for side in (found, truth)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def _seconds(calls: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            began = clock()
            call()
            taken[name].append(clock() - began)
    return {name: seconds[1:] for name, seconds in taken.items()}


def measured(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """One net's row.

    Raises:
        RuntimeError: ours is further from float64 than twice the loop; no time is given for wrong results.
    """
    build, shape, classes = CASES[name]
    with own_randomness(0):
        model, x, y = build().eval(), torch.randn(shape), torch.randint(0, classes, shape[:1])
    exact = build().double().eval()
    exact.load_state_dict(model.state_dict())
    truth = loop(exact, x.double(), y)
    by_vmap = vmapped(model)
    away = {"ours": _apart(_ours(model, x, y), truth), "loop": _apart(loop(model, x, y), truth), "vmap": _apart(by_vmap(x, y), truth)}
    double = _apart(_ours(exact, x.double(), y), truth)
    if away["ours"] > AGREE * away["loop"] or double > 1e-10:
        raise RuntimeError(f"{name}: ours is {away['ours']:.1e} from float64 (the loop {away['loop']:.1e}), in float64 {double:.1e}")
    square = torch.randn(PRODUCT, PRODUCT)
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(model(x), y).backward()
    torch.set_num_threads(threads)
    set_allocator("settled")
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: _ours(model, x, y),
        "loop": lambda: loop(model, x, y),
        "vmap": lambda: by_vmap(x, y),
        "batch forward": lambda: model(x),
        "batch forward and backward": lambda: F.cross_entropy(model(x), y).backward(),
        "product": lambda: square @ square,
    }
    if classes <= FEW:
        calls["ours, model"] = lambda: _ours(model, x, y, "model")
    with torch.autograd.set_multithreading_enabled(False):  # a backward pass in this thread, so that its clock sees it
        taken = _seconds(calls, rounds, time.thread_time if threads == 1 else time.perf_counter)
    median = {way: statistics.median(seconds) for way, seconds in taken.items()}
    ratios = [a / b for a, b in zip(taken["loop"], taken["ours"], strict=True)]
    limit = median["product"] * counted.get_total_flops() / (2 * PRODUCT**3)
    least = median["batch forward and backward"]
    times, goal = median["loop"] / median["ours"], GOALS[name]
    return {
        "net": name,
        "samples": shape[0],
        "weights": sum(p.numel() for p in model.parameters()),
        "threads": threads,
        "rounds": rounds,
        "seconds": median,
        "spread": {way: [min(s), max(s)] for way, s in taken.items()},
        "arithmetic_seconds": limit,
        "times_loop": times,
        "times_loop_range": [min(ratios), max(ratios)],
        "times_vmap": median["vmap"] / median["ours"],
        "most_by_arithmetic": median["loop"] / limit,
        "most_by_batch": median["loop"] / least,
        "goal": goal,
        "met": times >= goal,
        "why": ""
        if times >= goal
        else f"a plain forward and backward pass over the batch is {median['loop'] / least:.1f} times as fast as the loop, "
        f"its multiplications alone at the speed of a matrix product {median['loop'] / limit:.1f} times",
        "from_float64": away,
        "in_float64": double,
    }


COLUMNS = ("net", "threads", "ours", "model", "loop", "vmap", "batch", "arithmetic", "x loop", "x vmap", "most", "goal")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text; seconds in ms. ``batch``: forward and backward of the whole batch; ``most``: how many times as fast as the loop the
    batch's pass, and its multiplications alone, are."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        seconds = row["seconds"]
        ms = [
            f"{1e3 * seconds[way]:.1f}" if way in seconds else "-"
            for way in ("ours", "ours, model", "loop", "vmap", "batch forward and backward")
        ]
        lines.append(
            f"| {row['net']}, {row['samples']} samples | {row['threads']} | {' | '.join(ms)} | {1e3 * row['arithmetic_seconds']:.1f} "
            f"| {row['times_loop']:.1f} | {row['times_vmap']:.1f} | {row['most_by_batch']:.1f}, {row['most_by_arithmetic']:.1f} "
            f"| {row['goal']:g} {'met' if row['met'] else 'MISSED'} |"
        )
    return "\n".join(lines + [f"{row['net']}, {row['threads']} threads, missed: {row['why']}" for row in rows if not row["met"]])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastforget._bench.fisher", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--net", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    facts = machine.facts()
    rows = [measured(name, threads, args.rounds) for name in args.net for threads in args.threads]
    print(table(rows))
    if args.out:
        found = {"what": "fisher", "rows": rows, "machine": facts | {"load_after": machine.load()}}
        write_whole(args.out, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
