"""The figures of membership attacks, and the number with interval and reason that all figures are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .fields import Fields, flag, integer, interval, number, optional_text

Interval = list[float]
FORGET, RETAIN = "forget_vs_test", "retain_vs_test"
"""The two comparisons of members with non-members: the forget set, or the retain set, against test samples of the same classes."""
FPRS = {"1pct": 1e-2, "0.1pct": 1e-3}
"""The false-positive rates at which true-positive rates are reported, by their names in the files."""


@dataclass
class Figure:
    """One measured number.

    Attributes:
        value: NaN where there is none.
        interval: the two ends of its 95 % confidence interval, in the figure's own unit; None where none was asked for, or none exists.
        reason: why there is no value (or, beside a value, what is the matter with it); None where nothing is.
    """

    value: float
    interval: Interval | None = None
    reason: str | None = None

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)


@dataclass
class RateAtFpr:
    """The largest true-positive rate of an attack whose false-positive rate is at most a given one.

    Attributes:
        tpr: a share of the members, 0 to 1; its ``reason`` is the attack's.
        resolves: whether the non-members are so many that one false positive is no more than the given rate.
    """

    tpr: Figure
    resolves: bool


@dataclass
class AttackFigures:
    """One attack on one model in one comparison. A higher score means a member.

    Attributes:
        auc: probability that a member scores above a non-member, ties count one half; 0 to 1.
        auc_standard_error: of the AUC of an attack that can't tell, for these counts; 0 to 1.
        balanced_accuracy: (1 + max(TPR - FPR)) / 2, the threshold chosen on the same samples; 0.5 to 1.
        tpr_at: the true-positive rates by the names of :data:`FPRS`.
        balanced_accuracy_at_half: of scores that are log likelihood ratios (LiRA, U-LiRA): the balanced accuracy at the threshold 0; None
            for other attacks.
        members, nonmembers: samples with a score on each side.
        undefined: samples of both sides without one (NaN), which are left out.
        reason: why there are no figures; all numbers are NaN then.
    """

    auc: Figure
    auc_standard_error: float
    balanced_accuracy: Figure
    tpr_at: dict[str, RateAtFpr]
    members: int
    nonmembers: int
    undefined: int = 0
    balanced_accuracy_at_half: Figure | None = None
    reason: str | None = None

    @classmethod
    def without(cls, reason: str, undefined: int = 0) -> AttackFigures:
        """No figures, and why."""
        rates = {name: RateAtFpr(Figure(math.nan), resolves=False) for name in FPRS}
        return cls(Figure(math.nan), math.nan, Figure(math.nan), rates, 0, 0, undefined, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        entries: dict[str, Any] = {
            "auc": self.auc.value,
            "auc_standard_error": self.auc_standard_error,
            "balanced_accuracy": self.balanced_accuracy.value,
        }
        for name, rate in self.tpr_at.items():
            key = f"tpr_at_{name}_fpr"
            entries |= {key: rate.tpr.value, f"resolves_{name}_fpr": rate.resolves, **with_interval(key, rate.tpr)}
        if self.balanced_accuracy_at_half is not None:
            key, half = "balanced_accuracy_at_half", self.balanced_accuracy_at_half
            entries |= {key: half.value, **with_interval(key, half)}
        entries |= with_interval("auc", self.auc) | with_interval("balanced_accuracy", self.balanced_accuracy)
        counts = {"members": self.members, "nonmembers": self.nonmembers, "undefined": self.undefined}
        return entries | counts | {"reason": self.reason}

    @classmethod
    def from_dict(cls, value: Any, where: str = "attack") -> AttackFigures:
        entries = Fields(value, where)
        rates = {}
        for name in FPRS:
            if f"tpr_at_{name}_fpr" in entries:
                rates[name] = RateAtFpr(read_figure(entries, f"tpr_at_{name}_fpr"), entries.get(f"resolves_{name}_fpr", flag))
        half = "balanced_accuracy_at_half"
        return cls(
            auc=read_figure(entries, "auc"),
            auc_standard_error=entries.get("auc_standard_error", number),
            balanced_accuracy=read_figure(entries, "balanced_accuracy"),
            tpr_at=rates,
            members=entries.get("members", integer),
            nonmembers=entries.get("nonmembers", integer),
            undefined=entries.get_or("undefined", integer, 0),
            balanced_accuracy_at_half=read_figure(entries, half) if half in entries else None,
            reason=entries.get_or("reason", optional_text, None),
        )


@dataclass
class ThresholdFigures:
    """One score's verdicts by fixed thresholds, one a class, on one model in one comparison.

    Attributes:
        balanced_accuracy: (1 + tpr - fpr) / 2, 0 to 1; the thresholds were chosen on the original model.
        tpr, fpr: shares of the members and of the non-members that are called members, 0 to 1.
        members, nonmembers: samples on each side.
        reason: why there are no figures; all numbers are NaN then, and the counts are 0.
    """

    balanced_accuracy: Figure
    tpr: Figure
    fpr: Figure
    members: int = 0
    nonmembers: int = 0
    reason: str | None = None

    @classmethod
    def without(cls, reason: str) -> ThresholdFigures:
        """No figures, and why."""
        return cls(Figure(math.nan), Figure(math.nan), Figure(math.nan), reason=reason)

    def to_dict(self) -> dict[str, Any]:
        figures = {"balanced_accuracy": self.balanced_accuracy, "tpr": self.tpr, "fpr": self.fpr}
        entries: dict[str, Any] = {name: figure.value for name, figure in figures.items()}
        if self.reason is None:
            entries |= {"members": self.members, "nonmembers": self.nonmembers}
            for name, figure in figures.items():
                entries |= with_interval(name, figure)
        return entries | {"reason": self.reason}

    @classmethod
    def from_dict(cls, value: Any, where: str = "class thresholds") -> ThresholdFigures:
        entries = Fields(value, where)
        return cls(
            balanced_accuracy=read_figure(entries, "balanced_accuracy"),
            tpr=read_figure(entries, "tpr"),
            fpr=read_figure(entries, "fpr"),
            members=entries.get_or("members", integer, 0),
            nonmembers=entries.get_or("nonmembers", integer, 0),
            reason=entries.get_or("reason", optional_text, None),
        )


def with_interval(name: str, figure: Figure) -> dict[str, Interval]:
    """The entry of a figure's interval, where it has one."""
    return {} if figure.interval is None else {f"{name}_interval": figure.interval}


def read_figure(entries: Fields, name: str) -> Figure:
    """A figure that stands as a number, with its interval in an entry of its own."""
    return Figure(entries.get(name, number), entries.get_or(f"{name}_interval", interval, None))
