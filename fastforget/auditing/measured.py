"""Everything that one audit measures: one pass of all models over all sets, then each model's row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._weights import eval_mode, reading_copy
from .figures import ORIGINAL, RETAIN, RETRAINED, Figure, ModelRow, OracleRate, Probe
from .measure import attacks as attack_scores
from .measure import exposure, passes, probes, svc
from .measure import intervals as ends
from .measure.attacks import Comparison, share_of
from .measure.class_rule import ClassThresholds
from .measure.histogram import loss_histograms
from .measure.oracles import rates as oracle_rates
from .measure.relearn import probes as relearn_probes
from .measure.weights import weight_distance
from .request import Request
from .shadow import attacks as shadow_attacks

Scores = dict[str, passes.Scored]


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
    """

    rows: list[ModelRow]
    comparisons: list[Comparison]
    oracle: attack_scores.Oracle
    forgotten: Tensor
    sizes: dict[str, int]
    curves: dict[str, Any]
    exposed_by: str


def measure(request: Request) -> Measured:
    """Runs everything that was asked for, on models and controls alike."""
    # called are copies: no flag or buffer of the caller's models moves, whatever happens
    models = {name: reading_copy(model) for name, model in request.everyone().items()}
    teacher = None if request.teacher is None else reading_copy(request.teacher)
    recorder = probes.Recorder(list(models), teacher=teacher, forward=request.forward)
    scored = _scored(request, models, recorder)
    missing = shadow_attacks.add(request.shadows, request.shadow_attacks, request.sets, scored) if request.shadow_attacks else {}
    for sets in scored.values():
        sets.pop("population", None)
    labels = {name: one.labels for name, one in next(iter(scored.values())).items()}
    forgotten = probes.only_in(labels["forget"], labels["retain"])
    original, comparisons = scored.get(ORIGINAL), attack_scores.comparisons(labels)
    forget, retain = comparisons
    oracle = attack_scores.calibrate(original, retain)
    thresholds = ClassThresholds(original, retain, request.attacks)
    by_oracle = _by_oracle(request, models)
    relearned = _relearned(request, original)
    rows = []
    for name, sets in scored.items():
        row = _row(name, sets, comparisons, forgotten, request)
        row.weight_distance = _distances(name, request.everyone())
        row.probes = recorder.figures(name, request.seed, request.intervals) | {"mia_efficacy": svc.mia_probe(sets, request.intervals)}
        row.probes |= relearned.get(name, {})
        row.class_thresholds = {one.name: thresholds.figures(sets, one, request.intervals) for one in comparisons}
        row.forgetting_rate = attack_scores.rate(original, sets, oracle, request.intervals)
        row.forgetting_rates = by_oracle[name]
        row.oracle_members = attack_scores.oracle_members(sets, forget, oracle, request.intervals)
        if "retain" in missing:
            attacks = row.attacks[RETAIN]
            attacks |= {attack: replace(attacks[attack], reason=missing["retain"]) for attack in request.shadow_attacks}
        rows.append(row)
    judged = [name for name in request.models if name not in (ORIGINAL, RETRAINED)]
    exposed_by, exposed = exposure.exposed(scored, judged, request.attacks)
    curves = {
        "roc": {one.name: {attack: _curves(scored, one, attack) for attack in request.attacks} for one in comparisons},
        "loss": loss_histograms({name: {s: one.scores["loss"] for s, one in sets.items()} for name, sets in scored.items()}),
        "exposed": [sample.to_dict() for sample in exposed],
    }
    sizes = {name: len(y) for name, y in labels.items()}
    return Measured(rows, comparisons, oracle, forgotten, sizes, curves, exposed_by)


def _scored(request: Request, models: dict[str, nn.Module], recorder: probes.Recorder) -> dict[str, Scores]:
    """The one pass of all models over all sets, with the scores that the attacks read."""
    read = [name for name in request.attacks if name in attack_scores.DIRECTION]
    if request.shadow_attacks:
        read.append("logit_confidence")
    teacher = {"teacher": recorder.teacher} if recorder.teacher is not None else {}
    with eval_mode(*teacher.values()):
        return passes.run(
            models,
            request.sets,
            attacks=tuple(dict.fromkeys(read)),
            forward=request.forward,
            seed=request.seed,
            progress=request.progress,
            watch=recorder,
        )


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


def _distances(name: str, models: dict[str, nn.Module]) -> dict[str, Any]:
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
        mean_loss={name: _mean_loss(one, intervals) for name, one in scored.items()},
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


def _mean_loss(scored: passes.Scored, with_interval: bool) -> Figure:
    loss = scored.scores["loss"]
    return Figure(float(loss.double().mean()), ends.mean(loss, low=0.0) if with_interval else None)


def _spread(counts: Tensor) -> float:
    """exp(entropy): over how many classes the predictions spread; 1 = one class takes all."""
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def _by_class(scored: passes.Scored) -> dict[int, float]:
    return {int(c): share_of(scored.correct[scored.labels == c], False).value for c in scored.labels.unique()}


def _curves(scored: dict[str, Scores], comparison: Comparison, attack: str) -> dict[str, dict[str, list[float]]]:
    """The models' ROC curves over the samples with a score; a model without such samples on a side is left out."""
    curves = {}
    for name, sets in scored.items():
        member, nonmember = (side[~torch.isnan(side)] for side in attack_scores.sides(sets, comparison, attack))
        if member.numel() and nonmember.numel():
            curves[name] = attack_scores.curve(member, nonmember)
    return curves
