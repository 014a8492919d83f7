"""UNSIR's training passes, and the published procedure made of them: learn noise, impair, repair (algorithm 1 of the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._data import Source, cut
from ..engine.drawn import Batch, Drawn
from ..engine.loop import cosine, descend, steps, trainable, training
from ..engine.terms import hold
from ..task import Task
from .noise import Noise, find_place, learn_noise
from .options import Options

SHUFFLE, KEEP, HOLD_ORDER = 1, 2, 3  # purposes of seeds
LOOK = 512  # retained samples that a published procedure is watched on, at most
LOST = 0.02  # of their right answers: what it may lose without a warning


def run(options: Options, task: Task) -> dict[str, Any]:
    """The paper's procedure, and its published variants.

    Their rates are those of their papers' nets. What they cost on the model at hand is measured, and said where it is clearly too much; a
    budget of the user's is left to the procedure alone.
    """
    assert task.retain is not None
    retain = capped(task.retain, options.retain_per_class, task.generator(KEEP))
    if task.cost.budget is not None:
        _published(options, task, retain)
        return {}
    watched = retain.subset(torch.arange(0, len(retain), -(-len(retain) // LOOK)))
    before = _right(task, watched)
    _published(options, task, retain)
    return {"measured": {"retained": _lost(options, before, _right(task, watched))}}


def _published(options: Options, task: Task, retain: Source) -> None:
    """Learn noise, impair, repair."""
    kept = to_hold(options, task, retain) if options.hold == "anchor" else None
    noise = learn_noise(options, task, task.classes, find_place(task, options.noise_at, retain))
    impair(options, task, retain, noise)
    if kept is None:
        repair(options, task, retain)
    else:
        assert options.repair_lr is not None
        hold_on(options, task, iter(kept), len(kept.order), options.repair_lr, "repair")


def _right(task: Task, watched: Source) -> Tensor:
    """Which samples the model answers right, float64[N]."""
    with task.cost.phase("looks"):
        return task.answers(watched).eq(watched.labels()).double()


def _lost(options: Options, before: Tensor, after: Tensor) -> dict[str, float]:
    """The retained samples' right answers before and after; a warning where more are lost than :data:`LOST`, by two standard errors."""
    change = before - after
    error = float(change.std(correction=0)) / math.sqrt(len(change))
    kept = {"samples": len(change), "right_before": float(before.mean()), "right_after": float(after.mean())}
    if float(change.mean()) - 2 * error > LOST:
        warnings.warn(
            f"fastforget: UNSIR: preset={options.preset!r} left {kept['right_after']:.1%} of the retained samples right where the model "
            f"had {kept['right_before']:.1%} ({len(change)} samples): its rates, impair {options.impair_lr:g} and repair "
            f"{options.repair_lr:g}, are those of its paper's nets and are too high for this one. Take preset='auto', which finds rates "
            "from the model at hand, or method='sweep'",
            UserWarning,
            stacklevel=2,
        )
    return kept


def impair(options: Options, task: Task, retain: Source, noise: Noise) -> None:
    """One pass (or more) at a high rate over retained data and noise, shuffled together."""
    assert options.impair_lr is not None
    optimizer = options.impair_optimizer(trainable(task.model), options.impair_lr)
    for epoch in range(options.impair_epochs):
        train(options, task, optimizer, retain, noise, f"impair {epoch + 1}", options.impair_lr)


def repair(options: Options, task: Task, retain: Source) -> None:
    """One pass (or more) over retained data alone, with a fresh optimiser."""
    assert options.repair_lr is not None
    optimizer = options.repair_optimizer(trainable(task.model), options.repair_lr)
    for epoch in range(options.repair_epochs):
        train(options, task, optimizer, retain, None, f"repair {epoch + 1}", options.repair_lr)


def to_hold(options: Options, task: Task, retain: Source, passes: int | None = None) -> Drawn:
    """Repair's batches with the answers of the model as it is now; no more than ``passes`` samples."""
    assert options.batch_size is not None
    size = min(options.batch_size, len(retain))
    most = options.repair_epochs * max(1, len(retain) // size)
    return Drawn(task, retain, size, most if passes is None else max(1, min(most, passes // size)), HOLD_ORDER)


def hold_on(
    options: Options, task: Task, batches: Iterator[Batch], most: int, rate: float, phase: str, *, falling: bool = False
) -> None:
    """Repair on drawn batches, held by ``options.hold``; ``falling``: the rate goes to zero by a cosine."""
    optimizer = options.repair_optimizer(trainable(task.model), rate)
    total, seen = torch.zeros((), device=task.device), 0
    with training(task, "train"):
        for step in steps(task, most, phase.split()[0], each=options.batch_size or 1, label=phase):
            for group in optimizer.param_groups if falling else ():
                group["lr"] = rate * cosine(step, most)
            batch = next(batches)
            loss = hold(options.hold, task.forward(task.model, batch.inputs).float(), batch.teacher, batch.labels)
            descend(task, optimizer, loss)
            total += loss.detach() * len(batch)
            seen += len(batch)
    _note(task, phase, rate, total, seen)


def train(
    options: Options,
    task: Task,
    optimizer: torch.optim.Optimizer,
    retain: Source,
    noise: Noise | None,
    phase: str,
    lr: float,
    most: int | None = None,
) -> int:
    """One epoch of cross-entropy in train mode, or its first ``most`` steps; returns how many that were. A loss that isn't finite ends the
    run.
    """
    assert options.batch_size is not None
    copies = options.copies or 1
    order = _shuffled(retain, len(noise.images) * copies if noise else 0, options.batch_size, task)[:most]
    total, seen = torch.zeros((), device=task.device), 0
    answers = _answers(task, retain, noise, order)
    with training(task, "train"):
        for _ in steps(task, len(order), phase.split()[0], each=min(options.batch_size, len(order[0])), label=phase):
            logits, labels = next(answers)
            loss = F.cross_entropy(logits, labels)
            descend(task, optimizer, loss)
            total += loss.detach() * len(labels)
            seen += len(labels)
    _note(task, phase, lr, total, seen)
    return len(order)


def _note(task: Task, phase: str, lr: float, total: Tensor, seen: int) -> None:
    """The mean loss of what the budget had room for; one that isn't finite ends the run."""
    if not seen:
        return
    mean = float(total) / seen
    task.history.append({"phase": phase, "lr": lr, "loss": mean, "samples": seen})
    if not math.isfinite(mean):
        raise FloatingPointError(f"{phase}: the loss became {mean} at rate {lr:g}; the model is unchanged. Lower the rate")


def _shuffled(retain: Source, noisy: int, batch_size: int, task: Task) -> list[Tensor]:
    """Batches of the numbers of all samples: retained ones first, noise after them. A new shuffle each epoch."""
    purpose = SHUFFLE + 1000 * (1 + len(task.history))  # what was done so far makes the epoch's seed
    order = torch.randperm(len(retain) + noisy, generator=task.generator(purpose))
    # batch norm can't train on a single sample
    return cut(order, batch_size, least=2) if len(order) > 1 else task.cut(order, batch_size, retain)


def _answers(task: Task, retain: Source, noise: Noise | None, order: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of the batches of ``order``: numbers below ``len(retain)`` are retained samples, those above go round the noise,
    by index.
    """
    retained = [batch[batch < len(retain)] for batch in order]
    samples = task.cost.reading(retain.at([part for part in retained if len(part)], device=task.device))
    for batch, part in zip(order, retained, strict=True):
        inputs, labels = next(samples) if len(part) else (None, None)
        if noise is None or len(part) == len(batch):
            assert labels is not None
            yield task.forward(task.model, inputs), labels
            continue
        index = (batch[batch >= len(retain)] - len(retain)).remainder(len(noise.images)).to(task.device)
        noise_labels = noise.labels[index]
        logits = noise.place.logits(task, noise.images[index], inputs)
        yield logits, noise_labels if labels is None else torch.cat((labels, noise_labels))


def capped(retain: Source, per_class: int | None, generator: torch.Generator) -> Source:
    """At most ``per_class`` samples of each class, drawn at random, in the set's order; in batches of one shape, as noise joins them."""
    retain = retain.padded()
    if per_class is None:
        return retain
    labels = retain.labels()
    order = torch.randperm(len(labels), generator=generator)
    kept = [order[labels[order] == c][:per_class] for c in labels.unique().tolist()]
    return retain.subset(torch.cat(kept).sort().values)
