"""Judges methods on the nets under benchmarks/models: forget on ``original-0``, and compare with the models retrained without.

    python -m fastforget._bench.models_judge --root FOLDER                     sweep, three seeds, every request
    python -m fastforget._bench.models_judge --root FOLDER --method unsir salun --seeds 0 --precision auto
    python -m fastforget._bench.models_judge --table                           the table of the stored rows, as Markdown

Half of the test images are the method's non-members, drawn once; the other half measures. Each row is written as soon as it is there; rows
that are there already are skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastforget as ff
from fastforget._files import write_whole
from fastforget.demo.data import DataMissing
from fastforget.methods.pack import STANDARD
from fastforget.ops import membership

from . import machine
from .cifar40 import REQUESTS, Tiles, read
from .experiment_cells import Cell, scores
from .models import ORDER, load, training_seconds

ROWS = Path(__file__).resolve().parent / "results" / "models.json"
METHODS = ("sweep", "unsir", "forsaken", "lightweight", *STANDARD)
ASKED = ("class", "classes", "random")


def cell_of(kind: str, data: Tiles) -> Cell:
    """The sets of a request on the 40 classes of CIFAR-100; of its test images one half is given to methods, the other measures."""
    request, whole = REQUESTS[kind], data.train
    forget, retain = request.split(whole[1])
    first, second = torch.randperm(len(data.test[1]), generator=torch.Generator().manual_seed(1000)).tensor_split(2)
    gone = torch.isin(data.test[1], torch.tensor(request.classes or (-1,)))
    unseen = gone if request.classes else second
    sets = [(images[at], labels[at]) for (images, labels), at in (
        (whole, forget), (whole, retain), (data.test, first), (data.test, unseen), (data.test, second[~gone[second]]),
    )]  # fmt: skip
    return Cell(whole, *sets, list(request.classes) or None)


def figures(net: nn.Module, cell: Cell) -> dict[str, float]:
    """Accuracies, and the loss attack's AUC of forgotten against unseen samples."""
    forget, unseen, test = (scores(net, pair) for pair in (cell.forget, cell.unseen, cell.test))
    right = {name: one.correct.double().mean().item() for name, one in (("kept", test), ("forget", forget), ("unseen", unseen))}
    auc = float(membership.roc_stats(-forget.loss, -unseen.loss, fprs=()).auc)
    return {**{name: round(share, 5) for name, share in right.items()}, "auc": round(auc, 4)}


def row_of(method: str, kind: str, seed: int, tiles: Tiles, data: Tiles, audited: bool, precision: str | None = None) -> dict[str, Any]:
    """One run of a method on ``original-0``, measured; and audited beside the retrained models."""
    cell, original = cell_of(kind, data), load("original-0")
    training = training_seconds(tiles, REQUESTS[kind])
    began = time.thread_time()
    row: dict[str, Any] = {"request": kind, "method": method, "seed": seed}
    try:
        result = ff.unlearn(
            original.net, method, forget=cell.forget, retain=cell.retain, nonmember=cell.nonmember, classes=cell.classes,
            seed=seed, progress=False, precision=precision,
        )  # fmt: skip
    except FloatingPointError as error:  # published constants, on a net they weren't published for
        return row | {"failed": str(error), "cpu": machine.facts()["cpu"]}
    seconds = time.thread_time() - began
    row |= {**figures(result.model, cell), "forgot": result.forgot, "passes": result.cost.passes, "seconds": round(seconds, 1)}
    row |= {"faster": round(training / seconds, 1), "cpu": machine.facts()["cpu"]}
    if audited:
        retrained = {f"retrained {i}" if i else "retrained": load(name).net for i, name in enumerate(_retrained(kind))}
        report = ff.audit(
            {"original": original.net, "unlearned": result.model, **retrained},
            forget=cell.forget, retain=cell.retain, test=cell.measuring, seed=seed, progress=False,
        )  # fmt: skip
        row["verdict"] = report.verdict
    return row


def _retrained(kind: str) -> list[str]:
    return [name for name in ORDER if name.rsplit("-", 1)[0] == kind and (Path(__file__).parent / "models" / f"{name}.json").exists()]


def _save(out: Path, stored: dict[str, Any]) -> None:
    write_whole(out, json.dumps(stored, indent=1) + "\n")


def table(stored: dict[str, Any]) -> str:
    """Markdown: medians over the seeds, beside the original and the retrained models."""
    lines = [
        "| request | model | kept classes right, % | forgotten right, % | attack AUC | sample passes | × retraining's time | audit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in ASKED:
        for name, found in stored["models"].get(kind, {}).items():
            lines.append(f"| {kind} | {name} | {100 * found['kept']:.2f} | {100 * found['forget']:.1f} | {found['auc']:.3f} | | | |")
        for method in METHODS:
            made = [r for r in stored["rows"] if (r["request"], r["method"]) == (kind, method)]
            if failed := [r for r in made if "failed" in r]:
                lines.append(f"| {kind} | **{method}** ({len(failed)} of {len(made)}) | {failed[0]['failed'].split(';')[0]} | | | | | |")
            if rows := [r for r in made if "failed" not in r]:
                middle = {k: statistics.median(r[k] for r in rows) for k in ("kept", "forget", "auc", "passes", "faster")}
                verdicts = ", ".join(r["verdict"] for r in rows if "verdict" in r)
                lines.append(
                    f"| {kind} | **{method}** ({len(rows)} seed{'s' * (len(rows) > 1)}) | {100 * middle['kept']:.2f} | "
                    f"{100 * middle['forget']:.1f} | {middle['auc']:.3f} | {middle['passes']:,.0f} | {middle['faster']:.0f} | {verdicts} |"
                )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m fastforget._bench.models_judge", description=__doc__.split("\n\n")[0])
    p.add_argument("--root", type=Path, help="folder with the images as webp tiles and labels.npz")
    p.add_argument("--method", nargs="+", choices=METHODS, default=["sweep"])
    p.add_argument("--request", nargs="+", choices=ASKED, default=list(ASKED))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="default: the method's own")
    p.add_argument("--no-audit", action="store_true")
    p.add_argument("--again", action="store_true", help="make rows anew that are there")
    p.add_argument("--out", type=Path, default=ROWS)
    p.add_argument("--table", action="store_true", help="only print the table")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the rows that aren't there yet."""
    args = parser().parse_args(argv)
    stored: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}, "rows": []}
    if args.table:
        print(table(stored))
        return 0
    torch.set_num_threads(1)
    try:
        if args.root is None:
            raise DataMissing("--root FOLDER is needed: the folder with labels.npz, train_*.webp and test_*.webp")
        tiles = read(args.root)
        data = tiles.floats()
    except DataMissing as error:
        print(f"python -m fastforget._bench.models_judge: {error}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore", ff.NotForgottenWarning)
    for row in stored["rows"]:
        row.setdefault("cpu", stored["machine"]["cpu"])
    stored["machine"] = machine.facts()
    for kind in args.request:
        cell = cell_of(kind, data)
        stored["models"][kind] = {name: figures(load(name).net, cell) for name in ("original-0", *_retrained(kind))}
        _save(args.out, stored)
        for method, seed in ((m, s) for m in args.method for s in args.seeds):
            key = (kind, method, seed)
            there = [r for r in stored["rows"] if (r["request"], r["method"], r["seed"]) == key]
            if there and not args.again:
                continue
            row = row_of(method, kind, seed, tiles, data, not args.no_audit, args.precision)
            stored["rows"] = [r for r in stored["rows"] if r not in there] + [row]
            print(row, flush=True)
            _save(args.out, stored)
    print(table(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())
