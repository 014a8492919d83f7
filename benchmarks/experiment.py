"""The experiment: method x scenario x data set x net x seed, beside the original, the retrained model and two controls: untouched, random.

    python -m fastforget experiment --data mnist5k digits --seeds 0 1 2 --out experiment

Every cell (data set, net, scenario, seed) is written whole when it is done; run the same command again after a kill and it goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget._progress import progress
from fastforget.audit.files import write_whole
from fastforget.audit.oracles import LossThreshold, logits_of
from fastforget.demo.data import DataMissing
from fastforget.demo.train import train
from fastforget.ops import membership

from . import experiment_page
from .experiment_data import PROBLEMS, Pair, Problem
from .machine import facts

SCENARIOS = ("class", "classes", "random", "uploads")
LIGHT_SUBSET = 1_000  # retained samples that Lightweight may use
# name, method, options; "unsir" is the default of its scenario
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "unsir": ("unsir", {}),
    "forsaken": ("forsaken", {}),
    "forsaken direct": ("forsaken", {"generator": "direct"}),
    "lightweight": ("lightweight", {}),
    "untouched": ("none", {}),
}


@dataclass
class Cell:
    """One request: what was trained, what is to be forgotten, and what was never seen."""

    whole: Pair
    forget: Pair
    retain: Pair
    nonmember: Pair
    unseen: Pair  # of the forget data's kind, never seen by anything
    test: Pair  # for accuracy: of the kept classes
    classes: list[int] | None


def _pick(pair: Pair, index: Tensor) -> Pair:
    return pair[0][index], pair[1][index]


def _both(a: Pair, b: Pair) -> Pair:
    return torch.cat((a[0], b[0])), torch.cat((a[1], b[1]))


def make_cell(problem: Problem, scenario: str, seed: int, member: Tensor | None = None) -> Cell | None:
    """The sets of one request; None where the scenario has no meaning for the data."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    data = problem.train if member is None else _pick(problem.train, member)
    half = torch.randperm(len(problem.test[1]), generator=generator).tensor_split(2)
    nonmember, test = _pick(problem.test, half[0]), _pick(problem.test, half[1])
    if scenario in ("class", "classes"):
        classes = [problem.forget_class] if scenario == "class" else problem.several
        if not classes or problem.classes <= len(classes) + 1:
            return None
        wanted = torch.tensor(classes)
        mine, theirs = torch.isin(data[1], wanted), torch.isin(test[1], wanted)
        kept = _pick(test, ~theirs)
        return Cell(data, _pick(data, mine), _pick(data, ~mine), nonmember, _pick(test, theirs), kept, classes)
    order = torch.randperm(len(data[1]), generator=generator)
    if scenario == "random":
        n = min(500, len(order) // 20)
        return Cell(data, _pick(data, order[:n]), _pick(data, order[n:]), nonmember, test, test, None)
    if not problem.uploads:
        return None
    n = min(200, len(order) // 12)
    other = [_upload(_pick(data, order[n * i : n * (i + k)]), problem.classes, generator) for i, k in ((0, 1), (1, 4), (5, 4))]
    return Cell(_both(data, other[0]), other[0], data, other[1], other[2], test, None)


def _upload(pair: Pair, classes: int, generator: torch.Generator) -> Pair:
    """Images of another kind with arbitrary labels: inverted, turned, mirrored."""
    return -pair[0].transpose(2, 3).flip(2), torch.randint(0, classes, (len(pair[1]),), generator=generator)


def _scores(model: nn.Module, pair: Pair) -> membership.MembershipScores:
    return membership.membership_scores(*logits_of(model, pair))


def oracle(model: nn.Module, cell: Cell) -> LossThreshold:
    """Tells the original model's training data from unseen data by the loss; fixed before unlearning."""
    order = torch.randperm(len(cell.whole[1]), generator=torch.Generator().manual_seed(0))[:5_000]
    return LossThreshold.calibrated(model, _both(_pick(cell.whole, order), cell.forget), cell.nonmember)


def measure(model: nn.Module, cell: Cell, threshold: float, before: Tensor) -> dict[str, float]:
    """Accuracies, the loss attack on the forget set against unseen data of its kind, and the forgetting rate."""
    forget, unseen, retain, test = (_scores(model, pair) for pair in (cell.forget, cell.unseen, cell.retain, cell.test))
    attack = membership.roc_stats(-forget.loss, -unseen.loss, fprs=(0.01,))
    return {
        "forget_accuracy": forget.correct.double().mean().item(),
        "retain_accuracy": retain.correct.double().mean().item(),
        "test_accuracy": test.correct.double().mean().item(),
        "unseen_accuracy": unseen.correct.double().mean().item(),
        "attack_auc": float(attack.auc),
        "attack_tpr": float(attack.tpr[0]),
        "forgetting_rate": membership.forgetting_rate(before, forget.loss <= threshold),
    }


def _trained(problem: Problem, net: str, data: Pair, seed: int, path: Path, label: str, show: bool) -> tuple[nn.Module, float]:
    """A trained net, from the folder if an earlier run left it there."""
    model = problem.nets[net](seed)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        return model.eval(), saved["seconds"]
    seconds = train(model, data, epochs=problem.epochs, seed=seed, label=label, progress=show)
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "seconds": seconds}, part)
    os.replace(part, path)
    return model, seconds


def run_cell(problem: Problem, net: str, scenario: str, seed: int, methods: Sequence[str], out: Path, show: bool) -> list[dict[str, Any]]:
    """Trains (or finds) both models, runs every method, and returns one row for each model."""
    given = problem.pretrained() if problem.pretrained and scenario != "uploads" else None
    cell = make_cell(problem, scenario, seed, given[1] if given else None)
    if cell is None:
        return []
    stem = f"{problem.name}-{net}-{seed}"
    shared = "uploads" if scenario == "uploads" else "all"
    if given:
        original, seconds = given[0].eval(), float("nan")
    else:
        original, seconds = _trained(problem, net, cell.whole, seed, out / "models" / f"{stem}-{shared}.pt", f"train {stem}", show)
    without = out / "models" / f"{stem}-without-{scenario}.pt"
    retrained, retraining = _trained(problem, net, cell.retain, seed, without, f"retrain {stem} {scenario}", show)
    threshold = oracle(original, cell).threshold
    before = _scores(original, cell.forget).loss <= threshold
    base = {"data": problem.name, "net": net, "scenario": scenario, "seed": seed, "forget_samples": len(cell.forget[1])}

    def row(name: str, model: nn.Module, took: float, **more: Any) -> dict[str, Any]:
        return {**base, "method": name, "seconds": took, **measure(model.eval(), cell, threshold, before), **more}

    rows = [row("original", original, seconds), row("retrained", retrained, retraining)]
    rows.append(row("random", problem.nets[net](seed + 77), 0.0))
    for name in methods:
        method, options = METHODS[name]
        if method == "unsir" and cell.classes is None:
            options = {"preset": "samples"}
        if method == "unsir" and not cell.retain[0].is_floating_point():
            continue  # no noise can be learned for word numbers
        rows.append(_unlearned(row, name, method, options, original, cell, seed, retraining))
    return rows


def _unlearned(
    row: Any, name: str, method: str, options: dict[str, Any], original: nn.Module, cell: Cell, seed: int, retraining: float
) -> dict[str, Any]:
    retain = cell.retain
    if method == "lightweight":
        order = torch.randperm(len(retain[1]), generator=torch.Generator().manual_seed(seed))[:LIGHT_SUBSET]
        retain = _pick(retain, order)
    # UNSIR's claim is that it needs no sample of the classes, so it gets none
    sets: dict[str, Any] = {"classes": cell.classes, "retain": retain, "nonmember": cell.nonmember}
    if method != "unsir" or cell.classes is None:
        sets["forget"] = cell.forget
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        try:
            began = time.perf_counter()
            result = ff.unlearn(original, method, **sets, seed=seed, progress=False, **options)
            took = time.perf_counter() - began
        except (FloatingPointError, RuntimeError, ValueError) as error:
            return row(name, original, float("nan"), failed=f"{type(error).__name__}: {error}")
    return row(name, result.model, took, speedup=retraining / took, forgot=result.forgot, why=result.why)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m fastforget experiment", description=__doc__.split("\n\n")[0])
    p.add_argument("--data", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS), help="data sets (absent ones are skipped)")
    p.add_argument("--net", nargs="+", help="nets by name (default: every net of a data set)")
    p.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    p.add_argument("--method", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=Path("experiment"), help="folder of models, cells, rows.json and the page")
    p.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    p.add_argument("--page", action="store_true", help="only write rows.json and the page from the cells that are there")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what isn't there yet, then writes the rows and the page."""
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    for folder in ("models", "cells"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    if not args.page:
        _run_all(args)
    rows = [r for path in sorted((args.out / "cells").glob("*.json")) for r in json.loads(path.read_text())]
    write_whole(args.out / "rows.json", json.dumps({"machine": facts(), "rows": rows}, indent=1))
    page = experiment_page.page(rows)
    write_whole(args.out / "README.md", page)
    print(page)
    return 0


def _run_all(args: argparse.Namespace) -> None:
    for name in args.data:
        try:
            problem = PROBLEMS[name]()
        except DataMissing as missing:
            print(f"{name}: skipped, {missing}")
            continue
        cells = [(n, s, seed) for n in (args.net or problem.nets) if n in problem.nets for s in args.scenario for seed in args.seeds]
        with progress(len(cells), name, True) as bar:
            for net, scenario, seed in cells:
                path = args.out / "cells" / f"{name}-{net}-{scenario}-{seed}.json"
                if not path.exists():
                    rows = run_cell(problem, net, scenario, seed, args.method, args.out, True)
                    write_whole(path, json.dumps(rows, indent=1))
                bar.step(1, f"{net} {scenario} seed {seed}")
