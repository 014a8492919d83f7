"""The generated part of docs/facts.md: tables from the rows that ``facts.py`` stored."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .experiment_page import machine

Rows = Sequence[dict[str, Any]]
TITLES = {"gradient_difference": "Gradient difference", "npo": "NPO", "simnpo": "SimNPO", "rmu": "RMU"}
COLUMNS = (
    ("p forgotten", "p_forget", 3), ("other words", "p_forget_held", 3), ("p kept", "p_keep", 3), ("p never seen", "p_unseen", 3),
    ("exact: forgotten", "exact_forget", 2), ("kept", "exact_keep", 2), ("perplexity", "perplexity", 1), ("attack AUC", "auc", 3),
    ("Min-40 %", "auc_low", 3),
)  # fmt: skip


def section(stored: dict[str, Any]) -> str:
    """What was run, the table, and how rates were chosen."""
    rows = stored["rows"]
    if not rows:
        return "No rows yet."
    return "\n".join([*told(stored), "", *table(rows), "", *choices(stored["trials"], rows)]).strip()


def told(stored: dict[str, Any]) -> list[str]:
    """What was trained, and on what."""
    world, plan = stored["world"], stored["plan"]
    return [
        *machine(stored["machine"]),
        f"- texts: {world['texts']:,} pieces for training, {world['unseen_texts']:,} unseen ones for perplexity; {world['words']:,} words",
        f"- people: {world['people']} to forget, {world['people']} to keep, as many that no net saw, with {world['facts']} facts a group, "
        f"told in {world['sentences']:,} sentences",
        f"- net: a transformer of {plan['layers']} layers, width {plan['width']}, trained {plan['epochs']} epochs with AdamW at "
        f"{plan['lr']:g}, each sentence of a fact {plan['repeats']} times an epoch",
    ]


def table(rows: Rows) -> list[str]:
    """A line for the original, the retrained nets, and each method, hold and rate: medians over seeds, ranges where they are wider than
    a digit."""
    names = [name for name, *_ in COLUMNS]
    lines = [f"| model | rate | {' | '.join(names)} | forget quality | passes, % of retraining's | × retraining's time | says forgot |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    retrained = [row for row in rows if row["model"] == "retrained"]
    passes, seconds = (statistics.median(row[name] for row in retrained) if retrained else None for name in ("passes", "seconds"))
    for name, rate, found in groups(rows):
        own = (passes, seconds) if found[0]["model"] == "unlearned" else (None, None)
        lines.append(_line(name, rate, found, *own))
    return lines


def groups(rows: Rows) -> list[tuple[str, str, Rows]]:
    """Name, rate and rows of each line."""
    found: list[tuple[str, str, Rows]] = []
    for model, name in (("original", "original"), ("retrained", "retrained without")):
        if own := [row for row in rows if row["model"] == model]:
            found.append((name + ("" if len(own) == 1 else f" ({len(own)} seeds)"), "", own))
    for method, title in TITLES.items():
        for hold in ("labels", "states", "anchor"):
            for rate in ("published", "chosen"):
                key = (method, hold, rate)
                if own := [row for row in rows if tuple(row.get(k) for k in ("method", "hold", "rate")) == key]:
                    said = f"{own[0]['lr']:g}" + (f", {len(own)} seeds" if len(own) > 1 else "")
                    found.append((f"{title}, `hold=\"{hold}\"`", f"{rate}: {said}", own))
    return found


def _line(name: str, rate: str, rows: Rows, passes: float | None, seconds: float | None) -> str:
    cells = [_cell([row[key] for row in rows], digits) for _, key, digits in COLUMNS]
    quality = statistics.median(row["quality"] for row in rows)
    cost = ["", ""]
    if passes and seconds:
        cost = [
            f"{100 * statistics.median(row['passes'] for row in rows) / passes:.0f}",
            f"{seconds / statistics.median(row['seconds'] for row in rows):.1f}",
        ]
    said = [row["forgot"] for row in rows if "forgot" in row]
    ends = f"{sum(said)} of {len(said)}" if said else ""
    return f"| {name} | {rate} | {' | '.join(cells)} | {quality:.2g} | {' | '.join(cost)} | {ends} |"


def _cell(values: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def choices(trials: Rows, rows: Rows) -> list[str]:
    """The trials that rates were chosen by."""
    if not trials:
        return []
    rates = sorted({row["lr"] for row in trials})
    lines = [
        "On the other people, by learning rate: attack AUC / p kept / perplexity; in bold the chosen rate:",
        "",
        f"| method | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|" + "---|" * (len(rates) + 1),
    ]
    chosen = {(row["method"], row["hold"]): row["lr"] for row in rows if row.get("rate") == "chosen"}
    for method, title in TITLES.items():
        for hold in ("labels", "states", "anchor"):
            own = {row["lr"]: row for row in trials if (row["method"], row["hold"]) == (method, hold)}
            if own:
                said = {lr: f"{row['auc']:.2f} / {row['p_keep']:.2f} / {row['perplexity']:.0f}" for lr, row in own.items()}
                cells = (f"**{said[lr]}**" if lr == chosen.get((method, hold)) else said.get(lr, "") for lr in rates)
                lines.append(f"| {title}, `{hold}` | {' | '.join(cells)} |")
    return lines
