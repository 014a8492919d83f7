"""What a model answers: the checks of the rule on accuracies, attacks and logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from .figures import FORGET, ClassProbe, ModelRow
from .limits import Finding, further, plain
from .provenance import Case

ACCURACY = 0.02
ATTACK = 0.05
UTILITY = 0.02
LOST = 0.10
ODDS = 5.0  # of 54 pairs of models retrained from different seeds the farthest apart were at 4.0, 3.4 and 2.8
# LiRA, the stronger, where shadow models were given; the last two are of sequences.
JUDGED_BY = {"loss": "loss-attack", "lira": "LiRA", "min_k_plus": "Min-K%++", "perplexity_ratio": "perplexity-ratio"}


# ------------------------------------------------------------------ 3. forgetting


class Near(NamedTuple):
    """One figure that must come near the retrained model's; ``two_sided``: as far past it is as bad as short of it."""

    label: str
    value_of: Callable[[ModelRow], float]
    tolerance: float
    show: Callable[[float, int], str]
    two_sided: bool = False


def check_forgetting(case: Case) -> list[Finding]:
    """Each figure of forgetting within its tolerance of the retrained model's."""
    findings = []
    for near in figures_of_forgetting(case.retrained):
        original = near.value_of(case.original) if case.original else math.nan
        findings.append(_compare(near, near.value_of(case.row), near.value_of(case.retrained), original))
    return findings


def figures_of_forgetting(retrained: ModelRow) -> list[Near]:
    """The figures that must come near the retrained model's, with their tolerances."""
    parts = {"forget": "accuracy on the forget set"}
    # Where the request is class-wise, unseen samples of the forgotten classes must be lost as well.
    if retrained.class_wise and retrained.accuracy["test_forget"].known:
        parts["test_forget"] = "test accuracy on the forgotten classes"
    figures = []
    for part, label in parts.items():
        figures.append(Near(label, _accuracy(part), max(ACCURACY, chance(retrained.accuracy_error(part))), percent))
    for attack, name in JUDGED_BY.items():
        measured = retrained.attacks[FORGET].get(attack)
        if measured is not None and measured.auc.known:
            tolerance = max(ATTACK, chance(measured.auc_standard_error))
            figures.append(Near(f"{name} AUC, forget set against unseen samples", _auc(attack), tolerance, plain, two_sided=True))
    return figures


def _accuracy(part: str) -> Callable[[ModelRow], float]:
    return lambda row: row.accuracy[part].value


def _auc(attack: str) -> Callable[[ModelRow], float]:
    return lambda row: row.attacks[FORGET][attack].auc.value


def _compare(near: Near, value: float, reference: float, original: float) -> Finding:
    gap, way = value - reference, original - reference
    # A model that passes must have gone at least half of the way.
    tolerance = min(near.tolerance, abs(way) / 2) if abs(way) > near.tolerance else near.tolerance
    more = 0 if abs(gap) <= tolerance else further(near.show, abs(gap), tolerance)

    def show(figure: float) -> str:
        return near.show(figure, more)

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
    far = near.two_sided and abs(gap) > max(abs(way), 2 * near.tolerance)
    return "FAIL" if far else "PARTIAL", past


# ------------------------------------------------------------------ 4. knowledge


def check_knowledge(case: Case) -> list[Finding]:
    """Whether a forgotten class can be told by its logit, however low that logit was pushed."""
    value, reference = (_told_by_logit(row) for row in (case.row, case.retrained))
    if math.isnan(value) or math.isnan(reference):
        return []
    counts, probe = case.retrained.counts, case.retrained.probes["class_logit_auc"]
    classes = max(1, len(probe.by_class) if isinstance(probe, ClassProbe) else 0)
    allowed = _highest(reference, counts["test_forget"] / classes, counts["test_retain"])
    more = 0 if value <= allowed else further(plain, value, allowed)
    text = f"AUC by which its logit tells a forgotten class from the kept ones {plain(value, more)}, retrained {plain(reference, more)}"
    text += f", at most {plain(allowed, more)}"
    if value <= allowed:
        return [("PASS", text)]
    return [("PARTIAL", f"{text}: whatever it answers, its logit still gives the class away")]


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


# ------------------------------------------------------------------ 7. use


def check_use(case: Case) -> list[Finding]:
    """How much of the accuracy on the kept classes was lost."""
    if math.isnan(case.retrained.accuracy["test_retain"].value - case.row.accuracy["test_retain"].value):
        return [("PARTIAL", "the test set has no sample of the kept classes, so the loss of use can't be judged")]
    return [accuracy_lost(case, "test_retain", "test accuracy on the kept classes")]


def accuracy_lost(case: Case, part: str, label: str, least: float = UTILITY) -> Finding:
    """Accuracy on what is kept, beside the retrained model's; ``least``: what may be lost however large the set."""
    value, reference = case.row.accuracy[part].value, case.retrained.accuracy[part].value
    drop, allowed = reference - value, max(least, chance(case.retrained.accuracy_error(part)))
    status = "PASS" if drop <= allowed else "PARTIAL" if drop <= LOST else "FAIL"
    more = 0 if status == "PASS" else further(percent, drop, LOST if status == "FAIL" else allowed)
    text = f"{label} {percent(value, more)}, retrained {percent(reference, more)}"
    return status, f"{text}: {100 * drop:.{1 + more}f} points lost" if drop > 0 else f"{text}: nothing lost"


def chance(error: float) -> float:
    """Two standard errors of a difference: two models retrained from different seeds were measured to differ about as much as two draws
    of the samples."""
    return 2 * math.sqrt(2) * error


def percent(value: float, more: int = 0) -> str:
    return f"{100 * value:.{1 + more}f} %"
