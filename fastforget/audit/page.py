"""The report as one page: no script, no font, no request. Every name from outside passes through
``escape``."""

from __future__ import annotations

import math
import platform
from html import escape
from typing import Any

import torch

from .. import __version__
from . import svg
from .png import as_pictures
from .report import CONVENTIONS, WHY, AuditReport, number, percent
from .style import CSS

# Nothing may be fetched, whatever a name or a caption holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SETS = ("forget", "retain", "test")
MOST = 40  # layers, noise images or classes in one figure


def render(
    report: AuditReport,
    title: str,
    facts: dict[str, str],
    noise: dict[str, Any],
    timing: dict[str, float],
    class_names: list[str] | None,
) -> str:
    """The whole page."""
    names = _class_names(report, class_names)
    parts = [
        _head(report, title, timing),
        _table(report, timing),
        _membership(report),
        _predictions(report, names),
        _weights(report),
        _noise(noise),
        _reading(report, facts, timing),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<link rel="icon" '
        f'href="data:,">\n<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def kind(model: str) -> str:
    """A model's style class; never its name, which comes from outside."""
    return model if model in ("original", "unlearned", "retrained") else "other"


def tone(status: str) -> str:
    return status if status in ("PASS", "PARTIAL", "FAIL") else "NONE"


def _class_names(report: AuditReport, given: list[str] | None) -> list[str]:
    count = max(len(row["forget_predictions"]) for row in report.rows)
    return [given[i] if given and i < len(given) else str(i) for i in range(count)]


def _legend(report: AuditReport) -> str:
    items = "".join(f'<li class="{kind(row["model"])}">{escape(row["model"])}</li>' for row in report.rows)
    return f'<ul class="legend">{items}</ul>'


def _figure(caption: str, small: str, chart: str, *, wide: bool = False) -> str:
    note = f"<small>{escape(small)}</small>" if small else ""
    inner = f'<div class="scroll">{chart.replace("<svg ", "<svg class=wide ", 1)}</div>' if wide else chart
    return f"<figure><figcaption>{escape(caption)}{note}</figcaption>{inner}</figure>"


def _head(report: AuditReport, title: str, timing: dict[str, float]) -> str:
    several = len({reason.split(":")[0] for reason in report.reasons}) > 1
    items = []
    for reason in report.reasons:
        model, _, rest = reason.partition(": ")
        status, _, text = rest.partition(": ")
        if status not in ("PASS", "PARTIAL", "FAIL"):
            status, text = "", rest
        label = f'<b class="{status}">{status}</b>' if status else "<b></b>"
        items.append(f"<li>{label}{escape(model + ': ' if several else '')}{escape(text)}</li>")
    return (
        f'<header><p class="eyebrow">fastforget audit</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(report.headline()[:1].upper() + report.headline()[1:])}.</p>'
        f'<div class="verdict {tone(report.verdict)}"><div '
        f'class="stamp">{escape(report.verdict)}</div><ul>{"".join(items)}</ul></div>'
        f"{_tiles(report, timing)}</header>"
    )


def _tiles(report: AuditReport, timing: dict[str, float]) -> str:
    judged = [row for row in report.rows if row["model"] not in ("original", "retrained")] or report.rows[-1:]
    row = judged[0]
    by_name = {r["model"]: r for r in report.rows}
    class_wise = row["class_wise"] and not math.isnan(row["accuracy"]["test_forget"])
    forget, kept = ("test_forget", "test_retain") if class_wise else ("forget", "test")

    def beside(*keys: str, show: Any = percent) -> str:
        found = []
        for name in ("original", "retrained"):
            if name in by_name and by_name[name] is not row:
                value: Any = by_name[name]
                for key in keys:
                    value = value[key]
                found.append(f"{name} {show(value)}")
        return ", ".join(found)

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
        note = f"retraining took {seconds(timing['retrain'])}" if "retrain" in timing else ""
        tiles.append(("Time to unlearn", seconds(timing["unlearn"]), note))
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _tile(name: str, value: str, beside: str) -> str:
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="beside">{escape(beside)}</div></div>'
    )


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _table(report: AuditReport, timing: dict[str, float]) -> str:
    head = "".join(
        f'<th scope="col"><span class="key {kind(row["model"])}"></span>{escape(row["model"])}</th>'
        for row in report.rows
    )
    missing = report.settings["reference"] is None
    head += '<th scope="col">retrained</th>' if missing else ""
    body, group = [], ""
    span = len(report.rows) + missing
    for label, row_cells, of in report.table():
        if of != group:
            group = of
            body.append(
                f'<tr class="head"><th class="group" scope="rowgroup">{escape(of)}</th><td '
                f'colspan="{span}"></td></tr>'
            )
        values = "".join(f"<td>{escape(cell)}</td>" for cell in row_cells) + (
            '<td class="noref">no reference</td>' if missing else ""
        )
        body.append(f'<tr><th scope="row">{escape(label)}</th>{values}</tr>')
    if timing:
        steps = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}
        cells = "".join(
            f"<td>{seconds(timing[s]) if (s := steps.get(row['model'], '')) in timing else '-'}</td>"
            for row in report.rows
        )
        body.append(
            f'<tr class="head"><th class="group" scope="rowgroup">cost</th><td colspan="{span}"></td></tr>'
        )
        body.append(f'<tr><th scope="row">time</th>{cells}{"<td></td>" if missing else ""}</tr>')
    tones = "".join(
        f'<td class="tone {tone(row["status"])}">{escape(row["status"])}</td>' for row in report.rows
    )
    foot = f'<tr><th scope="row">by the rule</th>{tones}{"<td></td>" if missing else ""}</tr>'
    return (
        "<section><h2>All figures</h2><p>The retrained model never saw the forget set. Its column, not 0 or "
        '0.5, is what a perfect result looks like.</p><div class="scroll"><table>'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"<tfoot>{foot}</tfoot></table></div>"
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in report.notes())}</ul></section>'
    )


def _membership(report: AuditReport) -> str:
    charts = []
    for duel, caption in (
        ("forget_vs_test", "Forget set against unseen samples"),
        ("retain_vs_test", "Retain set against unseen samples"),
    ):
        unseen = report.rows[0]["attacks"][duel]["loss"]["nonmembers"]
        curves = [(kind(name), name, curve) for name, curve in report.curves["roc"][duel]["loss"].items()]
        small = "Loss attack, both axes logarithmic. Dotted: guessing."
        charts.append(_figure(caption, small, svg.roc(f"ROC curves: {caption}", curves, unseen)))
    edges, share = report.curves["loss"]["log10_edges"], report.curves["loss"]["share"]
    span, ceiling = _bounds(edges, [s for sets in share.values() for s in sets.values()])
    losses = []
    for model, sets in share.items():
        series = [(s, s, sets[s]) for s in ("retain", "test", "forget")]
        losses.append(
            _figure(model, "", svg.histogram(f"Loss histograms of {model}", edges, series, span, ceiling))
        )
    keys = "".join(f'<li class="{s}">{s}</li>' for s in SETS)
    return (
        "<section><h2>Can an attacker tell who was in the training data?</h2><p>A curve near the dotted "
        "line means that forgotten samples "
        "look like samples the model never saw. Compare the unlearned model with the retrained one.</p>"
        f'{_legend(report)}<div class="grid">{"".join(charts)}</div></section>'
        "<section><h2>How surprised is each model?</h2><p>The loss of every sample, on a logarithmic axis. "
        "After forgetting, the forget "
        "set should lie where it lies for the retrained model; far to the right of it, the model shows what "
        "it was made to forget.</p>"
        f'<ul class="legend">{keys}</ul><div class="grid">{"".join(losses)}</div></section>'
    )


def _bounds(edges: list[float], shares: list[list[float]]) -> tuple[tuple[int, int], float]:
    """The bins that hold something, out to whole decades, and a round ceiling."""
    used = [i for i in range(len(edges) - 1) if any(s[i] > 0 for s in shares)]
    decade = max(1, round(1 / (edges[1] - edges[0])))
    first, last = used[0] // decade * decade, min(len(edges) - 1, -(-(used[-1] + 1) // decade) * decade)
    return (first, last), max(0.1, math.ceil(10 * max(max(s) for s in shares)) / 10)


def _predictions(report: AuditReport, names: list[str]) -> str:
    forgotten = report.settings["forgotten_classes"]
    spread, top = [], 0.0
    for row in report.rows:
        counts = row["forget_predictions"]
        row_share = [c / sum(counts) for c in counts]
        top = max(top, *row_share)
        spread.append((row, row_share))
    ceiling = math.ceil(10 * top) / 10
    wide = len(names) > 24
    charts = []
    for row, share in spread:
        model = row["model"]
        bars = [(kind(model), model, share)]
        alt = f"Predictions of {model} on the forget set"
        chart = svg.columns(alt, names, bars, marked=forgotten, axis="predicted class", ceiling=ceiling)
        charts.append(
            _figure(model, f"spread over {row['forget_prediction_spread']:.1f} classes", chart, wide=wide)
        )
    by_class = [
        (
            kind(row["model"]),
            row["model"],
            [row["class_accuracy"]["test"].get(i, math.nan) for i in range(len(names))],
        )
        for row in report.rows
    ]
    columns = svg.columns("Test accuracy by class", names, by_class, marked=forgotten, axis="class")
    accuracy = _figure("Test accuracy by class", "", columns, wide=len(names) > 10)
    return (
        "<section><h2>What does it say instead?</h2><p>The classes predicted for the forget set. They "
        "should be spread as the retrained "
        "model's are: a single class that takes all of them is a trace of its own.</p>"
        f'<div class="grid">{"".join(charts)}</div></section>'
        f"<section><h2>What did the other classes pay?</h2><p>Test accuracy of every "
        f"class.</p>{_legend(report)}"
        f'<div class="grid">{accuracy}</div></section>'
    )


def _weights(report: AuditReport) -> str:
    measured = [
        (row["model"], row["weight_distance"]["original"])
        for row in report.rows
        if "original" in row["weight_distance"]
    ]
    reasons = [f"{name}: {distance['reason']}." for name, distance in measured if distance["reason"]]
    measured = [(name, distance) for name, distance in measured if not distance["reason"]]
    if not measured:
        return ""
    layers = [layer["layer"] for layer in measured[0][1]["layers"]]
    most = [max(d["layers"][i]["relative"] for _, d in measured) for i in range(len(layers))]
    chosen = sorted(sorted(range(len(layers)), key=lambda i: -most[i])[:MOST])
    small = "" if len(chosen) == len(layers) else f"the {MOST} most changed of {len(layers)} layers"
    series = [(kind(name), name, [d["layers"][i]["relative"] for i in chosen]) for name, d in measured]
    chart = svg.dots(
        "Weight distance by layer",
        [layers[i] for i in chosen],
        series,
        "distance from the original / norm of the original",
    )
    keys = "".join(f'<li class="{kind(name)}">{escape(name)}</li>' for name, _ in measured)
    return (
        "<section><h2>Where did the weights move?</h2><p>Each layer's distance from the original model, "
        "relative to the layer's size. "
        "Much less than retraining moves them suggests that little was changed; much more, that damage was "
        "done. "
        f'{escape(" ".join(reasons))}</p><ul class="legend">{keys}</ul>'
        f'<div class="grid">{_figure("Relative weight distance by layer", small, chart)}</div></section>'
    )


def _noise(noise: dict[str, Any]) -> str:
    figures = []
    for caption, images in noise.items():
        pictures = "".join(
            f'<img src="{uri}" alt="{escape(f"{caption}, image {i + 1}", quote=True)}">'
            for i, uri in enumerate(as_pictures(images[:MOST]))
        )
        figures.append(
            f'<figure><figcaption>{escape(caption)}</figcaption><div class="noise">{pictures}</div></figure>'
        )
    if not figures:
        return ""
    return (
        "<section><h2>The learned noise</h2><p>Images made to maximise the model's error on the forgotten "
        "class; training on them wears the "
        "class away. No forgotten image was used. Each picture's own range of values is stretched to black "
        "and white.</p>"
        f'<div class="grid">{"".join(figures)}</div></section>'
    )


def _reading(report: AuditReport, facts: dict[str, str], timing: dict[str, float]) -> str:
    settings = report.settings
    threshold = settings["oracle_threshold"]
    oracle = (
        settings["oracle_reason"] or f"member if loss <= {threshold:.4g}, calibrated on the original model"
    )
    lines = {
        **facts,
        **{f"seconds, {step}": f"{value:.2f}" for step, value in timing.items()},
        "attacks": ", ".join(settings["attacks"]),
        "oracle": oracle,
        "reference": settings["reference"] or "no reference",
        "audit seed": str(settings["seed"]),
        "audit seconds": f"{settings['seconds']:.2f}",
        "software": f"fastforget {__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
    }

    def listed(entries: dict[str, str]) -> str:
        return (
            "<dl>"
            + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items())
            + "</dl>"
        )

    return (
        f"<section><h2>How to read this</h2><p>{escape(WHY)}</p></section>"
        f"<section><h2>The rule behind the verdict</h2><p>{escape(settings['rule'])}</p></section>"
        f"<section><h2>Conventions</h2>{listed(CONVENTIONS)}</section>"
        f"<section><h2>Settings</h2>{listed(lines)}</section>"
        "<footer>Evidence from measurements on the samples named above, not a certificate.</footer>"
    )
