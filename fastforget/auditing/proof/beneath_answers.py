"""Whether the figures below the answers can be figures of one audit, beside the other figures of their rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..figures import FORGET, ORIGINAL, Below, ModelRow
from ..figures_below import NUMBERS
from ..measure.below import MOST
from ..measure.halves import FEW
from .rounding import TINY, is_share, near

EXACT = {"class_cka": 1.0, "cka": 1.0, "moved": 0.0}  # of the original, beside itself


def contradictions(row: ModelRow, rows: list[ModelRow], receipt: dict[str, Any]) -> Iterator[str]:
    """What can't be true of one row's figures below the answers."""
    beside = any(one.model == ORIGINAL for one in rows)
    if row.below is None:
        if beside:
            yield "below: the figures below the answers are missing"
        return
    if not beside:
        yield "below: there is no original model to take these figures beside"
        return
    below = row.below
    for name in NUMBERS:
        known, excused = not math.isnan(getattr(below, name)), name in below.reasons
        if known == excused:
            yield f"below.{name} has {'a value and a reason for having none' if known else 'neither a value nor a reason'}"
    yield from _counts(row, below, receipt["forgotten_classes"])
    yield from _values(row, below)
    yield from _neighbours(row, below, receipt["settings"].get("near_classes", []))


def _counts(row: ModelRow, below: Below, forgotten: list[int]) -> Iterator[str]:
    """How many samples were read: all, or MOST of a larger set."""
    test = row.counts["test"]
    read = below.members + below.others
    if read and read != min(test, MOST):
        yield "below.members and below.others are not the test set's"
    if read and test <= MOST and below.members != (row.counts["test_forget"] if row.class_wise else 0):
        yield "below.members are not those of counts.test_forget"
    if below.forget != min(row.counts["forget"], MOST):
        yield "below.forget is not the forget set's size"
    nonmembers, others = row.attacks[FORGET]["loss"].nonmembers, set(row.class_accuracy["forget"]) - set(forgotten)
    # beside whole classes, samples of others may be forgotten; unseen ones are then of the whole classes alone
    if nonmembers and (below.unseen > nonmembers or (not (forgotten and others) and below.unseen != min(nonmembers, MOST))):
        yield "below.unseen is not the number of unseen samples"


def _values(row: ModelRow, below: Below) -> Iterator[str]:
    pairs = {"probe_auc": below.members * below.others, "noised_auc": below.forget * below.unseen}
    if row.counts["test"] <= MOST:
        pairs["new_head_auc"] = below.forget * below.unseen
    for name, count in pairs.items():
        value = getattr(below, name)
        halves = 2 * value * count  # a tie counts one half
        if not math.isnan(value) and (count == 0 or abs(halves - round(halves)) > max(1e-3, 1e-12 * count)):
            yield f"below.{name} is no share of {count} pairs"
    if below.readable > 1 + TINY:
        yield "below.readable is more than all"
    if row.model == ORIGINAL and not row.control:
        for name, value in EXACT.items():
            if not math.isnan(getattr(below, name)) and not near(getattr(below, name), value):
                yield f"below.{name} of the original beside itself is not {value:g}"
        if below.structure is not None:
            yield "below.structure: the original is built as itself"
    else:
        distance = row.weight_distance[ORIGINAL]
        if distance.identical and below.moved > 0:
            yield "below.moved: identical weights have moved"
        if distance.total == 0 and not math.isnan(below.moved) and below.moved != 0:
            yield "below.moved does not fit weight_distance"
    if row.class_wise and "relearned" not in below.reasons and set(below.relearned) != set(FEW):
        yield f"below.relearned is not from {', '.join(map(str, FEW))} samples"
    for k, share in below.relearned.items():
        if not math.isnan(share) and not is_share(share, row.counts["test_forget"]):
            yield f"below.relearned.{k} is no share of {row.counts['test_forget']} samples"


def _neighbours(row: ModelRow, below: Below, classes: list[int]) -> Iterator[str]:
    if math.isnan(below.neighbours):
        return
    beside = [row.class_accuracy["test"][c] for c in classes if c in row.class_accuracy["test"]]
    if not beside:
        yield "below.neighbours has a value, and settings.near_classes no class"
    elif not min(beside) - TINY <= below.neighbours <= max(beside) + TINY:
        yield "below.neighbours lies outside of its classes' accuracies"
