"""The report as one page: no script, no font, no request. Every name from outside passes through
``esc``."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ..._version import __version__
from ..report import CONVENTIONS, WHY, AuditReport
from .charts import cost, losses, membership, predictions
from .evidence import control_table, exposed
from .markup import esc, section
from .png import as_pictures
from .style import CSS
from .summary import head, table
from .text import attack_name, probe_labels

# Nothing may be fetched, whatever a name or a caption holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MOST = 40  # noise images in one figure


def render(
    report: AuditReport,
    title: str,
    facts: dict[str, str],
    noise: dict[str, Any],
    timing: dict[str, float],
    class_names: list[str] | None,
    images: dict[str, Any],
) -> str:
    """The whole page."""
    names = _class_names(report, class_names)
    parts = [
        head(report, title, timing),
        table(report, timing),
        control_table(report),
        membership(report),
        losses(report),
        predictions(report, names),
        exposed(report, names, images),
        cost(report, names),
        _noise(noise),
        _reading(report, facts, timing),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<link rel="icon" '
        f'href="data:,">\n<title>{esc(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _class_names(report: AuditReport, given: list[str] | None) -> list[str]:
    count = max(len(row["forget_predictions"]) for row in report.rows)
    return [given[i] if given and i < len(given) else str(i) for i in range(count)]


def _noise(noise: dict[str, Any]) -> str:
    figures = []
    for caption, images in noise.items():
        pictures = [f'<img src="{uri}" alt="{esc(caption)}, image {i + 1}">' for i, uri in enumerate(as_pictures(images[:MOST]))]
        figures.append(f'<figure><figcaption>{esc(caption)}</figcaption><div class="noise">{"".join(pictures)}</div></figure>')
    if not figures:
        return ""
    return section(
        "The learned noise",
        "Images made to maximise the model's error on the forgotten class; training on them wears the "
        "class away. No forgotten image was used. Each picture's own range of values is stretched from "
        "black to white.",
        figures,
    )


def _reading(report: AuditReport, facts: dict[str, str], timing: dict[str, float]) -> str:
    settings = report.settings
    threshold = settings["oracle_threshold"]
    oracle = settings["oracle_reason"] or f"member if loss <= {threshold:.4g}, calibrated on the original model"
    entries = {
        **facts,
        **{f"seconds, {step}": f"{value:.2f}" for step, value in timing.items()},
        "attacks": ", ".join(settings["attacks"]),
        "oracle": oracle,
        "reference": settings["reference"] or "no reference",
        "audit seed": str(settings["seed"]),
        "audit seconds": f"{settings['seconds']:.2f}",
        "software": f"fastforget {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}",
    }
    return (
        f"<section><h2>How to read this</h2><p>{esc(WHY)}</p></section>"
        f"<section><h2>The rule behind the verdict</h2><p>{esc(settings['rule'])}</p></section>"
        f"<section><h2>Conventions</h2>{_listed(CONVENTIONS | _used(report))}</section>"
        f"<section><h2>Settings</h2>{_listed(entries)}</section>"
        "<footer>Evidence from measurements on the samples named above, not a certificate.</footer>"
    )


def _used(report: AuditReport) -> dict[str, str]:
    """What this report's own attacks and probes measure, by their names in the table; no wording twice."""
    used, said = report.settings.get("conventions_used", {}), set(CONVENTIONS.values())
    names = {attack: attack_name(attack) for attack in report.settings["attacks"]} | probe_labels(report.rows)
    return {label: used[name] for name, label in names.items() if name in used and used[name] not in said}


def _listed(entries: dict[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{esc(k)}</dt><dd>{esc(v)}</dd>" for k, v in entries.items()) + "</dl>"
