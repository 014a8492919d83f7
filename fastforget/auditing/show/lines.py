"""An audit's figures as labelled lines, each figure's text apart from its interval: what the text and the page both show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ..._text import number, percent
from ..figures import FORGET, ORIGINAL, RETAIN, RETRAINED, Figure, ModelRow, Probe, RelearnProbe
from ..names import FORGET_QUALITY, HIDDEN, KS, RATIOS
from .wording import FPR_TEXTS, Show, attack_name, beyond_thresholds, ends, plain


class Cell(NamedTuple):
    """One model's figure, and the two ends of its interval where there is one."""

    text: str
    ends: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.text} [{', '.join(self.ends)}]" if self.ends else self.text


class Line(NamedTuple):
    """One figure of every model."""

    group: str
    label: str
    cells: list[Cell]


# The probes that are shown, where some model has them: name, label, and how the figure is written.
PROBES: tuple[tuple[str, str, Show], ...] = (
    ("class_logit_auc", "forgotten class told by its logit, AUC", number),
    ("mia_efficacy", "called NON-member by its own threshold", percent),
    ("js_to_retrained", "JS divergence to the retrained, nats", plain),
    ("js_of_means_to_retrained", "JS divergence of the mean answers, nats", plain),
    ("activation_distance", "activation distance to the retrained, L2", plain),
    ("zrf", "ZRF, JS in nats", number),
    ("zrf_badt", "ZRF, as its published code has it", number),
    ("ain", "anamnesis index", number),
    ("mean_perplexity_ratio", "perplexity, times the reference's", plain),
    ("kl_to_retrained", "KL from the retrained, nats a token", plain),
    (KS, "distance of losses to the retrained's, KS", number),
    (FORGET_QUALITY, "its p-value (forget quality)", plain),
    (HIDDEN, "loss attack, other half after steps on one, AUC", number),
)
RELEARN = "relearn_time_"
TOKEN_ACCURACY = "token accuracy, mean over sequences"
# The figures below the answers that are shown, of forgotten classes and of single samples.
OF_CLASSES: tuple[tuple[str, str, Show], ...] = (
    ("class_cka", "features like those of the original, CKA", number),
    ("readable", "features of the original read off its own", percent),
    ("probe_auc", "linear probe for the class, AUC", number),
)
OF_SAMPLES: tuple[tuple[str, str, Show], ...] = (
    ("noised_auc", "loss attack, samples with noise, AUC", number),
    ("halves_auc", "the same, other half after 3 steps on one", number),
    ("new_head_auc", "the same, last layer trained anew", number),
)


def lines(models: list[ModelRow], attacks: list[str]) -> list[Line]:
    """Accuracies, attacks (the strongest first), memory, probes, weights; one cell a model.

    Which lines there are follows from all ``models``; what none of them has a value of is left out, but for the attacks.
    """
    strong = beyond_thresholds(attacks)
    result = _accuracies(models)
    for attack in (*strong, *(attack for attack in attacks if attack not in strong)):
        result += _attack(models, attack)
    retain = [model.attacks[RETAIN]["loss"].auc for model in models]
    result.append(Line("loss attack, retain against unseen", "AUC", _cells(retain, number)))
    return [*result, *_below(models), *_class_thresholds(models), *_memory(models), *_probes(models), *_weights(models)]


def _cells(figures: Iterable[Figure | None], show: Show) -> list[Cell]:
    """The texts of one figure of each model, None where a model lacks it."""
    cells = []
    for figure in figures:
        text = show(figure.value if figure else None)
        cells.append(Cell(text, ends(figure.interval, show) if figure and text != "-" else None))
    return cells


def _accuracies(models: list[ModelRow]) -> list[Line]:
    parts = {"forget set": "forget", "retain set": "retain"}
    if models[0].class_wise:
        parts |= {"test, forgotten classes": "test_forget", "test, kept classes": "test_retain"}
    parts["test, all"] = "test"
    group = "accuracy" if models[0].sequences is None else TOKEN_ACCURACY
    return [Line(group, label, _cells([model.accuracy.get(part) for model in models], percent)) for label, part in parts.items()]


def _attack(models: list[ModelRow], attack: str) -> list[Line]:
    group, by_model = f"{attack_name(attack)}, forget against unseen", [model.attacks[FORGET][attack] for model in models]
    result = [
        Line(group, "AUC", _cells([figures.auc for figures in by_model], number)),
        Line(group, "balanced accuracy", _cells([figures.balanced_accuracy for figures in by_model], number)),
    ]
    if attack in RATIOS:
        halves = [figures.balanced_accuracy_at_half for figures in by_model]
        result.append(Line(group, "the same, member if likelier than not", _cells(halves, number)))
    for name, text in FPR_TEXTS.items():
        mark = "" if by_model[0].tpr_at[name].resolves or not by_model[0].nonmembers else " *"
        result.append(Line(group, f"TPR at {text} FPR{mark}", _cells([figures.tpr_at[name].tpr for figures in by_model], percent)))
    return result


def resolves(models: list[ModelRow], fpr: str, attack: str) -> bool:
    """Whether an attack's non-members, the forget set's, are many enough for this false-positive rate."""
    return models[0].attacks[FORGET][attack].tpr_at[fpr].resolves


def below_labels(models: list[ModelRow]) -> dict[str, str]:
    """How the lines name the figures below the answers that they show."""
    labels = {name: label for name, label, _ in _shown_below(models)}
    if any(model.below is not None and not math.isnan(model.below.neighbours) for model in models):
        labels |= {"relearned": "class relearned", "neighbours": "accuracy on the nearest kept classes"}
    return labels | ({"below": "below the answers"} if labels else {})


def _below(models: list[ModelRow]) -> list[Line]:
    """What features and a few steps still show; the lines that some model has a figure for."""
    group = "below the answers"
    result = [
        Line(group, label, _cells([Figure(getattr(model.below, name)) if model.below else None for model in models], show))
        for name, label, show in _shown_below(models)
    ]
    again = [model.below.relearned if model.below else {} for model in models]
    few = sorted({k for one in again for k, value in one.items() if not math.isnan(value)})
    if few:
        cells = [Cell(_share_list([one.get(k, math.nan) for k in few])) for one in again]
        result.append(Line(group, f"class relearned from {', '.join(map(str, few))} samples", cells))
    if any(model.below is not None and not math.isnan(model.below.neighbours) for model in models):
        beside = [Figure(model.below.neighbours) if model.below else None for model in models]
        result.append(Line(group, "accuracy on the nearest kept classes", _cells(beside, percent)))
    return result


def _shown_below(models: list[ModelRow]) -> list[tuple[str, str, Show]]:
    shown = OF_CLASSES if models[0].class_wise else OF_SAMPLES
    return [one for one in shown if any(model.below is not None and not math.isnan(getattr(model.below, one[0])) for model in models)]


def _share_list(shares: list[float]) -> str:
    """Several shares in one cell, such as "0, 5, 63 %"."""
    if all(map(math.isnan, shares)):
        return "-"
    return ", ".join("-" if math.isnan(share) else f"{100 * share:.0f}" for share in shares) + " %"


def _class_thresholds(models: list[ModelRow]) -> list[Line]:
    result = []
    for attack in models[0].class_thresholds.get(FORGET, {}):
        figures = [model.class_thresholds[FORGET][attack].balanced_accuracy for model in models]
        label = f"balanced accuracy, {attack.replace('_', ' ')}"
        result.append(Line("one threshold a class, forget against unseen", label, _cells(figures, number)))
    return result


def _memory(models: list[ModelRow]) -> list[Line]:
    rates = {"forgetting rate": [model.forgetting_rate for model in models]}
    for oracle in models[0].forgetting_rates:
        rates[f"forgetting rate, oracle {oracle}"] = [model.forgetting_rates[oracle].rate for model in models]
    rates["called members by the oracle"] = [model.oracle_members["forget"] for model in models]
    rates["the same, unseen samples"] = [model.oracle_members["unseen"] for model in models]
    group = "memory of the forget set"
    return [
        *(Line(group, label, _cells(figures, percent)) for label, figures in rates.items()),
        Line(group, "mean loss", _cells([model.mean_loss["forget"] for model in models], number)),
        *_answers(models),
    ]


def _answers(models: list[ModelRow]) -> list[Line]:
    """What is answered to samples of the forget set; of sequences, how well other texts are still answered."""
    if models[0].sequences is None:
        spread = [Cell(number(model.forget_prediction_spread)) for model in models]
        return [Line("memory of the forget set", "classes its predictions spread over", spread)]
    parts = ("forget", "retain", "test")
    return [Line("perplexity", f"{part} set", [Cell(plain(_perplexity(model, part))) for model in models]) for part in parts]


def _perplexity(model: ModelRow, part: str) -> float:
    """exp of the mean loss over sequences."""
    loss = model.mean_loss[part].value
    return math.exp(loss) if loss < 700 else loss


def _probes(models: list[ModelRow]) -> list[Line]:
    group, labels = "probes of the forget set", probe_labels(models)
    result = [
        Line(group, label, _cells([model.probes.get(name) for model in models], show)) for name, label, show in PROBES if name in labels
    ]
    for name in (name for name in labels if name.startswith(RELEARN)):
        probes = [model.probes.get(name) for model in models]
        unit = next((probe.unit for probe in probes if isinstance(probe, RelearnProbe) and probe.unit), "steps")
        result.append(Line(group, f"{labels[name]}, {unit}", [Cell(_relearned(probe)) for probe in probes]))
    return result


def _relearned(probe: Probe | None) -> str:
    if not isinstance(probe, RelearnProbe) or not probe.known:
        return "-"
    return f"{'' if probe.reached else '> '}{probe.value:.0f}"


def _weights(models: list[ModelRow]) -> list[Line]:
    result = []
    for other in (ORIGINAL, RETRAINED):
        if any(model.model == other for model in models):
            distances = [model.weight_distance.get(other) for model in models]
            cells = [Cell(number(distance.relative if distance else None)) for distance in distances]
            result.append(Line("weights, relative distance", f"to the {other}", cells))
    return result


def probe_labels(models: list[ModelRow]) -> dict[str, str]:
    """How the lines name the probes that they show: those that some model has a figure of. Others weren't asked for, or can't be."""
    known = {name for model in models for name, probe in model.probes.items() if probe.known}
    labels = {name: label for name, label, _ in PROBES if name in known}
    return labels | {name: f"relearn time, {name.removeprefix(RELEARN)}" for name in sorted(known) if name.startswith(RELEARN)}


def undefined_probes(models: list[ModelRow]) -> dict[str, list[str]]:
    """The labels of the probes and of the figures below the answers that some model has no figure of, by the reason."""
    result: dict[str, list[str]] = {}
    for name, label in probe_labels(models).items():
        probes = [model.probes[name] for model in models if name in model.probes]
        for reason in dict.fromkeys(probe.reason for probe in probes if not probe.known):
            result.setdefault(str(reason), []).append(label)
    for name, label, _ in OF_CLASSES if models[0].class_wise else OF_SAMPLES:
        rows = [model.below for model in models if model.below is not None]
        for reason in dict.fromkeys(row.reasons.get(name) for row in rows if math.isnan(getattr(row, name))):
            result.setdefault(str(reason), []).append(label)
    return result
