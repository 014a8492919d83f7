"""What a demonstration showed: its figures, for a file and for the terminal."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._text import number, percent
from ..auditing import AuditReport
from ..auditing.figures import FORGET, ORIGINAL, ModelRow, WeightDistance
from ..methods import UnlearnResult

GONE = 0.01  # test accuracy on the forgotten classes at or under which a class counts as gone
DEFINITIONS = {
    "forget_accuracy": "test accuracy on the forgotten classes (samples no model was trained on)",
    "retain_accuracy": "test accuracy on the kept classes",
    "train_forget_accuracy": "accuracy on the forgotten classes' training images",
    "train_retain_accuracy": "accuracy on the kept classes' training images",
    "loss_attack_auc": "forgotten training images against test images of the same classes; the ideal is the retrained model's",
    "forgetting_rate": "Forsaken's, with a loss threshold fixed on the original model; the ideal is the retrained model's",
    "speedup": "seconds of retraining / seconds of unlearning",
    "forgot": f"the unlearned model's forget_accuracy is at most {GONE:g}, and the method's own check agrees",
}
_STEP = {"original": "train", "unlearned": "unlearn", "retrained": "retrain"}  # where each model comes from


@dataclass
class Outcome:
    """A finished demonstration: the arguments, the data's name, what audit and method said, seconds of each step, and facts."""

    args: Namespace
    data: str
    report: AuditReport
    result: UnlearnResult
    seconds: dict[str, float]
    facts: dict[str, str]

    def __post_init__(self) -> None:
        accuracy = self.report.figures_of("unlearned").accuracy["test_forget"].value
        gone = accuracy <= GONE
        self.forgot = gone and self.result.forgot
        limit = f"{'at most' if gone else 'over'} {percent(GONE)}"
        self.why = f"test accuracy on the forgotten classes is {percent(accuracy)}, {limit}; {self.result.why}"

    @property
    def speedup(self) -> float:
        """How many times as fast as retraining; NaN where nothing was done."""
        return self.seconds["retrain"] / self.seconds["unlearn"] if self.seconds["unlearn"] > 0 else math.nan

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` writes."""
        settings = {name: getattr(self.args, name) for name in ("data", "net", "method", "classes", "seed", "epochs")}
        return {
            "rows": [_row(model) for model in self.report.figures],
            "seconds": self.seconds,
            "speedup": self.speedup,
            "forgot": self.forgot,
            "why": self.why,
            "verdict": self.report.verdict,
            "reasons": self.report.reasons,
            "controls": self.report.controls,
            "settings": settings | {f"about_{key}": value for key, value in self.facts.items()},
            "definitions": DEFINITIONS,
        }

    def __str__(self) -> str:
        """What the command prints."""
        args, plural = self.args, "es" if len(self.args.classes) > 1 else ""
        head = f"{self.data}, {args.net}, class{plural} {', '.join(map(str, args.classes))}, method {args.method}, seed {args.seed}"
        verdict = f"{'FORGOT' if self.forgot else 'DID NOT FORGET'}: {self.why}"
        reasons = [reason for reason in self.report.figures_of("unlearned").reasons if not reason.startswith("PASS")]
        audit = [f"Audit: {reason}" for reason in reasons]
        return "\n".join([head, "", *self._table(plural), "", verdict, *self._cost(), *audit, self._controls()])

    def _table(self, plural: str) -> list[str]:
        cells: dict[str, Callable[[ModelRow], str]] = {
            f"forgotten class{plural}, test accuracy": lambda row: percent(row.accuracy["test_forget"].value),
            "kept classes, test accuracy": lambda row: percent(row.accuracy["test_retain"].value),
            "loss attack AUC, forgotten against unseen": lambda row: number(row.attacks[FORGET]["loss"].auc.value),
            "forgetting rate": lambda row: percent(row.forgetting_rate.value),
            "relative weight distance from the original": lambda row: number(_distance(row).relative),
            "seconds": lambda row: f"{self.seconds[_STEP[row.model]]:.2f}",
            "by the audit's rule": lambda row: row.status,
        }
        models, width = self.report.figures, max(map(len, cells))
        head = " " * width + "".join(f"{row.model:>12}" for row in models)
        return [head, *(f"{label:<{width}}" + "".join(f"{cell(row):>12}" for row in models) for label, cell in cells.items())]

    def _cost(self) -> list[str]:
        if self.seconds["unlearn"] <= 0:
            return []
        ratio = self.speedup
        text = f"{ratio:.1f} times as fast." if ratio >= 1 else f"{1 / ratio:.1f} times as slow, on a task this small."
        return [f"Unlearning took {self.seconds['unlearn']:.2f} s, retraining {self.seconds['retrain']:.2f} s: {text}"]

    def _controls(self) -> str:
        controls = self.report.control_outcomes
        statuses = ", ".join(f"{name} {outcome.status}" for name, outcome in controls.items())
        trusted = all(outcome.behaved for outcome in controls.values())
        return f"Controls: {statuses}: {'as they must' if trusted else 'NOT as they must, this audit tells nothing'}."


def _row(row: ModelRow) -> dict[str, Any]:
    """One model's figures; :data:`DEFINITIONS` says what they are."""
    return {
        "model": row.model,
        "forget_accuracy": row.accuracy["test_forget"].value,
        "retain_accuracy": row.accuracy["test_retain"].value,
        "train_forget_accuracy": row.accuracy["forget"].value,
        "train_retain_accuracy": row.accuracy["retain"].value,
        "test_accuracy": row.accuracy["test"].value,
        "loss_attack_auc": row.attacks[FORGET]["loss"].auc.value,
        "forgetting_rate": row.forgetting_rate.value,
        "weight_distance": _distance(row).total,
        "status": row.status,
    }


def _distance(row: ModelRow) -> WeightDistance:
    """From the original; the original's own has no relative figure."""
    return row.weight_distance.get(ORIGINAL, WeightDistance(0.0, math.nan, True, []))
