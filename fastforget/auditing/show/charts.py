"""The page's charts: ROC curves, losses, predictions, classes, layers. The controls are drawn, and hidden until asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..._text import number
from ..figures import FORGET, ORIGINAL, RETAIN, AuditFigures, LayerDistance
from ..names import DIRECTION
from . import svg
from .shown import STEPS, css_classes, ordered, seconds
from .wording import attack_name, beyond_thresholds

MOST_LAYERS = 40  # in one figure
SIDES = {FORGET: "forget set against unseen samples", RETAIN: "retain set against unseen samples"}


@dataclass
class Chart:
    """A drawing with its caption and a smaller line below it; a ``hidden`` one shows when the controls are asked for."""

    caption: str
    note: str
    drawing: str
    hidden: bool = False

    @property
    def scrolls(self) -> bool:
        """Whether the drawing is of fixed size, so that its box has to scroll."""
        return svg.is_fixed(self.drawing)


@dataclass
class Roc:
    """ROC curves that are seen at once, and those that can be unfolded, with their attacks' names."""

    first: list[Chart]
    folded: list[Chart]
    folded_names: str


@dataclass
class Cost:
    """Accuracy by class and layer distances; ``moved`` says whether these are drawn, ``not_compared`` of which models they can't be."""

    charts: list[Chart] = field(default_factory=list)
    moved: bool = False
    not_compared: list[str] = field(default_factory=list)


def membership(audit: AuditFigures) -> Roc:
    """ROC curves: the strongest attacks first, then the loss attack; those that rank like it can be unfolded."""
    strong = [(FORGET, attack) for attack in beyond_thresholds(audit.settings["attacks"])]
    loss = [(comparison, "loss") for comparison in SIDES]
    others = [attack for attack in audit.curves["roc"][FORGET] if attack in DIRECTION and attack != "loss"]
    first = [_roc(audit, comparison, attack) for comparison, attack in (*strong, *loss)]
    folded = [_roc(audit, FORGET, attack) for attack in others]
    names = ", ".join(attack.replace("_", " ") for attack in others)
    return Roc([chart for chart in first if chart], [chart for chart in folded if chart], names)


def _roc(audit: AuditFigures, comparison: str, attack: str) -> Chart | None:
    curves = audit.curves["roc"].get(comparison, {}).get(attack, {})
    models = [model for model in ordered(audit) if model.model in curves]
    if not models:
        return None
    classes, title = css_classes(audit), attack_name(attack)
    figures = {model.model: model.attacks[comparison][attack] for model in models}
    unseen = next((f.nonmembers for f in figures.values() if f.nonmembers), None)
    unseen = unseen or audit.figures[0].attacks[comparison]["loss"].nonmembers
    aucs = ", ".join(f"{name} {number(f.auc.value)}" for name, f in figures.items() if math.isfinite(f.auc.value))
    label = f"ROC curves, {title}, {SIDES[comparison]}" + (f": AUC {aucs}" if aucs else "")
    # The controls below: one that is the original as it is must not hide it.
    below_first = sorted(models, key=lambda model: not model.control)
    series = [(classes[model.model], model.model, curves[model.model]) for model in below_first]
    note = f"{SIDES[comparison].capitalize()}. Dotted: guessing."
    return Chart(title[:1].upper() + title[1:], note, svg.roc(label, series, unseen))


def losses(audit: AuditFigures) -> list[Chart]:
    """Histograms of the losses, one chart a model."""
    edges, share = audit.curves["loss"]["log10_edges"], audit.curves["loss"]["share"]
    span, ceiling = _bounds(edges, [shares for sets in share.values() for shares in sets.values()])
    classes, charts = css_classes(audit), []
    for model in (model.model for model in ordered(audit) if model.model in share):
        series = [(name, name, share[model][name]) for name in ("retain", "test", "forget")]
        label = f"Histograms of the losses of {model} on the retain, test and forget set"
        charts.append(Chart(model, "", svg.histogram(label, edges, series, span, ceiling), _hidden(classes[model])))
    return charts


def _bounds(edges: list[float], shares: list[list[float]]) -> tuple[tuple[int, int], float]:
    """The bins that hold something, out to whole decades, and a round ceiling."""
    used = [i for i in range(len(edges) - 1) if any(s[i] > 0 for s in shares)]
    decade = max(1, round(1 / (edges[1] - edges[0])))
    first, last = used[0] // decade * decade, min(len(edges) - 1, -(-(used[-1] + 1) // decade) * decade)
    return (first, last), max(0.1, math.ceil(10 * max(max(s) for s in shares)) / 10)


def predictions(audit: AuditFigures, class_names: list[str]) -> list[Chart]:
    """The classes predicted for the forget set, one chart a model."""
    if not audit.figures[0].forget_predictions:
        return []  # of sequences
    shares = {model.model: [count / sum(model.forget_predictions) for count in model.forget_predictions] for model in ordered(audit)}
    classes, marked = css_classes(audit), audit.settings["forgotten_classes"]
    ceiling = math.ceil(10 * max(map(max, shares.values()))) / 10
    charts = []
    for model in ordered(audit):
        name = model.model
        drawing = svg.columns(
            f"Predictions of {name} on the forget set",
            class_names,
            [(classes[name], name, shares[name])],
            marked=marked,
            axis="predicted class",
            ceiling=ceiling,
            width=svg.SMALL,
        )
        note = f"spread over {model.forget_prediction_spread:.1f} classes"
        charts.append(Chart(name, note, drawing, _hidden(classes[name])))
    return charts


def _hidden(css_class: str) -> bool:
    return "control" in css_class.split()


def cost(audit: AuditFigures, class_names: list[str], timing: dict[str, float]) -> Cost:
    """Seconds, accuracy by class, without the controls, and how far each layer moved."""
    classes, bars = css_classes(audit), []
    for model in audit.figures:
        accuracy = model.class_accuracy["test"]
        bars.append((classes[model.model], model.model, [accuracy.get(i, math.nan) for i in range(len(class_names))]))
    shown = Cost()
    if (chart := _seconds(audit, timing)) is not None:
        shown.charts.append(chart)
    if class_names:
        title, marked = "Test accuracy by class", audit.settings["forgotten_classes"]
        shown.charts.append(Chart(title, "", svg.columns(title, class_names, bars, marked=marked, axis="class")))
    distances = {model.model: model.weight_distance[ORIGINAL] for model in ordered(audit) if ORIGINAL in model.weight_distance}
    shown.not_compared = [f"{name}: {distance.reason}" for name, distance in distances.items() if distance.reason]
    layers = {name: distance.layers for name, distance in distances.items() if not distance.reason}
    if layers:
        shown.charts.append(_layers(audit, layers))
        shown.moved = True
    return shown


def _seconds(audit: AuditFigures, timing: dict[str, float]) -> Chart | None:
    """What each model took, where several methods are to be compared."""
    classes, timed = css_classes(audit), [(model.model, timing.get(STEPS.get(model.model, model.model))) for model in audit.figures]
    rows = [(classes[name], name, value, seconds(value)) for name, value in timed if value is not None and math.isfinite(value)]
    judged = {model.model for model in audit.judged_figures()}
    if sum(name in judged for _, name, _, _ in rows) < 2 or max(value for _, _, value, _ in rows) <= 0:
        return None
    return Chart("Time", "", svg.bars("Time: seconds that each model took", rows, "seconds"))


def _layers(audit: AuditFigures, layers: dict[str, list[LayerDistance]]) -> Chart:
    """How far each layer of each model moved."""
    classes = css_classes(audit)
    names = [layer.layer for layer in next(iter(layers.values()))]
    values = {model: [layer.relative for layer in moved] for model, moved in layers.items()}
    largest = [max(of_layer) for of_layer in zip(*values.values(), strict=True)]
    chosen = sorted(sorted(range(len(names)), key=lambda i: -largest[i])[:MOST_LAYERS])
    note = "" if len(chosen) == len(names) else f"The {MOST_LAYERS} most changed of {len(names)} layers."
    series: list[svg.Series] = [(classes[model], model, [moved[i] for i in chosen]) for model, moved in values.items()]
    title, axis = "Weight distance by layer", "distance / norm of the original"
    return Chart(title, note, svg.dots(title, [names[i] for i in chosen], series, axis, reach=_reach(audit, values)))


def _reach(audit: AuditFigures, values: dict[str, list[float]]) -> float | None:
    """Where the axis ends: for the models that are shown, unless only controls are."""
    shown = {model.model for model in audit.figures}
    finite = [value for model, moved in values.items() if model in shown for value in moved if math.isfinite(value)]
    return max(finite, default=None)
