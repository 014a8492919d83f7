"""What a demonstration showed: its figures, for a file and for the terminal."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._text import number, percent
from ..auditing import AuditReport
from ..auditing.figures import FORGET, ORIGINAL, ModelRow, WeightDistance
from .contest import MAIN, Entrant, Step

GONE = 0.01  # test accuracy on the forgotten classes at or under which a class counts as gone
DEFINITIONS = {
    "forget_accuracy": "test accuracy on the forgotten classes (samples no model was trained on)",
    "retain_accuracy": "test accuracy on the kept classes",
    "train_forget_accuracy": "accuracy on the forgotten classes' training images",
    "train_retain_accuracy": "accuracy on the kept classes' training images",
    "loss_attack_auc": "forgotten training images against test images of the same classes; the ideal is the retrained model's",
    "probe_auc": "of a linear probe that looks for the forgotten classes in the model's features; the ideal is the retrained model's",
    "forgetting_rate": "Forsaken's, with a loss threshold fixed on the original model; the ideal is the retrained model's",
    "sample_passes": "samples that went forward and backward, and a third of those that only went forward",
    "speedup": "seconds of retraining / seconds of unlearning; of the chosen method, and in each row of its own",
    "verdict": "the audit's, of the chosen method's model; each row's status is that model's",
    "forgot": f"the unlearned model's forget_accuracy is at most {GONE:g}, and the method's own check agrees",
}
MEANING = (
    "right: share of the test images that measure; attack: loss attack, forgotten training images against unseen ones;\n"
    "probe: linear, for the forgotten {classes} in the features. Of both, the retrained model's figure is the ideal."
)


class Column(NamedTuple):
    """One column of the printed table: its heading in two lines, and a model's cell."""

    above: str
    below: str
    cell: Callable[[ModelRow], str]


@dataclass
class Outcome:
    """A finished demonstration: the arguments, the data's name, the audit of all models, the methods' runs (the chosen one first), where
    each model came from, seconds of the run's parts, and facts."""

    args: Namespace
    data: str
    report: AuditReport
    entrants: list[Entrant]
    steps: dict[str, Step]
    seconds: dict[str, float]
    facts: dict[str, str]

    def __post_init__(self) -> None:
        self.audit = self.report.of(MAIN)
        accuracy = self.report.figures_of(MAIN).accuracy["test_forget"].value
        gone = accuracy <= GONE
        self.forgot = gone and self.chosen.result.forgot
        limit = f"{'at most' if gone else 'over'} {percent(GONE)}"
        self.why = f"test accuracy on the forgotten classes is {percent(accuracy)}, {limit}; {self.chosen.result.why}"

    @property
    def chosen(self) -> Entrant:
        return self.entrants[0]

    @property
    def speedup(self) -> float:
        """How many times as fast as retraining the chosen method was; NaN where nothing was done."""
        return self.steps[MAIN].speedup

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        settings = {name: getattr(self.args, name) for name in ("data", "net", "method", "classes", "seed", "epochs")}
        return {
            "rows": [self._row(model) for model in self.report.figures],
            "seconds": self.seconds,
            "speedup": self.speedup,
            "forgot": self.forgot,
            "why": self.why,
            "verdict": self.audit.verdict,
            "reasons": self.audit.reasons,
            "method_chosen": self.chosen.reason,
            "controls": self.report.controls,
            "settings": settings | {f"about_{key}": value for key, value in self.facts.items()},
            "definitions": DEFINITIONS,
        }

    def __str__(self) -> str:
        """What the command prints."""
        args, chosen, plural = self.args, self.chosen, "es" if len(self.args.classes) > 1 else ""
        head = [f"{self.data}, {args.net}, class{plural} {', '.join(map(str, args.classes))}, method {args.method}, seed {args.seed}"]
        if chosen.reason:
            head.append(f"{args.method} chose {chosen.method}: {chosen.reason}")
        verdict = f"{'FORGOT' if self.forgot else 'DID NOT FORGET'}: {self.why}"
        meaning = MEANING.format(classes="classes" if plural else "class")
        return "\n".join([*head, "", *self._table(), meaning, "", verdict, *self._cost(), *self._reasons(), self._controls()])

    def _table(self) -> list[str]:
        columns = [
            Column("", "", lambda row: self._title(row.model)),
            Column("forgotten", "right", lambda row: percent(row.accuracy["test_forget"].value)),
            Column("kept", "right", lambda row: percent(row.accuracy["test_retain"].value)),
            Column("attack", "AUC", lambda row: number(row.attacks[FORGET]["loss"].auc.value)),
            Column("probe", "AUC", lambda row: number(_probe(row))),
            Column("", "seconds", lambda row: f"{self.steps[row.model].seconds:.2f}"),
            Column("times as fast", "as retraining", lambda row: _times(self.steps[row.model].speedup)),
            Column("sample", "passes", lambda row: f"{self.steps[row.model].passes:,}"),
            Column("", "verdict", lambda row: row.status),
        ]
        cells = [[one.above, one.below, *map(one.cell, self.report.figures)] for one in columns]
        widths = [max(map(len, of_column)) for of_column in cells]
        names, figures = cells[0], cells[1:]
        return [
            (f"{name:<{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(line, widths[1:], strict=True))).rstrip()
            for name, line in zip(names, zip(*figures, strict=True), strict=True)
        ]

    def _title(self, model: str) -> str:
        """A model's name in the table: that of its method, where one made it."""
        if model != MAIN:
            return model
        return f"{self.chosen.method} ({self.args.method})" if self.chosen.reason else self.chosen.method

    def _cost(self) -> list[str]:
        own, retrained = self.steps[MAIN], self.steps["retrained"]
        if own.seconds <= 0:
            return []
        text = f"{own.speedup:.1f} times as fast." if own.speedup >= 1 else f"{1 / own.speedup:.1f} times as slow, on a task this small."
        spent = [f"{name} {step.seconds:.2f} s" for name, step in (("Unlearning took", own), ("retraining", retrained))]
        return [f"{', '.join(spent)}: {text}"]

    def _reasons(self) -> list[str]:
        """What keeps each method's model from passing."""
        lines = []
        for entrant in self.entrants:
            row = self.report.figures_of(entrant.model)
            against = [reason for reason in row.reasons if not reason.startswith("PASS")] or [row.status]
            label = "Audit" if entrant is self.chosen else f"Audit of {entrant.method}"
            lines += [f"{label}: {reason}" for reason in against]
        return lines

    def _controls(self) -> str:
        controls = self.report.control_outcomes
        statuses = ", ".join(f"{name} {outcome.status}" for name, outcome in controls.items())
        trusted = all(outcome.behaved for outcome in controls.values())
        return f"Controls: {statuses}: {'as they must' if trusted else 'NOT as they must, this audit tells nothing'}."

    def _row(self, row: ModelRow) -> dict[str, Any]:
        """One model's figures; :data:`DEFINITIONS` says what they are."""
        step = self.steps[row.model]
        return {
            "model": row.model,
            "method": step.method,
            "forget_accuracy": row.accuracy["test_forget"].value,
            "retain_accuracy": row.accuracy["test_retain"].value,
            "train_forget_accuracy": row.accuracy["forget"].value,
            "train_retain_accuracy": row.accuracy["retain"].value,
            "test_accuracy": row.accuracy["test"].value,
            "loss_attack_auc": row.attacks[FORGET]["loss"].auc.value,
            "probe_auc": _probe(row),
            "forgetting_rate": row.forgetting_rate.value,
            "weight_distance": _distance(row).total,
            "seconds": step.seconds,
            "sample_passes": step.passes,
            "speedup": step.speedup,
            "status": row.status,
        }


def _probe(row: ModelRow) -> float:
    return math.nan if row.below is None else row.below.probe_auc


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{ratio:.1f}"


def _distance(row: ModelRow) -> WeightDistance:
    """From the original; the original's own has no relative figure."""
    return row.weight_distance.get(ORIGINAL, WeightDistance(0.0, math.nan, True, []))
