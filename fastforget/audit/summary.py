"""The top of the page: verdict, key figures, the whole table."""

from __future__ import annotations

import math
from typing import Any

from .markup import esc, kind, tone
from .report import AuditReport, number, percent

JUDGEMENTS = ("PASS", "PARTIAL", "FAIL")


def head(report: AuditReport, title: str, timing: dict[str, float]) -> str:
    """Title, verdict with its reasons, and four figures."""
    judged = report.judged()
    items = []
    for row in judged:
        for reason in row["reasons"]:
            status, _, text = reason.partition(": ")
            if status not in JUDGEMENTS:
                status, text = "", reason
            name = f"{row['model']}: " if len(judged) > 1 else ""
            label = f'<b class="{status}">{status}</b>' if status else ""
            items.append(f"<li>{label}<span>{esc(name + text)}</span></li>")
    lead = report.headline()
    return (
        f'<header><p class="eyebrow">fastforget audit</p><h1>{esc(title)}</h1>'
        f'<p class="lead">{esc(lead[:1].upper() + lead[1:])}.</p>'
        f'<div class="verdict {tone(report.verdict)}"><div class="stamp">{esc(report.verdict)}</div>'
        f"<ul>{''.join(items)}</ul></div>{_tiles(report, timing)}</header>"
    )


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
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _tile(name: str, value: str, beside: list[str]) -> str:
    return (
        f'<div class="tile"><div class="name">{esc(name)}</div><div class="value">{esc(value)}</div>'
        f'<div class="beside">{"<br>".join(map(esc, beside))}</div></div>'
    )


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _group(name: str, span: int) -> str:
    # Across the whole table, so that a long name does not widen the first column; the label stays in view.
    return f'<tr class="head"><th class="group" colspan="{span}"><span>{esc(name)}</span></th></tr>'


def table(report: AuditReport, timing: dict[str, float]) -> str:
    """Every figure, one column a model."""
    columns = "".join(f'<th scope="col"><span class="key {kind(row["model"])}"></span>{esc(row["model"])}</th>' for row in report.rows)
    missing = report.settings["reference"] is None
    columns += '<th scope="col">retrained</th>' if missing else ""
    body, group = [], ""
    span = 1 + len(report.rows) + missing
    for label, row_cells, of in report.table():
        if of != group:
            group = of
            body.append(_group(of, span))
        values = "".join(f"<td>{esc(cell)}</td>" for cell in row_cells) + ('<td class="noref">no reference</td>' if missing else "")
        body.append(f'<tr><th scope="row">{esc(label)}</th>{values}</tr>')
    if timing:
        steps = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}
        cells = "".join(f"<td>{seconds(timing[s]) if (s := steps.get(row['model'], '')) in timing else '-'}</td>" for row in report.rows)
        body.append(_group("cost", span))
        body.append(f'<tr><th scope="row">time</th>{cells}{"<td></td>" if missing else ""}</tr>')
    tones = "".join(f'<td class="tone {tone(row["status"])}">{esc(row["status"])}</td>' for row in report.rows)
    foot = f'<tr><th scope="row">by the rule</th>{tones}{"<td></td>" if missing else ""}</tr>'
    return (
        "<section><h2>All figures</h2><p>The retrained model never saw the forget set. Its column, not 0 or "
        '0.5, is what a perfect result looks like.</p><div class="scroll"><table>'
        f'<thead><tr><th scope="col"></th>{columns}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
        f'<ul class="notes">{"".join(f"<li>{esc(note)}</li>" for note in report.notes())}</ul></section>'
    )
