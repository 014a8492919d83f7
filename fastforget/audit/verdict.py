"""The verdict: a stated rule on how near a model is to one retrained without the forget set."""

from __future__ import annotations

import math
from typing import Any

ORDER = ("PASS", "PARTIAL", "FAIL")
ACCURACY = 0.02
ATTACK = 0.05
UTILITY = 0.02
LOST = 0.10

RULE = (
    "Each model is compared with the one retrained without the forget set. "
    f"Forgetting: its accuracy on the forget set (and on test samples of classes that the retain set lacks) "
    "must be within "
    f"{100 * ACCURACY:.0f} points of the retrained model's, and the loss attack's AUC, forget against test, "
    f"within {ATTACK}; each "
    "tolerance widens to two standard errors where the sets are small. A gap beyond that is PARTIAL, and "
    "FAIL where more than half of "
    "the way from the original to the retrained model is still missing, or where the weights are those of "
    "the original. "
    f"Use: test accuracy on the kept classes may lie up to {100 * UTILITY:.0f} points under the retrained "
    "model's; up to "
    f"{100 * LOST:.0f} points is PARTIAL, more is FAIL. The worst finding decides. Without a retrained "
    "model there is NO REFERENCE and "
    "no verdict. This is evidence from measurements on these samples, not a proof or a privacy guarantee."
)


def judge(
    row: dict[str, Any], original: dict[str, Any] | None, retrained: dict[str, Any] | None
) -> tuple[str, list[str]]:
    """Status and reasons of one model's row."""
    if retrained is None:
        return "NO REFERENCE", [
            'no model named "retrained" was given; the figures have nothing to be measured against'
        ]
    findings: list[tuple[str, str]] = []
    if (
        original is not None
        and row is not original
        and row["weight_distance"].get("original", {}).get("identical")
    ):
        findings.append(("FAIL", "the weights are those of the original model: nothing was forgotten"))
    for label, value, tolerance in _forgetting(retrained):
        findings.append(
            _near(label, value(row), value(retrained), value(original) if original else math.nan, tolerance)
        )
    findings.append(
        _use(
            row["accuracy"]["test_retain"],
            retrained["accuracy"]["test_retain"],
            _error(retrained, "test_retain"),
        )
    )
    worst = max((status for status, _ in findings), key=ORDER.index)
    return worst, [f"{status}: {text}" for status, text in findings]


def _forgetting(retrained: dict[str, Any]) -> list[tuple[str, Any, float]]:
    sets = ["forget"]
    # Where the request is class-wise, unseen samples of the forgotten classes must be lost as well.
    if retrained["class_wise"] and not math.isnan(retrained["accuracy"]["test_forget"]):
        sets.append("test_forget")
    names = {"forget": "accuracy on the forget set", "test_forget": "test accuracy on the forgotten classes"}
    checks: list[tuple[str, Any, float]] = [
        (names[s], lambda row, s=s: row["accuracy"][s], max(ACCURACY, 2 * _error(retrained, s))) for s in sets
    ]
    error = retrained["attacks"]["forget_vs_test"]["loss"]["auc_standard_error"]
    checks.append(
        (
            "loss-attack AUC, forget against test",
            lambda row: row["attacks"]["forget_vs_test"]["loss"]["auc"],
            max(ATTACK, 2 * error),
        )
    )
    return checks


def _error(row: dict[str, Any], name: str) -> float:
    accuracy, count = row["accuracy"][name], row["counts"][name]
    return math.sqrt(accuracy * (1 - accuracy) / count) if count else 0.0


def _near(label: str, mine: float, reference: float, original: float, tolerance: float) -> tuple[str, str]:
    gap = mine - reference
    text = f"{label} {mine:.3f}, retrained {reference:.3f}, tolerance {tolerance:.3f}"
    if abs(gap) <= tolerance:
        return "PASS", text
    if math.isnan(original):
        return "FAIL", f"{text}; no original model was given to show that any of the way is gone"
    way = original - reference
    if gap * way > 0:
        left = gap / way
        return (
            "FAIL" if left > 0.5 else "PARTIAL",
            f"{text}; original {original:.3f}, {100 * left:.0f} % of the way is missing",
        )
    return (
        "PARTIAL",
        f"{text}; original {original:.3f}: past the retrained model, so the forgotten samples stand out",
    )


def _use(mine: float, reference: float, error: float) -> tuple[str, str]:
    drop = reference - mine
    text = f"test accuracy on kept classes {mine:.3f}, retrained {reference:.3f}"
    if math.isnan(drop):
        return (
            "PARTIAL",
            "the test set holds no sample of the kept classes, so the loss of use can't be judged",
        )
    status = "PASS" if drop <= max(UTILITY, 2 * error) else "PARTIAL" if drop <= LOST else "FAIL"
    return status, f"{text}: {100 * drop:.1f} points lost" if drop > 0 else f"{text}: nothing lost"


def overall(statuses: list[str]) -> str:
    """The worst of the judged models' statuses."""
    if not statuses:
        return "NOTHING TO JUDGE"
    if "NO REFERENCE" in statuses:
        return "NO REFERENCE"
    return max(statuses, key=ORDER.index)
