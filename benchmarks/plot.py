"""Ratio by size, one panel a family, as an SVG of our own making: no plotting library is needed to write
the page."""

from __future__ import annotations

import math
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 430, 270, 46, 34, 14, 40  # HEIGHT: without the legend
LEGEND = 15  # a line of it
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# distinguishable without colour vision, and by marker
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#b8860b")
MARKERS = ("circle", "square", "triangle", "diamond")
STYLE = """
  text { font: 11px system-ui, sans-serif; fill: #333 } .title { font-size: 13px; font-weight: 600 }
  .grid { stroke: #ddd } .one { stroke: #666; stroke-dasharray: 4 3 } .lower { opacity: 0.4 } svg { background: #fff }
"""
Point = tuple[float, float]


def series(rows: list[dict[str, Any]], family: str) -> dict[str, list[Point]]:
    """For each op, rival and instruction set: (elements, ratio) by size, of several cases of a size the least. Lists and
    16-bit rows are left to the table."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["family"] != family or "tensors" in row["shape"] or row["dtype"] not in ("float32", "int32"):
            continue
        isas = {r["isa"] for r in rows}
        suffix = f", {row['isa']}" if len(isas) > 1 else ""
        for rival in ("eager", "published"):
            if row["ratios"].get(rival):
                least = found.setdefault(f"{row['op']} vs {rival}{suffix}", {})
                least[row["elements"]] = min(row["ratios"][rival], least.get(row["elements"], math.inf))
    return {name: sorted(points.items()) for name, points in found.items() if len(points) > 1}


def _decades(low: float, high: float) -> list[int]:
    return list(range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1))


def _marker(kind: str, x: float, y: float, colour: str, title: str) -> str:
    shape = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"',
        "square": f'<rect x="{x - 3.3:.1f}" y="{y - 3.3:.1f}" width="6.6" height="6.6"',
        "triangle": f'<path d="M{x:.1f} {y - 4.2:.1f}l4 7h-8z"',
        "diamond": f'<path d="M{x:.1f} {y - 4.6:.1f}l4.4 4.6l-4.4 4.6l-4.4-4.6z"',
    }[kind]
    tag = shape.split(" ", 1)[0][1:]
    return f'{shape} fill="{colour}"><title>{escape(title)}</title></{tag}>'


def _named(lines: dict[str, list[Point]]) -> dict[str, list[str]]:
    """The lines of one op and rival together, the first instruction set first."""
    found: dict[str, list[str]] = {}
    for name in lines:
        found.setdefault(name.partition(", ")[0], []).append(name)
    return {name if len(members) > 1 else members[0]: members for name, members in found.items()}


def _height(lines: dict[str, list[Point]]) -> int:
    """Of a panel with its legend."""
    return HEIGHT + LEGEND * (len(_named(lines)) + 1) + 12


def _panel(title: str, lines: dict[str, list[Point]], dx: float, dy: float) -> str:
    points = [p for line in lines.values() for p in line]
    xs, ys = _decades(min(p[0] for p in points), max(p[0] for p in points)), [p[1] for p in points]
    ticks = [t for t in TICKS if t <= 1.3 * max(ys) and t >= 0.7 * min(*ys, 1.0)]
    if len(ticks) > 9:
        ticks = [t for t in ticks if math.log10(t).is_integer()]
    low, high = math.log10(min(*ys, ticks[0]) * 0.9), math.log10(max(*ys, ticks[-1]) * 1.15)
    height, named = HEIGHT, _named(lines)

    def at(p: Point) -> Point:
        share_x = (math.log10(p[0]) - xs[0]) / max(1, xs[-1] - xs[0])
        share_y = (math.log10(p[1]) - low) / (high - low)
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), height - BOTTOM - share_y * (height - BOTTOM - TOP)

    out = [
        f'<g transform="translate({dx:.0f} {dy:.0f})">',
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for tick in ticks:
        x0, y = at((10.0 ** xs[0], tick))
        kind = "one" if tick == 1 else "grid"
        out.append(f'<path class="{kind}" d="M{x0} {y:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}x</text>')
    for decade in xs:
        x, _ = at((10.0**decade, 1.0))
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">1e{decade}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{height - BOTTOM + 30}" text-anchor="middle">elements</text>')
    for i, (name, members) in enumerate(named.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        dashes = ' stroke-dasharray="6 3"' if "published" in name else ""
        for rank, member in enumerate(members):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(at, lines[member]))
            out.append('<g class="lower">' if rank else "<g>")
            out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>')
            out += [_marker(marker, *at(p), colour, f"{member}: {p[0]:.0f} elements, {p[1]:.1f}x") for p in lines[member]]
            out.append("</g>")
        y = height + 4 + LEGEND * i
        text = f"{name}, {', '.join(m.removeprefix(name + ', ') for m in members)}" if members != [name] else name
        out.append(_marker(marker, LEFT + 4, y, colour, name) + f'<text x="{LEFT + 16}" y="{y + 4}">{escape(text)}</text>')
    if any(len(members) > 1 for members in named.values()):
        y = height + 4 + LEGEND * len(named)
        out.append(f'<text x="{LEFT}" y="{y + 4}">faint: the second instruction set</text>')
    return "\n".join([*out, "</g>"])


def ratios_by_size(rows: list[dict[str, Any]], families: dict[str, str]) -> str:
    """The whole figure: how many times as fast as each rival, over the number of elements, both axes
    logarithmic."""
    panels = [(title, lines) for family, title in families.items() if (lines := series(rows, family))]
    columns = min(2, max(1, len(panels)))
    rows_of = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    body, top = [], 0
    for row in rows_of:
        body += [_panel(title, lines, i * WIDTH, top) for i, (title, lines) in enumerate(row)]
        top += max(_height(lines) for _, lines in row)
    w, h = columns * WIDTH, max(top, HEIGHT)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">'
    label = "<title>How many times as fast as plain PyTorch, by number of elements</title>"
    frame = f'<rect width="{w}" height="{h}" fill="#fff"/>'
    return "\n".join([head, label, f"<style>{STYLE}</style>", frame, *body, "</svg>"]) + "\n"
