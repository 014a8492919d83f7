"""UNSIR's training passes, and the published procedure made of them: learn noise, impair, repair (algorithm 1 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _weights
from ..._data import Source, cut
from ..._progress import Progress, progress
from ..task import Task
from .noise import Noise, find_place, learn_noise
from .options import Options

SHUFFLE, KEEP = 1, 2  # purposes of seeds


def run(options: Options, task: Task) -> dict[str, Any]:
    """The paper's procedure, and its published variants."""
    assert task.retain is not None
    retain = capped(task.retain, options.retain_per_class, task.generator(KEEP))
    noise = learn_noise(options, task, task.classes, find_place(task, options.noise_at, retain))
    impair(options, task, retain, noise)
    repair(options, task, retain)
    return {}


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


def train(
    options: Options,
    task: Task,
    optimizer: torch.optim.Optimizer,
    retain: Source,
    noise: Noise | None,
    phase: str,
    lr: float,
) -> None:
    """One epoch of cross-entropy in train mode; a loss that isn't finite ends the run."""
    assert options.batch_size is not None
    copies = options.copies or 1
    order = _shuffled(retain, len(noise.images) * copies if noise else 0, options.batch_size, task)
    total, seen = torch.zeros((), device=task.device), 0
    bar: Progress[int]
    with _weights.flags_kept(task.model), torch.enable_grad(), progress(len(order), phase, task.progress) as bar:
        task.train_mode()
        for logits, labels in _answers(task, retain, noise, order):
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(labels)
            seen += len(labels)
            bar.step()
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
    samples = retain.at([part for part in retained if len(part)], device=task.device)
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


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the passes may change."""
    return [p for p in model.parameters() if p.requires_grad]


def capped(retain: Source, per_class: int | None, generator: torch.Generator) -> Source:
    """At most ``per_class`` samples of each class, drawn at random, in the set's order; in batches of one shape, as noise joins them."""
    retain = retain.padded()
    if per_class is None:
        return retain
    labels = retain.labels()
    order = torch.randperm(len(labels), generator=generator)
    kept = [order[labels[order] == c][:per_class] for c in labels.unique().tolist()]
    return retain.subset(torch.cat(kept).sort().values)
