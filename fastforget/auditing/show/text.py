"""The report as text: headline, the table of figures, reasons, and what a reader must know about these particular figures."""

from __future__ import annotations

import textwrap
from typing import Any

from ..._text import visible
from ..figures import FORGET, AuditFigures
from ..names import NOT_IDEAL, SEQUENCE_WISE, WHY
from .lines import Line, lines, resolves, undefined_probes
from .wording import FPR_TEXTS, attack_name, beyond_thresholds

WIDTH = 110


def report_text(audit: AuditFigures) -> str:
    """The whole report for a terminal."""
    out = [f"fastforget audit: {audit.verdict}", f"  {headline(audit)}", "", *_table(audit)]
    out += ["", *map(_wrap, audit.reasons), *([""] if audit.reasons else [])]
    out += [*map(_wrap, _controls(audit)), *([""] if audit.control_outcomes else [])]
    return "\n".join([*out, *map(_wrap, notes(audit)), _wrap(WHY)])


def headline(audit: AuditFigures) -> str:
    """What was asked to be forgotten, and the sizes of the sets."""
    sizes, classes = audit.settings["sizes"], audit.settings["forgotten_classes"]
    request = f"{audit.settings['request']} request"
    request += f", class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}" if classes else ""
    counted = "samples" if audit.figures[0].sequences is None else "sequences"
    return f"{request}; forget {sizes['forget']}, retain {sizes['retain']}, test {sizes['test']} {counted}"


def audit_lines(audit: AuditFigures, *, controls: bool = False) -> list[Line]:
    """The figures as lines of one cell a model; ``controls`` adds the controls' cells, last."""
    return lines([*audit.figures, *(audit.control_figures if controls else [])], audit.settings["attacks"])


def _table(audit: AuditFigures) -> list[str]:
    columns = [visible(model.model) for model in audit.figures]
    table = [(line.group, visible(line.label), list(map(str, line.cells))) for line in audit_lines(audit)]
    if audit.settings["reference"] is None:
        columns.append("retrained")
        table = [(group, label, [*cells, "no ref."]) for group, label, cells in table]
    left = max(len(label) for _, label, _ in table) + 2
    widths = [max(10, len(column), *(len(cells[i]) for _, _, cells in table)) for i, column in enumerate(columns)]
    out = [" " * (left + 2) + "  ".join(column.rjust(width) for column, width in zip(columns, widths, strict=True))]
    shown = ""
    for group, label, cells in table:
        if group != shown:
            shown = group
            out.append(group)
        out.append(f"  {label.ljust(left)}" + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    return out


def _controls(audit: AuditFigures) -> list[str]:
    """One line a control."""
    texts = {True: "as it must", False: "NOT AS IT MUST: this audit can't be trusted", None: "not judged"}
    return [f"control {name}: {outcome.status}, {texts[outcome.behaved]}" for name, outcome in audit.control_outcomes.items()]


def _wrap(text: str) -> str:
    return textwrap.fill(visible(text), WIDTH, subsequent_indent="  ")


def notes(audit: AuditFigures, *, intervals: str = "[low, high]", conventions: bool = True) -> list[str]:
    """What a reader must know about these particular figures.

    Args:
        intervals: how the reader sees the intervals.
        conventions: whether to say what the attacks beyond thresholds measure.
    """
    settings, result = audit.settings, _coarse(audit)
    if settings.get("intervals"):
        result.append(f"{intervals}: 95 % confidence interval over the draw of the samples.")
    if settings["reference"] is None:
        result.append('NO REFERENCE: no model named "retrained" was given. Read the figures as changes, not as distances from an ideal.')
    overlap = settings.get("overlap", {})
    named = {name: found for name, found in overlap.items() if name == "how" or found.get("shared") != 0}
    told = shared_with(named, settings["request"])
    result += [f"{what}: {said}." for what, said in told.items()]
    result += _undefined_rates(audit)
    result.append(f"forgetting rate: {NOT_IDEAL}")
    used = settings.get("conventions_used", {})
    if conventions:
        result += [f"{attack_name(attack)}: {used[attack]}." for attack in beyond_thresholds(settings["attacks"]) if attack in used]
    result += _undefined_scores(audit)
    for reason, labels in undefined_probes([*audit.figures, *audit.control_figures]).items():
        result.append(f"no figure (-) where {reason}: {'; '.join(labels)}.")
    return result + [f"{name.replace('_', ' ')}: {convention}." for name, convention in settings["comparisons"].items()]


def shared_with(overlap: dict[str, Any], request: str) -> dict[str, str]:
    """How many of the forget set's samples each other set holds, or that it wasn't looked for."""
    told, what = {}, "forget sequences" if request == SEQUENCE_WISE else "forget samples"
    for name, found in overlap.items():
        if name == "how":
            told[f"{what} in other sets"] = found
        elif "shared" in found:
            told[f"{what} in the {name} set too"] = f"{found['shared']} (same {found['how']}, {found['allowed']:.1f} accepted)"
        else:
            told[f"{what} in the {name} set too"] = found["how"]
    return told


def _coarse(audit: AuditFigures) -> list[str]:
    """Which false-positive rates can't be resolved; the attacks with another number of unseen samples than the loss attack by name."""
    coarse_attacks: dict[tuple[int, str], list[str]] = {}
    for attack in audit.settings["attacks"]:
        unseen = audit.figures[0].attacks[FORGET][attack].nonmembers
        coarse = " or ".join(text for name, text in FPR_TEXTS.items() if not resolves(audit.figures, name, attack))
        if coarse and unseen:
            coarse_attacks.setdefault((unseen, coarse), []).append(attack)
    result = []
    for (unseen, coarse), attacks in coarse_attacks.items():
        whose = "" if "loss" in attacks else f"{', '.join(map(attack_name, attacks))}: "
        result.append(
            f"* {whose}{unseen} unseen samples can't resolve a false-positive rate of {coarse}: one false positive is already "
            f"{100 / unseen:.2g} %. The figure is the true-positive rate at no false positive at all, and rests on one sample."
        )
    return result


def _undefined_rates(audit: AuditFigures) -> list[str]:
    """Why models have no forgetting rate."""
    reasons = {model.forgetting_rate.reason for model in audit.figures if model.forgetting_rate.reason}
    by_oracle = {
        (oracle, entry.rate.reason) for model in audit.figures for oracle, entry in model.forgetting_rates.items() if entry.rate.reason
    }
    return [
        *(f"forgetting rate undefined: {reason}" for reason in sorted(reasons)),
        *(f"forgetting rate of oracle {oracle} undefined: {reason}" for oracle, reason in sorted(by_oracle)),
    ]


def _undefined_scores(audit: AuditFigures) -> list[str]:
    """Where samples have no score, and where an attack has no figures at all."""
    result = []
    for attack in audit.settings["attacks"]:
        for comparison in audit.figures[0].attacks:
            by_model = [model.attacks[comparison][attack] for model in audit.figures]
            about = f"{attack_name(attack)}, {comparison.replace('_', ' ')}"
            if most := max(figures.undefined for figures in by_model):
                result.append(f"{about}: {most} samples have no score (NaN) and are left out.")
            result += [f"{about}: {reason}." for reason in sorted({figures.reason for figures in by_model if figures.reason})]
    return result
