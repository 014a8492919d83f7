"""The report as one page: no script, no font, no request. Every name from outside passes through
``esc``."""

from __future__ import annotations

import math
import platform
from typing import Any

import torch

from .. import __version__
from . import svg
from .markup import esc, figure, kind, legend, section
from .png import as_pictures
from .report import CONVENTIONS, WHY, AuditReport
from .style import CSS
from .summary import head, table

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
        head(report, title, timing),
        table(report, timing),
        _membership(report),
        _losses(report),
        _predictions(report, names),
        _cost(report, names),
        _noise(noise),
        _reading(report, facts, timing),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<link rel="icon" '
        f'href="data:,">\n<title>{esc(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _class_names(report: AuditReport, given: list[str] | None) -> list[str]:
    count = max(len(row["forget_predictions"]) for row in report.rows)
    return [given[i] if given and i < len(given) else str(i) for i in range(count)]


def _membership(report: AuditReport) -> str:
    charts = []
    for duel in ("forget_vs_test", "retain_vs_test"):
        unseen = report.rows[0]["attacks"][duel]["loss"]["nonmembers"]
        curves = [(kind(name), name, curve) for name, curve in report.curves["roc"][duel]["loss"].items()]
        caption = f"{duel.split('_')[0].capitalize()} set against unseen samples"
        chart = svg.roc(f"ROC curves: {caption}", curves, unseen)
        charts.append(figure(caption, "Loss attack, both axes logarithmic. Dotted: guessing.", chart))
    return section(
        "Can an attacker tell who was in the training data?",
        "A curve near the dotted line means that forgotten samples look like samples the model never saw. "
        "Compare the unlearned model with the retrained one.",
        charts,
        legend(report),
    )


def _losses(report: AuditReport) -> str:
    edges, share = report.curves["loss"]["log10_edges"], report.curves["loss"]["share"]
    span, ceiling = _bounds(edges, [s for sets in share.values() for s in sets.values()])
    charts = []
    for model, sets in share.items():
        series = [(s, s, sets[s]) for s in ("retain", "test", "forget")]
        alt = f"Histograms of the losses of {model}"
        charts.append(figure(model, "", svg.histogram(alt, edges, series, span, ceiling)))
    keys = "".join(f'<li class="{s}">{s}</li>' for s in SETS)
    return section(
        "How surprised is each model?",
        "The loss of every sample, on a logarithmic axis. After forgetting, the forget set should lie "
        "where it lies for the retrained model; further to the right, the model shows what it was made to "
        "forget.",
        charts,
        f'<ul class="legend">{keys}</ul>',
    )


def _bounds(edges: list[float], shares: list[list[float]]) -> tuple[tuple[int, int], float]:
    """The bins that hold something, out to whole decades, and a round ceiling."""
    used = [i for i in range(len(edges) - 1) if any(s[i] > 0 for s in shares)]
    decade = max(1, round(1 / (edges[1] - edges[0])))
    first, last = used[0] // decade * decade, min(len(edges) - 1, -(-(used[-1] + 1) // decade) * decade)
    return (first, last), max(0.1, math.ceil(10 * max(max(s) for s in shares)) / 10)


def _predictions(report: AuditReport, names: list[str]) -> str:
    shares = {row["model"]: [c / sum(row["forget_predictions"]) for c in row["forget_predictions"]] for row in report.rows}
    marked = report.settings["forgotten_classes"]
    ceiling = math.ceil(10 * max(map(max, shares.values()))) / 10
    charts = []
    for row in report.rows:
        model = row["model"]
        chart = svg.columns(
            f"Predictions of {model} on the forget set",
            names,
            [(kind(model), model, shares[model])],
            marked=marked,
            axis="predicted class",
            ceiling=ceiling,
            width=svg.SMALL,
        )
        spread = f"spread over {row['forget_prediction_spread']:.1f} classes"
        charts.append(figure(model, spread, chart))
    return section(
        "What does it say instead?",
        "The classes predicted for the forget set. They should be spread as the retrained model's are: a "
        "single class that takes all of them is a trace of its own.",
        charts,
    )


def _cost(report: AuditReport, names: list[str]) -> str:
    bars = []
    for row in report.rows:
        accuracy = row["class_accuracy"]["test"]
        bars.append((kind(row["model"]), row["model"], [accuracy.get(i, math.nan) for i in range(len(names))]))
    marked = report.settings["forgotten_classes"]
    chart = svg.columns("Test accuracy by class", names, bars, marked=marked, axis="class")
    charts = [figure("Test accuracy by class", "", chart)]
    text = "What the other classes paid, and how far each layer moved from the original model."
    weights, reasons = _weights(report)
    if weights:
        charts.append(weights)
        text += (
            " Weights that moved much less than retraining moves them suggest that little was changed; "
            "much more, that the model was hit hard and repaired."
        )
    return section("What did it cost?", " ".join([text, *reasons]), charts, legend(report))


def _weights(report: AuditReport) -> tuple[str, list[str]]:
    """The chart of layer distances, and for models that can't be compared the reasons."""
    distances = {row["model"]: row["weight_distance"]["original"] for row in report.rows if "original" in row["weight_distance"]}
    reasons = [f"{name}: {found['reason']}." for name, found in distances.items() if found["reason"]]
    moved = {name: [layer["relative"] for layer in found["layers"]] for name, found in distances.items() if not found["reason"]}
    if not moved:
        return "", reasons
    layers = [layer["layer"] for layer in distances[next(iter(moved))]["layers"]]
    most = [max(values) for values in zip(*moved.values(), strict=True)]
    chosen = sorted(sorted(range(len(layers)), key=lambda i: -most[i])[:MOST])
    few = "" if len(chosen) == len(layers) else f"The {MOST} most changed of {len(layers)} layers."
    series = [(kind(name), name, [values[i] for i in chosen]) for name, values in moved.items()]
    axis = "distance from the original / norm of the original"
    chart = svg.dots("Weight distance by layer", [layers[i] for i in chosen], series, axis)
    return figure("Weight distance by layer", few, chart), reasons


def _noise(noise: dict[str, Any]) -> str:
    figures = []
    for caption, images in noise.items():
        pictures = [f'<img src="{uri}" alt="{esc(caption)}, image {i + 1}">' for i, uri in enumerate(as_pictures(images[:MOST]))]
        figures.append(f'<figure><figcaption>{esc(caption)}</figcaption><div class="noise">{"".join(pictures)}</div></figure>')
    if not figures:
        return ""
    return section(
        "The learned noise",
        "Images made to maximise the model's error on the forgotten class; training on them wears the "
        "class away. No forgotten image was used. Each picture's own range of values is stretched from "
        "black to white.",
        figures,
    )


def _reading(report: AuditReport, facts: dict[str, str], timing: dict[str, float]) -> str:
    settings = report.settings
    threshold = settings["oracle_threshold"]
    oracle = settings["oracle_reason"] or f"member if loss <= {threshold:.4g}, calibrated on the original model"
    lines = {
        **facts,
        **{f"seconds, {step}": f"{value:.2f}" for step, value in timing.items()},
        "attacks": ", ".join(settings["attacks"]),
        "oracle": oracle,
        "reference": settings["reference"] or "no reference",
        "audit seed": str(settings["seed"]),
        "audit seconds": f"{settings['seconds']:.2f}",
        "software": f"fastforget {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
    }

    def listed(entries: dict[str, str]) -> str:
        return "<dl>" + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in entries.items()) + "</dl>"

    return (
        f"<section><h2>How to read this</h2><p>{esc(WHY)}</p></section>"
        f"<section><h2>The rule behind the verdict</h2><p>{esc(settings['rule'])}</p></section>"
        f"<section><h2>Conventions</h2>{listed(CONVENTIONS)}</section>"
        f"<section><h2>Settings</h2>{listed(lines)}</section>"
        "<footer>Evidence from measurements on the samples named above, not a certificate.</footer>"
    )
