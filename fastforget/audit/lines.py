"""The lines of the page's table: those of ``AuditReport.table``, for the controls too, with the intervals set apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from . import attacks as atk
from .markup import attack_name, ordered, plain
from .report import AuditReport, number, percent

PARTS = {"forget set": "forget", "retain set": "retain", "test, all": "test"}
PARTS |= {"test, forgotten classes": "test_forget", "test, kept classes": "test_retain"}
FIGURES = {"AUC": "auc", "balanced accuracy": "balanced_accuracy"}
FIGURES |= {f"TPR at {text} FPR": f"tpr_at_{name}_fpr" for name, text in zip(atk.FPR_NAMES, ("1 %", "0.1 %"), strict=True)}
PROBES = "probes"
Show = Callable[[float | None], str]


class Line(NamedTuple):
    """One figure of every model, and the interval of each ("" where there is none)."""

    group: str
    label: str
    cells: list[str]
    intervals: list[str]


def lines(report: AuditReport) -> list[Line]:
    """Accuracies, attacks (the strongest first), memory, weights, probes; one cell a model, the controls last."""
    rows = ordered(report)
    made = [_line(report, group, label, read) for group, label, read in report._lines()]
    strong = [line for attack in further(report) for line in made if line.group.startswith(f"{attack_name(attack)},")]
    last = [line for line in made if line.group == PROBES]
    for name in () if last else probes(report):
        found = [row.get("probes", {}).get(name, {}) for row in rows]
        cells, ranges = [plain(p.get("value")) for p in found], [interval(p.get("interval"), plain) for p in found]
        last.append(Line(PROBES, name.replace("_", " "), cells, ranges))
    rest = [line for line in made if line not in strong and line not in last]
    at = next((i for i, line in enumerate(rest) if line.group.startswith("loss attack, forget")), len(rest))
    return [*rest[:at], *strong, *rest[at:], *last]


def further(report: AuditReport) -> list[str]:
    """The attacks on the forget set beyond thresholds on one model's outputs, the best known first."""
    found = [a for a in report.settings["attacks"] if a not in atk.DIRECTION]
    return sorted(found, key=lambda a: (a not in ("lira", "rmia"), found.index(a)))


def probes(report: AuditReport) -> dict[str, list[dict[str, Any]]]:
    """The results of each probe that some model has a figure of, in the order of the rows."""
    names = dict.fromkeys(name for row in report.rows for name in row.get("probes", {}))
    found = {name: [row.get("probes", {}).get(name, {}) for row in report.rows] for name in names}
    return {name: results for name, results in found.items() if any(_finite(r.get("value")) for r in results)}


def interval(ends: Any, show: Show) -> str:
    """The text of an interval; "" of nothing, or of ends that are not finite.

    >>> interval([0.4721, 0.5204], number), interval([0.9, 1.0], percent), interval([9.0, 15.0], number), interval(None, number)
    ('0.47–0.52', '90.0–100.0', '9–15', '')
    """
    if not ends or not all(map(_finite, ends)):
        return ""
    low, high = ends
    if show is percent:
        return f"{100 * low:.1f}–{100 * high:.1f}"
    if max(abs(low), abs(high)) >= 10 or 0 < high - low < 1e-3:
        return f"{low:.3g}–{high:.3g}".replace("e-0", "e-")
    digits = 2 if high - low >= 0.02 else 3
    return f"{low:.{digits}f}–{high:.{digits}f}"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _line(report: AuditReport, group: str, label: str, read: Callable[[dict[str, Any]], str]) -> Line:
    rows = ordered(report)
    keys, show = _place(report, group, label.removesuffix(" *"))
    pairs = [_apart(read(row), _interval(row, keys, show)) for row in rows]
    # A line that says something else of a row without its probes is a probe's.
    of_probe = any(read(row) != read({**row, "probes": {}}) for row in rows if row.get("probes"))
    return Line(PROBES if of_probe else _group(report, group), label, [cell for cell, _ in pairs], [found for _, found in pairs])


def _group(report: AuditReport, group: str) -> str:
    """ "LiRA, forget against unseen" of "lira attack, forget against unseen"."""
    for attack in further(report):
        group = group.replace(f"{attack.replace('_', ' ')} attack, ", f"{attack_name(attack)}, ")
    return group


def _place(report: AuditReport, group: str, label: str) -> tuple[tuple[str, ...], Show]:
    """Where a row holds the interval of a line, and how the figure is written; () where it holds none."""
    if group == "accuracy" and label in PARTS:
        return ("accuracy_intervals", PARTS[label]), percent
    duels = {f"{a.replace('_', ' ')} attack, forget against unseen": ("forget_vs_test", a) for a in report.settings["attacks"]}
    duels["loss attack, retain against unseen"] = ("retain_vs_test", "loss")
    show = percent if label.startswith("TPR") else number
    known = group in duels and label in FIGURES
    return (("attacks", *duels[group], f"{FIGURES[label]}_interval") if known else ()), show


def _interval(row: dict[str, Any], keys: tuple[str, ...], show: Show) -> str:
    value: Any = row if keys else None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return interval(value, show)


def _apart(cell: str, found: str) -> tuple[str, str]:
    """A figure without the interval that its text may carry, and the interval: the row's, else the text's.

    >>> _apart("0.513 [0.47, 0.55]", ""), _apart("12.0 %", "10.1–14.2")
    (('0.513', '0.47–0.55'), ('12.0 %', '10.1–14.2'))
    """
    match = re.fullmatch(r"(.*\S) \[(.+), (.+)\]", cell)
    return (match[1], found or f"{match[2]}–{match[3]}") if match else (cell, found)
