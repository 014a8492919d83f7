"""What the page reads of a report, and how models and verdicts look on it."""

from __future__ import annotations

from typing import Any, Protocol

COLOURS = 4  # for models of other names, and for controls


class Report(Protocol):
    """What the page needs of a report; :class:`fastforget.audit.AuditReport` has it."""

    rows: list[dict[str, Any]]
    verdict: str
    reasons: list[str]
    settings: dict[str, Any]
    curves: dict[str, Any]
    controls: dict[str, dict[str, Any]]
    control_rows: list[dict[str, Any]]

    def judged(self) -> list[dict[str, Any]]: ...

    def lines(self, *, controls: bool = False) -> Any: ...

    def notes(self, *, intervals: str = ..., conventions: bool = ...) -> list[str]: ...

    def headline(self) -> str: ...


def ordered(report: Report) -> list[dict[str, Any]]:
    """All rows, the controls last: whether they are drawn or not, the others keep their places."""
    return [*report.rows, *report.control_rows]


def css_classes(report: Report) -> dict[str, str]:
    """Each model's style classes; never its name, which comes from outside. Charts hide ``control`` until asked."""
    known = ("original", "unlearned", "retrained")
    names = [row["model"] for row in report.rows]
    others = [name for name in names if name not in known]
    classes = {name: name for name in names if name in known}
    classes |= {name: f"other{i % COLOURS + 1}" for i, name in enumerate(others)}
    return classes | {row["model"]: f"control c{i % COLOURS + 1}" for i, row in enumerate(report.control_rows)}


def colours(report: Report) -> dict[str, str]:
    """The class of :func:`css_classes` that gives the colour alone."""
    return {name: classes.split()[-1] for name, classes in css_classes(report).items()}


def tone(status: str) -> str:
    """The style class of a verdict."""
    return status if status in ("PASS", "PARTIAL", "FAIL") else "NONE"
