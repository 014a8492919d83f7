"""Everything that one audit measures: one pass of all models over all sets, then each model's row."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from .._data import Source
from .._hashes import sample_hashes
from .._weights import eval_mode, reading_copy
from .figures import ORIGINAL, RETAIN, RETRAINED, Below, Figure, ModelRow, OracleRate, Probe, is_reference
from .measure import attacks as attack_scores
from .measure import below as below_answers
from .measure import exposure, passes, probes, svc
from .measure import intervals as ends
from .measure.attacks import Comparison, share_of
from .measure.class_rule import ClassThresholds
from .measure.halves import nearest_classes, neighbours
from .measure.histogram import loss_histograms
from .measure.oracles import rates as oracle_rates
from .measure.relearn import probes as relearn_probes
from .measure.weights import weight_distance
from .names import DIRECTION
from .request import Request
from .shadow import attacks as shadow_attacks

Scores = dict[str, passes.Scored]
NO_NEAR = "there is no retrained model that answers samples of the forgotten classes with kept ones, so that none is the nearest"


@dataclass
class Measured:
    """What was measured, before anything is judged.

    Attributes:
        rows: one a model, the controls' last.
        comparisons: of members with non-members.
        oracle: the loss threshold behind the forgetting rate.
        forgotten: int64[C], the classes that the retain set lacks.
        sizes: samples of each set.
        curves: what the page draws, as plain values.
        exposed_by: the attack behind ``curves["exposed"]``.
        request: "class-wise", "sample-wise" or "sequence-wise".
        near: the kept classes nearest the forgotten ones.
    """

    rows: list[ModelRow]
    comparisons: list[Comparison]
    oracle: attack_scores.Oracle
    forgotten: Tensor
    sizes: dict[str, int]
    curves: dict[str, Any]
    exposed_by: str
    request: str
    near: tuple[int, ...] = ()


class SampleKeys:
    """What orders a set's samples whatever order they came in, so that noise, halves and samples drawn at random are the same for all."""

    def __init__(self) -> None:
        self.keys: dict[str, array[int] | None] = {}

    def add(self, set_name: str, inputs: Any, labels: Tensor) -> None:
        """A batch, in the set's order. Samples that have no hash keep the order in which they came."""
        held = self.keys.setdefault(set_name, array("Q"))
        if held is None:
            return
        try:
            held.extend(int.from_bytes(digest[:8], "big") for digest in sample_hashes(inputs, labels))
        except (RuntimeError, TypeError):
            self.keys[set_name] = None

    def ordered(self, sets: dict[str, Source]) -> Ordered:
        """The three sets, each in the order of its samples' keys."""
        found = {}
        for name in ("forget", "retain", "test"):
            held = self.keys.get(name)
            whole = held is not None and len(held) == len(sets[name])
            found[name] = sets[name].subset(torch.from_numpy(np.argsort(np.array(held), kind="stable"))) if whole else sets[name]
        return Ordered(**found)  # type: ignore[typeddict-item]


class Ordered(TypedDict):
    """The three sets."""

    forget: Source
    retain: Source
    test: Source


def measure(request: Request) -> Measured:
    """Runs everything that was asked for, on models and controls alike."""
    # called are copies: no flag or buffer of the caller's models moves, whatever happens
    models = {name: reading_copy(model) for name, model in request.everyone().items()}
    teacher = None if request.teacher is None else reading_copy(request.teacher)
    recorder, keys = probes.Recorder(list(models), teacher=teacher, forward=request.forward), SampleKeys()
    scored = _scored(request, models, recorder, keys)
    missing = shadow_attacks.add(request.shadows, request.shadow_attacks, request.sets, scored) if request.shadow_attacks else {}
    for sets in scored.values():
        sets.pop("population", None)
    labels = {name: one.labels for name, one in next(iter(scored.values())).items()}
    for name, of_set in labels.items():
        request.sets[name].remember(of_set)
    forgotten = probes.only_in(labels["forget"], labels["retain"])
    original, comparisons = scored.get(ORIGINAL), attack_scores.comparisons(labels)
    forget, retain = comparisons
    oracle = attack_scores.calibrate(original, retain)
    thresholds = ClassThresholds(original, retain, request.attacks)
    by_oracle = _by_oracle(request, models)
    relearned = _relearned(request, original)
    near = _near(scored, forgotten)
    below = _below(request, models, scored, forgotten, near, keys)
    rows = []
    for name, sets in scored.items():
        row = _row(name, sets, comparisons, forgotten, request)
        row.weight_distance = distances(name, request.everyone())
        row.probes = recorder.figures(name, request.seed, request.intervals) | {"mia_efficacy": svc.mia_probe(sets, request.intervals)}
        row.probes |= relearned.get(name, {})
        row.below = below.get(name)
        row.class_thresholds = {one.name: thresholds.figures(sets, one, request.intervals) for one in comparisons}
        row.forgetting_rate = attack_scores.rate(original, sets, oracle, request.intervals)
        row.forgetting_rates = by_oracle[name]
        row.oracle_members = attack_scores.oracle_members(sets, forget, oracle, request.intervals)
        if "retain" in missing:
            attacks = row.attacks[RETAIN]
            attacks |= {attack: replace(attacks[attack], reason=missing["retain"]) for attack in request.shadow_attacks}
        rows.append(row)
    judged = [name for name in request.models if name != ORIGINAL and not is_reference(name)]
    exposed_by, exposed = exposure.exposed(scored, judged, request.attacks, labels["forget"])
    curves = {
        "roc": {one.name: {attack: curves_of(scored, one, attack) for attack in request.attacks} for one in comparisons},
        "loss": loss_histograms({name: {s: one.scores["loss"] for s, one in sets.items()} for name, sets in scored.items()}),
        "exposed": [sample.to_dict() for sample in exposed],
    }
    sizes = {name: len(y) for name, y in labels.items()}
    asked = "class-wise" if len(forgotten) else "sample-wise"
    return Measured(rows, comparisons, oracle, forgotten, sizes, curves, exposed_by, asked, near)


def _scored(request: Request, models: dict[str, nn.Module], recorder: probes.Recorder, keys: SampleKeys) -> dict[str, Scores]:
    """The one pass of all models over all sets, with the scores that the attacks read."""
    read = [name for name in request.attacks if name in DIRECTION]
    if request.shadow_attacks:
        read.append("logit_confidence")

    def watch(set_name: str, inputs: Any, labels: Tensor, logits: dict[str, Tensor]) -> None:
        recorder(set_name, inputs, labels, logits)
        keys.add(set_name, inputs, labels)

    teacher = {"teacher": recorder.teacher} if recorder.teacher is not None else {}
    with eval_mode(*teacher.values()):
        return passes.run(
            models,
            request.sets,
            attacks=tuple(dict.fromkeys(read)),
            forward=request.forward,
            seed=request.seed,
            progress=request.progress,
            watch=watch,
        )


def _near(scored: dict[str, Scores], forgotten: Tensor) -> tuple[int, ...]:
    """The classes nearest the forgotten ones, which only a retrained model can say."""
    if RETRAINED not in scored or not len(forgotten):
        return ()
    test = scored[RETRAINED]["test"]
    return nearest_classes(test.predicted, test.labels, forgotten.tolist())


def _below(
    request: Request,
    models: dict[str, nn.Module],
    scored: dict[str, Scores],
    forgotten: Tensor,
    near: tuple[int, ...],
    keys: SampleKeys,
) -> dict[str, Below]:
    """The figures below the answers; none without an original model, beside which most of them are taken."""
    if ORIGINAL not in models:
        return {}
    found = below_answers.measure(
        models,
        original=models[ORIGINAL],
        **keys.ordered(request.sets),
        forgotten=forgotten.tolist(),
        seed=request.seed,
        forward=request.forward,
        relearning=True,
        progress=request.progress,
    )
    for name, row in found.items():
        if len(forgotten):
            beside = neighbours(scored[name]["test"].predicted, scored[name]["test"].labels, near)
            row.neighbours = beside.accuracy
            row.reasons.pop("neighbours", None)
            row.reasons |= {"neighbours": beside.reason if near else NO_NEAR} if beside.reason else {}
    return found


def _by_oracle(request: Request, models: dict[str, nn.Module]) -> dict[str, dict[str, OracleRate]]:
    if not request.oracles:
        return {name: {} for name in models}
    return oracle_rates(models, request.sets["forget"], request.oracles, ORIGINAL, request.forward)


def _relearned(request: Request, original: Scores | None) -> dict[str, dict[str, Probe]]:
    """Relearn times of the models; the controls are left out."""
    accuracy = loss = math.nan
    if original is not None:
        accuracy = share_of(original["forget"].correct, False).value
        loss = float(original["forget"].scores["loss"].double().mean())
    return relearn_probes(
        request.models,
        request.relearn,
        train=request.train,
        forget=request.sets["forget"],
        accuracy=accuracy,
        loss=loss,
        unpack=request.unpack,
        forward=request.forward,
        seed=request.seed,
        progress=request.progress,
    )


def distances(name: str, models: dict[str, nn.Module]) -> dict[str, Any]:
    """Of one model's weights from the original's and the retrained one's."""
    others = [other for other in (ORIGINAL, RETRAINED) if other in models and other != name]
    return {other: weight_distance(models[name], models[other]) for other in others}


def _row(name: str, scored: Scores, comparisons: list[Comparison], forgotten: Tensor, request: Request) -> ModelRow:
    """What the one pass says of a model."""
    test = scored["test"]
    of_forgotten = torch.isin(test.labels, forgotten)
    predictions = torch.bincount(scored["forget"].predicted, minlength=scored["forget"].classes)
    parts = {part: scored[part].correct for part in ("forget", "retain", "test")}
    parts |= {"test_forget": test.correct[of_forgotten], "test_retain": test.correct[~of_forgotten]}
    seed, intervals = request.seed, request.intervals
    return ModelRow(
        model=name,
        control=name in request.controls,
        class_wise=bool(len(forgotten)),
        accuracy={part: share_of(correct, intervals) for part, correct in parts.items()},
        counts={part: correct.numel() for part, correct in parts.items()},
        class_accuracy={name: _by_class(one) for name, one in scored.items()},
        mean_loss={name: mean_loss(one, intervals) for name, one in scored.items()},
        forget_predictions=predictions.tolist(),
        forget_prediction_spread=_spread(predictions),
        attacks={
            one.name: {
                attack: attack_scores.figures_of(scored, one, attack, seed=seed, with_intervals=intervals) for attack in request.attacks
            }
            for one in comparisons
        },
        with_intervals=intervals,
    )


def mean_loss(scored: attack_scores.Scored, with_interval: bool) -> Figure:
    """Of a set, in nats."""
    loss = scored.scores["loss"]
    return Figure(float(loss.double().mean()), ends.mean(loss, low=0.0) if with_interval else None)


def _spread(counts: Tensor) -> float:
    """exp(entropy): over how many classes the predictions spread; 1 = one class takes all."""
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def _by_class(scored: passes.Scored) -> dict[int, float]:
    return {int(c): share_of(scored.correct[scored.labels == c], False).value for c in scored.labels.unique()}


def curves_of(
    scored: Mapping[str, Mapping[str, attack_scores.Scored]], comparison: Comparison, attack: str
) -> dict[str, dict[str, list[float]]]:
    """The models' ROC curves over the samples with a score; a model without such samples on a side is left out."""
    curves = {}
    for name, sets in scored.items():
        member, nonmember = (side[~torch.isnan(side)] for side in attack_scores.sides(sets, comparison, attack))
        if member.numel() and nonmember.numel():
            curves[name] = attack_scores.curve(member, nonmember)
    return curves
