"""What the page and the terminal both say of a comparison."""

from __future__ import annotations

import math

from .compared import Entry, Group, key_figures
from .shown import seconds

HASH = 12  # digits of a hash that is only to be told from others


def heading(group: Group) -> str:
    """What the lines of a group share."""
    shared = [f"{name} {value[:HASH]}…" if len(value) == 64 else f"{name} {value}" for name, value in group.shared.items()]
    return f"{group.letter}: {group.request}. The same {', '.join(shared)}" + (f" ({group.apart})" if group.apart else "")


def in_points(lost: float) -> str:
    return "-" if math.isnan(lost) else f"{lost:.1f}".replace("-0.0", "0.0")


def time(value: float) -> str:
    return "-" if math.isnan(value) else seconds(value)


def count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def why(entry: Entry) -> str:
    """The first reason that a status rests on, in words, and how many more there are."""
    if entry.wrong:
        return entry.wrong[0]
    if entry.decisive:
        more = len(entry.decisive) - 1
        return entry.decisive[0] + (f"; and {more} more" if more else "")
    return "every check holds" if entry.status == "PASS" else next(iter(entry.reasons), "")


def report_text(groups: list[Group]) -> str:
    """The comparison for a terminal: three lines a receipt."""
    entries = [entry for group in groups for entry in group.entries]
    lines, figures = [], key_figures(entries)
    width = max((len(entry.file) for entry in entries), default=0)
    for group in groups:
        lines += [heading(group)]
        for entry in group.entries:
            times = entry.times_as_fast()
            parts = [(time(entry.cost.seconds), ""), (count(entry.cost.passes), " sample passes")]
            cost = [text + unit for text, unit in parts if text != "-"] or ["what it cost is not said"]
            cost += [] if math.isnan(times) else [f"{times:.1f} times as fast as retraining"]
            holds = "holds" if entry.holds else "DOESN'T HOLD"
            lines.append(f"  {entry.number:>2}  {entry.file:<{width}}  {entry.method or 'not said':<12}  {entry.stated:<12}  {holds}")
            own = [one for one in figures if one.always or one.read(entry.row).known]
            beside = [f" (retrained {one.text(entry.retrained)})" if entry.retrained else "" for one in own]
            said = "; ".join(f"{one.label} {one.text(entry.row)}{other}" for one, other in zip(own, beside, strict=True))
            lost = f"; {in_points(entry.lost())} points lost" if entry.retrained else ""
            lines += [f"      {said}{lost}", f"      {', '.join(cost)}. {why(entry)}"]
    return "\n".join(lines)
