"""The top of the page as data: verdict, key figures, the whole table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from .shown import Report, colours, ordered, tone
from .text import Cell, Line, number, percent

JUDGEMENTS = ("PASS", "PARTIAL", "FAIL")
STEPS = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}


@dataclass
class Reason:
    """One line beside the verdict; ``line_class`` is the style of the whole line where it is not the status's own."""

    text: str
    status: str = ""
    line_class: str = ""


@dataclass
class Tile:
    """One key figure, and the same of the models it is compared with."""

    name: str
    value: str
    beside: list[str] = field(default_factory=list)


@dataclass
class Head:
    """Title line, verdict with its reasons, and up to four figures."""

    lead: str
    status: str
    tone: str
    reasons: list[Reason]
    tiles: list[Tile]


@dataclass
class Column:
    """One model's column of the table."""

    model: str
    colour: str
    status: str
    tone: str


@dataclass
class TableLine:
    """A label and a cell a column; the missing retrained model's is None."""

    label: str
    cells: list[Cell | None]


@dataclass
class Group:
    """Lines under one heading; ``compared`` says that a retrained model would have a figure here too."""

    name: str
    lines: list[TableLine]
    compared: bool


@dataclass
class Table:
    """Every figure; the missing retrained model's column is None."""

    columns: list[Column | None]
    groups: list[Group]
    intervals: bool
    notes: list[str]


def head(report: Report, timing: dict[str, float]) -> Head:
    """The page's head, but for its title."""
    lead = report.headline()
    return Head(lead[:1].upper() + lead[1:], report.verdict, tone(report.verdict), _reasons(report), _tiles(report, timing))


def _reasons(report: Report) -> list[Reason]:
    """What was found of each judged model; with several, each one's name and status above."""
    judged = report.judged()
    beginnings = tuple(f"{row['model']}: " for row in judged)
    # What is about the audit as a whole, such as a control that passed.
    reasons = [Reason(text, "FAIL", "FAIL") for text in report.reasons if not text.startswith(beginnings)]
    for row in judged:
        if len(judged) > 1:
            reasons.append(Reason(row["model"], row["status"], f"model {tone(row['status'])}"))
        for text in row["reasons"]:
            status, _, rest = text.partition(": ")
            reasons.append(Reason(rest, status) if status in JUDGEMENTS else Reason(text))
    return reasons


def _tiles(report: Report, timing: dict[str, float]) -> list[Tile]:
    row = (report.judged() or report.rows[-1:])[0]
    others = [other for other in report.rows if other["model"] in ("original", "retrained") and other is not row]
    others.sort(key=lambda other: other["model"])
    class_wise = row["class_wise"] and not math.isnan(row["accuracy"]["test_forget"])
    forget, kept = ("test_forget", "test_retain") if class_wise else ("forget", "test")

    def tile(name: str, figure: Callable[[dict[str, Any]], float], show: Callable[[float], str]) -> Tile:
        return Tile(name, show(figure(row)), [f"{other['model']} {show(figure(other))}" for other in others])

    tiles = [
        tile("Test accuracy, forgotten classes" if class_wise else "Accuracy on the forget set", lambda r: r["accuracy"][forget], percent),
        tile("Test accuracy, kept classes" if class_wise else "Test accuracy", lambda r: r["accuracy"][kept], percent),
        tile("Loss attack, forget against unseen: AUC", lambda r: r["attacks"]["forget_vs_test"]["loss"]["auc"], number),
    ]
    if "unlearn" in timing:
        beside = [f"retraining {seconds(timing['retrain'])}"] if "retrain" in timing else []
        tiles.append(Tile("Time to unlearn", seconds(timing["unlearn"]), beside))
    if len(report.judged()) > 1:
        for one in tiles:
            one.name = f"{row['model']}: {one.name}"
    return tiles


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def table(report: Report, timing: dict[str, float]) -> Table:
    """Every figure, one column a model and the controls last, with the intervals that the rows hold."""
    rows, lines = ordered(report), report.lines(controls=True)
    intervals = any(cell.ends for line in lines for cell in line.cells)
    if timing:
        steps = [STEPS.get(row["model"], "") for row in rows]
        lines.append(Line("cost", "time", [Cell(seconds(timing[step]) if step in timing else "-") for step in steps]))
    colour = colours(report)
    columns: list[Column | None] = [Column(row["model"], colour[row["model"]], row["status"], tone(row["status"])) for row in rows]
    groups = [
        Group(name, [TableLine(line.label, [*line.cells]) for line in members], compared=name != "cost")
        for name, members in groupby(lines, key=lambda line: line.group)
    ]
    if report.settings["reference"] is None:
        # Where the retrained model's column would be: before the controls.
        place = len(report.rows)
        columns.insert(place, None)
        for line in (line for group in groups for line in group.lines):
            line.cells.insert(place, None)
    return Table(columns, groups, intervals, report.notes(intervals="Small figures", conventions=False))
