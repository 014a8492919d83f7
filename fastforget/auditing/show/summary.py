"""The top of the page as data: verdict, key figures, the whole table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

from ..._text import number, percent
from ..figures import FORGET, ORIGINAL, RETRAINED, AuditFigures, ModelRow
from .lines import Cell, Line
from .shown import STEPS, colours, ordered, seconds, tone
from .text import audit_lines, headline, notes

JUDGEMENTS = ("PASS", "PARTIAL", "FAIL")


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


def head(audit: AuditFigures, timing: dict[str, float], *, beside: AuditFigures | None = None) -> Head:
    """The page's head, but for its title; ``beside`` has further models, which are only named with what speaks against them."""
    lead = headline(audit)
    reasons = _reasons(audit) + ([] if beside is None else _compared(audit, beside))
    return Head(lead[:1].upper() + lead[1:], audit.verdict, tone(audit.verdict), reasons, _tiles(audit, timing))


def _reasons(audit: AuditFigures) -> list[Reason]:
    """What was found of each judged model; with several, each one's name and status above."""
    judged = audit.judged_figures()
    beginnings = tuple(f"{model.model}: " for model in judged)
    # What is about the audit as a whole, such as a control that passed.
    reasons = [Reason(text, "FAIL", "FAIL") for text in audit.reasons if not text.startswith(beginnings)]
    for model in judged:
        if len(judged) > 1:
            reasons.append(Reason(model.model, model.status, f"model {tone(model.status)}"))
        for text in model.reasons:
            status, _, rest = text.partition(": ")
            reasons.append(Reason(rest, status) if status in JUDGEMENTS else Reason(text))
    return reasons


def _compared(audit: AuditFigures, beside: AuditFigures) -> list[Reason]:
    """The models that the head isn't about, each with what keeps it from passing."""
    main, reasons = {model.model for model in audit.figures}, []
    for model in beside.judged_figures():
        if model.model not in main:
            reasons.append(Reason(f"beside it: {model.model}", model.status, f"model {tone(model.status)}"))
            against = [text.partition(": ") for text in model.reasons if not text.startswith("PASS")]
            reasons += [Reason(rest, status) for status, _, rest in against if status in JUDGEMENTS]
    return reasons


def _tiles(audit: AuditFigures, timing: dict[str, float]) -> list[Tile]:
    judged = audit.judged_figures()
    main = (judged or audit.figures[-1:])[0]
    yardsticks = [model for name in (ORIGINAL, RETRAINED) for model in audit.figures if model.model == name and model is not main]
    class_wise = main.class_wise and main.accuracy["test_forget"].known
    of_samples, of_sequences = ("Accuracy on the forget set", "Test accuracy"), ("Token accuracy, forget set", "Token accuracy, test set")
    on_forget, on_test = of_samples if main.sequences is None else of_sequences
    forget, kept = ("test_forget", "test_retain") if class_wise else ("forget", "test")

    def tile(name: str, text: Callable[[ModelRow], str]) -> Tile:
        return Tile(name, text(main), [f"{model.model} {text(model)}" for model in yardsticks])

    tiles = [
        tile(
            "Test accuracy, forgotten classes" if class_wise else on_forget,
            lambda model: percent(model.accuracy[forget].value),
        ),
        tile("Test accuracy, kept classes" if class_wise else on_test, lambda model: percent(model.accuracy[kept].value)),
        tile("Loss attack, forget against unseen: AUC", lambda model: number(model.attacks[FORGET]["loss"].auc.value)),
    ]
    if "unlearn" in timing:
        beside = [f"retraining {seconds(timing['retrain'])}"] if "retrain" in timing else []
        tiles.append(Tile("Time to unlearn", seconds(timing["unlearn"]), beside))
    if len(judged) > 1:
        for one in tiles:
            one.name = f"{main.model}: {one.name}"
    return tiles


def table(audit: AuditFigures, timing: dict[str, float], passes: dict[str, int]) -> Table:
    """Every figure, one column a model and the controls last, with the intervals that were measured."""
    models, lines = ordered(audit), audit_lines(audit, controls=True)
    intervals = any(cell.ends for line in lines for cell in line.cells)
    steps = [STEPS.get(model.model, model.model) for model in models]
    if timing:
        lines.append(Line("cost", "time", [Cell(seconds(timing[step]) if step in timing else "-") for step in steps]))
    if passes:
        lines.append(Line("cost", "sample passes", [Cell(f"{passes[step]:,}" if step in passes else "-") for step in steps]))
    colour = colours(audit)
    columns: list[Column | None] = [Column(model.model, colour[model.model], model.status, tone(model.status)) for model in models]
    groups = [
        Group(name, [TableLine(line.label, [*line.cells]) for line in members], compared=name != "cost")
        for name, members in groupby(lines, key=lambda line: line.group)
    ]
    if audit.settings["reference"] is None:
        # Where the retrained model's column would be: before the controls.
        place = len(audit.figures)
        columns.insert(place, None)
        for line in (line for group in groups for line in group.lines):
            line.cells.insert(place, None)
    return Table(columns, groups, intervals, notes(audit, intervals="Small figures", conventions=False))
