"""Small charts as inline SVG. Colours come from the page's style sheet by class, so that they follow light,
dark and print."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from ..._text import visible

WIDTH = 400
SMALL = 300  # one of three side by side
Series = tuple[str, str, Sequence[float]]  # css class, name, values


def escape(text: str, *, quote: bool = False) -> str:
    """A text inside a drawing, with nothing in it that a page would obey or that can't be seen."""
    return html.escape(visible(text), quote=quote)


def svg(width: float, height: float, title: str, body: list[str], *, fixed: bool = False) -> str:
    """A chart that shrinks and grows with its box, or one of ``fixed`` size that its box scrolls."""
    wide = ' class="wide"' if width >= WIDTH else ""
    style = f'class="fixed" style="width:{width:g}px"' if fixed else f'style="max-width:{1.15 * width:g}px"{wide}'
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}" {style}>' + "".join(body) + "</svg>"


def is_fixed(drawing: str) -> bool:
    """Whether a chart is of fixed size."""
    return 'class="fixed"' in drawing


def text(x: float, y: float, label: str, *, anchor: str = "middle", kind: str = "tick", turn: float | None = None) -> str:
    rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn is not None else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{rotate}>{escape(label)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], kind: str, tip: str = "", *, close: bool = False) -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    inner = f"><title>{escape(tip)}</title></path>" if tip else "/>"
    return f'<path class="{kind}" d="M{steps}{"Z" if close else ""}"{inner}'


def rect(x: float, y: float, width: float, height: float, kind: str, tip: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" '
        f'height="{max(height, 0):.1f}">'
        f"<title>{escape(tip)}</title></rect>"
    )


def power(exponent: int) -> str:
    """10^exponent for an axis: 0.01, 1, 100, or with superscripts where zeros would have to be counted."""
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def roc(title: str, curves: Sequence[tuple[str, str, dict[str, list[float]]]], unseen: int) -> str:
    """ROC curves on log axes. Left of 1/unseen lies the rate at no false positive at all."""
    left, top, right, bottom, height = 64, 10, 12, 40, 300
    decades = max(2, math.ceil(math.log10(2 * unseen)))
    w, h = WIDTH - left - right, height - top - bottom

    def x(rate: float) -> float:
        return left + w * (1 + max(-decades, math.log10(rate) if rate > 0 else -decades) / decades)

    def y(rate: float) -> float:
        return top + h * -max(-decades, math.log10(rate) if rate > 0 else -decades) / decades

    body = []
    for d in range(-decades, 1):
        body.append(line(x(10**d), top, x(10**d), top + h))
        body.append(line(left, y(10**d), left + w, y(10**d)))
        body.append(text(x(10**d), top + h + 16, power(d)))
        body.append(text(left - 6, y(10**d) + 4, power(d), anchor="end"))
    body.append(path([(x(0), y(0)), (x(1), y(1))], "chance"))
    body.append(text(left + w / 2, height - 4, "false-positive rate", kind="label"))
    body.append(text(11, top + h / 2, "true-positive rate", kind="label", turn=-90))
    for kind, name, curve in curves:
        points = [(x(0), y(curve["tpr"][0]))]
        for before, fpr, tpr in zip(curve["tpr"], curve["fpr"][1:], curve["tpr"][1:], strict=False):
            points += [(x(fpr), y(before)), (x(fpr), y(tpr))]
        body.append(path(_thinned(points), f"curve {kind}", name))
    return svg(WIDTH, height, title, body)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    kept = points[:1]
    for point in points[1:]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= 0.05:
            kept.append(point)
    return kept


def histogram(title: str, log10_edges: Sequence[float], series: Sequence[Series], span: tuple[int, int], ceiling: float) -> str:
    """Outlined step histograms over bins ``span`` of a log10 axis; heights are square roots of the shares, up to ``ceiling``."""
    left, top, right, bottom, height = 42, 10, 12, 38, 176
    w, h = SMALL - left - right, height - top - bottom
    first, last = span
    low, high = log10_edges[first], log10_edges[last]

    def x(edge: float) -> float:
        return left + w * (edge - low) / (high - low)

    def y(share: float) -> float:
        return top + h * (1 - math.sqrt(share / ceiling))

    body = []
    every = max(1, round((high - low) / 6))
    for d in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        if d % every == 0:
            # The end bins also hold what lies outside.
            outside = "≤" if d == log10_edges[0] else "≥" if d == log10_edges[-1] else ""
            body += [line(x(d), top, x(d), top + h), text(x(d), top + h + 15, outside + power(d))]
    for part in (0.0, 0.1, 0.5, 1.0):
        body += [line(left, y(part * ceiling), left + w, y(part * ceiling), "axis" if part == 0 else "grid")]
        body.append(text(left - 6, y(part * ceiling) + 4, f"{100 * part * ceiling:.0f} %", anchor="end"))
    for kind, name, shares in series:
        points = [(x(low), y(0))]
        for i in range(first, last):
            points += [(x(log10_edges[i]), y(shares[i])), (x(log10_edges[i + 1]), y(shares[i]))]
        points.append((x(high), y(0)))
        body.append(path(points, f"area {kind}", name, close=True))
    body.append(text(left + w / 2, height - 4, "loss of a sample", kind="label"))
    return svg(SMALL, height, title, body)


def columns(
    title: str,
    names: Sequence[str],
    series: Sequence[Series],
    *,
    marked: Sequence[int] = (),
    axis: str = "",
    ceiling: float = 1.0,
    width: float = WIDTH,
) -> str:
    """Grouped vertical bars, shares from 0 to ``ceiling``; the labels of ``marked`` groups stand out. NaN
    leaves a gap."""
    left, top, right, bottom, height = 44, 10, 8, 38, 176 if width == SMALL else 200
    group = max(3.0 * len(series) + 2, (width - left - right) / max(len(names), 1))
    w, h = group * len(names), height - top - bottom
    bar = min(26.0, (group - min(max(2.0, 0.2 * group), 12.0)) / len(series))
    body = []
    for part in (0.0, 0.5, 1.0):
        at = top + h * (1 - part)
        body += [line(left, at, left + w, at, "axis" if part == 0 else "grid")]
        body.append(text(left - 6, at + 4, f"{100 * part * ceiling:.0f} %", anchor="end"))
    widest = max((len(name) for name in names), default=1)
    labelled = _labelled(len(names), max(1, math.ceil((7.5 * widest + 4) / group)), marked)
    for i, name in enumerate(names):
        start = left + i * group + (group - bar * len(series)) / 2
        for j, (kind, label, values) in enumerate(series):
            if i < len(values) and not math.isnan(values[i]):
                size = h * min(values[i] / ceiling, 1.0)
                body.append(
                    rect(
                        start + j * bar,
                        top + h - size,
                        bar - 1,
                        size,
                        f"bar {kind}",
                        f"{label}, {name}: {100 * values[i]:.1f} %",
                    )
                )
        if i in labelled:
            kind_of = "tick marked" if i in marked else "tick"
            body.append(text(left + (i + 0.5) * group, top + h + 15, name, kind=kind_of))
    body.append(text(left + w / 2, height - 4, axis, kind="label"))
    return svg(left + w + right, height, title, body, fixed=left + w + right > width + 1)


def _labelled(count: int, every: int, marked: Sequence[int]) -> set[int]:
    """Which groups have room for a label: the marked ones first, then every ``every``-th that is not too near."""
    chosen: list[int] = []
    for i in [*marked, *range(0, count, every)]:
        if all(abs(i - j) >= every for j in chosen):
            chosen.append(i)
    return set(chosen)


def dots(title: str, names: Sequence[str], series: Sequence[Series], axis: str, reach: float | None = None) -> str:
    """One line a name with a dot for each series, a little apart so that equal ones show; the axis goes from 0 to past ``reach``
    (the largest value, if not given), and what lies beyond it stands at its end."""
    shown = [f"{name[:9]}…{name[-12:]}" if len(name) > 22 else name for name in names]
    left, top, right, bottom, row = 20 + 7.6 * max(map(len, shown)), 8, 16, 40, 22
    w, h = WIDTH - left - right, row * len(names)
    largest = max((v for _, _, values in series for v in values if math.isfinite(v)), default=1.0)
    top_value = _round_up(largest if reach is None else reach)
    seen = [label for kind, label, _ in series if "control" not in kind.split()]

    def x(value: float) -> float:
        return left + w * min(value / top_value, 1.0)

    body = []
    for part in (0.0, 0.5, 1.0):
        body += [line(x(part * top_value), top, x(part * top_value), top + h, "axis" if part == 0 else "grid")]
        body.append(text(x(part * top_value), top + h + 15, f"{part * top_value:g}"))
    for i, name in enumerate(shown):
        at = top + (i + 0.5) * row
        body += [line(left, at, left + w, at), text(left - 8, at + 4, name, anchor="end", kind="tick code")]
        for kind, label, values in series:
            value = values[i]
            dodge = 3.0 * (seen.index(label) - (len(seen) - 1) / 2) if label in seen else 0.0
            if math.isfinite(value):
                tip = escape(f"{label}, {names[i]}: {value:.4g}")
                cy = at + max(-7.0, min(7.0, dodge))
                body.append(f'<circle class="dot {kind}" cx="{x(value):.1f}" cy="{cy:.1f}" r="4.5"><title>{tip}</title></circle>')
    body.append(text(left + w / 2, top + h + 34, axis, kind="label"))
    return svg(WIDTH, top + h + bottom, title, body)


def bars(title: str, rows: Sequence[tuple[str, str, float, str]], axis: str) -> str:
    """Horizontal bars from 0, one a row: css class, name, value, and the text at the bar's end."""
    shown = [f"{name[:9]}…{name[-12:]}" if len(name) > 22 else name for _, name, _, _ in rows]
    left, top, bottom, row = 20 + 7.6 * max(map(len, shown)), 8, 40, 26
    right = 12 + 7.0 * max(len(label) for *_, label in rows)
    w, h = WIDTH - left - right, row * len(rows)
    top_value = _round_up(max(value for _, _, value, _ in rows))
    body = []
    for part in (0.0, 0.5, 1.0):
        body += [line(left + part * w, top, left + part * w, top + h, "axis" if part == 0 else "grid")]
        body.append(text(left + part * w, top + h + 15, f"{part * top_value:g}"))
    for i, (kind, name, value, label) in enumerate(rows):
        at, size = top + (i + 0.5) * row, w * value / top_value
        body.append(text(left - 8, at + 4, shown[i], anchor="end"))
        body.append(rect(left, at - 8, size, 16, f"bar {kind}", f"{name}: {label}"))
        body.append(text(left + size + 6, at + 4, label, anchor="start"))
    body.append(text(left + w / 2, top + h + 34, axis, kind="label"))
    return svg(WIDTH, top + h + bottom, title, body)


def _round_up(value: float) -> float:
    if value <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(value))
    return next(m * step for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * step >= value * (1 - 1e-9))
