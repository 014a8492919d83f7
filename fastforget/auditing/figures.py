"""What an audit measures, written once: the figures of a model, what they mean, and how they stand in reports and receipts.

``to_dict`` gives the entries of ``AuditReport.rows``, of the JSON report and of receipts (schema/figures.json describes them), where a
figure is a number and its interval a second entry beside it. ``from_dict`` reads them back: entries that an older file lacks become NaN
or empty, entries of a newer one are left alone, and an error names the entry by its path in the file. JSON has null for NaN and infinity;
both are read as NaN.

Accuracies, shares and AUCs are from 0 to 1, losses and divergences in nats. Of sequences of a language model a sample is a sequence, its
accuracy the share of its tokens that are answered right, its loss their mean. Sets are called "forget", "retain" and "test"; the parts of
an accuracy are these and "test_forget" and "test_retain", the test samples of the forgotten and of the kept classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .fields import Fields, by_class, by_name, flag, integer, interval, listed, number, optional_text, text
from .figures_attack import FORGET, FPRS, RETAIN, AttackFigures, Figure, Interval, RateAtFpr, ThresholdFigures
from .figures_below import Below
from .figures_sequences import SequenceFigures
from .figures_weights import LayerDistance, WeightDistance

__all__ = [
    "FORGET",
    "FPRS",
    "ORIGINAL",
    "RETAIN",
    "RETRAINED",
    "AttackFigures",
    "AuditFigures",
    "Below",
    "ClassProbe",
    "ControlOutcome",
    "ExposedSample",
    "Figure",
    "Interval",
    "LayerDistance",
    "ModelRow",
    "OracleRate",
    "Probe",
    "RateAtFpr",
    "RelearnProbe",
    "SequenceFigures",
    "ThresholdFigures",
    "WeightDistance",
    "is_reference",
]

ORIGINAL, RETRAINED = "original", "retrained"
"""The names of the two models that all others stand between."""


def is_reference(model: str) -> bool:
    """Whether a model is named as a retrained one: "retrained" itself, or one more beside it whose name begins so.

    >>> [is_reference(name) for name in ("retrained", "retrained, seed 2", "unlearned")]
    [True, True, False]
    """
    return model.startswith(RETRAINED)


@dataclass
class Probe(Figure):
    """A figure beside the attacks, such as a divergence from the retrained model; ``convention`` says what it is and in which unit."""

    convention: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": self.interval, "convention": self.convention, "reason": self.reason}

    @staticmethod
    def from_dict(value: Any, where: str = "probe") -> Probe:
        entries = Fields(value, where)
        common = (
            entries.get("value", number),
            entries.get_or("interval", interval, None),
            entries.get_or("reason", optional_text, None),
            entries.get_or("convention", text, ""),
        )
        if "by_class" in entries:
            worst = entries.get("worst_class", integer) if "worst_class" in entries else None
            return ClassProbe(*common, by_class=entries.get("by_class", by_class(number)), worst_class=worst)
        if "unit" in entries:
            unit, reached = entries.get("unit", text), entries.get("reached", flag)
            return RelearnProbe(*common, unit=unit, reached=reached, trace=entries.get_or("trace", listed(number), []))
        return Probe(*common)


@dataclass
class ClassProbe(Probe):
    """A probe of each forgotten class; ``value`` is that of ``worst_class``, the largest (None where there is no value)."""

    by_class: dict[int, float] = field(default_factory=dict)
    worst_class: int | None = None

    def to_dict(self) -> dict[str, Any]:
        worst = {} if self.worst_class is None else {"worst_class": self.worst_class}
        return super().to_dict() | {"by_class": self.by_class} | worst


@dataclass
class RelearnProbe(Probe):
    """A relearn time: ``value`` is a count of ``unit`` ("epochs" or "batches"); where it was not ``reached``, of the cap. ``trace`` is the
    forget set's accuracy (or mean loss) before the training and after each step of the count."""

    unit: str = ""
    reached: bool = True
    trace: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"unit": self.unit, "reached": self.reached, "trace": self.trace}


@dataclass
class OracleRate:
    """The forgetting rate by a further membership oracle (its ``reason`` says why there is none), and how many forget samples that oracle
    calls ``members`` on this model."""

    rate: Figure
    members: int

    def to_dict(self) -> dict[str, Any]:
        return {"rate": self.rate.value, "members": self.members, "reason": self.rate.reason}

    @classmethod
    def from_dict(cls, value: Any, where: str = "forgetting rate") -> OracleRate:
        entries = Fields(value, where)
        reason = entries.get_or("reason", optional_text, None)
        return cls(Figure(entries.get("rate", number), reason=reason), entries.get("members", integer))


@dataclass
class ExposedSample:
    """A forget sample that a model gives away: its place in the forget set, its class (a sequence has none), its member score on each
    model."""

    index: int
    label: int | None
    score: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"index": self.index, "label": self.label, "score": self.score}

    @classmethod
    def from_dict(cls, value: Any, where: str = "exposed sample") -> ExposedSample:
        entries = Fields(value, where)
        label = None if entries.entries.get("label") is None else entries.get("label", integer)
        return cls(entries.get("index", integer), label, entries.get("score", by_name(number)))


@dataclass
class ControlOutcome:
    """What the rule says of a control, and whether it is what that control must get; None where nothing could be judged."""

    status: str
    behaved: bool | None

    def to_dict(self) -> dict[str, Any]:
        return {"status": self.status, "behaved": self.behaved}

    @classmethod
    def from_dict(cls, value: Any, where: str = "control") -> ControlOutcome:
        entries = Fields(value, where)
        return cls(entries.get("status", text), None if entries.entries.get("behaved") is None else entries.get("behaved", flag))


@dataclass(kw_only=True)
class ModelRow:
    """Everything that was measured of one model, and what the rule says of it.

    Attributes:
        model: its name.
        class_wise: whether whole classes were forgotten (the retain set lacks them).
        accuracy: by part; a share of the part's samples whose largest logit is the label's.
        counts: samples by part.
        class_accuracy: by set and class.
        mean_loss: by set; cross-entropy.
        forget_predictions: how many forget samples are answered with each class, [classes].
        forget_prediction_spread: exp(entropy) of these counts' shares, from 1 (one class takes all) to the number of classes.
        attacks: by comparison (:data:`FORGET`, :data:`RETAIN`) and attack.
        weight_distance: from the model of that name, "original" and "retrained".
        probes: by name.
        class_thresholds: by comparison and score.
        forgetting_rate: share of the forget samples that the oracle recognised as members before and no longer does; at most 1.
        forgetting_rates: the same by further oracles, by their names.
        oracle_members: shares that the oracle calls members, of the forget set ("forget") and of unseen samples of the same classes
            ("unseen").
        below: the figures below the answers; None where there is no original model, of sequences, or in an older file.
        sequences: what the means over sequences rest on; None of a classifier.
        with_intervals: whether intervals were asked for.
        status, reasons: what the rule says: "PASS", "PARTIAL", "FAIL" or "NO REFERENCE", and a reason for each check.
        control: whether it is a control, of which it is known what it must get.
    """

    model: str
    class_wise: bool
    accuracy: dict[str, Figure]
    counts: dict[str, int]
    class_accuracy: dict[str, dict[int, float]] = field(default_factory=dict)
    mean_loss: dict[str, Figure] = field(default_factory=dict)
    forget_predictions: list[int]
    forget_prediction_spread: float = math.nan
    attacks: dict[str, dict[str, AttackFigures]]
    weight_distance: dict[str, WeightDistance] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    class_thresholds: dict[str, dict[str, ThresholdFigures]] = field(default_factory=dict)
    forgetting_rate: Figure = field(default_factory=lambda: Figure(math.nan))
    forgetting_rates: dict[str, OracleRate] = field(default_factory=dict)
    oracle_members: dict[str, Figure] = field(default_factory=dict)
    below: Below | None = None
    sequences: SequenceFigures | None = None
    with_intervals: bool = False
    status: str = ""
    reasons: list[str] = field(default_factory=list)
    control: bool = False

    def accuracy_error(self, part: str) -> float:
        """Standard error of an accuracy; 0 where nothing is known of it."""
        if self.sequences is not None:
            error = self.sequences.accuracy_error.get(part, math.nan)
            return 0.0 if math.isnan(error) else error
        accuracy, count = self.accuracy[part].value, self.counts[part]
        return math.sqrt(accuracy * (1 - accuracy) / count) if count else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order in which the files hold them; NaN stays NaN."""
        ranged = self.with_intervals
        losses = {"mean_loss_intervals": _intervals(self.mean_loss), "accuracy_intervals": _intervals(self.accuracy)}
        members = {"oracle_members_intervals": _intervals(self.oracle_members)}
        return {
            "model": self.model,
            "class_wise": self.class_wise,
            "accuracy": _values(self.accuracy),
            "counts": dict(self.counts),
            "class_accuracy": {name: dict(accuracies) for name, accuracies in self.class_accuracy.items()},
            "mean_loss": _values(self.mean_loss),
            "forget_predictions": list(self.forget_predictions),
            "forget_prediction_spread": self.forget_prediction_spread,
            "attacks": {name: _written(attacks) for name, attacks in self.attacks.items()},
            **(losses if ranged else {}),
            "weight_distance": _written(self.weight_distance),
            "probes": _written(self.probes),
            "class_thresholds": {name: _written(thresholds) for name, thresholds in self.class_thresholds.items()},
            "forgetting_rate": self.forgetting_rate.value,
            "forgetting_rate_reason": self.forgetting_rate.reason,
            "forgetting_rates": _written(self.forgetting_rates),
            "oracle_members": _values(self.oracle_members),
            **({"forgetting_rate_interval": self.forgetting_rate.interval} | members if ranged else {}),
            **({} if self.below is None else {"below": self.below.to_dict()}),
            **({} if self.sequences is None else {"sequences": self.sequences.to_dict()}),
            "status": self.status,
            "reasons": list(self.reasons),
            "control": self.control,
        }

    @classmethod
    def from_dict(cls, value: Any, where: str = "row") -> ModelRow:
        """Reads :meth:`to_dict`'s values, also from a file of an older version.

        Raises:
            ValueError: an entry is missing or of another kind; the message begins with its path, such as "rows[1].accuracy.forget".
        """
        entries = Fields(value, where)
        rate = Figure(
            entries.get_or("forgetting_rate", number, math.nan),
            entries.get_or("forgetting_rate_interval", interval, None),
            entries.get_or("forgetting_rate_reason", optional_text, None),
        )
        return cls(
            model=entries.get("model", text),
            class_wise=entries.get("class_wise", flag),
            accuracy=_figures(entries, "accuracy", "accuracy_intervals"),
            counts=entries.get("counts", by_name(integer)),
            class_accuracy=entries.get_or("class_accuracy", by_name(by_class(number)), {}),
            mean_loss=_figures(entries, "mean_loss", "mean_loss_intervals"),
            forget_predictions=entries.get("forget_predictions", listed(integer)),
            forget_prediction_spread=entries.get_or("forget_prediction_spread", number, math.nan),
            attacks=entries.get("attacks", by_name(by_name(AttackFigures.from_dict))),
            weight_distance=entries.get_or("weight_distance", by_name(WeightDistance.from_dict), {}),
            probes=entries.get_or("probes", by_name(Probe.from_dict), {}),
            class_thresholds=entries.get_or("class_thresholds", by_name(by_name(ThresholdFigures.from_dict)), {}),
            forgetting_rate=rate,
            forgetting_rates=entries.get_or("forgetting_rates", by_name(OracleRate.from_dict), {}),
            oracle_members=_figures(entries, "oracle_members", "oracle_members_intervals"),
            below=Below.from_dict(entries.entries["below"], f"{where}.below") if "below" in entries else None,
            sequences=SequenceFigures.from_dict(entries.entries["sequences"], f"{where}.sequences") if "sequences" in entries else None,
            with_intervals="accuracy_intervals" in entries,
            status=entries.get_or("status", text, ""),
            reasons=entries.get_or("reasons", listed(text), []),
            control=entries.get_or("control", flag, False),
        )


@dataclass
class AuditFigures:
    """Everything that one audit measured and judged, as data; :class:`fastforget.auditing.report.AuditReport` writes it and shows it.

    Attributes:
        figures: of each model: the original first and the retrained last.
        verdict: "PASS", "PARTIAL", "FAIL", "NO REFERENCE" or "NOTHING TO JUDGE".
        reasons: why, by the rule in ``settings["rule"]``.
        settings: what the audit was asked, and what it found out about the sets and the models (plain values).
        curves: "roc" by comparison, attack and model; "loss" histograms; "exposed" samples (plain values).
        control_outcomes: by the controls' names, and "retrained" where there are controls.
        control_figures: of each control.
    """

    figures: list[ModelRow]
    verdict: str
    reasons: list[str]
    settings: dict[str, Any]
    curves: dict[str, Any] = field(repr=False, default_factory=dict)
    control_outcomes: dict[str, ControlOutcome] = field(default_factory=dict)
    control_figures: list[ModelRow] = field(repr=False, default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The models' figures written out, one dict each."""
        return [row.to_dict() for row in self.figures]

    @property
    def control_rows(self) -> list[dict[str, Any]]:
        """The controls' figures written out, one dict each."""
        return [row.to_dict() for row in self.control_figures]

    @property
    def controls(self) -> dict[str, dict[str, Any]]:
        """The controls' outcomes written out: ``{name: {"status", "behaved"}}``."""
        return _written(self.control_outcomes)

    def figures_of(self, model: str) -> ModelRow:
        """The figures of one model or control."""
        for row in (*self.figures, *self.control_figures):
            if row.model == model:
                return row
        raise KeyError(f"{model!r} is not among {', '.join(row.model for row in self.figures)}")

    def judged_figures(self) -> list[ModelRow]:
        """The models that the verdict is about: all but the original and the retrained ones."""
        return [row for row in self.figures if row.model != ORIGINAL and not is_reference(row.model)]


def _values(figures: dict[str, Figure]) -> dict[str, float]:
    return {name: figure.value for name, figure in figures.items()}


def _intervals(figures: dict[str, Figure]) -> dict[str, Interval | None]:
    return {name: figure.interval for name, figure in figures.items()}


def _written(entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: entry.to_dict() for name, entry in entries.items()}


def _figures(entries: Fields, name: str, intervals: str) -> dict[str, Figure]:
    """Figures whose values stand in one object and their intervals in another."""
    values: dict[str, float] = entries.get_or(name, by_name(number), {})
    ends: dict[str, Interval | None] = entries.get_or(intervals, by_name(interval), {})
    return {key: Figure(value, ends.get(key)) for key, value in values.items()}
