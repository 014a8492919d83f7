"""The verdict on language models: the rule for classifiers where its checks make sense for sequences, and what takes the others' place."""

from __future__ import annotations

import math

from .answers import ACCURACY, ATTACK, LOST, SPREAD_OF_LOSSES, UTILITY, accuracy_lost, chance, check_forgetting
from .kind import Entry, Rule
from .limits import Finding
from .provenance import Case, check_reference, check_weights
from .verdict import check_power, judge, overall

PERPLEXITY, LOST_PERPLEXITY = 1.10, 1.50  # times the retrained model's


def check_use(case: Case) -> list[Finding]:
    """How much of the accuracy and the perplexity on what is kept was lost: of the retain set as well, since unseen texts alone don't show
    what a model that knew its training texts well has lost."""
    findings = []
    for part in ("retain", "test"):
        findings += [accuracy_lost(case, part, f"token accuracy on the {part} set"), _perplexity(case, part)]
    return findings


def _perplexity(case: Case, part: str) -> Finding:
    value, reference = (row.mean_loss[part].value for row in (case.row, case.retrained))
    shown = [math.exp(min(loss, 700.0)) for loss in (value, reference)]
    text = f"perplexity on the {part} set {shown[0]:.4g}, retrained {shown[1]:.4g}"
    error = math.nan if case.retrained.sequences is None else case.retrained.sequences.loss_error[part]
    allowed = max(math.log(PERPLEXITY), 0.0 if math.isnan(error) else chance(error))
    more = value - reference
    if math.isnan(more):
        return "FAIL", f"{text}: it can't be had"
    text += f", at most {math.exp(min(reference + allowed, 700.0)):.4g}"
    return "PASS" if more <= allowed else "PARTIAL" if more <= max(math.log(LOST_PERPLEXITY), allowed) else "FAIL", text


SEQUENCES = Rule(
    entries=(
        Entry(
            1,
            "Weights",
            "FAIL where they are those of the original, or where only the last layer or only biases were changed. Not so where the caller "
            "says that training moves nothing but the last layer (frozen_body). At most PARTIAL where they can't be compared with the "
            "original's, but for layers of other sizes.",
            check_weights,
        ),
        Entry(
            2,
            "Reference",
            "at most PARTIAL beside a retrained model that is not believed: by its weights, or, of a further one, because it did not "
            "forget beside the one named retrained.",
            check_reference,
        ),
        Entry(
            3,
            "Forgetting",
            "its token accuracy on the forget set, a mean over sequences, must be within "
            f"{100 * ACCURACY:.0f} points of the retrained model's; the AUCs, forget against test, of the loss attack, of Min-K%++ and "
            f"of the ratio of perplexities to the retrained model's, where they were run, within {ATTACK}; and the Kolmogorov-Smirnov "
            f"distance of the forget sequences' losses from the retrained model's at most {SPREAD_OF_LOSSES:g}. Each within two standard "
            "errors of a difference where the sets are small, and the distance within what 5 % of such samples of one distribution "
            "exceed; but never wider than half of the gap between the original and the retrained model, where the original lies outside. "
            "A gap beyond that is PARTIAL, and FAIL where more than half of the way from the original to the retrained model is still "
            "missing, or where an AUC lies farther past the retrained model's than the original's lies short of it: such sequences stand "
            "out.",
            check_forgetting,
        ),
        Entry(
            4,
            "Power",
            "at most PARTIAL if the original itself lies within the tolerance in every figure of forgetting, since a model that forgot "
            "nothing could pass; the same without an original.",
            check_power,
        ),
        Entry(
            5,
            "Use",
            "on the retain and on the test set token accuracy may lie up to "
            f"{100 * UTILITY:.0f} points (or two standard errors of a difference) under the retrained model's; up to {100 * LOST:.0f} "
            f"points is PARTIAL, more is FAIL. Perplexity there may be up to {PERPLEXITY:g} times the retrained model's (or two standard "
            "errors of a difference of losses more); up to "
            f"{LOST_PERPLEXITY:g} times is PARTIAL, more is FAIL.",
            check_use,
        ),
        Entry(
            6,
            "Status",
            "a model's worst finding decides; without a retrained model there is NO REFERENCE and nothing is judged. Of several retrained "
            "models (names that begin so) the nearest counts in 1, 3 and 5. Not measured for sequences, and so no part of the status: what "
            "a classifier's audit reads below the answers (features, noised samples, steps on one half, a fresh last layer), and whether "
            "a retrained model's features are too near the original's.",
            judge,
        ),
        Entry(
            7,
            "Verdict",
            "that of the worst model beside the original and the retrained ones; at most PARTIAL if a control that must not pass does, or "
            "one that must pass does not.",
            overall,
        ),
    ),
    beside_one=(check_weights, check_forgetting, check_use),
    unmeasured=(
        "not measured for sequences: what lies below the answers (features, relearning, a fresh last layer); a model that hides what it "
        "knows from its answers alone isn't found",
    ),
)
