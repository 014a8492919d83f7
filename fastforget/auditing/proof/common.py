"""What holds of any row's figures, whatever was audited: counts, shares, means, attacks, the forgetting rate, weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from ..figures import FORGET, FPRS, ORIGINAL, RETAIN, RETRAINED, AttackFigures, Figure, ModelRow, ThresholdFigures
from ..measure import intervals
from ..names import THRESHOLDS
from .rounding import TINY, is_share, near


def exact(name: str, figure: Figure, count: int) -> Iterator[str]:
    """A share with its exact interval."""
    if not is_share(figure.value, count):
        yield f"{name} is no share of {count} samples"
    elif figure.interval is not None and count:
        ends = intervals.share(round(figure.value * count), count)
        if not all(map(near, figure.interval, ends)):
            yield f"the interval of {name} is not that of its count"


def mean(name: str, figure: Figure) -> Iterator[str]:
    """A mean with its interval of as many standard errors on both sides, where it doesn't end at what the figure can be."""
    if figure.interval is None or not figure.known or not all(map(math.isfinite, figure.interval)):
        return
    low, high = figure.interval
    if not low - TINY <= figure.value <= high + TINY:
        yield f"{name} lies outside of its interval"
    elif low > 0 and not near(figure.value, (low + high) / 2) and not name.startswith("probes"):
        yield f"{name} is not in the middle of its interval"


def inside(name: str, figure: Figure, slack: float = TINY) -> Iterator[str]:
    """An interval around its figure."""
    if figure.interval is not None and figure.known and not any(map(math.isnan, figure.interval)):
        low, high = figure.interval
        if not low - slack <= figure.value <= high + slack or low > high:
            yield f"{name} lies outside of its interval"


def counts(row: ModelRow, receipt: dict[str, Any]) -> Iterator[str]:
    """Sizes of the parts, and what the receipt says of the request."""
    for name, size in receipt["sizes"].items():
        if row.counts[name] != size:
            yield f"counts.{name} is not sizes.{name}"
    if row.counts["test_forget"] + row.counts["test_retain"] != row.counts["test"]:
        yield "counts.test is not the sum of its parts"
    if row.class_wise != bool(receipt["forgotten_classes"]):
        yield "class_wise is not what forgotten_classes says"
    if row.with_intervals != receipt["settings"]["intervals"]:
        yield "the intervals are not what settings.intervals says"


# ------------------------------------------------------------------ attacks, memory


def attacks(row: ModelRow, first: ModelRow, receipt: dict[str, Any]) -> Iterator[str]:
    """Both comparisons: the attacks that were asked for, each in itself."""
    asked = set(receipt["settings"]["attacks"])
    for comparison, members in ((FORGET, "forget"), (RETAIN, "retain")):
        if set(row.attacks[comparison]) != asked:
            yield f"attacks.{comparison} are not those of settings.attacks"
            return
        for name, attack in row.attacks[comparison].items():
            where = f"attacks.{comparison}.{name}"
            if attack.reason is not None:
                if attack.auc.known:
                    yield f"{where} has figures and a reason for having none"
                continue
            most = row.counts[members]
            if attack.members > most or (name in THRESHOLDS and attack.members != most):
                yield f"{where}.members is not the set's size"
            if name in THRESHOLDS and attack.undefined:
                yield f"{where}.undefined: a loss that is no number is never audited"
            if name in THRESHOLDS and attack.nonmembers != first.attacks[comparison][name].nonmembers:
                yield f"{where}.nonmembers differs between the models"
            yield from _attack(where, attack)
        for name, thresholds in row.class_thresholds.get(comparison, {}).items():
            yield from _thresholds(f"class_thresholds.{comparison}.{name}", thresholds)


def _attack(where: str, attack: AttackFigures) -> Iterator[str]:
    n1, n0 = attack.members, attack.nonmembers
    if n1 < 1 or n0 < 1:
        yield f"{where} has figures of no samples"
        return
    if not near(attack.auc_standard_error, intervals.auc_standard_error(n1, n0)):
        yield f"{where}.auc_standard_error does not follow from its counts"
    halves = 2 * attack.auc.value * n1 * n0  # a tie counts one half
    if abs(halves - round(halves)) > max(1e-3, 1e-12 * n1 * n0):
        yield f"{where}.auc is no share of {n1 * n0} pairs"
    yield from inside(f"{where}.balanced_accuracy", attack.balanced_accuracy)
    yield from inside(f"{where}.auc", attack.auc, slack=0.02)  # a bootstrap's interval needn't hold the figure
    # all points of the curve lie at or under tpr = fpr + reach
    reach = 2 * attack.balanced_accuracy.value - 1
    if reach < -TINY or not reach - TINY <= attack.auc.value <= 1 - (1 - reach) ** 2 / 2 + TINY:
        yield f"{where}.auc does not fit its balanced_accuracy"
    tprs = {}
    for name, rate in attack.tpr_at.items():
        tprs[FPRS[name]] = rate.tpr.value
        yield from exact(f"{where}.tpr_at_{name}_fpr", rate.tpr, n1)
        if rate.resolves != (n0 * FPRS[name] >= 1 - 1e-9):
            yield f"{where}.resolves_{name}_fpr does not follow from its counts"
        if rate.tpr.value - FPRS[name] > reach + TINY:
            yield f"{where}.tpr_at_{name}_fpr does not fit its balanced_accuracy"
    ordered = [tprs[rate] for rate in sorted(tprs)]
    if ordered != sorted(ordered):
        yield f"{where}: a stricter false-positive rate has the larger true-positive rate"


def _thresholds(where: str, thresholds: ThresholdFigures) -> Iterator[str]:
    if thresholds.reason is not None or not thresholds.balanced_accuracy.known:
        if thresholds.balanced_accuracy.known:
            yield f"{where} has figures and a reason for having none"
        return
    yield from exact(f"{where}.tpr", thresholds.tpr, thresholds.members)
    yield from exact(f"{where}.fpr", thresholds.fpr, thresholds.nonmembers)
    if not near(thresholds.balanced_accuracy.value, (1 + thresholds.tpr.value - thresholds.fpr.value) / 2):
        yield f"{where}.balanced_accuracy does not follow from its tpr and fpr"
    elif thresholds.balanced_accuracy.interval is not None:
        n1, n0 = thresholds.members, thresholds.nonmembers
        ends = intervals.balanced(round(thresholds.tpr.value * n1), n1, round(thresholds.fpr.value * n0), n0)
        if not all(map(near, thresholds.balanced_accuracy.interval, ends)):
            yield f"the interval of {where}.balanced_accuracy is not that of its counts"


def memory(row: ModelRow, rows: list[ModelRow]) -> Iterator[str]:
    """The oracle's shares, and the forgetting rate that follows from them."""
    forget = row.oracle_members["forget"]
    if forget.known:
        yield from exact("oracle_members.forget", forget, row.counts["forget"])
        yield from exact("oracle_members.unseen", row.oracle_members["unseen"], row.attacks[FORGET]["loss"].nonmembers)
    yield from inside("forgetting_rate", row.forgetting_rate)
    if row.forgetting_rate.known and row.forgetting_rate.reason is not None:
        yield "forgetting_rate has a value and a reason for having none"
    before = next((other.oracle_members["forget"].value for other in rows if other.model == ORIGINAL), math.nan)
    if not forget.known or math.isnan(before) or before == 0:
        if row.forgetting_rate.known:
            yield "forgetting_rate has a value where the oracle has none"
        return
    if not near(row.forgetting_rate.value, (before - forget.value) / before):
        yield "forgetting_rate does not follow from oracle_members"


# ------------------------------------------------------------------ weights


def distances(row: ModelRow, rows: list[ModelRow], models: dict[str, Any]) -> Iterator[str]:
    """From the original and the retrained model, layer by layer and in all."""
    others = {name for name in (ORIGINAL, RETRAINED) if any(other.model == name for other in rows)} - {row.model}
    if set(row.weight_distance) != others:
        yield "weight_distance is not from the original and the retrained model"
        return
    for other, distance in row.weight_distance.items():
        where, equal = f"weight_distance.{other}", models[row.model]["weights_sha256"] == models[other]["weights_sha256"]
        if equal and not distance.identical:
            yield f"{where}: the weights have the same hash and are called different"
        if distance.reason is not None:
            if distance.layers or distance.identical or not math.isnan(distance.total):
                yield f"{where} has figures and a reason for having none"
            continue
        if math.isnan(distance.total) or not near(distance.total, math.hypot(*(layer.l2 for layer in distance.layers))):
            yield f"{where}.total does not follow from its layers"
        if distance.identical and distance.total != 0:
            yield f"{where}: identical weights have a distance"
        yield from _norms(where, row, other, rows)


def _norms(where: str, row: ModelRow, other: str, rows: list[ModelRow]) -> Iterator[str]:
    """The norm of a layer of the other model, distance over relative distance, is one number whichever model was compared."""
    of_layer: dict[str, list[float]] = {}
    own: dict[str, float] = {}
    for one in rows:
        distance = one.weight_distance.get(other)
        for layer in distance.layers if distance is not None else ():
            if layer.l2 > 0 and layer.relative > 0 and math.isfinite(layer.relative):
                of_layer.setdefault(layer.layer, []).append(layer.l2 / layer.relative)
                if one is row:
                    own[layer.layer] = layer.l2 / layer.relative
    shapes = {
        tuple((layer.layer, layer.rows) for layer in one.weight_distance[other].layers)
        for one in rows
        if other in one.weight_distance and one.weight_distance[other].layers
    }
    if len(shapes) > 1:
        yield f"{where}: the models have other layers, so no distance could be measured"
    for name, norm in own.items():
        if not near(norm, statistics.median_low(of_layer[name])):
            yield f"{where}: layer {name} is relative to another norm than for other models"
    distance = row.weight_distance[other]
    norms = [statistics.median_low(of_layer[layer.layer]) for layer in distance.layers if layer.layer in of_layer]
    if norms and len(norms) == len(distance.layers) and not near(distance.relative, distance.total / math.hypot(*norms)):
        yield f"{where}.relative does not follow from its layers"
