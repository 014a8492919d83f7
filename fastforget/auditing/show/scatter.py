"""A chart of points with short labels, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from . import svg

CHARACTER, LINE = 7.0, 12.0  # room of a label's character and line
RADIUS = 5.5


class Point(NamedTuple):
    """One dot: its style class, the label beside it, what a pointer over it is told, and where it lies."""

    kind: str
    label: str
    tip: str
    x: float
    y: float


def scatter(title: str, points: Sequence[Point], x_axis: str, y_axis: str) -> str:
    """Dots over axes that hold 0; the lines through 0 stand out. Labels keep clear of each other where there is room."""
    left, top, right, bottom, height = 56, 12, 20, 42, 290
    w, h = svg.WIDTH - left - right, height - top - bottom
    (x_low, x_high, x_step), (y_low, y_high, y_step) = (_span([getattr(p, axis) for p in points]) for axis in "xy")

    def x(value: float) -> float:
        return left + w * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return top + h * (1 - (value - y_low) / (y_high - y_low))

    body = []
    for value in _ticks(x_low, x_high, x_step):
        body += [svg.line(x(value), top, x(value), top + h, "axis" if value == 0 else "grid")]
        body += [svg.text(x(value), top + h + 16, f"{value:g}")]
    for value in _ticks(y_low, y_high, y_step):
        body += [svg.line(left, y(value), left + w, y(value), "axis" if value == 0 else "grid")]
        body += [svg.text(left - 7, y(value) + 4, f"{value:g}", anchor="end")]
    body += [svg.text(left + w / 2, height - 5, x_axis, kind="label")]
    body += [svg.text(12, top + h / 2, y_axis, kind="label", turn=-90)]
    taken = [(x(p.x) - RADIUS, y(p.y) - RADIUS, x(p.x) + RADIUS, y(p.y) + RADIUS) for p in points]
    for point in points:
        at = x(point.x), y(point.y)
        tip = svg.escape(point.tip)
        body.append(f'<circle class="dot {point.kind}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{RADIUS}"><title>{tip}</title></circle>')
    for i, point in enumerate(points):
        if point.label:
            others = [(x(p.x), y(p.y)) for k, p in enumerate(points) if k != i]
            box, far = _free((x(point.x), y(point.y)), others, CHARACTER * len(point.label), taken, (left, top, left + w + right, top + h))
            taken.append(box)
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            body += [svg.line(x(point.x), y(point.y), *middle, "leader")] if far else []
            body.append(svg.text(middle[0], box[3] - 2, point.label, kind="tick point"))
    return svg.svg(svg.WIDTH, height, title, body)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _free(at: tuple[float, float], others: list[tuple[float, float]], width: float, taken: list[Box], inside: Box) -> tuple[Box, bool]:
    """A place for a label near a dot, and whether it lies so far away that a line must lead there: of those around the dot, the nearest
    that covers nothing and has no other dot nearer, or else the one that covers least."""
    best, least = ((at[0], at[1], at[0], at[1]), False), math.inf
    for ring, away in enumerate((RADIUS + 3, RADIUS + 16, RADIUS + 30)):
        for turn in (0, 1, -1, 2, -2, 3, -3, 4):
            dx, dy = math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)
            cx, cy = at[0] + dx * (away + width / 2), at[1] - dy * (away + LINE / 2)
            box = (cx - width / 2, cy - LINE / 2, cx + width / 2, cy + LINE / 2)
            beyond = box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]
            misled = any(math.dist((cx, cy), other) < 1.15 * math.dist((cx, cy), at) for other in others)
            covered = sum(_overlap(box, other) for other in taken) + 1000 * beyond + (40 if misled and not ring else 0)
            if covered < least:
                best, least = (box, ring > 0), covered
    return best


def _overlap(one: Box, two: Box) -> float:
    return max(0.0, min(one[2], two[2]) - max(one[0], two[0])) * max(0.0, min(one[3], two[3]) - max(one[1], two[1]))


def _span(values: Sequence[float]) -> tuple[float, float, float]:
    """Where an axis begins and ends, and its step: 1, 2 or 5 times a power of ten, so that it has about five and holds 0.

    >>> _span([0.2, 3.7]), _span([-0.25, 0.0]), _span([0.0])
    ((0.0, 4.0, 1.0), (-0.3, 0.05, 0.05), (0.0, 1.0, 0.2))
    """
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    if high == low:
        high = 1.0
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    # a dot on the edge is whole, one on the line through 0 too
    first = math.floor(low / step + 1e-9) - (1 if low < 0 and low / step - math.floor(low / step + 1e-9) < 0.1 else 0)
    last = math.ceil(high / step - 1e-9) + (1 if low < 0 and high == 0 else 0)
    return round(first * step, 12), round(last * step, 12), step


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [round(low + i * step, 12) + 0.0 for i in range(round((high - low) / step) + 1)]
