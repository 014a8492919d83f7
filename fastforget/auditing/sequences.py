"""What an audit of a language model measures, by sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .. import _ks
from .._outputs import reading
from .._weights import reading_copy
from .figures import FORGET, ORIGINAL, RETAIN, RETRAINED, Figure, ModelRow, Probe, SequenceFigures, is_reference
from .figures_sequences import SETS
from .measure import attacks as attack_scores
from .measure import exposure, structure, tokens
from .measure import intervals as ends
from .measure.attacks import Comparison
from .measure.hidden import hidden
from .measure.histogram import loss_histograms
from .measure.weights import layer_of
from .measured import Measured, curves_of, distances, mean_loss
from .names import FORGET_QUALITY, HIDDEN, KS, SEQUENCE_WISE
from .request import Request

Answers = dict[str, tokens.Answered]
RATIO = (
    "geometric mean over the forget set of a sequence's perplexity over that by the {} model; the reference's own is 1, and a model that "
    "still knows the sequences lies below a retrained one"
)
KL = "mean over the forget set's sequences of the mean KL(retrained || model) of a scored token's answer, in nats; 0 = the same answers"
DISTANCE = (
    "largest distance between the distributions of the forget sequences' losses by the model and by the retrained one (two-sample "
    "Kolmogorov-Smirnov)"
)
QUALITY = (
    "p-value of that distance, as TOFU's forget quality (arXiv 2401.06121) has it of truth ratios: under 0.05 the two models can be told "
    "apart by these losses; with many sequences even two retrained models can"
)


def measure(request: Request) -> Measured:
    """Runs everything that was asked for, on models and controls alike."""
    everyone = request.everyone()
    models = {name: reading_copy(model) for name, model in everyone.items()}
    scored, heads = tokens.run(models, request.sets, forward=request.forward, seed=request.seed, progress=request.progress)
    sizes = {name: len(one.length) for name, one in next(iter(scored.values())).items()}
    comparisons = _comparisons(sizes["test"])
    forget, retain = comparisons
    original = scored.get(ORIGINAL)
    call = reading(request.forward)
    oracle = attack_scores.calibrate(original, retain)
    rows = []
    for name, sets in scored.items():
        row = _row(name, sets, comparisons, request)
        row.weight_distance = distances(name, everyone)
        assert row.sequences is not None
        row.sequences.head = _head(models[name], heads[name])
        row.sequences.structure = structure.difference(everyone[name], everyone[ORIGINAL]) if ORIGINAL in everyone else None
        row.probes = _probes(sets["forget"], scored, request.intervals)
        row.probes[HIDDEN] = hidden(models[name], heads[name], call, request.sets["forget"], request.sets["test"], request.seed)
        row.forgetting_rate = attack_scores.rate(original, sets, oracle, request.intervals)
        row.oracle_members = attack_scores.oracle_members(sets, forget, oracle, request.intervals)
        rows.append(row)
    judged = [name for name in request.models if name != ORIGINAL and not is_reference(name)]
    exposed_by, exposed = exposure.exposed(scored, judged, request.attacks)
    curves = {
        "roc": {one.name: {attack: curves_of(scored, one, attack) for attack in request.attacks} for one in comparisons},
        "loss": loss_histograms({name: {s: one.scores["loss"] for s, one in sets.items()} for name, sets in scored.items()}),
        "exposed": [sample.to_dict() for sample in exposed],
    }
    return Measured(rows, comparisons, oracle, torch.empty(0, dtype=torch.int64), sizes, curves, exposed_by, SEQUENCE_WISE)


def _comparisons(unseen: int) -> list[Comparison]:
    everything = torch.ones(unseen, dtype=torch.bool)
    return [
        Comparison(name, members, everything, f"members: the {members} sequences; non-members: the test sequences")
        for name, members in ((FORGET, "forget"), (RETAIN, "retain"))
    ]


def _row(name: str, scored: Answers, comparisons: list[Comparison], request: Request) -> ModelRow:
    """What the one pass says of a model."""
    seed, intervals = request.seed, request.intervals
    accuracy = {part: _mean_share(scored[part].right, intervals) for part in SETS}
    counts = {part: len(scored[part].length) for part in SETS}
    return ModelRow(
        model=name,
        control=name in request.controls,
        class_wise=False,
        accuracy=accuracy | {"test_forget": Figure(math.nan), "test_retain": accuracy["test"]},
        counts=counts | {"test_forget": 0, "test_retain": counts["test"]},
        class_accuracy={part: {} for part in SETS},
        mean_loss={part: mean_loss(scored[part], intervals) for part in SETS},
        forget_predictions=[],
        attacks={
            one.name: {
                attack: attack_scores.figures_of(scored, one, attack, seed=seed, with_intervals=intervals) for attack in request.attacks
            }
            for one in comparisons
        },
        class_thresholds={one.name: {} for one in comparisons},
        sequences=SequenceFigures(
            tokens={part: int(scored[part].length.sum()) for part in SETS},
            accuracy_error={part: _standard_error(scored[part].right) for part in SETS},
            loss_error={part: _standard_error(scored[part].scores["loss"]) for part in SETS},
        ),
        with_intervals=intervals,
    )


def _head(model: nn.Module, found: str | None) -> str | None:
    """The name of the layer that owns the head's weight: the embedding's, where the two are tied."""
    layer = None if found is None else model.get_submodule(found)
    return layer_of(model, layer.weight) if isinstance(layer, nn.Linear) else None


def _mean_share(shares: Tensor, with_interval: bool) -> Figure:
    return Figure(float(shares.mean()), ends.mean(shares, low=0.0, high=1.0) if with_interval else None)


def _standard_error(values: Tensor) -> float:
    """Of the mean; NaN of one value."""
    return float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _probes(forget: tokens.Answered, scored: Mapping[str, Answers], with_intervals: bool) -> dict[str, Probe]:
    """A model's figures beside the reference."""
    reference = tokens.reference_of(scored)
    if reference is None:
        return {}
    loss, of_reference = (one.scores["loss"].double() for one in (forget, scored[reference]["forget"]))
    further = loss - of_reference
    interval = ends.mean(further) if with_intervals else None
    times = None if interval is None else [math.exp(end) for end in interval]
    ratio = Probe(float(further.mean().exp()), times, None, RATIO.format(reference))
    if reference != RETRAINED:
        return {"mean_perplexity_ratio": ratio}
    distance = _ks.distance(loss.numpy(), of_reference.numpy())
    return {
        "mean_perplexity_ratio": ratio,
        "kl_to_retrained": _kl(forget.apart, with_intervals),
        KS: Probe(distance, None, None, DISTANCE),
        FORGET_QUALITY: Probe(_ks.pvalue(distance, len(loss), len(loss)), None, None, QUALITY),
    }


def _kl(apart: Tensor | None, with_interval: bool) -> Probe:
    if apart is None:
        return Probe(math.nan, None, "the two models have other vocabularies", KL)
    apart = apart.clamp_min(0.0)  # rounding
    return Probe(float(apart.mean()), ends.mean(apart, low=0.0) if with_interval else None, None, KL)
