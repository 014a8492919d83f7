"""The verdict: a stated rule on how near a model is to one retrained without the forget set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .measure.weights import head

ORDER = ("PASS", "PARTIAL", "FAIL")
ACCURACY = 0.02
ATTACK = 0.05
UTILITY = 0.02
LOST = 0.10
ODDS = 5.0  # of 54 pairs of models retrained from different seeds the farthest apart were at 4.0, 3.4 and 2.8
JUDGED_BY = {"loss": "loss-attack", "lira": "LiRA"}  # LiRA, the stronger, where shadow models were given
STILL = 0.01  # of the retrained model's own distance from the original, outside the last layer
POWERLESS = "these checks can't tell the original from the retrained model"
Finding = tuple[str, str]

RULE = (
    "Each model is compared with the one retrained without the forget set. "
    "Forgetting: its accuracy on the forget set (and on test samples of classes that the retain set lacks) must be within "
    f"{100 * ACCURACY:.0f} points of the retrained model's, and the AUC of the loss attack (and of LiRA where shadow models were given), "
    f"forget against test, within {ATTACK}, or each within two standard errors of a difference where the sets are small; but never wider "
    "than half of the gap between the original and the retrained model, where the original lies outside. A gap beyond that is PARTIAL, and "
    "FAIL where "
    "more than half of the way from the original to the retrained model is still missing. "
    "Weights: FAIL where they are those of the original, where only the last layer was changed though retraining changes the "
    f"others too, and, for whole classes, where the layers below the last moved less than {100 * STILL:.0f} % as far as retraining "
    "moves them. "
    "Knowledge below the answers, for whole classes: if the AUC by which its logit tells a forgotten class from the kept ones is "
    "higher than the retrained model's by more than three standard errors and its odds, AUC / (1 - AUC), more than "
    f"{ODDS:g} times as high, at most PARTIAL. "
    "Power: if the original itself lies within the tolerance in every figure of forgetting, at most PARTIAL, since a model that "
    "forgot nothing could pass; the same without an original. "
    "Use: test accuracy on the kept classes may lie up to "
    f"{100 * UTILITY:.0f} points (or two standard errors of a difference) under the retrained model's; up to {100 * LOST:.0f} points is "
    "PARTIAL, more is FAIL. "
    "The worst finding decides; if a control that must not pass does, the whole is at most PARTIAL. "
    "Without a retrained model there is NO REFERENCE and no verdict. "
    "This is evidence from measurements on these samples, not a proof or a privacy guarantee."
)


def judge(row: dict[str, Any], original: dict[str, Any] | None, retrained: dict[str, Any] | None) -> tuple[str, list[str]]:
    """Status and reasons of one model's row."""
    if retrained is None:
        return "NO REFERENCE", ['no model named "retrained" was given; the figures have nothing to be measured against']
    findings = _weights(row, retrained)
    for check in _checks(retrained):
        value = check.of(original) if original else math.nan
        findings.append(_near(check, check.of(row), check.of(retrained), value))
    findings += _knowledge(row, retrained)
    if row is not retrained:
        findings += _power(original, retrained)
    findings.append(_use(row["accuracy"]["test_retain"], retrained))
    worst = max((status for status, _ in findings), key=ORDER.index)
    return worst, [f"{status}: {text}" for status, text in findings]


class Check(NamedTuple):
    """One figure that must come near the retrained model's."""

    label: str
    keys: tuple[str, ...]
    tolerance: float
    show: Callable[[float], str]

    def of(self, row: dict[str, Any]) -> float:
        value: Any = row
        for key in self.keys:
            value = value[key]
        return value


def _checks(retrained: dict[str, Any]) -> list[Check]:
    sets = {"forget": "accuracy on the forget set"}
    # Where the request is class-wise, unseen samples of the forgotten classes must be lost as well.
    if retrained["class_wise"] and not math.isnan(retrained["accuracy"]["test_forget"]):
        sets["test_forget"] = "test accuracy on the forgotten classes"
    checks = [Check(label, ("accuracy", name), max(ACCURACY, _chance(_error(retrained, name))), percent) for name, label in sets.items()]
    for attack, name in JUDGED_BY.items():
        figures = retrained["attacks"]["forget_vs_test"].get(attack)
        if figures is None or math.isnan(figures["auc"]):
            continue
        label, keys = f"{name} AUC, forget set against unseen samples", ("attacks", "forget_vs_test", attack, "auc")
        checks.append(Check(label, keys, max(ATTACK, _chance(figures["auc_standard_error"])), plain))
    return checks


def _chance(error: float) -> float:
    """Two standard errors of a difference: two models retrained from different seeds were measured to differ about as much as two draws
    of the samples."""
    return 2 * math.sqrt(2) * error


def _error(row: dict[str, Any], name: str) -> float:
    accuracy, count = row["accuracy"][name], row["counts"][name]
    return math.sqrt(accuracy * (1 - accuracy) / count) if count else 0.0


def _near(check: Check, mine: float, reference: float, original: float) -> tuple[str, str]:
    gap, way, show = mine - reference, original - reference, check.show
    # A model that passes must have gone at least half of the way.
    tolerance = min(check.tolerance, abs(way) / 2) if abs(way) > check.tolerance else check.tolerance
    text = f"{check.label} {show(mine)}, retrained {show(reference)}, tolerance {show(tolerance)}"
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


def _weights(row: dict[str, Any], retrained: dict[str, Any]) -> list[Finding]:
    """What the weights alone say: untouched, or touched in the last layer only."""
    moved = row["weight_distance"].get("original")
    if moved is None or moved["reason"]:
        return []
    if moved["identical"]:
        return [("FAIL", "the weights are those of the original model: nothing was forgotten")]
    last = head([(layer["layer"], layer["rows"]) for layer in moved["layers"]], len(row["forget_predictions"]))
    last = last or moved["layers"][-1]["layer"]
    below = {layer["layer"]: layer["l2"] for layer in moved["layers"] if layer["layer"].partition(".parametrizations")[0] != last}
    # Where retraining leaves these layers alone as well (a frozen backbone), they hold nothing of the forget set.
    usual = _moved_by_retraining(retrained, list(below))
    if not below or usual == 0:
        return []
    distance = math.hypot(*below.values())
    if distance == 0:
        text = f"only the last layer ({last}) was changed: the representation is still that of a model trained on the forget set"
        return [("FAIL", text)]
    if row["class_wise"] and distance <= STILL * usual:
        text = f"below the last layer ({last}) the weights moved {100 * distance / usual:.2g} % as far as retraining moves them"
        return [("FAIL", f"{text}: the representation is still that of a model trained on the forget set")]
    return []


def _moved_by_retraining(retrained: dict[str, Any], layers: list[str]) -> float:
    """How far these layers of the retrained model lie from the original's; infinite where the two can't be compared."""
    found = retrained["weight_distance"].get("original")
    if found is None or found["reason"]:
        return math.inf
    return math.hypot(*(layer["l2"] for layer in found["layers"] if layer["layer"] in layers))


def _knowledge(row: dict[str, Any], retrained: dict[str, Any]) -> list[Finding]:
    """Whether a forgotten class can be told by its logit, however low that logit was pushed."""
    mine, reference = (_told_by_logit(r) for r in (row, retrained))
    if math.isnan(mine) or math.isnan(reference):
        return []
    classes = max(1, len(retrained["probes"]["class_logit_auc"].get("by_class", {})))
    allowed = _highest(reference, retrained["counts"]["test_forget"] / classes, retrained["counts"]["test_retain"])
    text = f"AUC by which its logit tells a forgotten class from the kept ones {plain(mine)}, retrained {plain(reference)}"
    text += f", at most {plain(allowed)}"
    if mine <= allowed:
        return [("PASS", text)]
    return [("PARTIAL", f"{text}: the answers are gone, but the model still recognises the class")]


def _told_by_logit(row: dict[str, Any]) -> float:
    value = row.get("probes", {}).get("class_logit_auc", {}).get("value")
    return math.nan if value is None else value


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


def _power(original: dict[str, Any] | None, retrained: dict[str, Any]) -> list[Finding]:
    """PARTIAL where a model that forgot nothing could pass as well."""
    if original is None:
        return [("PARTIAL", "no original model was given: nothing shows that these checks can tell it from the retrained model")]
    if any(abs(check.of(original) - check.of(retrained)) > check.tolerance for check in _checks(retrained)):
        return []
    text = f"{POWERLESS}: every figure of forgetting is within its tolerance"
    return [("PARTIAL", f"{text} for both, so a model that forgot nothing could pass")]


def _use(mine: float, retrained: dict[str, Any]) -> tuple[str, str]:
    reference, error = retrained["accuracy"]["test_retain"], _error(retrained, "test_retain")
    drop = reference - mine
    if math.isnan(drop):
        return "PARTIAL", "the test set has no sample of the kept classes, so the loss of use can't be judged"
    status = "PASS" if drop <= max(UTILITY, _chance(error)) else "PARTIAL" if drop <= LOST else "FAIL"
    text = f"test accuracy on the kept classes {percent(mine)}, retrained {percent(reference)}"
    return status, f"{text}: {100 * drop:.1f} points lost" if drop > 0 else f"{text}: nothing lost"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def plain(value: float) -> str:
    return f"{value:.3f}"


def overall(statuses: list[str], *, trusted: bool = True) -> str:
    """The worst of the judged models' statuses; at most PARTIAL where a control misbehaved."""
    if not statuses:
        return "NOTHING TO JUDGE"
    if "NO REFERENCE" in statuses:
        return "NO REFERENCE"
    worst = max(statuses, key=ORDER.index)
    return worst if trusted or worst != "PASS" else "PARTIAL"
