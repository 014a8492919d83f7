"""The verdict: a stated rule on how near a model is to one retrained without the forget set.

:data:`ENTRIES` is that rule for classifiers: numbered sentences, each beside the function that carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from . import limits
from .answers import ACCURACY, ATTACK, LOST, ODDS, UTILITY, check_forgetting, check_knowledge, check_use, figures_of_forgetting
from .controls import behaviour, distrust
from .figures import ORIGINAL, RETRAINED, Below, ControlOutcome, ModelRow, is_reference
from .kind import Entry, Rule
from .limits import Finding
from .provenance import STILL, Case, check_reference, check_weights, distrusted

T = TypeVar("T")
Findings = list[Finding]

ORDER = ("PASS", "PARTIAL", "FAIL")
NO_REFERENCE = "NO REFERENCE"
POWERLESS = "these checks can't tell the original from the retrained model"


# ------------------------------------------------------------------ 5. below the answers


def check_below(case: Case) -> list[Finding]:
    """What features, noised samples and a few steps still show, beside all retrained models that are believed."""
    row, original = case.row.below, case.original.below if case.original else None
    if case.original is None:
        return []
    if row is None or original is None:
        return [("PARTIAL", "the figures below the answers are missing")]
    if case.judges_reference:
        row = replace(row, structure=None)  # the caller's own choice
    return limits.judge(row, original, _belows(case), class_wise=case.retrained.class_wise, frozen_body=case.frozen_body)


def _belows(case: Case) -> list[Below]:
    return [one.below or Below() for one in case.others]


# ------------------------------------------------------------------ 6. power


def check_power(case: Case) -> list[Finding]:
    """PARTIAL where a model that forgot nothing could pass as well; not asked of the retrained models themselves."""
    original, retrained = case.original, case.retrained
    if case.row is retrained or case.judges_reference:
        return []
    if original is None:
        return [("PARTIAL", "no original model was given: nothing shows that these checks can tell it from the retrained model")]
    if any(abs(near.value_of(original) - near.value_of(retrained)) > near.tolerance for near in figures_of_forgetting(retrained)):
        return []
    if original.below is not None and limits.telling(original.below, _belows(case), class_wise=retrained.class_wise):
        return []
    text = f"{POWERLESS}: every figure of forgetting is within its tolerance"
    return [("PARTIAL", f"{text} for both, so a model that forgot nothing could pass")]


# ------------------------------------------------------------------ 8. a model's status


def judge(
    row: ModelRow,
    original: ModelRow | None,
    retrained: ModelRow | None,
    *,
    further: Sequence[ModelRow] = (),
    distrust: dict[str, str] | None = None,
    frozen_body: bool = False,
    rule: Rule | None = None,
) -> tuple[str, list[str]]:
    """Status and reasons of one model.

    Args:
        row, original, retrained: the figures of the three.
        further: of other retrained models that are believed.
        distrust: why a retrained model is not, by its name.
        frozen_body: whether the caller says that retraining leaves all but the last layer alone.
        rule: by which; that for samples where none is given.
    """
    rule = rule or SAMPLES
    if retrained is None:
        return NO_REFERENCE, ['no model named "retrained" was given; the figures have nothing to be measured against']
    references = (retrained, *further)
    by_reference = []
    for one in references:
        if one is retrained or (one is not row and row is not retrained):
            case = Case(row, original, one, references, distrust or {}, frozen_body)
            by_reference.append((case, [entry.function(case) for entry in rule.checks]))
    case, findings = nearest(by_reference)
    beside = "" if case.retrained is retrained else f" (beside {case.retrained.model!r}, the nearest)"
    reasons = []
    for entry, of_check in zip(rule.checks, findings, strict=True):
        reasons += [f"{status}: {text}{beside if entry.function in rule.beside_one else ''}" for status, text in of_check]
    return worst(findings), [*reasons, *rule.unmeasured]


def nearest(by_reference: Sequence[tuple[T, list[Findings]]]) -> tuple[T, list[Findings]]:
    """Of the findings beside each retrained model those that speak best of a model; the first of equals."""
    return min(by_reference, key=lambda one: ORDER.index(worst(one[1])))


def worst(findings: Iterable[Findings]) -> str:
    """The worst status among the checks' findings."""
    return max((status for of_check in findings for status, _ in of_check), key=ORDER.index, default="PASS")


# ------------------------------------------------------------------ 9. the verdict


def overall(statuses: list[str], *, trusted: bool = True) -> str:
    """The worst of the judged models' statuses; at most PARTIAL where a control misbehaved."""
    if not statuses:
        return "NOTHING TO JUDGE"
    if NO_REFERENCE in statuses:
        return NO_REFERENCE
    of_all = max(statuses, key=ORDER.index)
    return of_all if trusted or of_all != "PASS" else "PARTIAL"


# ------------------------------------------------------------------ the rule

CHECKS = (
    Entry(
        1,
        "Weights",
        "FAIL where they are those of the original, where only the last layer or only biases were changed, and, for whole classes, where "
        f"the layers below the last moved less than {100 * STILL:.0f} % as far as retraining moves them. Not so where the caller says that "
        "training moves nothing but the last layer (frozen_body). At most PARTIAL where they can't be compared with the original's, but "
        "for layers of other sizes.",
        check_weights,
    ),
    Entry(
        2,
        "Reference",
        "at most PARTIAL beside a retrained model that is not believed: by its weights, because its features are nearly the original's "
        f"(1 - CKA over the test set under {limits.SAME_FEATURES:g}, or under {limits.NEAR_FEATURES:g} where its weights lie near too "
        "and they can be read off it), or, of a further one, because it did not forget beside the one named retrained.",
        check_reference,
    ),
    Entry(
        3,
        "Forgetting",
        "its accuracy on the forget set (and on test samples of classes that the retain set lacks) must be within "
        f"{100 * ACCURACY:.0f} points of the retrained model's, and the AUC of the loss attack (and of LiRA where shadow models were "
        f"given), forget against test, within {ATTACK}, or each within two standard errors of a difference where the sets are small; but "
        "never wider than half of the gap between the original and the retrained model, where the original lies outside. A gap beyond "
        "that is PARTIAL, and FAIL where more than half of the way from the original to the retrained model is still missing, or where an "
        "AUC lies farther past the retrained model's than the original's lies short of it: such samples stand out.",
        check_forgetting,
    ),
    Entry(
        4,
        "Knowledge in the answers",
        "for whole classes, at most PARTIAL if the AUC by which its logit tells a forgotten class from the kept ones is higher than the "
        "retrained model's by more than three standard errors and its odds, AUC / (1 - AUC), more than "
        f"{ODDS:g} times as high.",
        check_knowledge,
    ),
    Entry(
        5,
        "Below the answers",
        "at most PARTIAL if it is built otherwise than the original, or a figure here can't be had. For whole classes, at most PARTIAL "
        f"where its features went less than {100 * limits.WAY:.0f} % of retraining's way from the original's inside these classes, by CKA "
        "or by what can be read off them, or where a linear probe's log-odds lie more than "
        f"{100 * limits.KNOWN:.0f} % of the way from the retrained model's to the original's (at least {limits.ERRORS:g} standard errors "
        f"or {limits.ODDS:g} times the odds). For samples, where the loss attack's AUC on noised samples, or on the other half after steps "
        f"on one half, lies more than {limits.EXCESS:g} or {limits.EXCESS_ERRORS:g} standard errors above the retrained model's (never "
        f"more than half of the original's gap), or under a fresh last layer more than {100 * limits.HEAD_WAY:.0f} % of that gap.",
        check_below,
    ),
    Entry(
        6,
        "Power",
        "at most PARTIAL if the original itself lies within the tolerance in every figure of forgetting, and, below the answers, in every "
        "figure of samples or by the probe for classes, since a model that forgot nothing could pass; the same without an original.",
        check_power,
    ),
    Entry(
        7,
        "Use",
        f"test accuracy on the kept classes may lie up to {100 * UTILITY:.0f} points (or two standard errors of a difference) under the "
        f"retrained model's; up to {100 * LOST:.0f} points is PARTIAL, more is FAIL.",
        check_use,
    ),
)
# the last sentence of every rule
OVERALL = Entry(
    9,
    "Verdict",
    "that of the worst model beside the original and the retrained ones; at most PARTIAL if a control that must not pass does, or "
    "one that must pass does not.",
    overall,
)
SAMPLES = Rule(
    entries=(
        *CHECKS,
        Entry(
            8,
            "Status",
            "a model's worst finding decides; without a retrained model there is NO REFERENCE and nothing is judged. Of several retrained "
            "models (names that begin so) the nearest counts in 1, 3, 4 and 7; in 5 their mean, and limits are widened to "
            f"{limits.SPREAD:g} times what one of them differs from the others.",
            judge,
        ),
        OVERALL,
    ),
    beside_one=(check_weights, check_forgetting, check_knowledge, check_use),
)
ENTRIES, RULE = SAMPLES.entries, SAMPLES.text


# ------------------------------------------------------------------ all models


@dataclass
class Judgement:
    """What the rule says of an audit.

    Attributes:
        verdict: of the whole.
        reasons: of the whole: each control that misbehaved, then each judged model's reasons under its name.
        rows: the rows that were judged, with ``status`` and ``reasons`` filled in.
        controls: by the controls' names, and "retrained" where there are controls.
    """

    verdict: str
    reasons: list[str]
    rows: list[ModelRow]
    controls: dict[str, ControlOutcome]


def judge_all(rows: list[ModelRow], rule: Rule, *, frozen_body: bool = False) -> Judgement:
    """Judges every row, controls included, beside the ones named "original" and "retrained…"."""
    by_name = {row.model: row for row in rows}
    original, retrained = by_name.get(ORIGINAL), by_name.get(RETRAINED)
    further, unbelieved = _believed(rows, original, retrained, frozen_body, rule)
    how: dict[str, Any] = {"further": further, "distrust": unbelieved, "frozen_body": frozen_body, "rule": rule}
    verdicts = [judge(row, original, retrained, **how) for row in rows]
    judged = [replace(row, status=status, reasons=reasons) for row, (status, reasons) in zip(rows, verdicts, strict=True)]
    controls = behaviour([row for row in judged if row.control], {row.model: row for row in judged}.get(RETRAINED))
    warnings = distrust(controls)
    asked = [row for row in judged if not row.control and row.model != ORIGINAL and not is_reference(row.model)]
    whole = overall([row.status for row in asked] if retrained else [NO_REFERENCE], trusted=not warnings)
    return Judgement(whole, [*warnings, *(f"{row.model}: {reason}" for row in asked for reason in row.reasons)], judged, controls)


def _believed(
    rows: list[ModelRow], original: ModelRow | None, retrained: ModelRow | None, frozen_body: bool, rule: Rule
) -> tuple[list[ModelRow], dict[str, str]]:
    """The further retrained models that are believed, and why others, the one named "retrained" among them, are not."""
    further, unbelieved = [], {}
    for row in rows:
        if row.control or not is_reference(row.model):
            continue
        why = distrusted(row, frozen_body=frozen_body) or rule.doubted(row, original)
        if why is None and retrained is not None and row is not retrained:
            failed = [text for status, text in check_forgetting(Case(row, original, retrained)) if status == "FAIL"]
            why = f"beside {RETRAINED!r} it did not forget ({failed[0]})" if failed else None
        if why is not None:
            unbelieved[row.model] = why
        elif row is not retrained:
            further.append(row)
    return further, unbelieved
