"""Names that measuring, judging and showing share."""

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
# The attacks whose scores are log likelihood ratios: above 0 means that membership is the likelier.
RATIOS = ("lira", "u_lira")
# The false-positive rates at which true-positive rates are measured, as keys name them.
FPR_NAMES = ("1pct", "0.1pct")

CONTROL_MEANING = {
    "untouched": "the original model as it is",
    "random": "the same network with fresh random weights",
    "fine_tuned": "the original model trained a little further on the retain set",
    "suppressed": "the original model, its last layer changed so that the forgotten classes are never answered",
}


def must_pass(control: str) -> bool:
    """A control named "retrained…" is a positive one: it must pass. All others must not."""
    return control.startswith("retrained")
