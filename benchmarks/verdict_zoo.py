"""A zoo of models that the verdict must tell apart: over 200 that forgot nothing and are dressed up, and as many retrained honestly.

    python -m fastforget._bench.verdict_zoo --out FOLDER              measure every model of every world (after a kill, again: it goes on)
    python -m fastforget._bench.verdict_zoo --out FOLDER --pack FILE  what the report reads, in one file
    python -m fastforget._bench.verdict_zoo --report                  the rule's two error rates, and tables of every kind, of the file
                                                                      in results/ (or of a FOLDER by --out)
    python -m fastforget._bench.verdict_zoo --page                    the same into VERDICT.md

One process, one thread. Each world's rows go to a JSON file of its own as soon as the world is done.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastforget as ff
from fastforget._files import write_whole
from fastforget.auditing import verdict
from fastforget.auditing.measure.halves import nearest_classes

from . import zoo_models as zm
from .zoo_measure import Ruler
from .zoo_report import packed, page, text
from .zoo_worlds import WORLDS, World, world

RESULTS = Path(__file__).with_name("results") / "verdict-zoo.json"
PAGE = Path(__file__).with_name("VERDICT.md")
USE = "test accuracy on the kept classes"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m fastforget._bench.verdict_zoo", description=(__doc__ or "").splitlines()[0])
    p.add_argument("--out", type=Path, metavar="FOLDER", help="a JSON file for each world")
    p.add_argument("--pack", type=Path, metavar="FILE", help="measure nothing; write what the report reads of FOLDER into FILE")
    p.add_argument("--only", default="", metavar="WORD", help="only worlds with this in their names")
    p.add_argument("--report", action="store_true", help="measure nothing; read the folder and print what the rule makes of it")
    p.add_argument("--page", action="store_true", help="the same into VERDICT.md")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.report or args.page:
        rows = read(args.out) if args.out else json.loads(RESULTS.read_text())
        if args.page:
            write_whole(PAGE, page(rows))
        else:
            print(text(rows))
        return 0
    if args.out is None:
        parser().error("--out: a FOLDER is needed to measure into, or --report alone")
    if args.pack:
        write_whole(args.pack, packed(read(args.out)))
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    for name in WORLDS:
        place = args.out / f"{name.replace(': ', '-').replace(', ', '-').replace(' ', '_')}.json"
        if args.only in name and not place.exists():
            began = time.perf_counter()
            rows = measured(world(name))
            write_whole(place, json.dumps(rows, indent=1, allow_nan=True) + "\n")
            print(f"{name}: {len(rows['rows'])} models in {time.perf_counter() - began:.0f} s", flush=True)
    return 0


def read(folder: Path) -> list[dict[str, Any]]:
    """The worlds' rows."""
    worlds = [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
    for measured in worlds:
        coded(measured)
    return worlds


def coded(measured: dict[str, Any]) -> None:
    """Adds what the report reads of the reasons: each one's status and kind."""
    for row in measured["rows"]:
        row["base"]["findings"] = [[(r.partition(":")[0], _kind(r)) for r in given] for given in row["base"]["reasons"]]


def _kind(reason: str) -> str:
    return "use" if USE in reason else "power" if verdict.POWERLESS in reason else "forgetting"


def measured(w: World) -> dict[str, Any]:
    """All models of one world, made, measured and audited."""
    cast, references = zm.cast_of(w), zm.references(w)
    models: dict[tuple[str, str], nn.Module] = {("original", "original"): cast.original}
    models |= {("reference", str(i + 1)): m for i, m in enumerate(references)}
    failed: dict[str, str] = {}
    makers = {"dressed": zm.dressed(w), "honest": zm.honest(w), "false reference": zm.false_references(w), "method": zm.methods(w)}
    for group, of_group in makers.items():
        for name, make in of_group.items():
            try:
                models[group, name] = make(cast)
            except (LookupError, RuntimeError, TypeError, ValueError) as error:
                if group != "method":
                    raise
                failed[name] = f"{type(error).__name__}: {error}"
    with torch.no_grad():
        near = nearest_classes(references[0](w.test[0]).argmax(1), w.test[1], w.forgotten) if w.forgotten else ()
    ruler = Ruler(w, cast.original, near)
    rows = [{"group": group, "name": name, **ruler.row(model)} for (group, name), model in models.items()]
    for row, base in zip(rows, audited(w, list(models.values())), strict=True):
        row["base"] = base
    sizes = {"forget": len(w.forget[1]), "retain": len(w.retain[1]), "test": len(w.test[1]), "unseen": int(ruler.gone.sum())}
    return {"world": w.name, "part": w.part, "classes": w.forgotten, "sizes": sizes, "rows": rows, "failed": failed}


def audited(w: World, models: list[nn.Module]) -> list[dict[str, Any]]:
    """What the audit's rule without the figures below the answers says, each of the three references being "retrained" in turn."""
    names = {f"m{i}": m for i, m in enumerate(models)} | {"original": models[0], "retrained": models[1]}
    report = ff.audit(names, forget=w.forget, retain=w.retain, test=w.test, intervals=False, progress=False)
    by_name = {row.model: row for row in report.figures}
    found = []
    for i in range(len(models)):
        row = by_name[f"m{i}"]
        judged = [verdict.judge(row, by_name["original"], by_name[f"m{k}"]) for k in (1, 2, 3)]
        logit = row.probes["class_logit_auc"].value
        found.append({
            "status": [status for status, _ in judged],
            "reasons": [[r for r in reasons if not r.startswith("PASS")] for _, reasons in judged],
            "class_logit_auc": None if math.isnan(logit) else logit,
            "accuracy": {part: figure.value for part, figure in row.accuracy.items()},
        })
    return found


if __name__ == "__main__":
    sys.exit(main())
