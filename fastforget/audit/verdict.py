"""The verdict: a stated rule on how near a model is to one retrained without the forget set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

ORDER = ("PASS", "PARTIAL", "FAIL")
ACCURACY = 0.02
ATTACK = 0.05
UTILITY = 0.02
LOST = 0.10

RULE = (
    "Each model is compared with the one retrained without the forget set. Forgetting: its accuracy on "
    "the forget set (and on test samples of classes that the retain set lacks) must be within "
    f"{100 * ACCURACY:.0f} points of the retrained model's, and the loss attack's AUC, forget against "
    f"test, within {ATTACK}; each tolerance widens to two standard errors where the sets are small. A gap "
    "beyond that is PARTIAL, and FAIL where more than half of the way from the original to the retrained "
    "model is still missing, or where the weights are those of the original. Use: test accuracy on the "
    f"kept classes may lie up to {100 * UTILITY:.0f} points under the retrained model's; up to "
    f"{100 * LOST:.0f} points is PARTIAL, more is FAIL. The worst finding decides. Without a retrained "
    "model there is NO REFERENCE and no verdict. This is evidence from measurements on these samples, not "
    "a proof or a privacy guarantee."
)


def judge(row: dict[str, Any], original: dict[str, Any] | None, retrained: dict[str, Any] | None) -> tuple[str, list[str]]:
    """Status and reasons of one model's row."""
    if retrained is None:
        return "NO REFERENCE", ['no model named "retrained" was given; the figures have nothing to be measured against']
    findings: list[tuple[str, str]] = []
    if original is not None and row is not original and row["weight_distance"].get("original", {}).get("identical"):
        findings.append(("FAIL", "the weights are those of the original model: nothing was forgotten"))
    for check in _checks(retrained):
        value = check.of(original) if original else math.nan
        findings.append(_near(check, check.of(row), check.of(retrained), value))
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
    checks = [Check(label, ("accuracy", name), max(ACCURACY, 2 * _error(retrained, name)), percent) for name, label in sets.items()]
    duel = ("attacks", "forget_vs_test", "loss")
    error = retrained["attacks"]["forget_vs_test"]["loss"]["auc_standard_error"]
    label = "loss-attack AUC, forget set against unseen samples"
    return [*checks, Check(label, (*duel, "auc"), max(ATTACK, 2 * error), plain)]


def _error(row: dict[str, Any], name: str) -> float:
    accuracy, count = row["accuracy"][name], row["counts"][name]
    return math.sqrt(accuracy * (1 - accuracy) / count) if count else 0.0


def _near(check: Check, mine: float, reference: float, original: float) -> tuple[str, str]:
    gap, tolerance, show = mine - reference, check.tolerance, check.show
    text = f"{check.label} {show(mine)}, retrained {show(reference)}, tolerance {show(tolerance)}"
    if abs(gap) <= tolerance:
        return "PASS", text
    if math.isnan(original):
        return "FAIL", f"{text}; no original model was given to show that any of the way is gone"
    way = original - reference
    if gap * way > 0:
        left = gap / way
        missing = f"{text}; original {show(original)}, {100 * left:.0f} % of the way is missing"
        return "FAIL" if left > 0.5 else "PARTIAL", missing
    past = f"{text}; original {show(original)}: past the retrained model, so the forgotten samples stand out"
    return "PARTIAL", past


def _use(mine: float, retrained: dict[str, Any]) -> tuple[str, str]:
    reference, error = retrained["accuracy"]["test_retain"], _error(retrained, "test_retain")
    drop = reference - mine
    if math.isnan(drop):
        return "PARTIAL", "the test set has no sample of the kept classes, so the loss of use can't be judged"
    status = "PASS" if drop <= max(UTILITY, 2 * error) else "PARTIAL" if drop <= LOST else "FAIL"
    text = f"test accuracy on the kept classes {percent(mine)}, retrained {percent(reference)}"
    return status, f"{text}: {100 * drop:.1f} points lost" if drop > 0 else f"{text}: nothing lost"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def plain(value: float) -> str:
    return f"{value:.3f}"


def overall(statuses: list[str]) -> str:
    """The worst of the judged models' statuses."""
    if not statuses:
        return "NOTHING TO JUDGE"
    if "NO REFERENCE" in statuses:
        return "NO REFERENCE"
    return max(statuses, key=ORDER.index)
