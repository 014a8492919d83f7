"""Every op on CUDA tensors: native and Triton against plain PyTorch and torch.compile, beside the copy
bandwidth of the same run.

    python -m fastforget._bench.gpu OUT [--no-compiled] [--small]

Writes OUT/gpu-<device>.json. ``--small`` runs and judges each op once at a small size and times nothing
(for compute-sanitizer).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastforget as ff
from fastforget import backend

from . import (
    machine,
    noise,
    rows,
    shapes,
    update,
)
from .cases import ANCHOR, Call, Case, Options, Place, Work, WrongResult
from .mask import elementwise, optim, select
from .mask import rows as mask_rows
from .membership import lira, rmia, roc, scores

BIG = 1 << 26  # elements: far beyond any L2
SMALL = 1 << 14
CALLS, BUDGET = 50, 0.4  # timed calls a variant at most, and the seconds they may take
BACKENDS = ("native", "triton")


def cases(options: Options, big: int) -> list[Case]:
    f32, bf16 = torch.float32, torch.bfloat16
    few = big <= SMALL
    lists = [] if few else [("ResNet-18", shapes.RESNET18), ("ResNet-50", shapes.RESNET50)]
    pixels = (max(1, big // (3 * 224 * 224)), 3, 224, 224) if not few else (5, 3, 32, 32)
    label = "64M" if not few else "16K"
    square = (math.isqrt(big), math.isqrt(big))
    forms = (("rows, 30 % on", "rows", 0.3), ("bytes", "bytes", 0.5), ("bits", "bits", 0.5))
    stepped = [("two tensors", [(33, 70), (129,)])] if few else lists[:1]
    return [
        noise.random_bits(label, big, False),
        noise.normal(label, big, f32, False),
        noise.normal(f"{label} bfloat16", big, bf16, False),
        noise.add_normal(label, [(big,)], f32, options, False),
        noise.add_normal(f"{label} bfloat16", [(big,)], bf16, options, False),
        *(noise.add_normal(name, list(shape), f32, options, False) for name, shape in lists),
        noise.perturb_step(label, [(big,)], options, False),
        *(noise.perturb_step(name, list(shape), options, False) for name, shape in lists),
        update.error_max_loss(f"{big // 1000}x1000", big // 1000, 1000, options),
        update.distill_loss(f"{big // 1000}x1000", big // 1000, 1000, options),
        *(update.gradient_products(name, list(shape), options, False) for name, shape in lists),
        update.error_max_step("x".join(map(str, pixels)), pixels, options, False),
        elementwise.dampen(label, [(big,)], options, False),
        *(elementwise.dampen(name, list(shape), options, False) for name, shape in lists),
        *(optim.matrix(f"{label}, {name}", square, form, share, options, False) for name, form, share in forms),
        *(optim.step(op, name, list(shape), False) for op in ("masked_sgd_", "masked_adam_") for name, shape in stepped),
        *(scores.membership_scores(f"{big // k}x{k}", big // k, k, options, False) for k in (10, 100, 1000)),
        *(roc.roc_stats(name, n, False) for name, n in ((("10K", 10_000),) if few else (("1M", 10**6), ("16M", 1 << 24)))),
        *_mask_statistics(label, big, lists, options),
        *_shadow_models(few, options),
    ]


def _mask_statistics(label: str, big: int, lists: Sequence[tuple[str, Any]], options: Options) -> list[Case]:
    side, rows_of = math.isqrt(big), {"rows": 0, "channels": 1}
    forms = {"rows": (side, side), "channels": (max(2, big >> 16), 64, 32, 32) if big > SMALL else (5, 7, 6, 6)}
    return [
        *(mask_rows.neuron_stats(f"{label}, {n}", shape, rows_of[n], options, False) for n, shape in forms.items()),
        elementwise.accumulate_importance(label, big, options, False),
        elementwise.soft_threshold(label, big, options, False),
        select.saliency_mask(label, [(big,)], False),
        *(select.saliency_mask(name, list(shape), False) for name, shape in lists),
        *(select.ratio_mask(name, list(shape), options, False) for name, shape in lists),
    ]


def _shadow_models(few: bool, options: Options) -> list[Case]:
    models, samples = (8, 300) if few else (64, 1 << 18)
    x, z = (300, 200) if few else (50_000, 25_000)
    label = f"{models}x{samples}"
    return [
        lira.lira(label, models, samples, "mean", options, False),
        lira.lira(f"median {label}", models, samples, "median", options, False),
        lira.loo(label, models, samples, False),
        lira.update(str(samples), samples, False),
        rmia.rmia_counts(f"{x}x{z}", x, z, options, False),
    ]


def events(call: Call, count: int) -> list[float]:
    """Seconds of each of ``count`` calls on the current stream."""
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) * 1e-3 for begin, end in marks]


def bandwidths() -> dict[str, float]:
    """Bytes a second: copy counts what is read and what is written; read is a plain sum."""
    source, target = torch.ones(4 * BIG, device="cuda"), torch.empty(4 * BIG, device="cuda")
    moved = source.numel() * 4
    events(lambda: target.copy_(source), 5)
    return {
        "copy": 2 * moved / statistics.median(events(lambda: target.copy_(source), 30)),
        "read": moved / statistics.median(events(lambda: source.sum(), 30)),
    }


def contenders(works: Sequence[Work], op: str, notes: dict[str, str]) -> dict[str, list[Call]]:
    """For each variant one call per set of buffers, to be used in turn; ours once a backend."""
    table: dict[str, list[Call]] = {}
    for name in sorted(works[0].run, key=lambda n: n != ANCHOR):
        if name == "limit":
            continue
        if name != "ours":
            table[name] = [work.run[name] for work in works]
            continue
        for which in BACKENDS:
            reason = backend.why_not(which, op, "cuda")
            if reason:
                notes[which] = reason
            else:
                table[f"ours@{which}"] = [work.run["ours"] for work in works]
    return table


def forced(key: str) -> Any:
    which = key.partition("@")[2]
    return ff.use_backend(which) if which else torch.no_grad()


def attempt(case: Case, options: Options, small: bool) -> dict[str, Any]:
    notes: dict[str, str] = {}
    works = [case.prepare(Place(i, "cuda")) for i in range(1 if small else 2)]
    table = contenders(works, case.op, notes)
    for key in list(table):
        name = key.partition("@")[0]
        if name in works[0].unjudged:
            continue
        works[0].reset()
        try:
            with forced(key):
                works[0].judge(key, table[key][0]())
        except WrongResult as wrong:
            if name == ANCHOR:
                raise
            notes[key] = f"wrong, not timed: {wrong}"
            del table[key]
        except Exception as error:  # one backend's failure to launch must not hide the other's times
            notes[key] = f"failed: {type(error).__name__}: {error}"[:500]
            del table[key]
    torch.cuda.synchronize()
    row: dict[str, Any] = {
        "op": case.op,
        "case": case.label,
        "shape": case.shape,
        "dtype": case.dtype,
        "elements": case.elements,
        "bytes_touched": case.bytes_touched,
        "notes": notes,
        "seconds": {},
        "spread": {},
        "peak_extra_bytes": {},
    }
    if small:
        row["judged"] = sorted(table)
        return row
    taken: dict[str, list[float]] = {key: [] for key in table}
    counts: dict[str, int] = {}
    for key, calls in table.items():
        with forced(key):
            events(calls[0], 3)
            once = statistics.median(events(calls[0], 3))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            calls[0]()
            row["peak_extra_bytes"][key] = torch.cuda.max_memory_allocated() - before
        counts[key] = max(5, min(CALLS, int(BUDGET / max(once, 1e-6))))
    for turn in range(2 * len(works)):
        for key, calls in table.items():
            with forced(key):
                taken[key] += events(calls[turn % len(calls)], -(-counts[key] // (2 * len(works))))
    for key, seconds in taken.items():
        row["seconds"][key] = statistics.median(seconds)
        row["spread"][key] = [min(seconds), max(seconds)]
    return row


def with_ratios(row: dict[str, Any], bandwidth: dict[str, float]) -> dict[str, Any]:
    for key, seconds in row["seconds"].items():
        if key.startswith("ours"):
            row.setdefault("share_of_copy_bandwidth", {})[key] = row["bytes_touched"] / seconds / bandwidth["copy"]
            row.setdefault("share_of_read_bandwidth", {})[key] = row["bytes_touched"] / seconds / bandwidth["read"]
            row.setdefault("ratios", {})[key] = {rival: s / seconds for rival, s in row["seconds"].items() if not rival.startswith("ours")}
    return row


def facts() -> dict[str, Any]:
    p = torch.cuda.get_device_properties(0)
    return {
        **machine.facts(),
        "gpu": p.name,
        "compute_capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "gpu_memory": p.total_memory,
        "cuda": torch.version.cuda,
        "nvcc": backend.build_facts().get("cuda", {}).get("nvcc"),
        "archs": backend.build_facts().get("cuda", {}).get("archs"),
    }


def table(result: dict[str, Any]) -> str:
    lines = []
    for row in result["rows"]:
        for key, seconds in row["seconds"].items():
            if key.startswith("ours"):
                ratios = row["ratios"][key]
                lines.append(
                    (
                        row["op"],
                        row["case"],
                        key,
                        rows.duration(seconds),
                        rows.times(ratios.get("eager")),
                        rows.times(ratios.get("compiled")),
                        f"{row['share_of_copy_bandwidth'][key]:.0%}",
                    )
                )
        lines += [(row["op"], row["case"], name, note, "", "", "") for name, note in row["notes"].items()]
    return rows.aligned(("op", "case", "variant", "time", "vs eager", "vs compiled", "of copy bandwidth"), lines)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m fastforget._bench.gpu", description=__doc__)
    p.add_argument("out", type=Path, help="folder for the JSON")
    p.add_argument("--no-compiled", action="store_true", help="leave out torch.compile")
    p.add_argument("--small", action="store_true", help="judge each op once at a small size, time nothing")
    p.add_argument(
        "--seconds",
        type=float,
        default=150.0,
        help="start no further case after this long (default %(default)s)",
    )
    args = p.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 3
    options = Options(compiled=not (args.no_compiled or args.small), device="cuda")
    began = time.monotonic()
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    bandwidth = {} if args.small else bandwidths()
    result: dict[str, Any] = {
        "schema": 1,
        "machine": facts(),
        "bandwidth": bandwidth,
        "rows": [],
        "left_out": [],
    }
    broken = 0
    with torch.no_grad():
        for case in cases(options, SMALL if args.small else BIG):
            if time.monotonic() - began > args.seconds:
                result["left_out"].append(f"{case.op} {case.label}: out of time")
                continue
            say(f"{time.monotonic() - began:6.1f} s  {case.op} {case.label}")
            try:
                row = attempt(case, options, args.small)
            except (WrongResult, torch.OutOfMemoryError) as error:
                result["left_out"].append(f"{case.op} {case.label}: {type(error).__name__}: {error}"[:500])
                continue
            finally:
                torch.cuda.empty_cache()
            broken += any("wrong" in note or "failed" in note for note in row["notes"].values())
            result["rows"].append(with_ratios(row, bandwidth))
    args.out.mkdir(parents=True, exist_ok=True)
    name = "gpu-small" if args.small else f"gpu-{machine.slug(torch.cuda.get_device_name(0))}"
    (args.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(*result["left_out"], sep="\n")
    return 1 if broken or any("WrongResult" in line for line in result["left_out"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
