"""The rule of the first receipts, kept as it was: what was judged by it is judged again by it, whatever today's rule asks.

Nothing here follows ``verdict.py``'s changes. That is its point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..controls import behaviour, distrust
from ..figures import FORGET, ORIGINAL, RETRAINED, ClassProbe, ModelRow
from ..measure.weights import head
from ..verdict import Judgement

# sha256 of the words in which receipts state this rule.
WORDS = frozenset(
    (
        "ece0c2ed59e9afb6326b1ab26513f856402b15630cb13b9d5caf4033049a4671",
        "16b3caebcaeb7720550539581090bad172838bb2caaeb26242f63dcc59f1fdf3",
    )
)
ORDER = ("PASS", "PARTIAL", "FAIL")
NO_REFERENCE = "NO REFERENCE"
ACCURACY = 0.02
ATTACK = 0.05
UTILITY = 0.02
LOST = 0.10
ODDS = 5.0  # of 54 pairs of models retrained from different seeds the farthest apart were at 4.0, 3.4 and 2.8
JUDGED_BY = {"loss": "loss-attack", "lira": "LiRA"}  # LiRA, the stronger, where shadow models were given
STILL = 0.01  # of the retrained model's own distance from the original, outside the last layer
POWERLESS = "these checks can't tell the original from the retrained model"
Finding = tuple[str, str]


class Case(NamedTuple):
    """One model, and the two that it is judged by."""

    row: ModelRow
    original: ModelRow | None
    retrained: ModelRow


def check_weights(case: Case) -> list[Finding]:
    """Untouched, or touched in the last layer only."""
    row, moved = case.row, case.row.weight_distance.get(ORIGINAL)
    if moved is None or moved.reason:
        return []
    if moved.identical:
        return [("FAIL", "the weights are those of the original model: nothing was forgotten")]
    last = head([(layer.layer, layer.rows) for layer in moved.layers], len(row.forget_predictions)) or moved.layers[-1].layer
    below = {layer.layer: layer.l2 for layer in moved.layers if layer.layer.partition(".parametrizations")[0] != last}
    # Where retraining leaves these layers alone as well (a frozen backbone), they hold nothing of the forget set.
    usual = _moved_by_retraining(case.retrained, list(below))
    if not below or usual == 0:
        return []
    distance = math.hypot(*below.values())
    if distance == 0:
        text = f"only the last layer ({last}) was changed: the representation is still that of a model trained on the forget set"
        return [("FAIL", text)]
    if row.class_wise and distance <= STILL * usual:
        text = f"below the last layer ({last}) the weights moved {100 * distance / usual:.2g} % as far as retraining moves them"
        return [("FAIL", f"{text}: the representation is still that of a model trained on the forget set")]
    return []


def _moved_by_retraining(retrained: ModelRow, layers: list[str]) -> float:
    """How far these layers of the retrained model lie from the original's; infinite where the two can't be compared."""
    moved = retrained.weight_distance.get(ORIGINAL)
    if moved is None or moved.reason:
        return math.inf
    return math.hypot(*(layer.l2 for layer in moved.layers if layer.layer in layers))


class Near(NamedTuple):
    """One figure that must come near the retrained model's."""

    label: str
    value_of: Callable[[ModelRow], float]
    tolerance: float
    show: Callable[[float], str]


def check_forgetting(case: Case) -> list[Finding]:
    """Each figure of forgetting within its tolerance of the retrained model's."""
    findings = []
    for near in _figures_of_forgetting(case.retrained):
        original = near.value_of(case.original) if case.original else math.nan
        findings.append(_compare(near, near.value_of(case.row), near.value_of(case.retrained), original))
    return findings


def _figures_of_forgetting(retrained: ModelRow) -> list[Near]:
    parts = {"forget": "accuracy on the forget set"}
    # Where the request is class-wise, unseen samples of the forgotten classes must be lost as well.
    if retrained.class_wise and retrained.accuracy["test_forget"].known:
        parts["test_forget"] = "test accuracy on the forgotten classes"
    figures = [Near(label, _accuracy(part), max(ACCURACY, _chance(_error(retrained, part))), percent) for part, label in parts.items()]
    for attack, name in JUDGED_BY.items():
        measured = retrained.attacks[FORGET].get(attack)
        if measured is not None and measured.auc.known:
            tolerance = max(ATTACK, _chance(measured.auc_standard_error))
            figures.append(Near(f"{name} AUC, forget set against unseen samples", _auc(attack), tolerance, plain))
    return figures


def _accuracy(part: str) -> Callable[[ModelRow], float]:
    return lambda row: row.accuracy[part].value


def _auc(attack: str) -> Callable[[ModelRow], float]:
    return lambda row: row.attacks[FORGET][attack].auc.value


def _compare(near: Near, value: float, reference: float, original: float) -> Finding:
    gap, way, show = value - reference, original - reference, near.show
    # A model that passes must have gone at least half of the way.
    tolerance = min(near.tolerance, abs(way) / 2) if abs(way) > near.tolerance else near.tolerance
    text = f"{near.label} {show(value)}, retrained {show(reference)}, tolerance {show(tolerance)}"
    if abs(gap) <= tolerance:
        return "PASS", text
    if math.isnan(original):
        return "FAIL", f"{text}; no original model was given to show that any of the way is gone"
    if gap * way > 0:
        left = gap / way
        missing = f"{text}; original {show(original)}, {100 * left:.0f} % of the way is missing"
        return "FAIL" if left > 0.5 else "PARTIAL", missing
    past = f"{text}; original {show(original)}: past the retrained model, so the forgotten samples stand out"
    return "PARTIAL", past


def check_knowledge(case: Case) -> list[Finding]:
    """Whether a forgotten class can be told by its logit, however low that logit was pushed."""
    value, reference = (_told_by_logit(row) for row in (case.row, case.retrained))
    if math.isnan(value) or math.isnan(reference):
        return []
    counts, probe = case.retrained.counts, case.retrained.probes["class_logit_auc"]
    classes = max(1, len(probe.by_class) if isinstance(probe, ClassProbe) else 0)
    allowed = _highest(reference, counts["test_forget"] / classes, counts["test_retain"])
    text = f"AUC by which its logit tells a forgotten class from the kept ones {plain(value)}, retrained {plain(reference)}"
    text += f", at most {plain(allowed)}"
    if value <= allowed:
        return [("PASS", text)]
    return [("PARTIAL", f"{text}: the answers are gone, but the model still recognises the class")]


def _told_by_logit(row: ModelRow) -> float:
    probe = row.probes.get("class_logit_auc")
    return probe.value if probe is not None else math.nan


def _highest(auc: float, members: float, others: float) -> float:
    """What chance allows another model that never saw the class: on the log-odds scale, which doesn't end at 1, three standard
    errors (Hanley & McNeil, Radiology 143, 1982) or a factor of ODDS.

    >>> [round(_highest(auc, 100, 900), 3) for auc in (0.7, 0.9, 0.98)]
    [0.921, 0.978, 0.996]
    """
    if not 0 < auc < 1:
        return 1.0
    one, two = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    error = math.sqrt((auc * (1 - auc) + (members - 1) * one + (others - 1) * two) / (members * others))
    factor = max(ODDS, math.exp(min(3 * error / (auc * (1 - auc)), 700)))
    return auc * factor / (1 - auc + auc * factor)


def check_power(case: Case) -> list[Finding]:
    """PARTIAL where a model that forgot nothing could pass as well; not asked of the retrained model itself."""
    original, retrained = case.original, case.retrained
    if case.row is retrained:
        return []
    if original is None:
        return [("PARTIAL", "no original model was given: nothing shows that these checks can tell it from the retrained model")]
    if any(abs(near.value_of(original) - near.value_of(retrained)) > near.tolerance for near in _figures_of_forgetting(retrained)):
        return []
    text = f"{POWERLESS}: every figure of forgetting is within its tolerance"
    return [("PARTIAL", f"{text} for both, so a model that forgot nothing could pass")]


def check_use(case: Case) -> list[Finding]:
    """How much of the accuracy on the kept classes was lost."""
    value, reference = case.row.accuracy["test_retain"].value, case.retrained.accuracy["test_retain"].value
    drop = reference - value
    if math.isnan(drop):
        return [("PARTIAL", "the test set has no sample of the kept classes, so the loss of use can't be judged")]
    allowed = max(UTILITY, _chance(_error(case.retrained, "test_retain")))
    status = "PASS" if drop <= allowed else "PARTIAL" if drop <= LOST else "FAIL"
    text = f"test accuracy on the kept classes {percent(value)}, retrained {percent(reference)}"
    return [(status, f"{text}: {100 * drop:.1f} points lost" if drop > 0 else f"{text}: nothing lost")]


def _chance(error: float) -> float:
    """Two standard errors of a difference: two models retrained from different seeds were measured to differ about as much as two draws
    of the samples."""
    return 2 * math.sqrt(2) * error


def _error(row: ModelRow, part: str) -> float:
    accuracy, count = row.accuracy[part].value, row.counts[part]
    return math.sqrt(accuracy * (1 - accuracy) / count) if count else 0.0


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def plain(value: float) -> str:
    return f"{value:.3f}"


def judge(row: ModelRow, original: ModelRow | None, retrained: ModelRow | None) -> tuple[str, list[str]]:
    """Status and reasons of one model."""
    if retrained is None:
        return NO_REFERENCE, ['no model named "retrained" was given; the figures have nothing to be measured against']
    case = Case(row, original, retrained)
    findings = [finding for check in CHECKS for finding in check(case)]
    worst = max((status for status, _ in findings), key=ORDER.index)
    return worst, [f"{status}: {text}" for status, text in findings]


def overall(statuses: list[str], *, trusted: bool = True) -> str:
    """The worst of the judged models' statuses; at most PARTIAL where a control misbehaved."""
    if not statuses:
        return "NOTHING TO JUDGE"
    if NO_REFERENCE in statuses:
        return NO_REFERENCE
    worst = max(statuses, key=ORDER.index)
    return worst if trusted or worst != "PASS" else "PARTIAL"


CHECKS = (check_weights, check_forgetting, check_knowledge, check_power, check_use)


def judge_all(rows: list[ModelRow]) -> Judgement:
    """Judges every row, controls included, beside the ones named "original" and "retrained"."""
    by_name = {row.model: row for row in rows}
    original, retrained = by_name.get(ORIGINAL), by_name.get(RETRAINED)
    verdicts = [judge(row, original, retrained) for row in rows]
    judged = [replace(row, status=status, reasons=reasons) for row, (status, reasons) in zip(rows, verdicts, strict=True)]
    controls = behaviour([row for row in judged if row.control], {row.model: row for row in judged}.get(RETRAINED))
    warnings = distrust(controls)
    asked = [row for row in judged if not row.control and row.model not in (ORIGINAL, RETRAINED)]
    whole = overall([row.status for row in asked] if retrained else [NO_REFERENCE], trusted=not warnings)
    return Judgement(whole, [*warnings, *(f"{row.model}: {reason}" for row in asked for reason in row.reasons)], judged, controls)
