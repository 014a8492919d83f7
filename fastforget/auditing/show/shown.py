"""Which models the page shows, in which order, and how models and verdicts look on it."""

from __future__ import annotations

from ..figures import ORIGINAL, RETRAINED, AuditFigures, ModelRow

STEPS = {ORIGINAL: "train", "unlearned": "unlearn", RETRAINED: "retrain"}  # what made each model; further ones go by their own names
COLOURS = 4  # for models of other names, and for controls


def ordered(audit: AuditFigures) -> list[ModelRow]:
    """All models, the controls last: whether they are drawn or not, the others keep their places."""
    return [*audit.figures, *audit.control_figures]


def css_classes(audit: AuditFigures) -> dict[str, str]:
    """Each model's style classes; never its name, which comes from outside. Charts hide ``control`` until asked."""
    known = (ORIGINAL, "unlearned", RETRAINED)
    names = [model.model for model in audit.figures]
    others = [name for name in names if name not in known]
    classes = {name: name for name in names if name in known}
    classes |= {name: f"other{i % COLOURS + 1}" for i, name in enumerate(others)}
    return classes | {control.model: f"control c{i % COLOURS + 1}" for i, control in enumerate(audit.control_figures)}


def colours(audit: AuditFigures) -> dict[str, str]:
    """The class of :func:`css_classes` that gives the colour alone."""
    return {name: classes.split()[-1] for name, classes in css_classes(audit).items()}


def tone(status: str) -> str:
    """The style class of a verdict."""
    return status if status in ("PASS", "PARTIAL", "FAIL") else "NONE"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
