"""Whether a receipt's figures can be figures of one audit: what follows from others is computed again.

Whoever invents figures must invent all of these so that they agree, and even then has no weights that give them; figures that agree are
not figures that were measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..figures import FORGET, FPRS, ORIGINAL, RETAIN, RETRAINED, AttackFigures, ClassProbe, Figure, ModelRow, ThresholdFigures
from ..measure import intervals
from ..names import DIRECTION
from . import beneath_answers
from .finding import Finding
from .rounding import TINY, is_share, near

MEANS = ("js_to_retrained", "activation_distance", "activation_distance_l1", "zrf", "zrf_bits")
PARTS = {"forget": "forget", "retain": "retain", "test": "test", "test_forget": "test", "test_retain": "test"}


def whole(receipt: dict[str, Any], rows: list[ModelRow], *, beneath: bool = True) -> Iterator[Finding]:
    """What the receipt's entries say of each other, one finding an entry, and one finding for each row's figures.

    ``beneath``: the rule reads figures below the answers, so that rows beside an original model have them.
    """
    settings = receipt["settings"]
    for entry in ("sizes", "request", "forgotten_classes"):
        yield _agree(entry, receipt[entry], settings[entry], f"settings.{entry}")
    yield _agree("seeds.audit", receipt["seeds"]["audit"], settings["seed"], "settings.seed")
    yield _agree("forget_set.samples", receipt["forget_set"]["samples"], receipt["sizes"]["forget"], "sizes.forget")
    ids = receipt["forget_set"].get("ids")
    if ids is not None:
        yield _agree("forget_set.ids.count", ids["count"], receipt["sizes"]["forget"], "sizes.forget")
    classes = receipt["forgotten_classes"]
    yield _agree("request and classes", receipt["request"], "class-wise" if classes else "sample-wise", "forgotten_classes")
    yield Finding("forget_set.reason", "" if receipt["forget_set"]["reason"] is None else "it has a hash and a reason for having none")
    yield _agree("settings.torch", settings["torch"], receipt["versions"].get("torch"), "versions.torch")
    names = [row.model for row in rows]
    yield _agree("settings.reference", settings["reference"], RETRAINED if RETRAINED in names else None, "rows")
    yield Finding("rows", "" if len(set(names)) == len(names) else "two rows are of one model")
    for entry, control in (("rows", False), ("control_rows", True)):
        marked = all(row["control"] is control for row in receipt[entry])
        yield Finding(f"{entry}.control", "" if marked else "a row is marked as what it is not")
    yield from _models(receipt["models"], rows)
    for row in rows:
        below = beneath_answers.contradictions(row, rows, receipt) if beneath or row.below is not None else iter(())
        yield Finding(f"rows.{row.model}.figures", next(chain(contradictions(row, rows, receipt), below), ""))
    if settings.get("frozen_body"):
        yield Finding("settings.frozen_body", unchecked="that training moves nothing but the last layer is the auditor's word")


def _agree(field: str, stated: Any, other: Any, place: str) -> Finding:
    return Finding(field, "" if stated == other else f"it is not what {place} says")


def _models(models: dict[str, Any], rows: list[ModelRow]) -> Iterator[Finding]:
    """A receipt is made of hashed models alone, and the control "untouched" is the original."""
    for name, about in models.items():
        if about["reason"] is not None or about["weights_sha256"] is None or about["state_dict_sha256"] is None:
            yield Finding(f"models.{name}", "it has no hash, so it could be any model")
    for row in rows:
        for other, distance in row.weight_distance.items():
            if distance.reason is None and distance.layers and models[row.model]["parameters"] != models[other]["parameters"]:
                yield Finding(
                    f"models.{row.model}.parameters", f"they are more or fewer than those of {other}, and each has a partner there"
                )
    if "untouched" in models and ORIGINAL in models:
        equal = models["untouched"]["weights_sha256"] == models[ORIGINAL]["weights_sha256"]
        yield Finding("models.untouched", "" if equal else "its weights are not those of the original")


# ------------------------------------------------------------------ one row


def contradictions(row: ModelRow, rows: list[ModelRow], receipt: dict[str, Any]) -> Iterator[str]:
    """What can't be true together among one row's figures."""
    yield from _counts(row, receipt)
    yield from _accuracies(row, receipt["forgotten_classes"])
    yield from _predictions(row)
    yield from _losses(row)
    yield from _attacks(row, rows[0], receipt)
    yield from _memory(row, rows)
    yield from _distances(row, rows, receipt["models"])
    yield from _probes(row, receipt["forgotten_classes"])
    yield from _divergences(row, receipt["settings"]["conventions_used"])


def _exact(name: str, figure: Figure, count: int) -> Iterator[str]:
    """A share with its exact interval."""
    if not is_share(figure.value, count):
        yield f"{name} is no share of {count} samples"
    elif figure.interval is not None and count:
        ends = intervals.share(round(figure.value * count), count)
        if not all(map(near, figure.interval, ends)):
            yield f"the interval of {name} is not that of its count"


def _mean(name: str, figure: Figure) -> Iterator[str]:
    """A mean with its interval of as many standard errors on both sides, where it doesn't end at what the figure can be."""
    if figure.interval is None or not figure.known or not all(map(math.isfinite, figure.interval)):
        return
    low, high = figure.interval
    if not low - TINY <= figure.value <= high + TINY:
        yield f"{name} lies outside of its interval"
    elif low > 0 and not near(figure.value, (low + high) / 2) and not name.startswith("probes"):
        yield f"{name} is not in the middle of its interval"


def _inside(name: str, figure: Figure, slack: float = TINY) -> Iterator[str]:
    if figure.interval is not None and figure.known and not any(map(math.isnan, figure.interval)):
        low, high = figure.interval
        if not low - slack <= figure.value <= high + slack or low > high:
            yield f"{name} lies outside of its interval"


def _counts(row: ModelRow, receipt: dict[str, Any]) -> Iterator[str]:
    for name, size in receipt["sizes"].items():
        if row.counts[name] != size:
            yield f"counts.{name} is not sizes.{name}"
    if row.counts["test_forget"] + row.counts["test_retain"] != row.counts["test"]:
        yield "counts.test is not the sum of its parts"
    if row.class_wise != bool(receipt["forgotten_classes"]):
        yield "class_wise is not what forgotten_classes says"
    if row.with_intervals != receipt["settings"]["intervals"]:
        yield "the intervals are not what settings.intervals says"


def _accuracies(row: ModelRow, forgotten: list[int]) -> Iterator[str]:
    for part in PARTS:
        yield from _exact(f"accuracy.{part}", row.accuracy[part], row.counts[part])
    parts = [row.accuracy[part].value * row.counts[part] for part in ("test_forget", "test_retain") if row.counts[part]]
    if not near(row.accuracy["test"].value * row.counts["test"], math.fsum(parts)):
        yield "accuracy.test does not follow from its parts"
    by_class = row.class_accuracy
    if sorted(set(by_class["forget"]) - set(by_class["retain"])) != sorted(forgotten):
        yield "class_accuracy is of other classes than forgotten_classes"
    test = by_class["test"]
    parts_of = {name: list(by_class[name].values()) for name in ("forget", "retain", "test")}
    parts_of["test_forget"] = [value for c, value in test.items() if c in forgotten]
    parts_of["test_retain"] = [value for c, value in test.items() if c not in forgotten]
    for part, values in parts_of.items():
        if not values or not row.accuracy[part].known:
            continue
        if not min(values) - TINY <= row.accuracy[part].value <= max(values) + TINY:
            yield f"accuracy.{part} lies outside of its classes' accuracies"


def _predictions(row: ModelRow) -> Iterator[str]:
    counts, samples = row.forget_predictions, row.counts["forget"]
    if sum(counts) != samples or min(counts) < 0:
        yield "forget_predictions are not of the forget set's samples"
        return
    spread = math.exp(-math.fsum(n / samples * math.log(n / samples) for n in counts if n))
    if not near(row.forget_prediction_spread, spread):
        yield "forget_prediction_spread does not follow from forget_predictions"
    classes = list(row.class_accuracy["forget"])
    if max(classes) >= len(counts):
        yield "forget_predictions has too few classes"
        return
    right, answered = row.accuracy["forget"].value * samples, sum(counts[c] for c in classes)
    if right > answered + TINY or (len(classes) == 1 and not near(right, answered)):
        yield "accuracy.forget does not follow from forget_predictions"


def _losses(row: ModelRow) -> Iterator[str]:
    for name in ("forget", "retain", "test"):
        yield from _mean(f"mean_loss.{name}", row.mean_loss[name])
        loss, wrong = row.mean_loss[name].value, 1 - row.accuracy[name].value
        # a sample that is answered wrong has a probability of at most one half; null stands for infinity as well
        if loss < wrong * math.log(2) * (1 - 1e-4) - TINY:
            yield f"mean_loss.{name} is smaller than accuracy.{name} allows"
        if wrong == 0 and loss > math.log(len(row.forget_predictions)) + 1e-3:
            yield f"mean_loss.{name} is larger than accuracy.{name} allows"


# ------------------------------------------------------------------ attacks, memory


def _attacks(row: ModelRow, first: ModelRow, receipt: dict[str, Any]) -> Iterator[str]:
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
            if attack.members > most or (name in DIRECTION and attack.members != most):
                yield f"{where}.members is not the set's size"
            if name in DIRECTION and attack.undefined:
                yield f"{where}.undefined: a loss that is no number is never audited"
            if name in DIRECTION and attack.nonmembers != first.attacks[comparison][name].nonmembers:
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
    yield from _inside(f"{where}.balanced_accuracy", attack.balanced_accuracy)
    yield from _inside(f"{where}.auc", attack.auc, slack=0.02)  # a bootstrap's interval needn't hold the figure
    # all points of the curve lie at or under tpr = fpr + reach
    reach = 2 * attack.balanced_accuracy.value - 1
    if reach < -TINY or not reach - TINY <= attack.auc.value <= 1 - (1 - reach) ** 2 / 2 + TINY:
        yield f"{where}.auc does not fit its balanced_accuracy"
    tprs = {}
    for name, rate in attack.tpr_at.items():
        tprs[FPRS[name]] = rate.tpr.value
        yield from _exact(f"{where}.tpr_at_{name}_fpr", rate.tpr, n1)
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
    yield from _exact(f"{where}.tpr", thresholds.tpr, thresholds.members)
    yield from _exact(f"{where}.fpr", thresholds.fpr, thresholds.nonmembers)
    if not near(thresholds.balanced_accuracy.value, (1 + thresholds.tpr.value - thresholds.fpr.value) / 2):
        yield f"{where}.balanced_accuracy does not follow from its tpr and fpr"
    elif thresholds.balanced_accuracy.interval is not None:
        n1, n0 = thresholds.members, thresholds.nonmembers
        ends = intervals.balanced(round(thresholds.tpr.value * n1), n1, round(thresholds.fpr.value * n0), n0)
        if not all(map(near, thresholds.balanced_accuracy.interval, ends)):
            yield f"the interval of {where}.balanced_accuracy is not that of its counts"


def _memory(row: ModelRow, rows: list[ModelRow]) -> Iterator[str]:
    forget = row.oracle_members["forget"]
    if forget.known:
        yield from _exact("oracle_members.forget", forget, row.counts["forget"])
        yield from _exact("oracle_members.unseen", row.oracle_members["unseen"], row.attacks[FORGET]["loss"].nonmembers)
    yield from _inside("forgetting_rate", row.forgetting_rate)
    if row.forgetting_rate.known and row.forgetting_rate.reason is not None:
        yield "forgetting_rate has a value and a reason for having none"
    before = next((other.oracle_members["forget"].value for other in rows if other.model == ORIGINAL), math.nan)
    if not forget.known or math.isnan(before) or before == 0:
        if row.forgetting_rate.known:
            yield "forgetting_rate has a value where the oracle has none"
        return
    if not near(row.forgetting_rate.value, (before - forget.value) / before):
        yield "forgetting_rate does not follow from oracle_members"


# ------------------------------------------------------------------ weights, probes


def _distances(row: ModelRow, rows: list[ModelRow], models: dict[str, Any]) -> Iterator[str]:
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


def _probes(row: ModelRow, forgotten: list[int]) -> Iterator[str]:
    by_logit = row.probes.get("class_logit_auc")
    if by_logit is None:
        yield "probes.class_logit_auc is missing"
    elif isinstance(by_logit, ClassProbe) and by_logit.known:
        if not set(by_logit.by_class) <= set(forgotten) or by_logit.worst_class not in by_logit.by_class:
            yield "probes.class_logit_auc is of other classes than were forgotten"
        elif not near(by_logit.value, by_logit.by_class[by_logit.worst_class]) or by_logit.value < max(by_logit.by_class.values()) - TINY:
            yield "probes.class_logit_auc is not that of its worst class"
    elif by_logit.known:
        yield "probes.class_logit_auc has no classes"
    elif by_logit.reason is None:
        yield "probes.class_logit_auc has neither a value nor a reason"


def _divergences(row: ModelRow, conventions: dict[str, str]) -> Iterator[str]:
    """What holds of any two distributions' distances holds of their means."""
    for name, probe in row.probes.items():
        if name in conventions and probe.convention != conventions[name]:
            yield f"probes.{name} is another figure than settings.conventions_used says"
        if name in MEANS and probe.reason is None:
            yield from _mean(f"probes.{name}", probe)
    yield from _exact("probes.mia_efficacy", row.probes["mia_efficacy"], row.counts["forget"]) if _known(row, "mia_efficacy") else ()
    if not all(_known(row, name) for name in ("js_to_retrained", "activation_distance", "activation_distance_l1")):
        return
    js, l2, l1 = (row.probes[name].value for name in ("js_to_retrained", "activation_distance", "activation_distance_l1"))
    slack, classes = 1e-4, len(row.forget_predictions)
    if not -TINY <= js <= math.log(2) + TINY or not l1 * l1 / 8 - slack <= js <= l1 * math.log(2) / 2 + slack:
        yield "probes.js_to_retrained does not fit activation_distance_l1"
    if not l2 - slack <= l1 <= math.sqrt(classes) * l2 + slack:
        yield "probes.activation_distance does not fit activation_distance_l1"
    if _known(row, "js_of_means_to_retrained") and not -TINY <= row.probes["js_of_means_to_retrained"].value <= js + slack:
        yield "probes.js_of_means_to_retrained is more than js_to_retrained"


def _known(row: ModelRow, name: str) -> bool:
    return name in row.probes and row.probes[name].known
