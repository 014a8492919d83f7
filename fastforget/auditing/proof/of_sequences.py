"""Whether the figures of a language model's sequences can be figures of one audit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ... import _ks
from ..figures import ORIGINAL, RETRAINED, Figure, ModelRow, SequenceFigures
from ..figures_sequences import SETS
from ..measure.intervals import NORMAL
from ..measure.tokens import reference_of
from ..names import FORGET_QUALITY, HIDDEN, KS
from . import common
from .rounding import TINY, near

NOT_OF_SEQUENCES = ("below", "class_accuracy", "forget_predictions")


def contradictions(row: ModelRow, rows: list[ModelRow], receipt: dict[str, Any]) -> Iterator[str]:
    """What can't be true together among one row's figures."""
    if row.sequences is None:
        yield "sequences: what the figures of sequences rest on is missing"
        return
    given = (row.below is not None, any(row.class_accuracy.values()), bool(row.forget_predictions))
    yield from (f"{name}: there is no such figure of sequences" for name, there in zip(NOT_OF_SEQUENCES, given, strict=True) if there)
    yield from common.counts(row, receipt)
    yield from _means(row, row.sequences)
    if any(one.sequences is not None and one.sequences.tokens != row.sequences.tokens for one in rows):
        yield "sequences.tokens: other models were scored on other tokens"
    yield from _built(row, row.sequences)
    yield from common.attacks(row, rows[0], receipt)
    yield from common.memory(row, rows)
    yield from common.distances(row, rows, receipt["models"])
    yield from _beside_reference(row, rows, receipt["settings"]["conventions_used"])


def _means(row: ModelRow, rests_on: SequenceFigures) -> Iterator[str]:
    """Means over sequences, their standard errors, and the intervals that follow."""
    if row.accuracy["test_forget"].known or row.accuracy["test_retain"] != row.accuracy["test"]:
        yield "accuracy: all test sequences are of what is kept"
    for part in SETS:
        accuracy, loss, n = row.accuracy[part], row.mean_loss[part], row.counts[part]
        if rests_on.tokens[part] < n:
            yield f"sequences.tokens.{part}: fewer tokens than sequences"
        error, largest = rests_on.accuracy_error[part], math.sqrt(accuracy.value * (1 - accuracy.value) / max(n - 1, 1))
        if math.isnan(error) != (n == 1) or error > largest + TINY:
            yield f"sequences.accuracy_error.{part} does not fit accuracy.{part}"
        yield from _interval(f"accuracy.{part}", accuracy, error, most=1.0)
        yield from _interval(f"mean_loss.{part}", loss, rests_on.loss_error[part])
        # a token that is answered wrong has a probability of at most one half
        if loss.value < (1 - accuracy.value) * math.log(2) * (1 - 1e-4) - TINY:
            yield f"mean_loss.{part} is smaller than accuracy.{part} allows"


def _built(row: ModelRow, figures: SequenceFigures) -> Iterator[str]:
    """The head is one of the layers, and the original is built like itself."""
    if row.model == ORIGINAL and figures.structure is not None:
        yield "sequences.structure: the original is built as itself"
    for other, distance in row.weight_distance.items():
        if figures.head is not None and distance.layers and figures.head not in {layer.layer for layer in distance.layers}:
            yield f"sequences.head is no layer of weight_distance.{other}"


def _interval(name: str, figure: Figure, error: float, most: float = math.inf) -> Iterator[str]:
    if figure.interval is None or math.isnan(error):
        return
    ends = max(0.0, figure.value - NORMAL * error), min(most, figure.value + NORMAL * error)
    if not all(map(near, figure.interval, ends)):
        yield f"the interval of {name} is not that of its standard error"


def _beside_reference(row: ModelRow, rows: list[ModelRow], conventions: dict[str, str]) -> Iterator[str]:
    by_name = {one.model: one for one in rows}
    reference = reference_of(by_name)
    wanted = {HIDDEN} | ({"mean_perplexity_ratio"} if reference is not None else set())
    wanted |= {"kl_to_retrained", KS, FORGET_QUALITY} if reference == RETRAINED else set()
    if set(row.probes) != wanted:
        yield "probes are not those of sequences"
        return
    for name, probe in row.probes.items():
        if probe.convention != conventions.get(name):
            yield f"probes.{name} is another figure than settings.conventions_used says"
    found = row.probes[HIDDEN]
    if found.known == (found.reason is not None) or not (math.isnan(found.value) or 0 <= found.value <= 1):
        yield f"probes.{HIDDEN} is no AUC, or has a value and a reason for having none"
    if reference is None:
        return
    further = row.mean_loss["forget"].value - by_name[reference].mean_loss["forget"].value
    ratio = row.probes["mean_perplexity_ratio"].value
    if not math.isnan(ratio) and not near(math.log(ratio), further):
        yield "probes.mean_perplexity_ratio does not follow from mean_loss.forget"
    if reference == RETRAINED:
        yield from _distance(row)


def _distance(row: ModelRow) -> Iterator[str]:
    """The distance of losses and its p-value; and both, with the divergence, of the retrained model beside itself."""
    n, apart, divergence = row.counts["forget"], row.probes[KS].value, row.probes["kl_to_retrained"]
    if not near(apart * n, round(apart * n)) or not 0 <= apart <= 1:
        yield f"probes.{KS} is no distance of {n} losses from {n}"
    elif not near(row.probes[FORGET_QUALITY].value, _ks.pvalue(apart, n, n)):
        yield f"probes.{FORGET_QUALITY} is not the p-value of probes.{KS}"
    yield from common.mean("probes.kl_to_retrained", divergence)
    if divergence.value < -TINY:
        yield "probes.kl_to_retrained is below 0"
    if row.model == RETRAINED and (apart != 0 or divergence.value > TINY):
        yield "probes: the retrained model differs from itself"
