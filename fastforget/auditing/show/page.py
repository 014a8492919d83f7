"""The report as one page: its data, gathered for the templates."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ..._version import __version__
from ..figures import AuditFigures
from ..names import WHY
from . import charts, evidence, layout, summary
from .lines import below_labels, probe_labels
from .png import as_pictures
from .shown import css_classes, ordered
from .wording import attack_name

MOST_PICTURES = 40  # noise images in one figure


def render(
    audit: AuditFigures,
    main: AuditFigures,
    conventions: dict[str, str],
    *,
    title: str,
    facts: dict[str, str],
    noise: dict[str, Any],
    timing: dict[str, float],
    passes: dict[str, int],
    class_names: list[str] | None,
    images: dict[str, Any],
) -> str:
    """The whole page.

    Args:
        main: what the head is about: the audit itself, or that of one of its models.
        conventions: what the figures of every report mean, by their names.
        title, facts, noise, timing, passes, class_names, images: see :meth:`fastforget.audit.AuditReport.to_html`.
    """
    names = _class_names(audit, class_names)
    classes = css_classes(audit)
    return layout.render(
        "report.html",
        title=title,
        models=[(classes[model.model], model.model) for model in ordered(audit)],
        summary=summary.head(main, timing, beside=audit),
        table=summary.table(audit, timing, passes),
        controls=evidence.controls(audit),
        roc=charts.membership(audit),
        losses=charts.losses(audit),
        predictions=charts.predictions(audit, names),
        exposed=evidence.exposed(audit, names, images),
        cost=charts.cost(audit, names, timing),
        noise={caption: as_pictures(pictures[:MOST_PICTURES]) for caption, pictures in noise.items()},
        reading={
            "why": WHY,
            "rule": audit.settings["rule"],
            "conventions": conventions | _used(audit, conventions),
            "settings": _settings(audit, facts, timing),
        },
    )


def _class_names(audit: AuditFigures, given: list[str] | None) -> list[str]:
    count = max(len(model.forget_predictions) for model in audit.figures)  # 0 of sequences
    return [given[i] if given and i < len(given) else str(i) for i in range(count)]


def _settings(audit: AuditFigures, facts: dict[str, str], timing: dict[str, float]) -> dict[str, str]:
    settings = audit.settings
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


def _used(audit: AuditFigures, conventions: dict[str, str]) -> dict[str, str]:
    """What this report's own attacks and probes measure, by their names in the table; no wording twice."""
    used, general = audit.settings.get("conventions_used", {}), set(conventions.values())
    labels = {attack: attack_name(attack) for attack in audit.settings["attacks"]}
    labels |= below_labels(audit.figures) | probe_labels(audit.figures)
    return {label: used[name] for name, label in labels.items() if name in used and used[name] not in general}
