"""What a comparison of receipts is about: one entry a judged model, its key figures beside its own retrained model's, and which entries
share an original model and its data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..._text import number, percent
from ..figures import FORGET, Figure, ModelRow
from ..names import HIDDEN
from .wording import Show

NONE = Figure(math.nan)


class Cost(NamedTuple):
    """Seconds and sample passes; NaN where they aren't known."""

    seconds: float = math.nan
    passes: float = math.nan


@dataclass
class Entry:
    """One judged model of one receipt.

    Attributes:
        number: its place on the page, from 1.
        file: the name of the receipt's file.
        created: when, as the receipt has it.
        method: what made the model, "" where the receipt doesn't say.
        request: "class 3", or how many samples.
        row, original, retrained: the figures of the model, of the original and of the nearest to one named "retrained".
        status: by the rule, as the receipt states it.
        reasons: all of them, each beginning with the status that it stands for; none of a receipt that doesn't hold.
        wrong: what of the receipt doesn't hold in itself, one line each; empty where it holds.
        notes: what its check couldn't say.
        cost, retraining: of the method and of training anew.
        hashes: sha256 by what was hashed.
    """

    number: int
    file: str
    created: str
    method: str
    request: str
    row: ModelRow
    original: ModelRow | None
    retrained: ModelRow | None
    status: str
    reasons: list[str]
    wrong: list[str]
    notes: list[str]
    cost: Cost
    retraining: Cost
    hashes: dict[str, str]

    @property
    def holds(self) -> bool:
        return not self.wrong

    @property
    def stated(self) -> str:
        """The status, as the file's own word where the receipt doesn't hold."""
        return self.status if self.holds else f"says {self.status}"

    @property
    def decisive(self) -> list[str]:
        """The reasons that its status rests on, without the status; the part after a colon, which explains, is left out."""
        texts = [reason.partition(": ") for reason in self.reasons]
        return [rest.partition(": ")[0] for status, _, rest in texts if status == self.status != "PASS"]

    def times_as_fast(self) -> float:
        """Retraining's seconds by the method's, or sample passes where a time is missing; NaN where both are."""
        for part in ("seconds", "passes"):
            own, other = getattr(self.cost, part), getattr(self.retraining, part)
            if own > 0 and other > 0:
                return float(other / own)
        return math.nan

    def lost(self, of: ModelRow | None = None) -> float:
        """Accuracy on unseen samples of what is kept, in points under the retrained model's."""
        return 100 * (_value(self.retrained, kept) - _value(of or self.row, kept))

    def auc_away(self, of: ModelRow | None = None) -> float:
        """The loss attack's AUC, forget set against unseen samples, over the retrained model's."""
        return _value(of or self.row, attacked("loss")) - _value(self.retrained, attacked("loss"))


@dataclass
class Group:
    """Entries about the same original model, forget set and sets of the same sizes: what may be compared.

    ``apart`` says why they stand apart from entries that share as much, where they do.
    """

    letter: str
    request: str
    shared: dict[str, str]
    entries: list[Entry] = field(default_factory=list)
    apart: str = ""


# ------------------------------------------------------------------ key figures

Read = Callable[[ModelRow], Figure]


class KeyFigure(NamedTuple):
    """A column: its label, how a row has it, how it is written, and whether it is shown though no entry has it."""

    label: str
    read: Read
    show: Show
    always: bool = True

    def text(self, row: ModelRow | None) -> str:
        """A row's figure as it is written."""
        return self.show(_value(row, self.read))


def kept(row: ModelRow) -> Figure:
    """Accuracy on unseen samples of the kept classes; on all unseen samples where single samples were forgotten."""
    by_class = row.accuracy.get("test_retain", NONE)
    return by_class if row.class_wise and by_class.known else row.accuracy.get("test", NONE)


def attacked(attack: str) -> Read:
    """The AUC of an attack, forget set against unseen samples."""

    def read(row: ModelRow) -> Figure:
        figures = row.attacks.get(FORGET, {}).get(attack)
        return NONE if figures is None else figures.auc

    return read


def below(name: str, *, class_wise: bool) -> Read:
    """A figure below the answers that requests of this kind are judged by."""
    return lambda row: Figure(getattr(row.below, name)) if row.below is not None and row.class_wise == class_wise else NONE


KEY_FIGURES = (
    KeyFigure("accuracy, forget set", lambda row: row.accuracy.get("forget", NONE), percent),
    KeyFigure("unseen, forgotten classes", lambda row: row.accuracy.get("test_forget", NONE), percent, always=False),
    KeyFigure("test accuracy, kept", kept, percent),
    KeyFigure("loss attack, AUC", attacked("loss"), number),
    KeyFigure("perplexity-ratio attack, AUC", attacked("perplexity_ratio"), number, always=False),
    KeyFigure("loss attack after steps on the other half, AUC", lambda row: row.probes.get(HIDDEN, NONE), number, always=False),
    KeyFigure("LiRA, AUC", attacked("lira"), number, always=False),
    KeyFigure("class told by its logit, AUC", lambda row: row.probes.get("class_logit_auc", NONE), number, always=False),
    KeyFigure("class told by a linear probe, AUC", below("probe_auc", class_wise=True), number, always=False),
    KeyFigure("loss attack on noised samples, AUC", below("noised_auc", class_wise=False), number, always=False),
)


def key_figures(entries: list[Entry]) -> list[KeyFigure]:
    """Those that are shown of these entries: what none of them has is left out."""
    return [one for one in KEY_FIGURES if one.always or any(one.read(entry.row).known for entry in entries)]


def _value(row: ModelRow | None, read: Read) -> float:
    return math.nan if row is None else read(row).value
