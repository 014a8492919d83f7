"""Whether a receipt's figures can be figures of one audit: what follows from others is computed again.

Whoever invents figures must invent all of these so that they agree, and even then has no weights that give them; figures that agree are
not figures that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..figures import ORIGINAL, RETRAINED, ClassProbe, ModelRow
from ..names import SEQUENCE_WISE
from . import beneath_answers, common, of_sequences
from .finding import Finding
from .rounding import TINY, near

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
    fitting = SEQUENCE_WISE if rows[0].sequences is not None else "class-wise" if classes else "sample-wise"
    yield _agree("request and classes", receipt["request"], fitting, "forgotten_classes" if classes else "rows")
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
        if receipt["request"] == SEQUENCE_WISE:
            yield Finding(f"rows.{row.model}.figures", next(of_sequences.contradictions(row, rows, receipt), ""))
            continue
        below = beneath_answers.contradictions(row, rows, receipt) if beneath or row.below is not None else iter(())
        yield Finding(f"rows.{row.model}.figures", next(chain(contradictions(row, rows, receipt), below), ""))
    if receipt["request"] == SEQUENCE_WISE or "overlap" in settings:  # audits of samples before 2026-11-30 didn't look
        yield _shared(settings.get("overlap"), receipt["sizes"])
    if settings.get("frozen_body"):
        yield Finding("settings.frozen_body", unchecked="that training moves nothing but the last layer is the auditor's word")


def _shared(overlap: Any, sizes: dict[str, int]) -> Finding:
    """Whether the counts of what the forget set shares with the others can be those of an audit that wasn't refused."""
    field = "settings.overlap"
    if overlap is None or "how" in overlap:
        return Finding(field, unchecked="what the sets share was not looked at")
    if sorted(overlap) != ["retain", "test"]:
        return Finding(field, "it is not of the retain and the test set")
    for name, found in overlap.items():
        if ("shared" in found) == found["how"].startswith("not") or ("shared" in found) != ("allowed" in found):
            return Finding(f"{field}.{name}", "a count that was not made, or none that was")
        if "shared" not in found:
            return Finding(f"{field}.{name}", unchecked="what the two sets share was not looked at")
        if found["shared"] > min(sizes["forget"], found["allowed"]):
            return Finding(f"{field}.{name}", f"{found['shared']} are shared, and such an audit is refused")
    return Finding(field)


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
    if row.sequences is not None:
        yield "sequences: figures of sequences, and the request is another"
    yield from common.counts(row, receipt)
    yield from _accuracies(row, receipt["forgotten_classes"])
    yield from _predictions(row)
    yield from _losses(row)
    yield from common.attacks(row, rows[0], receipt)
    yield from common.memory(row, rows)
    yield from common.distances(row, rows, receipt["models"])
    yield from _probes(row, receipt["forgotten_classes"])
    yield from _divergences(row, receipt["settings"]["conventions_used"])


def _accuracies(row: ModelRow, forgotten: list[int]) -> Iterator[str]:
    for part in PARTS:
        yield from common.exact(f"accuracy.{part}", row.accuracy[part], row.counts[part])
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
        yield from common.mean(f"mean_loss.{name}", row.mean_loss[name])
        loss, wrong = row.mean_loss[name].value, 1 - row.accuracy[name].value
        # a sample that is answered wrong has a probability of at most one half; null stands for infinity as well
        if loss < wrong * math.log(2) * (1 - 1e-4) - TINY:
            yield f"mean_loss.{name} is smaller than accuracy.{name} allows"
        if wrong == 0 and loss > math.log(len(row.forget_predictions)) + 1e-3:
            yield f"mean_loss.{name} is larger than accuracy.{name} allows"


# ------------------------------------------------------------------ probes


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
            yield from common.mean(f"probes.{name}", probe)
    yield from common.exact("probes.mia_efficacy", row.probes["mia_efficacy"], row.counts["forget"]) if _known(row, "mia_efficacy") else ()
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
