"""The verdict on language models: the rule for classifiers where its checks make sense for sequences, and what takes the others' place."""

from __future__ import annotations

import math

from .._ks import critical
from . import limits
from .answers import ACCURACY, ATTACK, LOST, UTILITY, accuracy_lost, chance, check_forgetting
from .figures import FORGET, RETAIN, ModelRow
from .kind import Entry, Rule
from .limits import Finding
from .names import HIDDEN, KS
from .provenance import Case, check_reference, check_weights
from .verdict import OVERALL, check_power, judge

APART = 0.10  # a Kolmogorov-Smirnov distance that is nothing, however many sequences there are
BY_HEART = 0.05  # accuracy on the retain set: nets that learned it from other seeds were up to 4 points apart
PERPLEXITY, LOST_PERPLEXITY = 1.10, 1.50  # times the retrained model's


def check_losses(case: Case) -> list[Finding]:
    """Whether the forget sequences' losses are spread as the retrained model's: some still known and others fitted far too badly can hide
    from an attack's AUC in each other.
    """
    n = case.retrained.counts["forget"]
    apart = case.row.probes[KS].value
    allowed = max(APART, critical(n, n), *(one.probes[KS].value for one in case.others))
    text = f"Kolmogorov-Smirnov distance of the forget set's losses from the retrained model's {apart:.3f}, at most {allowed:.3f}"
    return [("PASS", text) if apart <= allowed else ("PARTIAL", f"{text}: they are spread as no model's that never saw them")]


def check_hidden(case: Case) -> list[Finding]:
    """Whether the model knows half of the sequences again when it is taught the other half, beside all retrained models; and whether it is
    built like the original, since a hook or a ``forward`` of its own can give any answers."""
    if case.original is None:
        return []
    found = [] if case.judges_reference or case.row.sequences is None else limits.built(case.row.sequences.structure)
    others = case.others
    label = "loss-attack AUC on the other half after steps on one half"
    for who, row in (("", case.row), ("original: ", case.original), *(("retrained: ", one) for one in others)):
        if not row.probes[HIDDEN].known:
            return [*found, ("PARTIAL", f"{label} can't be measured: {who}{row.probes[HIDDEN].reason}")]
    value, original, *values = (row.probes[HIDDEN].value for row in (case.row, case.original, *others))
    error = case.row.attacks[FORGET]["loss"].auc_standard_error
    return [*found, limits.excess(label, value, original, values, error)]


def check_use(case: Case) -> list[Finding]:
    """How much of the accuracy and the perplexity on what is kept was lost: of the retain set as well, since unseen texts alone don't show
    what a model that knew its training texts well has lost."""
    findings = []
    for part, least in (("retain", BY_HEART), ("test", UTILITY)):
        findings += [accuracy_lost(case, part, f"token accuracy on the {part} set", least), _perplexity(case, part)]
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


def doubted(reference: ModelRow, original: ModelRow | None) -> str | None:
    """Why a retrained model is not believed by its answers: it knows the forget sequences as a model does that was trained on them. None
    where it doesn't, or where the sets are too small to tell.

    How well a net knows what it was trained on depends on how long it was trained; so it is held against its own retain set too.
    """
    allowed = max(ATTACK, chance(reference.attacks[FORGET]["loss"].auc_standard_error))
    value, again = (auc_of(reference) for auc_of in (_attack, _hidden))
    of_original, again_of_original = (math.nan if original is None else auc_of(original) for auc_of in (_attack, _hidden))
    kept = reference.attacks[RETAIN]["loss"].auc.value
    told = "the loss attack tells the forget sequences from the test set's"
    taught = "one half of the forget sequences is known after steps on the other half"
    for own, other, text in (
        (value, of_original, f"{told} as it does on the original"),
        (value, kept, f"{told} as it tells those of the retain set"),
        (again, again_of_original, f"{taught} as it is in the original"),
    ):
        if min(own, other) > 0.5 + allowed and own >= other - allowed:
            return f"{text} (AUC {own:.3f}, there {other:.3f}): it was trained on them, or the test set is of another kind than they are"
    return None


def _attack(row: ModelRow) -> float:
    return row.attacks[FORGET]["loss"].auc.value


def _hidden(row: ModelRow) -> float:
    return row.probes[HIDDEN].value


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
            "at most PARTIAL beside a retrained model that is not believed: by its weights, because it knows the forget sequences as one "
            "does that was trained on them (the loss attack's AUC lies above one half by more than the tolerance of 3, and no more than "
            "that below the original's, or below that of its own retain set; likewise the AUC of 5, beside the original's), or, of a "
            "further one, because it did not forget beside the one named retrained.",
            check_reference,
        ),
        Entry(
            3,
            "Forgetting",
            "its token accuracy on the forget set, a mean over sequences, must be within "
            f"{100 * ACCURACY:.0f} points of the retrained model's, and the AUCs, forget against test, of the loss attack, of Min-K%++ "
            f"and of the ratio of perplexities to the retrained model's, where they were run, within {ATTACK}, or each within two standard "
            "errors of a difference where the sets are small; but never wider than half of the gap between the original and the retrained "
            "model, where the original lies outside. A gap beyond that is PARTIAL, and FAIL where more than half of the way from the "
            "original to the retrained model is still missing, or where an AUC lies farther past the retrained model's than the "
            "original's lies short of it: such sequences stand out.",
            check_forgetting,
        ),
        Entry(
            4,
            "Losses",
            "at most PARTIAL where the Kolmogorov-Smirnov distance of the forget sequences' losses from those of the model named "
            f"retrained is more than {APART:g}, than what 5 % of such samples of one distribution exceed, and than a further retrained "
            "model's.",
            check_losses,
        ),
        Entry(
            5,
            "Hidden knowledge",
            "at most PARTIAL if it is built otherwise than the original, or where the loss attack's AUC on one half of the forget "
            f"sequences, after a few steps on the other half, lies more than {limits.EXCESS:g} or {limits.EXCESS_ERRORS:g} standard errors "
            "above the retrained model's (never more than half of the original's gap), or where it can't be had.",
            check_hidden,
        ),
        Entry(
            6,
            "Power",
            "at most PARTIAL if the original itself lies within the tolerance in every figure of forgetting, since a model that forgot "
            "nothing could pass; the same without an original.",
            check_power,
        ),
        Entry(
            7,
            "Use",
            f"token accuracy may lie up to {100 * UTILITY:.0f} points under the retrained model's on the test set, and up to "
            f"{100 * BY_HEART:.0f} on the retain set (or two standard errors of a difference); up to {100 * LOST:.0f} points is PARTIAL, "
            f"more is FAIL. Perplexity may be up to {PERPLEXITY:g} times the retrained model's on both (or two standard errors of a "
            f"difference of losses more); up to {LOST_PERPLEXITY:g} times is PARTIAL, more is FAIL.",
            check_use,
        ),
        Entry(
            8,
            "Status",
            "a model's worst finding decides; without a retrained model there is NO REFERENCE and nothing is judged. Of several retrained "
            "models (names that begin so) the nearest counts in 1, 3 and 7; in 5 their mean, and the limit is widened "
            f"to {limits.SPREAD:g} times what one of them differs from the others. Not measured for sequences, and so no part of the "
            "status: what a classifier's audit reads in features, on noised samples and under a fresh last layer, and whether "
            "a retrained model's features are too near the original's.",
            judge,
        ),
        OVERALL,
    ),
    beside_one=(check_weights, check_forgetting, check_use),
    doubted=doubted,
    unmeasured=(
        "not measured for sequences: features, noised samples and a fresh last layer, which show of a classifier what it still knows below "
        "its answers",
    ),
)
