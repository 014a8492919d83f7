"""Two sections of the page that stand on the rows alone: the negative controls, and the most exposed samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..figures import RETRAINED, AuditFigures, ExposedSample
from ..names import CONTROL_MEANING, must_pass
from .png import as_pictures
from .shown import colours
from .wording import attack_name, plain

RETRAINED_MEANING = "trained without the forget set"


@dataclass
class Control:
    """A control's line; ``behaved`` is None where nothing could be judged."""

    name: str
    colour: str
    meaning: str
    must_pass: bool
    status: str
    behaved: bool | None


@dataclass
class Controls:
    """The controls' table, the names of those that didn't behave, and whether the charts draw any."""

    lines: list[Control]
    misbehaved: list[str]
    drawn: bool


@dataclass
class Sample:
    """An exposed sample: its place in the forget set, its class ("" of a sequence), one score a model, and its picture as a data URI."""

    number: int
    class_name: str
    scores: list[str]
    picture: str


@dataclass
class Exposed:
    """The most exposed samples by the scores of one attack."""

    attack: str
    models: list[str]
    samples: list[Sample]
    pictured: bool

    @property
    def classed(self) -> bool:
        """Whether the samples have classes."""
        return any(sample.class_name for sample in self.samples)


def controls(audit: AuditFigures) -> Controls:
    """What must not pass (and, where it is listed, what must), and whether it behaved."""
    colour = colours(audit)
    lines = [
        Control(name, colour.get(name, ""), _meaning(name), must_pass(name), outcome.status, outcome.behaved)
        for name, outcome in audit.control_outcomes.items()
    ]
    return Controls(lines, [line.name for line in lines if line.behaved is False], drawn=bool(audit.control_figures))


def _meaning(name: str) -> str:
    return CONTROL_MEANING.get(name, RETRAINED_MEANING if name == RETRAINED else "a further control")


def exposed(audit: AuditFigures, class_names: list[str], images: dict[str, Any]) -> Exposed:
    """The forget samples that give the judged models away most, with their pictures where there are some."""
    pictures = _checked(images, audit.settings["sizes"]["forget"])
    samples = [ExposedSample.from_dict(sample, f"exposed[{i}]") for i, sample in enumerate(audit.curves.get("exposed") or [])]
    models = [model.model for model in audit.figures]
    numbers = [sample.index for sample in samples]
    thumbnails = as_pictures(pictures[numbers], "images") if pictures is not None and numbers else [""] * len(numbers)
    shown = []
    for sample, thumbnail in zip(samples, thumbnails, strict=True):
        class_name = _class_name(sample.label, class_names)
        shown.append(Sample(sample.index, class_name, [plain(sample.score[model]) for model in models], thumbnail))
    attack = attack_name(audit.settings["exposed_by"]) if samples else ""
    return Exposed(attack, models, shown, pictured=pictures is not None)


def _class_name(label: int | None, class_names: list[str]) -> str:
    if label is None:
        return ""
    return class_names[label] if 0 <= label < len(class_names) else str(label)


def _checked(images: dict[str, Any], size: int) -> torch.Tensor | None:
    """The forget set's images, or None."""
    unknown = [name for name in images if name != "forget"]
    if unknown:
        raise ValueError(f'images: got the key {unknown[0]!r}; accepted is "forget", whose samples are shown')
    pictures = images.get("forget")
    if pictures is None:
        return None
    if not isinstance(pictures, torch.Tensor):
        raise TypeError(f'images["forget"]: got {type(pictures).__name__}; accepted is a tensor [n, channels, height, width]')
    if pictures.dim() != 4 or len(pictures) != size:
        raise ValueError(
            f'images["forget"]: got shape {tuple(pictures.shape)}; accepted is [{size}, channels, height, width], '
            "one image for each forget sample, in the set's order"
        )
    return pictures
