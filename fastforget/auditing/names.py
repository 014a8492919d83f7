"""Names and sentences that measuring, judging and showing share."""

from __future__ import annotations

# The attacks that put a threshold on one model's output. +1: a member scores higher; -1: lower.
# The names are the fields of ff.ops.membership.MembershipScores.
DIRECTION = {
    "loss": -1,
    "confidence": 1,
    "entropy": -1,
    "modified_entropy": -1,
    "margin": 1,
    "logit_confidence": 1,
}
# The attacks on sequences of a language model, likewise: fields of ff.ops.membership.TokenScores, and a ratio of two models' perplexities.
TOKEN_DIRECTION = {"loss": -1, "min_k": 1, "min_k_plus": 1, "perplexity_ratio": -1}
THRESHOLDS = {**DIRECTION, **TOKEN_DIRECTION}
# Probes of sequences beside the retrained model: the Kolmogorov-Smirnov distance of losses, and its p-value.
KS, FORGET_QUALITY = "ks_to_retrained", "forget_quality"
HIDDEN = "other_half_auc"  # and of all models, what comes back of one half when the other is taught
# The attacks whose scores are log likelihood ratios: above 0 means that membership is the likelier.
RATIOS = ("lira", "u_lira")

SEQUENCE_WISE = "sequence-wise"  # what an audit of sequences calls its request

# What is measured of classifiers alone, by the argument that asks for it: what to take of sequences.
_BY_TEXT = "take the attacks 'min_k_plus' and, beside a retrained model, 'perplexity_ratio', which allow for how hard a text is"
_BY_HALVES = "read 'other_half_auc' of ff.audit(..., sequences=True), by which one half of the forget set is known after steps on the other"
FOR_SEQUENCES = {
    "oracles": "read 'forgetting_rate' of ff.audit(..., sequences=True), by the loss threshold that is calibrated on the original",
    "shadows": _BY_TEXT,
    "population": _BY_TEXT,
    "teacher": "read 'kl_to_retrained' of ff.audit(..., sequences=True), which compares with a retrained model's answers",
    "relearn": _BY_HALVES,
    "train": _BY_HALVES,
}

CONTROL_MEANING = {
    "untouched": "the original model as it is",
    "random": "the same network with fresh random weights",
    "fine_tuned": "the original model trained a little further on the retain set",
    "suppressed": "the original model, its last layer changed so that the forgotten classes are never answered",
}

# How every report is read.
WHY = (
    "Neither 0.5 nor 100 % is always the ideal. A model that never saw a class or a sample still guesses, so its "
    "accuracy there need not be 0; against test samples of other classes even a perfectly retrained model is far from an "
    "AUC of 0.5; a class that stands out (AUC well under 0.5) is a trace as well; and the oracle errs about a retrained "
    "model too, so its forgetting rate can be under 100 %. The yardstick is therefore the retrained column: a model that "
    "never saw the forget set."
)
# Of every forgetting rate.
NOT_IDEAL = (
    "100 % is not the ideal: an exactly retrained model still answers some samples it never saw as if it had, and some forget samples "
    "were never recognised by more than chance. The retrained model's rate beside it is the aim; for random records of a strongly "
    "overfitted tabular net it is about 75 %."
)


def must_pass(control: str) -> bool:
    """A control named "retrained…" is a positive one: it must pass. All others must not."""
    return control.startswith("retrained")
