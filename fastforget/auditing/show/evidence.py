"""Two sections of the page that stand on the rows alone: the negative controls, and the most exposed samples."""

from __future__ import annotations

from typing import Any

import torch

from ..controls import MEANING, must_pass
from ..report import AuditReport
from .markup import esc, figure, scroll, section, styles
from .png import as_pictures
from .text import attack_name, plain

RETRAINED = "trained without the forget set"


def control_table(report: AuditReport) -> str:
    """A table of what must not pass (and, where it is listed, what must), and whether it behaved."""
    found = report.controls
    if not found:
        return ""
    body, kinds = [], styles(report)
    for name, control in found.items():
        status, behaved = control["status"], control["behaved"]
        mark = '<td class="none">not judged</td>' if behaved is None else _behaved(bool(behaved))
        must = "must pass" if must_pass(name) else "must not pass"
        what = MEANING.get(name, RETRAINED if name == "retrained" else "a further control")
        key = f'<span class="key {kinds[name].split()[-1]}"></span>' if name in kinds else ""
        body.append(f'<tr><th scope="row">{key}{esc(name)}</th><td class="say">{esc(what)}; {must}</td><td>{esc(status)}</td>{mark}</tr>')
    wrong = [name for name, control in found.items() if control["behaved"] is False]
    warning = (
        f'<p class="warning FAIL" role="note"><b>Don\'t trust this verdict:</b> {esc(", ".join(wrong))} did not behave as '
        f"{'it' if len(wrong) == 1 else 'they'} must.</p>"
        if wrong
        else ""
    )
    heads = "".join(f'<th scope="col">{text}</th>' for text in ("verdict", "behaved"))
    inner = (
        '<table class="say"><thead><tr><th scope="col">control</th><th scope="col" class="say">what it is</th>'
        f"{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    switch = ""
    if report.control_rows:
        switch = '<p class="switch"><label><input type="checkbox" id="with-controls"> Draw the controls in the charts below</label></p>'
    return (
        "<section><h2>Can this audit fail?</h2><p>Models that forgot nothing, or only hide it, went through the same audit. "
        f"An audit that lets one of them pass shows nothing.</p>{warning}{scroll(inner, 'Controls')}{switch}</section>"
    )


def _behaved(yes: bool) -> str:
    return f'<td class="tone {"PASS" if yes else "FAIL"}">{"yes" if yes else "NO"}</td>'


def exposed(report: AuditReport, names: list[str], images: dict[str, Any]) -> str:
    """The forget samples that give the judged models away most, with their pictures where there are some."""
    pictures = _checked(report, images)
    found = report.curves.get("exposed")
    if not found:
        return ""
    by = attack_name(report.settings["exposed_by"])
    return section(
        "Which samples are most exposed?",
        f"The forget samples that look most like training samples to an attacker ({by}), and how they look on the original and the "
        "retrained model: higher means more like a training sample. A sample that scores as high on the retrained model is easy, not "
        "remembered.",
        [_exposed(report, found, by, names, pictures)],
        wide=True,
    )


def _exposed(report: AuditReport, samples: list[dict[str, Any]], by: str, names: list[str], pictures: torch.Tensor | None) -> str:
    drawn = [row["model"] for row in report.rows]
    thumbnails = as_pictures(pictures[[int(sample["index"]) for sample in samples]], "images") if pictures is not None else []
    body = []
    for i, sample in enumerate(samples):
        number, label = int(sample["index"]), int(sample["label"])
        name = names[label] if 0 <= label < len(names) else str(label)
        picture = f'<td class="thumb"><img src="{thumbnails[i]}" alt="forget sample {number}"></td>' if thumbnails else ""
        scores = "".join(f"<td>{esc(plain(sample['score'][of]))}</td>" for of in drawn)
        body.append(f'<tr><th scope="row">{number}</th>{picture}<td class="name">{esc(name)}</td>{scores}</tr>')
    heads = "".join(f'<th scope="col">{esc(of)}</th>' for of in drawn)
    shot = '<th scope="col">image</th>' if thumbnails else ""
    inner = (
        f'<table class="narrow"><thead><tr><th scope="col">no.</th>{shot}<th scope="col">class</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
    inner = scroll(inner, "Most exposed samples")
    return figure(f"Member scores, {by}", "Numbers count the forget set's samples from 0.", inner)


def _checked(report: AuditReport, images: dict[str, Any]) -> Any:
    """The forget set's images, or None."""
    unknown = [name for name in images if name != "forget"]
    if unknown:
        raise ValueError(f'images: got the key {unknown[0]!r}; accepted is "forget", whose samples are shown')
    found = images.get("forget")
    if found is None:
        return None
    if not isinstance(found, torch.Tensor):
        raise TypeError(f'images["forget"]: got {type(found).__name__}; accepted is a tensor [n, channels, height, width]')
    size = report.settings["sizes"]["forget"]
    if found.dim() != 4 or len(found) != size:
        raise ValueError(
            f'images["forget"]: got shape {tuple(found.shape)}; accepted is [{size}, channels, height, width], '
            "one image for each forget sample, in the set's order"
        )
    return found
