"""Several receipts as one page: its data, gathered for the template."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..names import WHY
from . import layout
from .charts import Chart
from .compare_text import HASH, count, heading, in_points, time, why
from .compared import Entry, Group, key_figures
from .scatter import Point, scatter
from .shown import tone
from .summary import JUDGEMENTS

FASTER = "times as fast as retraining"


@dataclass
class Cell:
    """A cell: its text, the smaller one below it and whose that is, what it is sorted by ("" last), and its style class."""

    text: str
    beside: str = ""
    beside_of: str = ""
    value: str = ""
    kind: str = ""


@dataclass
class Line:
    """One entry's line of the table, and what stands of it further down."""

    number: int
    file: str
    created: str
    status: str
    tone: str
    cells: list[Cell]
    weights: str
    wrong: list[str]
    against: list[str]
    passed: list[str]
    hashes: dict[str, str]


@dataclass
class Lines:
    """The lines under one heading."""

    heading: str
    lines: list[Line]


def render(groups: list[Group], *, title: str | None = None) -> str:
    """The page of these groups."""
    entries = [entry for group in groups for entry in group.entries]
    columns = ["receipt", "method", "verdict", "holds", *(one.label for one in key_figures(entries)), "points lost"]
    columns += ["time", "sample passes", FASTER]
    pictures = [chart for group in groups if len(group.entries) > 1 or len(groups) == 1 for chart in charts(group)]
    return layout.render(
        "compare.html",
        script="sort.js" if len(entries) > 1 else "",
        title=title or headline(groups),
        lead=lead(groups),
        warnings=[f"{entry.number}, {entry.file}, doesn't hold: {entry.wrong[0]}" for entry in entries if entry.wrong],
        sortable=len(entries) > 1,
        columns=columns,
        groups=[Lines(heading(group), [_line(entry, entries) for entry in group.entries]) for group in groups],
        notes=notes(groups),
        pictures=pictures,
        colours=_colours(entries),
        reading=WHY,
    )


def headline(groups: list[Group]) -> str:
    count = sum(len(group.entries) for group in groups)
    return f"{count} receipts compared" if count > 1 else "One receipt"


def lead(groups: list[Group]) -> str:
    """How many methods, requests and original models, and of which days."""
    entries = [entry for group in groups for entry in group.entries]
    originals = {group.shared["original"] for group in groups}
    counts = [(len({e.method for e in entries if e.method}), "method"), (len({g.request for g in groups}), "request")]
    said = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in (*counts, (len(originals), "original model")) if count]
    days = sorted({entry.created[:10] for entry in entries})
    return f"{', '.join(said)}; {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")


def notes(groups: list[Group]) -> list[str]:
    """What a reader must know beside the figures."""
    entries, result = [entry for group in groups for entry in group.entries], []
    if len(groups) > 1:
        result.append(f"The headings {', '.join(g.letter for g in groups)} differ in the original model or in its data: not compared.")
    for group in groups:
        references: dict[str, list[int]] = {}
        for entry in group.entries:
            references.setdefault(entry.hashes.get("weights, retrained", "none"), []).append(entry.number)
        if len(references) > 1:
            said = "; ".join(f"{', '.join(map(str, numbers))}: {sha[:HASH]}" for sha, numbers in references.items())
            result.append(f"{group.letter}: beside different retrained models ({said}). Compare each line with its own small figures.")
    if unknown := [str(entry.number) for entry in entries if math.isnan(entry.times_as_fast())]:
        result.append(
            f"What retraining took, receipt{'s' if len(unknown) > 1 else ''} {', '.join(unknown)} can't say: write_receipt puts it down "
            'where it is given facts={"retraining": {"seconds": …, "passes": …}}.'
        )
    if unreferenced := [str(entry.number) for entry in entries if entry.retrained is None]:
        result.append(f"No retrained model, so no reference, in {', '.join(unreferenced)}: not drawn.")
    seen: dict[str, int] = {}
    for entry in entries:
        first = seen.setdefault(entry.hashes["this receipt"], entry.number)
        if first != entry.number and entry.hashes["this receipt"]:
            result.append(f"{entry.number} is the same receipt as {first}.")
    return result + [f"{entry.number}: {text}." for entry in entries for text in entry.notes]


def _line(entry: Entry, all_entries: list[Entry]) -> Line:
    cells = [Cell(entry.method or "not said", entry.request, "forgets", entry.method, "say"), _verdict(entry)]
    cells.append(Cell("yes", value="yes", kind="tone PASS") if entry.holds else Cell("NO", value="no", kind="tone FAIL"))
    for figure in key_figures(all_entries):
        kind = "" if entry.retrained else "noref"
        beside = figure.text(entry.retrained) if entry.retrained else "no reference"
        cells.append(Cell(figure.text(entry.row), beside, "retrained", _sorted_by(figure.read(entry.row).value), kind))
    cost, retraining, times = entry.cost, entry.retraining, entry.times_as_fast()
    cells.append(Cell(in_points(entry.lost()), value=_sorted_by(entry.lost())))
    cells.append(Cell(time(cost.seconds), _known(time(retraining.seconds)), "retraining", _sorted_by(cost.seconds)))
    cells.append(Cell(count(cost.passes), _known(count(retraining.passes)), "retraining", _sorted_by(cost.passes)))
    cells.append(Cell("-" if math.isnan(times) else f"{times:.1f}", value=_sorted_by(times)))
    return Line(
        entry.number,
        entry.file,
        entry.created.replace("T", " ")[:16],
        entry.stated,
        _tone(entry),
        cells,
        f"{entry.hashes['weights'][:HASH]}…",
        entry.wrong,
        [reason for reason in entry.reasons if not reason.startswith("PASS")],
        [reason for reason in entry.reasons if reason.startswith("PASS")],
        {name: value for name, value in entry.hashes.items() if name != "weights"},
    )


def _tone(entry: Entry) -> str:
    return tone(entry.status) if entry.holds else "FAIL"


def _verdict(entry: Entry) -> Cell:
    """The status with the first reason that it rests on, in words."""
    return Cell(entry.stated, why(entry), "", entry.status, f"say why tone {_tone(entry)}")


def _sorted_by(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""


def _known(text: str) -> str:
    return "" if text == "-" else text


# ------------------------------------------------------------------ pictures


def charts(group: Group) -> list[Chart]:
    """What was lost against what it cost, and against how far the attack lies from the retrained model's."""
    shown = [entry for entry in group.entries if entry.holds and math.isfinite(entry.lost())]
    result = [chart for chart in (_cost(group, shown), _near(group, shown)) if chart]
    left_out = [str(entry.number) for entry in group.entries if entry.retrained is not None and not entry.holds]
    for chart in result:
        chart.note += f" Not drawn, since it doesn't hold: {', '.join(left_out)}." if left_out else ""
    return result


def _cost(group: Group, shown: list[Entry]) -> Chart | None:
    """In per cent of retraining's sample passes or seconds, or in sample passes: whatever most entries have, the first of equal ones."""
    ways = [
        ("cost in % of retraining's sample passes", [100 * e.cost.passes / (e.retraining.passes or math.nan) for e in shown]),
        ("cost in % of retraining's seconds", [100 * e.cost.seconds / (e.retraining.seconds or math.nan) for e in shown]),
        ("sample passes", [e.cost.passes for e in shown]),
    ]
    axis, values = max(ways, key=lambda way: sum(map(math.isfinite, way[1])))
    known = [(entry, at) for entry, at in zip(shown, values, strict=True) if math.isfinite(at)]
    if not known:
        return None
    points = [_point(entry, at, entry.lost(), f"{at:.3g} {axis}") for entry, at in known]
    unknown = [str(entry.number) for entry, at in zip(shown, values, strict=True) if not math.isfinite(at)]
    title = f"{group.letter}: accuracy lost against cost"
    note = f"{group.request}." + (f" Cost not said: {', '.join(unknown)}." if unknown else "")
    return Chart(title, note, scatter(f"{title}: {_told(points)}", points, axis, "points lost"))


def _near(group: Group, shown: list[Entry]) -> Chart | None:
    shown = [entry for entry in shown if math.isfinite(entry.auc_away())]
    if not shown:
        return None
    points = [_point(entry, entry.auc_away(), entry.lost(), f"AUC {entry.auc_away():+.3f}") for entry in shown]
    first = shown[0]
    if first.original is not None and math.isfinite(first.auc_away(first.original)) and math.isfinite(first.lost(first.original)):
        at = first.auc_away(first.original), first.lost(first.original)
        points.insert(0, Point("original", "original", f"original: AUC {at[0]:+.3f}, {at[1]:.1f} points lost", *at))
    title = f"{group.letter}: accuracy lost against the attack's distance"
    note = f"{group.request}. Loss attack's AUC over the retrained model's: right of 0, the forget set is still told; left, it stands out."
    return Chart(title, note, scatter(f"{title}: {_told(points)}", points, "AUC, away from the retrained model's", "points lost"))


def _point(entry: Entry, x: float, y: float, where: str) -> Point:
    tip = f"{entry.number}, {entry.method or entry.file}: {where}, {in_points(y)} points lost, {entry.status}"
    return Point(tone(entry.status), str(entry.number), tip, x, y)


def _told(points: list[Point]) -> str:
    """The points in words, for who can't see them."""
    return "; ".join(point.tip for point in points)


def _colours(entries: list[Entry]) -> list[tuple[str, str]]:
    """The legend of the pictures."""
    drawn = [entry for entry in entries if entry.holds and entry.retrained is not None]
    statuses = [status for status in JUDGEMENTS if status in {entry.status for entry in drawn}]
    original = [("original", "original")] if any(entry.original is not None for entry in drawn) else []
    return [(tone(status), status) for status in statuses] + original
