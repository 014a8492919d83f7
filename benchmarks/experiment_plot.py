"""The experiment's figures as SVG, in the style of plot.py: distance from retraining, speed, and accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from .experiment_claims import CLASSES, HOLDS, METHODS, REQUESTS, SAME, Case, Rows, cases
from .experiment_costs import full, share_of_retraining
from .plot import COLOURS, MARKERS, STYLE, _marker

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 430, 300, 52, 34, 14, 84
Point = tuple[float, float, str]  # x, value, title
SHOWN = (*METHODS, "retrained again")
COSTED = ("sweep", "unsir", *HOLDS, *HOLDS.values())
FAR = 12  # points below retraining: a method that is farther off stands on the panel's floor
COST = "Accuracy beside retraining against cost in retraining's sample passes; retraining: the dashed lines"


def _shape(series: int) -> str:
    """A series' marker: series whose colours are alike get different ones."""
    return MARKERS[(series + series // len(MARKERS)) % len(MARKERS)]


def _panel(
    title: str, names: list[str], lines: dict[str, list[tuple[str, float]]], ticks: list[float], to: Callable[[float], float], unit: str,
    band: tuple[float, float] | None, dx: float, dy: float,
) -> str:  # fmt: skip
    """Points of each series over the named places of the x axis; ``to`` maps a value to 0 (bottom) .. 1 (top)."""
    bottom, step = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / max(1, len(names))

    def height(value: float) -> float:
        return bottom - min(1.0, max(0.0, to(value))) * (bottom - TOP)

    out = [f'<g transform="translate({dx:.0f} {dy:.0f})">', f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    if band:
        top = height(band[1])
        out.append(f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height(band[0]) - top:.1f}" fill="#eef3f7"/>')
    for tick in ticks:
        kind = "one" if tick in (0, 1) else "grid"
        out.append(f'<path class="{kind}" d="M{LEFT} {height(tick):.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{height(tick) + 4:.1f}" text-anchor="end">{tick:g}{unit}</text>')
    for i, name in enumerate(names):
        x, y = LEFT + (i + 0.5) * step, bottom + 14
        out.append(f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-24 {x:.1f} {y})">{escape(name)}</text>')
    for j, (series, points) in enumerate(lines.items()):
        colour, marker = COLOURS[j % len(COLOURS)], _shape(j)
        for name, value in points:
            x = LEFT + (names.index(name) + 0.5) * step + (j - (len(lines) - 1) / 2) * min(9.0, step / (len(lines) + 1))
            out.append(_marker(marker, x, height(value), colour, f"{series}, {name}: {value:.3g}{unit}"))
    return "\n".join([*out, "</g>"])


def _figure(label: str, panels: list[str], series: list[str]) -> str:
    columns = min(2, max(1, len(panels)))
    w, h = columns * WIDTH, math.ceil(len(panels) / columns) * HEIGHT + 26
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">',
        f"<title>{escape(label)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{w}" height="{h}" fill="#fff"/>',
        *panels,
    ]
    for j, name in enumerate(series):
        x = LEFT + j * (w - LEFT) / len(series)
        out.append(_marker(_shape(j), x, h - 14, COLOURS[j % len(COLOURS)], name))
        out.append(f'<text x="{x + 10:.0f}" y="{h - 10}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _places(i: int) -> tuple[float, float]:
    return (i % 2) * WIDTH, (i // 2) * HEIGHT


def attacks(rows: Rows) -> str:
    """Attack AUC minus the retrained model's, by data set, a panel for each kind of request."""
    panels = []
    for scenario, label in REQUESTS.items():
        # for classes the second retrained models are the first ones in another order: their mean is no second measurement
        shown = METHODS if scenario in CLASSES else SHOWN
        lines = {m: [(c.data, c.gap("attack_auc")) for c in cases(rows, m, (scenario,))] for m in shown}
        names = list(dict.fromkeys(n for points in lines.values() for n, _ in points))
        if names:
            far = max(0.1, *(abs(v) for points in lines.values() for _, v in points))
            far = min(0.5, math.ceil(far * 20) / 20)
            ticks = [round(-far + i * far / 2, 3) for i in range(5)]
            title = f"{label.removesuffix(' of another kind')}: attack AUC minus retraining's"
            place = _places(len(panels))
            panels.append(_panel(title, names, lines, ticks, lambda v, far=far: (v + far) / (2 * far), "", (-SAME, SAME), *place))  # type: ignore[misc]
    return _figure("Attack AUC minus the retrained model's; shaded: within 0.03", panels, list(SHOWN))


def speeds(rows: Rows) -> str:
    """How many times as fast as retraining, by data set, a panel for each kind of request."""
    panels: list[str] = []
    for scenario, label in REQUESTS.items():
        lines: dict[str, list[tuple[str, float]]] = {
            m: [(c.data, c.mean("speedup")) for c in cases(rows, m, (scenario,)) if not c.idle] for m in METHODS
        }
        values: list[float] = [v for points in lines.values() for _, v in points]
        names = list(dict.fromkeys(n for points in lines.values() for n, _ in points))
        if names:
            ticks: list[Any] = [t for t in (0.2, 0.5, 1, 2, 5, 15, 50, 200) if t <= 2.5 * max(values) and t >= 0.4 * min(values)]
            low, high = math.log(min(*ticks, *values) * 0.9), math.log(max(*ticks, *values) * 1.1)
            title, place = f"{label.removesuffix(' of another kind')}: speed, retraining = 1", _places(len(panels))
            panels.append(_panel(title, names, lines, ticks, lambda v, a=low, b=high: (math.log(v) - a) / (b - a), "x", None, *place))  # type: ignore[misc]
    return _figure("How many times as fast as retraining", panels, list(METHODS))


def costs(rows: Rows) -> str:
    """Accuracy beside retraining against the share of its sample passes, a panel for each kind of request; retraining is the line at 0."""
    panels: list[str] = []
    points: dict[str, dict[str, list[tuple[float, float, Case]]]] = {
        s: {m: [(share_of_retraining(c), 100 * c.gap("test_accuracy"), c) for c in full(rows, m, s)] for m in COSTED} for s in REQUESTS
    }
    every = [p for lines in points.values() for listed in lines.values() for p in listed if p[0] > 0]
    if not every:
        return _figure(COST, panels, [])
    low, high = min(0.01, *(p[0] for p in every)) / 1.2, max(1.0, *(p[0] for p in every)) * 1.2
    floor, top = max(-FAR, min(math.floor(p[1]) for p in every)), max(1, *(math.ceil(p[1]) for p in every))
    for scenario, lines in points.items():
        if any(lines.values()):
            title = f"{REQUESTS[scenario].removesuffix(' of another kind')}: points beside retraining"
            panels.append(_cost_panel(title, lines, (low, high), (floor, top), *_places(len(panels))))
    return _figure(COST, panels, list(COSTED))


def _cost_panel(
    title: str, lines: dict[str, list[tuple[float, float, Case]]], xs: tuple[float, float], ys: tuple[float, float], dx: float, dy: float
) -> str:
    bottom, right = HEIGHT - BOTTOM + 36, WIDTH - RIGHT

    def across(share: float) -> float:
        return LEFT + (math.log(share) - math.log(xs[0])) / (math.log(xs[1]) - math.log(xs[0])) * (right - LEFT)

    def height(points: float) -> float:
        return bottom - (max(points, ys[0]) - ys[0]) / (ys[1] - ys[0]) * (bottom - TOP)

    out = [f'<g transform="translate({dx:.0f} {dy:.0f})">', f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
    step = 1 if ys[1] - ys[0] <= 6 else 2 if ys[1] - ys[0] <= 12 else 5
    for tick in (t for t in range(math.floor(ys[0]), math.ceil(ys[1]) + 1) if t % step == 0):
        out.append(f'<path class="{"one" if tick == 0 else "grid"}" d="M{LEFT} {height(tick):.1f}H{right}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{height(tick) + 4:.1f}" text-anchor="end">{tick:+d}</text>'.replace("+0<", "0<"))
    for share in (s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if xs[0] <= s <= xs[1]):
        x = across(share)
        out.append(f'<path class="{"one" if share == 1 else "grid"}" d="M{x:.1f} {TOP}V{bottom}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{100 * share:g} %</text>')
    out.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{bottom + 31}" text-anchor="middle">sample passes, of retraining\'s</text>')
    for j, (method, points) in enumerate(lines.items()):
        for share, gap, case in points:
            if share > 0:
                text = f"{method}, {case.data}, {case.net}: {gap:+.1f} points at {100 * share:.0f} %"
                out.append(_marker(_shape(j), across(share), height(gap), COLOURS[j % len(COLOURS)], text))
    return "\n".join([*out, "</g>"])
