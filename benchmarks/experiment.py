"""The experiment: method x scenario x data set x net x seed, beside the original, retrained models and controls.

    python -m fastforget experiment                          # the plan below; absent data sets are skipped with a message
    python -m fastforget experiment --data digits --seeds 0  # a part of it
    python -m fastforget experiment --section                # only print the part of docs/experiment.md from the committed rows
    python -m fastforget experiment --standard               # the standard methods' table (benchmarks/standard.py)

Every row is written when it is there; run the same command again after a kill and it goes on. Of a method that was changed since,
``--again METHOD`` makes the rows anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastforget._files import write_whole
from fastforget._progress import progress
from fastforget.auditing.verdict import POWERLESS
from fastforget.demo.data import DataMissing
from fastforget.methods import registry
from fastforget.methods.verdict import UNDECIDED

from . import experiment_page, experiment_profile, standard
from .experiment_cells import CLASSES, CONTROLS, METHODS, SCENARIOS, SHARES, Run, not_applicable, rows_of
from .experiment_claims import groups
from .experiment_data import PROBLEMS, Problem
from .machine import facts

FOLDER = Path(__file__).resolve().parent
ROWS = FOLDER / "results" / "experiment.json"
EVERY = ("original", *CONTROLS, *METHODS)
# What is run where, chosen so that every claim has what it needs and the whole fits in about an hour of one core: one net everywhere;
# the four nets that UNSIR's claim names on one data set, for UNSIR alone; requests that a data set can hold. (nets, scenarios, methods)
PLAN: dict[str, list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]] = {
    "digits": [(("cnn",), SCENARIOS, EVERY)],
    "mnist5k": [
        (("cnn",), SCENARIOS, EVERY),
        (("resnet",), ("class",), EVERY),
        (("mlp", "resnet", "vit"), CLASSES, ("original", *CONTROLS, "unsir")),
    ],
    "fashion-mnist": [(("cnn",), SCENARIOS, EVERY)],
    "mnist": [(("given",), ("class", "random"), EVERY)],  # one retraining takes a minute
    "20newsgroups": [(("bag",), (*CLASSES, "random"), EVERY)],
    "20newsgroups-by-date": [(("bag",), (*CLASSES, "random"), EVERY)],
    "reuters-r8": [(("bag",), (*CLASSES, "random"), EVERY)],
    "adult": [(("mlp",), ("random",), EVERY)],
}
DOUBTED = "is not believed to be retrained"
LEFT_OUT = ("why", "audit_why")  # long texts: in the cells, not in the committed rows


def others() -> list[str]:
    """Methods that can be called by name and aren't in the plan, those of other packages among them: run where they are asked for, with
    their own defaults, on every request that all methods have."""
    return [name for name in registry.names() if name not in (*EVERY, registry.AUTO, "none")]


def parser() -> argparse.ArgumentParser:
    every = (*EVERY, *others())
    p = argparse.ArgumentParser("python -m fastforget experiment", description=__doc__.split("\n\n")[0])
    p.add_argument("--data", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS), help="data sets (absent ones are skipped)")
    p.add_argument("--net", nargs="+", help="nets by name, with every method (default: the plan's)")
    p.add_argument("--scenario", nargs="+", choices=(*SCENARIOS, *SHARES))
    p.add_argument("--method", nargs="+", choices=every, help="default: the plan's")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=Path("experiment"), help="folder of models, cells, rows.json and the page")
    p.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    p.add_argument("--again", nargs="+", choices=every, default=[], help="make these methods' rows anew")
    p.add_argument("--page", action="store_true", help="only write rows and page from the cells that are there")
    p.add_argument("--commit", action="store_true", help="write rows and page to benchmarks/ as well")
    p.add_argument("--keep", action="store_true", help="keep committed rows of methods and requests that the folder's cells lack")
    p.add_argument("--standard", action="store_true", help="the table of the standard methods")
    p.add_argument("--section", action="store_true", help="only print the generated part of docs/experiment.md, from the committed rows")
    p.add_argument("--profile", action="store_true", help="only measure where the methods' time goes, against plain PyTorch")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what isn't there yet, then writes the rows and the page."""
    args = parser().parse_args(argv)
    if args.section:
        print(experiment_page.section(json.loads(ROWS.read_text())))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    for folder in ("models", "cells"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    if args.profile:
        write_whole(args.out / "profile.json", json.dumps(experiment_profile.measured(args.out), indent=1))
    elif not args.page:
        _run_all(args)
    page, rows = (standard, standard.ROWS) if args.standard else (experiment_page, ROWS)
    results = _collected(args.out, standard.EVERY if args.standard else EVERY, rows if args.keep else None)
    if lacking := _lacking(results["rows"]):
        _write(results, args.out / "rows.json", args.out, {})
        print(f"no page: {', '.join(lacking)} without rows of original and retrained. Run these, too, or give --keep", file=sys.stderr)
        return 2 if args.commit else 0
    _write(results, args.out / "rows.json", args.out, page.files(results))
    if args.commit:
        _write(results, rows, FOLDER, page.files(results))
    print(page.page(results))
    return 0


def _collected(out: Path, methods: Sequence[str], committed: Path | None) -> dict[str, Any]:
    """The rows of all cells in the folder, with those of ``committed`` that no cell stands for (and their processor, if it was another)."""
    rows = [r for path in sorted((out / "cells").glob("*.json")) for r in json.loads(path.read_text())]
    for r in rows:  # a verdict, or an audit, that could show nothing: the original model looks unlearned already
        r["undecided"] = UNDECIDED in (r.get("why") or "")
        r["doubted"] = any(DOUBTED in line for line in r.get("audit_why") or ())
        r["powerless"] = bool(r.get("audit_why")) and all(POWERLESS in line for line in r["audit_why"])
    here = facts()
    if committed is not None and committed.exists():
        stored = json.loads(committed.read_text())
        there = {_run(r) for r in rows}
        other = {"cpu": stored["machine"]["cpu"]} if stored["machine"]["cpu"] != here["cpu"] else {}
        rows += [other | r for r in stored["rows"] if _run(r) not in there]
    order, requests = list(PROBLEMS), (*SCENARIOS, *SHARES)
    rows.sort(key=lambda r: (order.index(r["data"]), r["net"], requests.index(r["scenario"]), *_place(r["method"], methods), r["seed"]))
    short = [{k: round(v, 5) if isinstance(v, float) else v for k, v in r.items() if k not in LEFT_OUT} for r in rows]
    profile = out / "profile.json"
    threads = torch.get_num_threads()
    return {
        "machine": here | {"threads": threads},
        "profile": json.loads(profile.read_text()) if profile.exists() else [],
        "rows": short,
    }


def _lacking(rows: list[dict[str, Any]]) -> list[str]:
    """Requests of which the pages can say nothing: their rows have no models to be compared with."""
    requests = groups(rows, "data", "net", "scenario").items()
    return [" ".join(request) for request, members in requests if not {"original", "retrained"} <= {r["method"] for r in members}]


def _run(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["data"], row["net"], row["scenario"], row["seed"], row["method"]


def _place(method: str, methods: Sequence[str]) -> tuple[int, str]:
    """Where a method stands in the tables: other packages' come after the plan's."""
    return methods.index(method) if method in methods else len(methods), method


def _write(results: dict[str, Any], rows: Path, folder: Path, files: dict[str, str]) -> None:
    lines = ",\n".join(json.dumps(row) for row in results["rows"])
    profile = ",\n".join(json.dumps(row) for row in results["profile"])
    write_whole(rows, f'{{"machine": {json.dumps(results["machine"])},\n"profile": [\n{profile}],\n"rows": [\n{lines}]}}\n')
    (folder / "results").mkdir(exist_ok=True)
    for name, text in files.items():
        write_whole(folder / name, text)


def cells(args: argparse.Namespace, problem: Problem) -> Iterator[tuple[str, str, int, list[str]]]:
    """(net, scenario, seed, methods) of the plan, as far as the command line asks for it."""
    plans, requests, every = (standard.PLAN, standard.REQUESTS, standard.EVERY) if args.standard else (PLAN, SCENARIOS, EVERY)
    plan = plans.get(problem.name, [])
    if args.net:
        plan = [(tuple(n for n in args.net if n in problem.nets), tuple(requests), every)]
    for seed in args.seeds:
        for nets, scenarios, methods in plan:
            for net in nets:
                for scenario in scenarios:
                    if scenario in (args.scenario or requests):
                        wanted = args.method or list(methods)
                        more = [m for m in wanted if m not in every] if methods == every else []
                        yield net, scenario, seed, [m for m in methods if m in wanted] + more


def _run_all(args: argparse.Namespace) -> None:
    for name in args.data:
        try:
            problem = PROBLEMS[name]()
        except DataMissing as missing:
            print(f"{name}: skipped, {missing}")
            continue
        todo = list(cells(args, problem))
        with progress(len(todo), name, True) as bar:
            for net, scenario, seed, methods in todo:
                path = args.out / "cells" / f"{name}-{net}-{scenario}-{seed}.json"
                have = json.loads(path.read_text()) if path.exists() else []
                have = [r for r in have if r["method"] not in args.again]
                applied = {r["method"] for r in have}
                if not set(methods) <= applied | not_applicable(problem, scenario):
                    run = Run(problem, net, scenario, seed, args.out, True)
                    rows_of(run, methods, have, lambda rows, path=path: _keep(path, rows))  # type: ignore[misc]
                bar.step(1, f"{net} {scenario} seed {seed}")


def _keep(path: Path, rows: list[dict[str, Any]]) -> None:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_whole(path, json.dumps([{k: plain(v) for k, v in r.items()} for r in rows], indent=1))
