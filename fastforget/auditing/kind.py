"""What an audit is about, samples of a classifier or sequences of a language model, and the rule that its models are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .._labels import Reading

if TYPE_CHECKING:
    from .figures import ModelRow
    from .measured import Measured


class Entry(NamedTuple):
    """One numbered sentence of a rule, and the function that carries it out."""

    number: int
    title: str
    text: str
    function: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.number}. {self.title}: {self.text}"


@dataclass(frozen=True)
class Rule:
    """What models are judged by.

    Attributes:
        entries: all numbered sentences; the last two are of the status and the verdict.
        beside_one: checks that are carried out beside one retrained model, the nearest where there are several.
        doubted: (a retrained model's figures, the original's or None) -> why it isn't believed by its answers, or None.
        unmeasured: what a reader may miss among the findings: one line each, said of every model that is judged.
    """

    entries: tuple[Entry, ...]
    beside_one: tuple[Callable[..., Any], ...]
    doubted: Callable[[ModelRow, ModelRow | None], str | None] = lambda reference, original: None
    unmeasured: tuple[str, ...] = ()

    @property
    def checks(self) -> tuple[Entry, ...]:
        """Those that are carried out for each model."""
        return self.entries[:-2]

    @property
    def text(self) -> str:
        """The rule as it stands in reports."""
        first = "Each model is compared with the one retrained without the forget set."
        last = "This is evidence from measurements on these samples, not a proof or a privacy guarantee."
        return "\n".join((first, *map(str, self.entries), last))


@dataclass(frozen=True)
class Kind:
    """How an audit is asked for, measured and judged.

    Attributes:
        labels: how labels are read.
        sequences: whether they are token ids [N, T].
        attacks: what each attack measures, by its name.
        default: the attacks that are run where none are named.
        refused: options that don't serve, and what is measured instead.
        measure: a checked request -> its figures.
        rule: what they are judged by.
    """

    labels: Reading
    sequences: bool
    attacks: Mapping[str, str]
    default: tuple[str, ...]
    refused: Mapping[str, str]
    measure: Callable[[Any], Measured]
    rule: Rule
