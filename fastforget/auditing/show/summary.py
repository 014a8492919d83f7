"""The top of the page: verdict, key figures, the whole table."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from ..._text import number, percent
from ..report import AuditReport
from .markup import esc, ordered, scroll, styles, tone
from .text import Cell, Line

JUDGEMENTS = ("PASS", "PARTIAL", "FAIL")


def head(report: AuditReport, title: str, timing: dict[str, float]) -> str:
    """Title, verdict with its reasons, and four figures."""
    lead = report.headline()
    return (
        f'<header><p class="eyebrow">fastforget audit</p><h1>{esc(title)}</h1>'
        f'<p class="lead">{esc(lead[:1].upper() + lead[1:])}.</p>'
        f'<div class="verdict {tone(report.verdict)}"><div class="stamp">{esc(report.verdict)}</div>'
        f"<ul>{_reasons(report)}</ul></div>{_tiles(report, timing)}</header>"
    )


def _reasons(report: AuditReport) -> str:
    """What was found of each judged model; with several, each one's name and status above."""
    asked = report.judged()
    own = tuple(f"{row['model']}: " for row in asked)
    # What is about the audit as a whole, such as a control that passed.
    items = [f'<li class="FAIL"><b>FAIL</b><span>{esc(reason)}</span></li>' for reason in report.reasons if not reason.startswith(own)]
    for row in asked:
        if len(asked) > 1:
            items.append(f'<li class="model {tone(row["status"])}"><b>{esc(row["status"])}</b><span>{esc(row["model"])}</span></li>')
        for reason in row["reasons"]:
            status, _, text = reason.partition(": ")
            if status not in JUDGEMENTS:
                status, text = "", reason
            label = f'<b class="{status}">{status}</b>' if status else ""
            items.append(f"<li>{label}<span>{esc(text)}</span></li>")
    return "".join(items)


def _tiles(report: AuditReport, timing: dict[str, float]) -> str:
    row = (report.judged() or report.rows[-1:])[0]
    by_name = {r["model"]: r for r in report.rows}
    class_wise = row["class_wise"] and not math.isnan(row["accuracy"]["test_forget"])
    forget, kept = ("test_forget", "test_retain") if class_wise else ("forget", "test")

    def beside(*keys: str, show: Any = percent) -> list[str]:
        found = []
        for name in ("original", "retrained"):
            if name in by_name and by_name[name] is not row:
                value: Any = by_name[name]
                for key in keys:
                    value = value[key]
                found.append(f"{name} {show(value)}")
        return found

    auc = ("attacks", "forget_vs_test", "loss", "auc")
    tiles = [
        (
            "Test accuracy, forgotten classes" if class_wise else "Accuracy on the forget set",
            percent(row["accuracy"][forget]),
            beside("accuracy", forget),
        ),
        (
            "Test accuracy, kept classes" if class_wise else "Test accuracy",
            percent(row["accuracy"][kept]),
            beside("accuracy", kept),
        ),
        (
            "Loss attack, forget against unseen: AUC",
            number(row["attacks"]["forget_vs_test"]["loss"]["auc"]),
            beside(*auc, show=number),
        ),
    ]
    if "unlearn" in timing:
        note = [f"retraining {seconds(timing['retrain'])}"] if "retrain" in timing else []
        tiles.append(("Time to unlearn", seconds(timing["unlearn"]), note))
    whose = f"{row['model']}: " if len(report.judged()) > 1 else ""
    return '<div class="tiles">' + "".join(_tile(whose + name, value, notes) for name, value, notes in tiles) + "</div>"


def _tile(name: str, value: str, beside: list[str]) -> str:
    return (
        f'<div class="tile"><div class="name">{esc(name)}</div><div class="value">{esc(value)}</div>'
        f'<div class="beside">{"<br>".join(map(esc, beside))}</div></div>'
    )


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def table(report: AuditReport, timing: dict[str, float]) -> str:
    """Every figure, one column a model and the controls last, with the intervals that the rows hold."""
    rows, found, after = ordered(report), report.lines(controls=True), len(report.rows)
    missing = report.settings["reference"] is None
    ranged = any(cell.ends for line in found for cell in line.cells)
    if timing:
        steps = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}
        cells = [Cell(seconds(timing[s]) if (s := steps.get(row["model"], "")) in timing else "-") for row in rows]
        found.append(Line("cost", "time", cells))

    def laid(cells: list[str], filler: str) -> str:
        # A missing reference has its column where the retrained model's would be: before the controls.
        return "".join([*cells[:after], *([filler] if missing else []), *cells[after:]])

    keys = styles(report)
    heads = [f'<th scope="col"><span class="key {keys[row["model"]].split()[-1]}"></span>{esc(row["model"])}</th>' for row in rows]
    body, span = "", 1 + len(rows) + missing
    for group, members in groupby(found, key=lambda line: line.group):
        filler = "<td></td>" if group == "cost" else '<td class="noref">no reference</td>'
        inside = "".join(f'<tr><th scope="row">{esc(line.label)}</th>{laid(_cells(line, ranged), filler)}</tr>' for line in members)
        body += f"<tbody>{_group(group, span)}{inside}</tbody>"
    tones = [f'<td class="tone {tone(row["status"])}">{esc(row["status"])}</td>' for row in rows]
    foot = f'<tr><th scope="row">by the rule</th>{laid(tones, "<td></td>")}</tr>'
    head = "<tr><td></td>" + laid(heads, '<th scope="col">retrained</th>') + "</tr>"
    many = " many" if span > 5 else ""
    inner = f'<table class="figures{many}"><thead>{head}</thead>{body}<tfoot>{foot}</tfoot></table>'
    notes = "".join(f"<li>{esc(note)}</li>" for note in report.notes(intervals="Small figures", conventions=False))
    return (
        "<section><h2>All figures</h2><p>The retrained model never saw the forget set. Its column, not 0 or "
        f'0.5, is what a perfect result looks like.</p>{scroll(inner, "All figures")}<ul class="notes">{notes}</ul></section>'
    )


def _cells(line: Line, ranged: bool) -> list[str]:
    # Where some figure has an interval, all leave room for one, so that the figures stay in line.
    small = ["–".join(cell.ends or ()) for cell in line.cells]
    return [f"<td>{esc(cell.text)}{f'<small>{ends}</small>' if ranged else ''}</td>" for cell, ends in zip(line.cells, small, strict=True)]


def _group(name: str, span: int) -> str:
    # Across the whole table, so that a long name does not widen the first column; the label stays in view.
    return f'<tr class="head"><th class="group" scope="rowgroup" colspan="{span}"><span>{esc(name)}</span></th></tr>'
