"""The page's charts: ROC curves, losses, predictions, classes, layers. The controls are drawn, and hidden until asked for."""

from __future__ import annotations

import math

from ..._text import number
from ..measure import attacks as atk
from ..report import AuditReport
from . import svg
from .markup import figure, grid, legend, ordered, section, styles
from .text import attack_name, further

SETS = ("forget", "retain", "test")
MOST = 40  # layers in one figure
SIDES = {"forget_vs_test": "forget set against unseen samples", "retain_vs_test": "retain set against unseen samples"}


def membership(report: AuditReport) -> str:
    """ROC curves: the strongest attacks first, then the loss attack; those that rank like it can be unfolded."""
    drawn = report.curves["roc"]
    strong = [("forget_vs_test", attack) for attack in further(report.settings["attacks"])]
    plain = [(duel, "loss") for duel in SIDES]
    rest = [("forget_vs_test", attack) for attack in drawn["forget_vs_test"] if attack in atk.DIRECTION and attack != "loss"]
    found = [chart for duel, attack in (*strong, *plain) if (chart := _roc(report, duel, attack))]
    more = [chart for duel, attack in rest if (chart := _roc(report, duel, attack))]
    names = ", ".join(attack.replace("_", " ") for _, attack in rest)
    folded = f"<details><summary>ROC curves of the other thresholds: {names}</summary>{grid(more, wide=True)}</details>" if more else ""
    return section(
        "Can an attacker tell who was in the training data?",
        "A curve near the dotted line means that forgotten samples look like samples the model never saw. "
        "Compare the unlearned model with the retrained one. Both axes are logarithmic.",
        found,
        legend(report),
        folded,
        wide=True,
    )


def _roc(report: AuditReport, duel: str, attack: str) -> str:
    curves = report.curves["roc"].get(duel, {}).get(attack, {})
    rows = [row for row in ordered(report) if row["model"] in curves]
    if not rows:
        return ""
    of, name = styles(report), attack_name(attack)
    figures = {row["model"]: row["attacks"].get(duel, {}).get(attack, {}) for row in rows}
    unseen = next((f["nonmembers"] for f in figures.values() if f.get("nonmembers")), None)
    unseen = unseen or report.rows[0]["attacks"][duel]["loss"]["nonmembers"]
    aucs = ", ".join(f"{model} {number(f['auc'])}" for model, f in figures.items() if f.get("auc") is not None and math.isfinite(f["auc"]))
    alt = f"ROC curves, {name}, {SIDES[duel]}" + (f": AUC {aucs}" if aucs else "")
    # The controls below: one that is the original as it is must not hide it.
    series = [(of[row["model"]], row["model"], curves[row["model"]]) for row in sorted(rows, key=lambda row: not row["control"])]
    small = f"{SIDES[duel].capitalize()}. Dotted: guessing."
    return figure(name[:1].upper() + name[1:], small, svg.roc(alt, series, unseen))


def losses(report: AuditReport) -> str:
    """Histograms of the losses, one chart a model."""
    edges, share = report.curves["loss"]["log10_edges"], report.curves["loss"]["share"]
    of = styles(report)
    span, ceiling = _bounds(edges, [s for sets in share.values() for s in sets.values()])
    charts = []
    for model in (row["model"] for row in ordered(report)):
        sets = share.get(model)
        if sets is None:
            continue
        series = [(s, s, sets[s]) for s in ("retain", "test", "forget")]
        alt = f"Histograms of the losses of {model} on the retain, test and forget set"
        charts.append(figure(model, "", svg.histogram(alt, edges, series, span, ceiling), of[model]))
    keys = "".join(f'<li class="{s}">{s}</li>' for s in SETS)
    return section(
        "How surprised is each model?",
        "The loss of every sample, on a logarithmic axis. After forgetting, the forget set should lie "
        "where it lies for the retrained model; further to the right, the model shows what it was made to "
        "forget. Heights are square roots of the shares, so that a narrow peak leaves the rest visible.",
        charts,
        f'<ul class="legend">{keys}</ul>',
    )


def _bounds(edges: list[float], shares: list[list[float]]) -> tuple[tuple[int, int], float]:
    """The bins that hold something, out to whole decades, and a round ceiling."""
    used = [i for i in range(len(edges) - 1) if any(s[i] > 0 for s in shares)]
    decade = max(1, round(1 / (edges[1] - edges[0])))
    first, last = used[0] // decade * decade, min(len(edges) - 1, -(-(used[-1] + 1) // decade) * decade)
    return (first, last), max(0.1, math.ceil(10 * max(max(s) for s in shares)) / 10)


def predictions(report: AuditReport, names: list[str]) -> str:
    """The classes predicted for the forget set, one chart a model."""
    shares = {row["model"]: [c / sum(row["forget_predictions"]) for c in row["forget_predictions"]] for row in ordered(report)}
    of, marked = styles(report), report.settings["forgotten_classes"]
    ceiling = math.ceil(10 * max(map(max, shares.values()))) / 10
    charts = []
    for row in ordered(report):
        model = row["model"]
        chart = svg.columns(
            f"Predictions of {model} on the forget set",
            names,
            [(of[model], model, shares[model])],
            marked=marked,
            axis="predicted class",
            ceiling=ceiling,
            width=svg.SMALL,
        )
        spread = f"spread over {row['forget_prediction_spread']:.1f} classes"
        charts.append(figure(model, spread, chart, of[model]))
    return section(
        "What does it say instead?",
        "The classes predicted for the forget set. They should be spread as the retrained model's are: a "
        "single class that takes all of them is a trace of its own.",
        charts,
    )


def cost(report: AuditReport, names: list[str]) -> str:
    """Accuracy by class, without the controls, and how far each layer moved."""
    of, bars = styles(report), []
    for row in report.rows:
        accuracy = row["class_accuracy"]["test"]
        bars.append((of[row["model"]], row["model"], [accuracy.get(i, math.nan) for i in range(len(names))]))
    marked = report.settings["forgotten_classes"]
    charts = []
    if bars:
        chart = svg.columns("Test accuracy by class", names, bars, marked=marked, axis="class")
        charts.append(figure("Test accuracy by class", "", chart))
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
    of = styles(report)
    distances = {row["model"]: row["weight_distance"]["original"] for row in ordered(report) if "original" in row["weight_distance"]}
    reasons = [f"{name}: {found['reason']}." for name, found in distances.items() if found["reason"]]
    moved = {name: found["layers"] for name, found in distances.items() if not found["reason"]}
    if not moved:
        return "", reasons
    layers = [layer["layer"] for layer in next(iter(moved.values()))]
    values = {name: [layer["relative"] for layer in found] for name, found in moved.items()}
    most = [max(at) for at in zip(*values.values(), strict=True)]
    chosen = sorted(sorted(range(len(layers)), key=lambda i: -most[i])[:MOST])
    few = "" if len(chosen) == len(layers) else f"The {MOST} most changed of {len(layers)} layers."
    series: list[svg.Series] = [(of[name], name, [v[i] for i in chosen]) for name, v in values.items()]
    axis = "distance / norm of the original"
    chart = svg.dots("Weight distance by layer", [layers[i] for i in chosen], series, axis, reach=_reach(report, values))
    return figure("Weight distance by layer", few, chart), reasons


def _reach(report: AuditReport, values: dict[str, list[float]]) -> float | None:
    """Where the axis ends: for the models that are shown, unless only controls are."""
    names = {row["model"] for row in report.rows}
    found = [v for name, of in values.items() if name in names for v in of if math.isfinite(v)]
    return max(found, default=None)
