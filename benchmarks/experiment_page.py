"""The experiment's tables and what they say, in Markdown, from its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

Rows = list[dict[str, Any]]
ORDER = ("original", "retrained", "unsir", "forsaken", "forsaken direct", "lightweight", "untouched", "random")
SAME = 0.03  # how near a membership attack must be to the retrained model's, in AUC and in TPR at 1 % FPR


def mean(values: Iterable[float]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def spread(values: Iterable[float]) -> float:
    """Half the distance from the smallest to the largest."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return (max(known) - min(known)) / 2 if known else math.nan


def groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[k] for k in keys), []).append(row)
    return found


def _cell(rows: Rows, key: str, scale: float = 100.0, digits: int = 1) -> str:
    values = [r.get(key, math.nan) for r in rows]
    middle = mean(values)
    if not math.isfinite(middle):
        return "-"
    wide = spread(values)
    return f"{scale * middle:.{digits}f}" + (f" ± {scale * wide:.{digits}f}" if len(rows) > 1 else "")


def beside(rows: Rows) -> Rows:
    """Each row of a method with the retrained model's row of the same cell under ``"reference"``."""
    cells = groups(rows, "data", "net", "scenario", "seed")
    out = []
    for members in cells.values():
        reference = next((r for r in members if r["method"] == "retrained"), None)
        original = next((r for r in members if r["method"] == "original"), None)
        if reference and original:
            out += [{**r, "reference": reference, "original": original} for r in members]
    return out


def near(row: dict[str, Any]) -> bool:
    """Whether both attack figures are within ``SAME`` of the retrained model's."""
    reference = row["reference"]
    return all(abs(row[k] - reference[k]) <= SAME for k in ("attack_auc", "attack_tpr"))


def table(rows: Rows) -> list[str]:
    """One line for each data set, net, scenario and model: mean over the seeds ± half the range."""
    lines = [
        "| data | net | forget | model | forget acc % | test acc % | attack AUC | TPR @ 1 % FPR | FR % | s | × retraining | forgot |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, net, scenario), members in groups(rows, "data", "net", "scenario").items():
        by_method = groups(members, "method")
        for method in ORDER:
            found = by_method.get((method,))
            if not found:
                continue
            said = [r["forgot"] for r in found if "forgot" in r]
            failed = sum("failed" in r for r in found)
            verdict = f"{sum(said)} of {len(said)}" if said else ""
            lines.append(
                f"| {data} | {net} | {scenario} | {method} | {_cell(found, 'forget_accuracy')} | {_cell(found, 'test_accuracy')} | "
                f"{_cell(found, 'attack_auc', 1, 3)} | {_cell(found, 'attack_tpr', 1, 3)} | {_cell(found, 'forgetting_rate')} | "
                f"{_cell(found, 'seconds', 1, 1)} | {_cell(found, 'speedup', 1, 1)} | {verdict}{f', {failed} failed' if failed else ''} |"
            )
    return lines


def _claim(text: str, held: list[bool], note: str) -> str:
    return f"| {text} | {'yes' if held and all(held) else 'no' if held else 'not run'} ({sum(held)} of {len(held)}) | {note} |"


def claims(rows: Rows) -> list[str]:
    """The papers' headline claims, as stated, against the rows."""
    full = beside(rows)

    def pick(method: str, scenarios: tuple[str, ...]) -> Rows:
        return [r for r in full if r["method"] == method and r["scenario"] in scenarios and "failed" not in r]

    lines = ["| claim | held | measured |", "|---|---|---|"]
    for scenarios, label in ((("class", "classes"), "classes"), (("uploads",), "uploaded samples"), (("random",), "random samples")):
        mine = pick("forsaken", scenarios)
        by_data = groups(mine, "data")
        held = [
            mean(r["forgetting_rate"] for r in g) > 0.9 and mean(r["original"]["test_accuracy"] - r["test_accuracy"] for r in g) < 0.05
            for g in by_data.values()
        ]
        rate, loss = mean(r["forgetting_rate"] for r in mine), mean(r["original"]["test_accuracy"] - r["test_accuracy"] for r in mine)
        retrained = mean(r["reference"]["forgetting_rate"] for r in mine)
        lines.append(
            _claim(
                f"Forsaken, {label}: FR > 90 % with < 5 points of accuracy, by data set",
                held,
                f"FR {100 * rate:.0f} % (retrained {100 * retrained:.0f} %), accuracy −{100 * loss:.1f} points",
            )
        )
    light = pick("lightweight", SCENARIO_ALL)
    quick = [r["speedup"] >= 15 for r in light]
    average = f"{mean(r['speedup'] for r in light):.0f}x on average"
    lines.append(_claim("Lightweight: at least 15 times faster than retraining, by cell", quick, average))
    unsir = pick("unsir", ("class", "classes"))
    held = [r["forget_accuracy"] <= 0.01 and r["test_accuracy"] >= r["reference"]["test_accuracy"] - 0.02 for r in unsir]
    gap = mean(r["reference"]["test_accuracy"] - r["test_accuracy"] for r in unsir)
    average = f"{100 * gap:.1f} points under retraining on average"
    lines.append(_claim("UNSIR: class gone (<= 1 %), within 2 points of retraining, by cell", held, average))
    return lines


SCENARIO_ALL = ("class", "classes", "random", "uploads")


def advice(rows: Rows) -> list[str]:
    """For each scenario: how often each method's attack figures are near the retrained model's, its accuracy gap and its speed."""
    lines = ["| forget | method | attacks within 0.03 of retraining | accuracy under retraining, points | × retraining |"]
    lines.append("|---|---|---|---|---|")
    for scenario in SCENARIO_ALL:
        for method in ORDER[2:]:
            found = [r for r in beside(rows) if r["scenario"] == scenario and r["method"] == method and "failed" not in r]
            if found:
                gap = mean(r["reference"]["test_accuracy"] - r["test_accuracy"] for r in found)
                fast = mean(r.get("speedup", math.nan) for r in found)
                lines.append(
                    f"| {scenario} | {method} | {sum(map(near, found))} of {len(found)} | {100 * gap:.1f} | "
                    f"{'-' if not math.isfinite(fast) else f'{fast:.1f}'} |"
                )
    return lines


def controls(rows: Rows) -> list[str]:
    """Untouched models must never be called forgotten."""
    untouched = [r for r in rows if r["method"] == "untouched"]
    wrong = [r for r in untouched if r.get("forgot")]
    return [f"Untouched model called forgotten: {len(wrong)} of {len(untouched)} runs."]


def page(rows: Rows) -> str:
    """The whole page."""
    parts: list[tuple[str, Callable[[Rows], list[str]]]] = [
        ("What the papers claim", claims),
        ("Which method for what", advice),
        ("Controls", controls),
        ("All figures: mean over the seeds ± half the range", table),
    ]
    text = ["# Experiment", ""]
    for title, make in parts:
        text += [f"## {title}", "", *make(rows), ""]
    return "\n".join(text)
def files(found): return {}
def readme(found): return ""
