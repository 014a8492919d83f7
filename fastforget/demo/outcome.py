"""What a demonstration showed: its figures, for a file and for the terminal."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._text import number, percent
from ..auditing import AuditReport
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
class ModelFigures:
    """What the audit measured of one model; :data:`DEFINITIONS` says what that is."""

    model: str
    forget_accuracy: float
    retain_accuracy: float
    train_forget_accuracy: float
    train_retain_accuracy: float
    test_accuracy: float
    loss_attack_auc: float
    forgetting_rate: float
    weight_distance: float
    relative_weight_distance: float | None
    status: str

    @staticmethod
    def from_row(row: dict[str, Any]) -> ModelFigures:
        """From a row of the report: the one place that knows where a figure stands in it."""
        accuracy, distance = row["accuracy"], row["weight_distance"].get("original", {})
        return ModelFigures(
            model=row["model"],
            forget_accuracy=accuracy["test_forget"],
            retain_accuracy=accuracy["test_retain"],
            train_forget_accuracy=accuracy["forget"],
            train_retain_accuracy=accuracy["retain"],
            test_accuracy=accuracy["test"],
            loss_attack_auc=row["attacks"]["forget_vs_test"]["loss"]["auc"],
            forgetting_rate=row["forgetting_rate"],
            weight_distance=distance.get("total", 0.0),
            relative_weight_distance=distance.get("relative"),
            status=row["status"],
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "relative_weight_distance"}


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
        self.rows = [ModelFigures.from_row(row) for row in self.report.rows]
        accuracy = next(row.forget_accuracy for row in self.rows if row.model == "unlearned")
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
            "rows": [row.to_dict() for row in self.rows],
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
        reasons = [reason for reason in self.report.row("unlearned")["reasons"] if not reason.startswith("PASS")]
        audit = [f"Audit: {reason}" for reason in reasons]
        return "\n".join([head, "", *self._table(plural), "", verdict, *self._cost(), *audit, self._controls()])

    def _table(self, plural: str) -> list[str]:
        cells: dict[str, Callable[[ModelFigures], str]] = {
            f"forgotten class{plural}, test accuracy": lambda row: percent(row.forget_accuracy),
            "kept classes, test accuracy": lambda row: percent(row.retain_accuracy),
            "loss attack AUC, forgotten against unseen": lambda row: number(row.loss_attack_auc),
            "forgetting rate": lambda row: percent(row.forgetting_rate),
            "relative weight distance from the original": lambda row: number(row.relative_weight_distance),
            "seconds": lambda row: f"{self.seconds[_STEP[row.model]]:.2f}",
            "by the audit's rule": lambda row: row.status,
        }
        width = max(map(len, cells))
        head = " " * width + "".join(f"{row.model:>12}" for row in self.rows)
        return [head, *(f"{label:<{width}}" + "".join(f"{cell(row):>12}" for row in self.rows) for label, cell in cells.items())]

    def _cost(self) -> list[str]:
        if self.seconds["unlearn"] <= 0:
            return []
        ratio = self.speedup
        text = f"{ratio:.1f} times as fast." if ratio >= 1 else f"{1 / ratio:.1f} times as slow, on a task this small."
        return [f"Unlearning took {self.seconds['unlearn']:.2f} s, retraining {self.seconds['retrain']:.2f} s: {text}"]

    def _controls(self) -> str:
        controls = self.report.controls
        statuses = ", ".join(f"{name} {entry['status']}" for name, entry in controls.items())
        trusted = all(entry["behaved"] for entry in controls.values())
        return f"Controls: {statuses}: {'as they must' if trusted else 'NOT as they must, this audit tells nothing'}."
