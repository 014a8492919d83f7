"""The report as one page: its data, gathered for the templates."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ... import __version__
from . import charts, evidence, layout, summary
from .png import as_pictures
from .shown import Report, css_classes, ordered
from .text import attack_name, probe_labels

MOST_PICTURES = 40  # noise images in one figure


def render(
    report: Report,
    conventions: dict[str, str],
    why: str,
    *,
    title: str,
    facts: dict[str, str],
    noise: dict[str, Any],
    timing: dict[str, float],
    class_names: list[str] | None,
    images: dict[str, Any],
) -> str:
    """The whole page.

    Args:
        conventions: what the figures of every report mean, by their names.
        why: how a report is read.
        title, facts, noise, timing, class_names, images: see :meth:`fastforget.audit.AuditReport.to_html`.
    """
    names = _class_names(report, class_names)
    classes = css_classes(report)
    return layout.render(
        "report.html",
        title=title,
        models=[(classes[row["model"]], row["model"]) for row in ordered(report)],
        summary=summary.head(report, timing),
        table=summary.table(report, timing),
        controls=evidence.controls(report),
        roc=charts.membership(report),
        losses=charts.losses(report),
        predictions=charts.predictions(report, names),
        exposed=evidence.exposed(report, names, images),
        cost=charts.cost(report, names),
        noise={caption: as_pictures(pictures[:MOST_PICTURES]) for caption, pictures in noise.items()},
        reading={
            "why": why,
            "rule": report.settings["rule"],
            "conventions": conventions | _used(report, conventions),
            "settings": _settings(report, facts, timing),
        },
    )


def _class_names(report: Report, given: list[str] | None) -> list[str]:
    count = max(len(row["forget_predictions"]) for row in report.rows)
    return [given[i] if given and i < len(given) else str(i) for i in range(count)]


def _settings(report: Report, facts: dict[str, str], timing: dict[str, float]) -> dict[str, str]:
    settings = report.settings
    threshold = settings["oracle_threshold"]
    return {
        **facts,
        **{f"seconds, {step}": f"{value:.2f}" for step, value in timing.items()},
        "attacks": ", ".join(settings["attacks"]),
        "oracle": settings["oracle_reason"] or f"member if loss <= {threshold:.4g}, calibrated on the original model",
        "reference": settings["reference"] or "no reference",
        "audit seed": str(settings["seed"]),
        "audit seconds": f"{settings['seconds']:.2f}",
        "software": f"fastforget {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _used(report: Report, conventions: dict[str, str]) -> dict[str, str]:
    """What this report's own attacks and probes measure, by their names in the table; no wording twice."""
    used, general = report.settings.get("conventions_used", {}), set(conventions.values())
    labels = {attack: attack_name(attack) for attack in report.settings["attacks"]} | probe_labels(report.rows)
    return {label: used[name] for name, label in labels.items() if name in used and used[name] not in general}
