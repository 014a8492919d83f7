"""The rule below the answers: how a model's figures there are judged beside those of retrained ones.

The limits are first of all those of one retrained model; where several are given, their spread widens them (leave one out): what one
retrained model may differ from the others, another may too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .figures_below import Below
from .measure.below import NOTHING_BELOW
from .measure.intervals import auc_standard_error
from .measure.linear import odds
from .measure.noised import NO_FLOATS

Finding = tuple[str, str]

WAY = 1 / 4  # of retraining's way from the original, by CKA inside the forgotten classes
READ_WAY = 1 / 4  # the same, by what can't be read linearly off a model's features
KNOWN = 0.5  # of the log-odds between retrained and original, by a linear probe
ODDS = 2.0  # a probe's odds may be this many times the retrained model's in any case
ERRORS = 3.0  # standard errors of a probe's log-odds
EXCESS = 0.05  # AUC above the retrained model's, on noised samples and on the other half
EXCESS_ERRORS = 2.0  # the same in standard errors of an AUC: honest models read on the same samples differ by .4 of one
HEAD_WAY = 1 / 3  # of the original's AUC above the retrained model's, by a fresh last layer
HEAD_ERRORS = 0.5  # a model may be that far above in any case, in standard errors of an AUC; honest ones differ by .2 to .5
TELLING = 1.2  # the original's AUC above the retrained model's, in standard errors, from which on that tells anything
SPREAD = 1.5  # times what one retrained model was seen to differ from the others
# A retrained model isn't believed whose features lie SAME_FEATURES near the original's (1 - CKA over the test set). Nor one that lies
# NEAR_FEATURES near with weights below the last layer that moved less than STILL, if the original's features can be read off its own but
# for UNREAD, or NEARER_FEATURES near where that isn't measured (single samples). Short training from the original's own initial weights
# comes nearest of what is honest: CKA .984 with weights at .50, CKA .979 with weights at .16 and .18 unread. Where a few samples were left
# out, the same seed comes nearer than that (CKA .993 to .999, weights at .02 to .15): no figure tells it from a touched-up original.
SAME_FEATURES, NEAR_FEATURES, NEARER_FEATURES, STILL, UNREAD = 0.005, 0.045, 0.015, 0.2, 0.1


def plain(value: float, more: int = 0) -> str:
    """A figure with three decimals, or ``more``."""
    return f"{value:.{3 + more}f}"


def further(show: Callable[[float, int], str], value: float, limit: float) -> int:
    """How many further decimals show that a figure lies beyond its limit, six at most: "1.000, at most 1.000" explains nothing.

    >>> further(plain, 0.99982, 0.99976), further(plain, 0.9, 0.8), further(plain, 0.5, 0.5)
    (2, 0, 0)
    """
    return next((more for more in range(7) if show(value, more) != show(limit, more)), 0)


def judge(row: Below, original: Below, references: Sequence[Below], *, class_wise: bool, frozen_body: bool = False) -> list[Finding]:
    """Findings (PASS or PARTIAL, and why) of one model beside the retrained ``references``, the first of which is "retrained".

    A figure that can't be had is PARTIAL, but for what no model has: single samples' noised attack on inputs that can't be noised, and
    likenesses of features where nothing lies below the last layer. ``frozen_body``: the caller says that retraining leaves the features
    alone, so that they aren't compared.
    """
    findings = built(row.structure)
    if class_wise:
        findings += [] if frozen_body else [_way(row, references, name) for name in WAYS]
        findings.append(_known(row, original, references))
    else:
        for name, label in (("noised_auc", "noised forget samples"), ("halves_auc", "the other half after steps on one half")):
            findings.append(_excess(row, original, references, name, f"loss-attack AUC on {label}"))
        findings.append(_fresh(row, original, references))
    return findings


def built(structure: str | None) -> list[Finding]:
    """What is said of a model that is built otherwise than the original."""
    if structure is None:
        return []
    return [("PARTIAL", f"built otherwise than the original ({structure}): what it does on other inputs isn't shown")]


def telling(original: Below, references: Sequence[Below], *, class_wise: bool) -> bool:
    """Whether these figures tell the original from the retrained models: if not, a model that forgot nothing passes them too.

    For whole classes only the probe can: the original's features are its own whether it knew the class or not.
    """
    found = [_known(original, original, references)] if class_wise else judge(original, original, references, class_wise=False)
    return any(status != "PASS" for status, _ in found)


def _missing(row: Below, references: Sequence[Below], name: str, label: str) -> Finding | None:
    for who, figures in (("", row), *(("retrained: ", r) for r in references)):
        if math.isnan(getattr(figures, name)):
            return "PARTIAL", f"{label} can't be measured: {who}{figures.reasons.get(name, 'no value')}"
    return None


WAYS = {
    "class_cka": (WAY, "likeness of its features to the original's inside the forgotten classes (CKA)"),
    "readable": (READ_WAY, "share of the original's features there that can be read off its own"),
}


def _distance(row: Below, name: str) -> float:
    """1 - the figure; a share below 0 is one of nothing."""
    return 1 - max(getattr(row, name), 0.0)


def way_limit(references: Sequence[Below], name: str = "class_cka") -> tuple[float, float]:
    """The retrained models' mean distance from the original, 1 - the figure, and the share of it that a model must reach.

    >>> way_limit([Below(class_cka=0.75)]) == (0.25, WAY)
    True
    """
    distances = [_distance(r, name) for r in references]
    mean, share = sum(distances) / len(distances), WAYS[name][0]
    if len(distances) < 2 or min(distances) <= 0:
        return mean, share
    alone = [d / ((sum(distances) - d) / (len(distances) - 1)) for d in distances]
    return mean, min(share, min(alone) / 2)


def _way(row: Below, references: Sequence[Below], name: str) -> Finding:
    label = WAYS[name][1]
    missing = _missing(row, references, name, label)
    if missing and all(r.reasons.get(name) == NOTHING_BELOW for r in (row, *references)):
        return "PASS", f"{label}: not measured, {NOTHING_BELOW}"
    if missing:
        return missing
    mean, share = way_limit(references, name)
    mine = getattr(row, name)
    if mean <= 0:
        return "PARTIAL", f"{label}: the retrained models are as near the original as can be ({1 - mean:.3f}), so it tells nothing"
    way = _distance(row, name) / mean
    more = 0 if way >= share else further(_whole, way, share)
    text = f"{label} {mine:.3f}, retrained {1 - mean:.3f}: {_whole(way, more)} of retraining's way, at least {_whole(share, more)}"
    return ("PASS" if way >= share else "PARTIAL"), text


def _whole(share: float, more: int = 0) -> str:
    return f"{100 * share:.{more}f} %"


def log_odds(auc: float, pairs: int) -> float:
    return math.log(odds(auc, pairs))


def log_odds_error(auc: float, members: int, others: int) -> float:
    """Standard error of an AUC's log-odds (Hanley & McNeil, Radiology 143, 1982).

    >>> round(log_odds_error(0.9, 50, 450), 3)
    0.328
    """
    low = 0.5 / max(members * others, 1)
    a = min(max(auc, low), 1 - low)
    one, two = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
    variance = (a * (1 - a) + (members - 1) * one + (others - 1) * two) / (members * others)
    return math.sqrt(variance) / (a * (1 - a))


def probe_limit(original: Below, references: Sequence[Below]) -> tuple[float, float]:
    """The retrained models' mean log-odds, and the highest that a model may have."""
    pairs = references[0].members * references[0].others
    values = [log_odds(r.probe_auc, pairs) for r in references]
    mean = sum(values) / len(values)
    error = log_odds_error(1 / (1 + math.exp(-mean)), references[0].members, references[0].others)
    allowed = max(math.log(ODDS), ERRORS * error)
    if not math.isnan(original.probe_auc):
        allowed = max(allowed, KNOWN * (log_odds(original.probe_auc, pairs) - mean))
    if len(values) > 1:
        allowed = max(allowed, _spread(values))
    return mean, mean + allowed


def _known(row: Below, original: Below, references: Sequence[Below]) -> Finding:
    label = "AUC of a linear probe for the forgotten classes"
    missing = _missing(row, references, "probe_auc", label)
    if missing:
        return missing
    mean, highest = probe_limit(original, references)
    mine = log_odds(row.probe_auc, row.members * row.others)
    more = 0 if mine <= highest else further(plain, _auc(mine), _auc(highest))
    text = f"{label} {plain(row.probe_auc, more)}, retrained {plain(_auc(mean), more)}, at most {plain(_auc(highest), more)}"
    return ("PASS", text) if mine <= highest else ("PARTIAL", f"{text}: below its answers the model still tells them")


def _auc(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _excess(row: Below, original: Below, references: Sequence[Below], name: str, label: str) -> Finding:
    missing = _missing(row, references, name, label)
    if missing and all(math.isnan(getattr(r, name)) for r in (row, *references)) and row.reasons.get(name) == NO_FLOATS:
        return "PASS", f"{label}: not measured, {row.reasons[name]}"
    if missing:
        return missing
    return excess(label, getattr(row, name), getattr(original, name), [getattr(r, name) for r in references], _auc_error(row))


def excess(label: str, mine: float, original: float, values: Sequence[float], error: float) -> Finding:
    """An AUC beside the retrained models' ``values``, above which it may lie by so much; ``error``: its standard error."""
    mean = sum(values) / len(values)
    allowed = max(EXCESS, EXCESS_ERRORS * error)
    if len(values) > 1:
        allowed = max(allowed, _spread(values))
    gap = original - mean
    if gap > allowed:
        allowed = min(allowed, gap / 2)
    more = 0 if mine - mean <= allowed else further(plain, mine - mean, allowed)
    text = f"{label} {plain(mine, more)}, retrained {plain(mean, more)}, tolerance {plain(allowed, more)}"
    return ("PASS", text) if mine - mean <= allowed else ("PARTIAL", f"{text}: what it kept shows there")


def _fresh(row: Below, original: Below, references: Sequence[Below]) -> Finding:
    label = "loss-attack AUC under a fresh last layer"
    missing = _missing(row, references, "new_head_auc", label)
    if missing is None and math.isnan(original.new_head_auc):
        missing = "PARTIAL", f"{label} can't be measured: original: {original.reasons.get('new_head_auc', 'no value')}"
    if missing:
        return missing
    values = [r.new_head_auc for r in references]
    mean = sum(values) / len(values)
    gap = original.new_head_auc - mean
    error = _auc_error(row)
    text = f"{label} {plain(row.new_head_auc)}, retrained {plain(mean)}"
    if not gap >= TELLING * error:
        return "PASS", f"{text}: it doesn't tell the original ({original.new_head_auc:.3f}) from the retrained model"
    allowed = max(HEAD_WAY * gap, HEAD_ERRORS * error)
    if len(values) > 1:
        allowed = max(allowed, min(_spread(values), gap / 2))
    more = 0 if row.new_head_auc - mean <= allowed else further(plain, row.new_head_auc - mean, allowed)
    text = f"{label} {plain(row.new_head_auc, more)}, retrained {plain(mean, more)}, tolerance {plain(allowed, more)}"
    return ("PASS", text) if row.new_head_auc - mean <= allowed else ("PARTIAL", f"{text}: below the last layer the samples are kept")


def _spread(values: Sequence[float]) -> float:
    """What several retrained models allow another: :data:`SPREAD` times what one of them differs from the mean of the others, at most."""
    return SPREAD * max(abs(v - (sum(values) - v) / (len(values) - 1)) for v in values)


def _auc_error(row: Below) -> float:
    """Standard error of an AUC of one half, between the forget samples and the unseen ones."""
    return auc_standard_error(row.forget, row.unseen)


def believed(reference: Below, moved: float | None, *, frozen_body: bool = False) -> str | None:
    """Why a "retrained" model is not believed, or None.

    Args:
        reference: its figures.
        moved: its weights' distance from the original's below the last layer, relative to both norms together; None where unknown.
        frozen_body: the caller says that retraining leaves the body alone.
    """
    if frozen_body or math.isnan(reference.cka):
        return None
    distance, still = 1 - reference.cka, moved is not None and moved < STILL
    alike = distance < NEARER_FEATURES if math.isnan(reference.readable) else distance < NEAR_FEATURES and 1 - reference.readable < UNREAD
    if distance < SAME_FEATURES or (still and alike):
        near = f", and its weights below the last layer {100 * (moved or 0):.2g} % of their size" if still else ""
        return (
            f"its features are nearly the original's (CKA {reference.cka:.3f}){near}: it was not retrained from the start, or it was from "
            "the original's own initialisation, which these figures can't tell apart; retrain it from another seed"
        )
    return None
