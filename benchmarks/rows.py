"""Rows from samples: what the JSON holds and what the table prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import targets
from .cases import Case, Options
from .timing import Sample

FIELDS = (
    "op",
    "family",
    "case",
    "shape",
    "dtype",
    "elements",
    "unit",
    "device",
    "threads",
    "isa",
    "ours",
    "eager",
    "compiled",
    "limit",
    "published",
    "others",
    "ratios",
    "fresh_pages",
    "ns_per_unit",
    "bytes_touched",
    "gb_per_second",
    "peak_extra_bytes",
    "spread",
    "targets",
    "met",
)
COLUMNS = ("eager", "compiled", "limit", "published")


def build(case: Case, samples: dict[str, Sample], memory: dict[str, int | None], options: Options) -> list[dict[str, Any]]:
    """One row an instruction set. Times in seconds a call; ``ratios``: rival / ours, but ours / limit for
    the limit."""
    rows = []
    for isa in options.isas:
        mine = {k.partition("@")[0]: s for k, s in samples.items() if k.partition("@")[2] in ("", isa)}
        spread = {name: sample.summary() for name, sample in mine.items()}
        seconds = {name: float(s["median"]) for name, s in spread.items()}
        ours = seconds["ours"]
        rivals = [n for n in seconds if n != "ours"]
        ratios = {n: ours / seconds[n] if n == "limit" else seconds[n] / ours for n in rivals}
        bars = targets.judged(case.op, case.label, isa, seconds, case.elements)
        row = {
            "op": case.op,
            "family": case.family,
            "case": case.label,
            "shape": case.shape,
            "dtype": case.dtype,
            "elements": case.elements,
            "unit": case.unit,
            "device": options.device,
            "threads": options.threads,
            "isa": isa,
            "ours": ours,
            **{name: seconds.get(name) for name in COLUMNS},
            "others": {n: seconds[n] for n in rivals if n not in COLUMNS},
            "ratios": ratios,
            "fresh_pages": {},
            "ns_per_unit": ours / case.elements * 1e9,
            "bytes_touched": case.bytes_touched,
            "gb_per_second": case.bytes_touched / ours / 1e9,
            "peak_extra_bytes": memory,
            "spread": spread,
            "targets": bars,
            "met": all(bool(b["met"]) for b in bars) if bars else None,
        }
        assert tuple(row) == FIELDS
        rows.append(row)
    return rows


def add_fresh_pages(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Puts the ratios of a second run, with fresh pages for large temporaries, beside those of the first."""
    second = {(r["op"], r["case"], r["isa"]): r for r in others}
    for row in rows:
        other = second.get((row["op"], row["case"], row["isa"]))
        if other:
            row["fresh_pages"] = {"ours": other["ours"], "ratios": other["ratios"]}


MET, FRESH, OUT_OF_REACH, MISSED = "met", "met with fresh pages", "beyond the memory's limit", "missed"


def standing(bar: dict[str, Any], row: dict[str, Any]) -> str:
    """Where a bar stands: met; met only where large temporaries get fresh pages; missed, and even a kernel at the memory's limit would
    miss it here; or missed."""
    if bar["met"]:
        return MET
    if bar["sense"] == targets.AT_LEAST:
        if row["fresh_pages"].get("ratios", {}).get(bar["vs"], 0.0) >= bar["bound"]:
            return FRESH
        if bar.get("at_limit") is not None and bar["at_limit"] < bar["bound"]:
            return OUT_OF_REACH
    return MISSED


def row_standing(row: dict[str, Any]) -> str | None:
    """The worst of a row's bars; None without bars."""
    order = (MET, FRESH, OUT_OF_REACH, MISSED)
    return max((standing(bar, row) for bar in row["targets"]), key=order.index, default=None)


def tally(found: Sequence[dict[str, Any]]) -> str:
    """How many rows stand where, in words."""
    stands = [s for row in found if (s := row_standing(row)) is not None]
    counts = {s: stands.count(s) for s in (MET, FRESH, OUT_OF_REACH, MISSED)}
    return (
        f"Of {len(stands)} rows with bars, {counts[MET]} meet all of them with reused memory and {counts[FRESH]} more where large "
        f"temporaries get fresh pages; {counts[OUT_OF_REACH]} miss only bars that even a kernel at the memory's limit would miss here; "
        f"{counts[MISSED]} miss a bar otherwise."
    )


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: int | None) -> str:
    if count is None:
        return "?"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


def bars(row: dict[str, Any]) -> str:
    """The bars of a row in words: 'eager 10.1x (>= 7.5)', a missed one with MISS in front."""
    words = []
    for bar in row["targets"]:
        stands = standing(bar, row)
        mark = {MET: "", FRESH: "FRESH ONLY "}.get(stands, "MISS ")
        suffix = {"ns": " ns", "us": " us"}.get(bar["vs"], "x")
        what = "" if bar["vs"] in ("ns", "us") else f"{bar['vs']} "
        fresh = row["fresh_pages"].get("ratios", {}).get(bar["vs"])
        beside = f"; fresh {fresh:.3g}x" if fresh and bar["vs"] != "limit" else ""
        if stands == OUT_OF_REACH:
            beside += f"; the limit itself {bar['at_limit']:.3g}x"
        words.append(f"{mark}{what}{bar['got']:.3g}{suffix} ({bar['sense']} {bar['bound']:g}{beside})")
    return ", ".join(words)


HEADS = (
    "op",
    "case",
    "dtype",
    "isa",
    "ours",
    "eager",
    "compiled",
    "published",
    "limit",
    "vs eager",
    "fresh pages",
    "of limit",
    "spread",
    "memory",
    "bars",
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    spread = row["spread"]["ours"]
    memory = row["peak_extra_bytes"]
    return (
        row["op"],
        row["case"],
        row["dtype"],
        row["isa"],
        duration(row["ours"]),
        duration(row["eager"]),
        duration(row["compiled"]),
        duration(row["published"]),
        duration(row["limit"]),
        times(row["ratios"].get("eager")),
        times(row["fresh_pages"].get("ratios", {}).get("eager")),
        times(row["ratios"].get("limit")),
        f"{spread['min'] / row['ours']:.2f}-{spread['max'] / row['ours']:.2f}",
        f"{size(memory.get('ours'))} / {size(memory.get('eager'))}" if memory else "-",
        bars(row),
    )


def aligned(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [tuple(heads), *map(tuple, lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in table)
