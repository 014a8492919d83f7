"""One pass of every model over every set: logits in, a few numbers a sample out.

The outer loop is over the batches and the inner one over the models, so that each batch is loaded once and
every model sees the same samples in the same order, even from a data set that augments at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._columns import Column
from ..._data import Source, move
from ..._outputs import as_columns, call, pick, probabilities, refuse_other_tasks, warn_of_probabilities
from ..._progress import Progress
from ..._progress import progress as progress_bar
from ..._random import own_randomness
from ..._tree import rows as rows_of
from ..._weights import device_of, eval_mode
from ...ops.membership import membership_scores

# (set, inputs, labels, {model: logits})
Watch = Callable[[str, Any, Tensor, dict[str, Tensor]], None]


@dataclass
class Scored:
    """What one model answered to one set; all on the CPU, sample by sample in the set's order."""

    labels: Tensor
    correct: Tensor
    predicted: Tensor
    scores: dict[str, Tensor]
    classes: int


def run(
    models: dict[str, nn.Module],
    sets: dict[str, Source],
    *,
    attacks: tuple[str, ...],
    forward: Callable[[nn.Module, Any], Tensor] | None,
    seed: int,
    progress: bool,
    watch: Watch | None = None,
) -> dict[str, dict[str, Scored]]:
    """Scores every set with every model; ``{model: {set: Scored}}``. ``watch`` sees each batch with all models' logits."""
    total = sum(len(source) for source in sets.values())
    suspects: dict[str, list[str | None]] = {name: [] for name in models}
    with eval_mode(*models.values()), own_randomness(seed), torch.no_grad():
        done: dict[str, dict[str, Scored]] = {name: {} for name in models}
        bar: Progress[int] = progress_bar(total, "audit", progress)
        with bar:
            for set_name, source in sets.items():
                for name, scored in _one_set(models, set_name, source, attacks, forward, bar, watch, suspects).items():
                    done[name][set_name] = scored
    _warn_of_probabilities(suspects)
    return done


def _warn_of_probabilities(suspects: dict[str, list[str | None]]) -> None:
    """``suspects``: by model, what each of its batches looked like."""
    remedies = {name: kinds[0] for name, kinds in suspects.items() if kinds and kinds[0] is not None and all(kinds)}
    if remedies:
        names = ", ".join(map(repr, remedies))
        warn_of_probabilities(f"model{'s' if len(remedies) > 1 else ''} {names}", str(next(iter(remedies.values()))), stacklevel=6)


def _one_set(
    models: dict[str, nn.Module],
    set_name: str,
    source: Source,
    attacks: tuple[str, ...],
    forward: Callable[[nn.Module, Any], Tensor] | None,
    bar: Progress[int],
    watch: Watch | None,
    suspects: dict[str, list[str | None]],
) -> dict[str, Scored]:
    kept = {name: [Column() for _ in ("correct", "predicted", *attacks)] for name in models}
    classes: dict[str, int] = {}
    all_labels, seen = Column(), 0
    for inputs, labels in source.batches():
        here = labels.cpu()
        all_labels.add(here)
        logits_by_model: dict[str, Tensor] = {}
        for name, model in models.items():
            where = f"model {name!r}, {set_name} set, samples {seen} to {seen + len(here) - 1}"
            logits = batch_logits(model, inputs, forward, where)
            classes[name] = check(logits, here, name, where, source.read_from)
            if None not in suspects[name]:
                suspects[name].append(probabilities(logits))
            logits_by_model[name] = logits
            scores = membership_scores(logits, labels.to(logits.device))
            for column, values in zip(kept[name], (scores.correct, logits.argmax(1), *(getattr(scores, a) for a in attacks)), strict=True):
                column.add(values)
        if watch is not None:
            watch(set_name, inputs, here, logits_by_model)
        seen += len(here)
        bar.step(len(here))
    result = {}
    for name, columns in kept.items():
        correct, predicted, *by_attack = (column.joined().cpu() for column in columns)
        scored = Scored(all_labels.joined(), correct, predicted, dict(zip(attacks, by_attack, strict=True)), classes[name])
        refuse_nan(scored.scores["loss"], name, set_name)
        result[name] = scored
    return result


def batch_logits(model: nn.Module, inputs: Any, forward: Callable[[nn.Module, Any], Tensor] | None, where: str) -> Tensor:
    inputs = move(inputs, device_of(model))
    if forward is None:
        refuse_other_tasks(where, model)
    try:
        output = (forward or call)(model, inputs)
    except Exception as error:
        raise RuntimeError(f"{where}: its forward failed with {type(error).__name__}: {error}") from error
    logits = pick(output)
    if logits is None:
        raise TypeError(
            f"{where}: it returned {type(output).__name__}; accepted is a tensor of logits [batch, "
            "classes]. Pass forward=lambda model, batch: ... to pick them"
        )
    return as_columns(logits.detach(), rows_of(inputs))


def check(logits: Tensor, labels: Tensor, name: str, where: str, read_from: str = "") -> int:
    """The number of classes; refuses what aren't logits for these labels. ``read_from``: what the labels were in the user's batch."""
    if logits.dim() != 2 or logits.shape[0] != labels.numel() or logits.shape[1] < 2:
        raise ValueError(
            f"{where}: it returned a tensor of shape {tuple(logits.shape)} for {labels.numel()} labels; "
            "accepted is [batch, classes] with at least 2 classes. Pass forward=lambda model, batch: ... "
            "to pick or reshape them"
        )
    if not logits.is_floating_point():
        raise TypeError(f"{where}: it returned {logits.dtype}; accepted are floating-point logits")
    classes = logits.shape[1]
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{where}: label {int(labels[first])} (the batch's sample {first}), but model {name!r} has "
            f"{classes} classes; accepted are labels from 0 to {classes - 1}"
            + (f". Labels were read from {read_from}; for others pass unpack=lambda batch: (inputs, labels)" if read_from else "")
        )
    return classes


def refuse_nan(loss: Tensor, name: str, set_name: str) -> None:
    """Refuses losses [N] that are no numbers."""
    bad = torch.isnan(loss).nonzero()
    if len(bad):
        raise ValueError(
            f"model {name!r}, {set_name} set: {len(bad)} of {len(loss)} samples have NaN or +inf logits, "
            f"the first at index {int(bad[0])}. Such a model can't be audited; look at its weights and at "
            "these inputs"
        )
