"""python -m fastforget bench: time every op against plain PyTorch, torch.compile, the published procedure
and the memory's limit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastforget import _schema
from fastforget._progress import Progress, progress

from . import (
    machine,
    noise,
    overhead,
    report,
    rows,
    targets,
    timing,
    update,
)
from .cases import Case, Options, WrongResult
from .mask import elementwise, optim, select
from .mask import rows as mask_rows
from .membership import lira, rmia, roc, scores

MODULES = (noise, update, elementwise, optim, select, mask_rows, scores, roc, lira, rmia, overhead)
NOISE_STEPS = 4  # the published 40 take ten times as long and give the same ratio
UNSIR = "unsir"  # the whole noise phase, beside the ops


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m fastforget bench", description=__doc__)
    p.add_argument(
        "--op",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"only these ops ({', '.join(_schema.SCHEMAS)}, {UNSIR})",
    )
    p.add_argument(
        "--isa",
        nargs="+",
        default=[],
        choices=list(timing.LEVELS),
        help="instruction sets (default: the best)",
    )
    p.add_argument("--threads", type=int, default=1, help="1 (default) counts thread CPU time, more count wall clock")
    p.add_argument("--quick", action="store_true", help="small sizes, two placements")
    p.add_argument("--compiled", action="store_true", help="also torch.compile of the plain form (slow: it compiles)")
    p.add_argument(
        "--allocator",
        choices=[*timing.ALLOCATORS, "both"],
        default="both",
        help="what large temporaries cost: reused memory, fresh pages, or a second run for those (default)",
    )
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    p.add_argument("--rounds", type=int, default=15, help="timed blocks a variant, at least 7 (default %(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the machine's facts")
    p.add_argument(
        "--readme",
        action="store_true",
        help="write benchmarks/README.md and its plot from the JSON (default: results/cpu-<model>.json)",
    )
    p.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing: print (and --readme) what FILE holds")
    p.add_argument("--sized", action="store_true", help="leave out the rows on what a call costs")
    p.add_argument("--check", action="store_true", help="exit with 1 if a row misses its bar")
    return p


def options_of(args: argparse.Namespace) -> Options:
    if args.threads < 1:
        raise ValueError(f"--threads: got {args.threads}; accepted is 1 or more")
    if args.rounds < 7:
        raise ValueError(f"--rounds: got {args.rounds}; accepted is 7 or more")
    known = (*_schema.SCHEMAS, UNSIR)
    for op in args.op:
        if op not in known:
            raise ValueError(f"--op: {op!r} is not known; accepted are {', '.join(known)}")
    there = timing.available_isas()
    for isa in args.isa:
        if isa not in there:
            raise ValueError(f"--isa: {isa} is not to be had here; accepted are {', '.join(there)}")
    isas = tuple(args.isa) or there[:1]
    rounds, placements = (8, 2) if args.quick else (args.rounds, 5)
    return Options(
        isas,
        args.threads,
        args.quick,
        args.compiled,
        tuple(args.op),
        rounds,
        placements,
        args.allocator,
        args.sized,
    )


def chosen(options: Options) -> list[Case]:
    found = [case for module in MODULES for case in module.cases(options)]
    if options.ops:
        found = [case for case in found if case.op in options.ops]
    if options.sized:
        found = [case for case in found if case.family != "overhead"]
    return [case for case in found if not (options.quick and case.large)]


def run(cases: Sequence[Case], options: Options, memory: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and which cases were refused for a wrong result (they have no row)."""
    done: list[dict[str, Any]] = []
    refused: list[str] = []
    bar: Progress[int] = progress(len(cases), "bench")
    with timing.quiet(options.threads), bar:
        for case in cases:
            bar.step(0, f"{case.op} {case.label}")
            try:
                samples = timing.measure(case, options, refused)
            except WrongResult as wrong:
                refused.append(str(wrong))
                continue
            extra = timing.memory(case, options) if memory and case.family != "overhead" else {}
            done += rows.build(case, samples, extra, options)
            bar.step()
    return done, refused


def fresh_pages(options: Options) -> list[dict[str, Any]]:
    """The rows again from a process of its own, whose allocator takes fresh pages for every large block."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        names = sorted({case.op for case in chosen(options) if case.family != "overhead"})
        if not names:
            return []
        command = [sys.executable, "-m", "fastforget", "bench", "--allocator", "fresh", "--json", str(out)]
        command += [
            "--no-memory",
            "--sized",
            "--rounds",
            "7",
            "--threads",
            str(options.threads),
            "--op",
            *names,
        ]
        if options.isas != ("reference",):
            command += ["--isa", *options.isas]
        if options.quick:
            command.append("--quick")
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        return json.loads(out.read_text())["rows"] if done.returncode == 0 and out.exists() else []


def noise_phase(options: Options) -> list[dict[str, Any]]:
    """The rows of the whole noise phase against the published procedure (they take their own times)."""
    if options.quick or options.sized or (options.ops and UNSIR not in options.ops):
        return []
    from .unsir_published import noise_phase_rows

    found = noise_phase_rows(steps=NOISE_STEPS, threads=options.threads)
    for row in found:
        row["bar"] = targets.NOISE_PHASE if row["case"] in targets.NOISE_PHASE_CASES else None
    return found


def measure(options: Options, memory: bool) -> dict[str, Any]:
    facts = machine.facts()
    state = "fresh" if options.allocator == "fresh" else "settled"
    set_here = timing.set_allocator(state)
    measured, refused = run(chosen(options), options, memory)
    if options.allocator == "both" and set_here:
        rows.add_fresh_pages(measured, fresh_pages(options))
    result: dict[str, Any] = {
        "schema": 1,
        "machine": facts,
        "settings": {
            "threads": options.threads,
            "clock": "thread CPU time" if options.threads == 1 else "wall clock",
            "isas": list(options.isas),
            "rounds": options.rounds,
            "placements": options.placements,
            "quick": options.quick,
            "compiled": options.compiled,
            "allocator": state if set_here else "as it is",
        },
        "rows": measured,
        "refused": refused,
        "noise_phase": noise_phase(options),
    }
    facts["load_after"] = machine.load()
    return result


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.from_json:
        result = json.loads(args.from_json.read_text())
    else:
        try:
            options = options_of(args)
        except ValueError as wrong:
            p.error(str(wrong))
        result = measure(options, not args.no_memory)
    out: Path | None = args.json
    if out is None and args.readme and not args.from_json:
        out = report.FOLDER / "results" / f"cpu-{machine.slug(machine.cpu_model())}.json"
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(report.text(result))
    if args.readme:
        for path in report.write_readme(result, out or args.from_json):
            print(f"wrote {path}")
    missed = [row for row in result["rows"] if row["met"] is False]
    missed += [row for row in result["noise_phase"] if row["bar"] and row["ratio"] < row["bar"]]
    for line in result["refused"]:
        print(f"wrong result, not timed: {line}", file=sys.stderr)
    if result["refused"]:
        return 2
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
