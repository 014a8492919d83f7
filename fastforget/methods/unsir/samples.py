"""UNSIR for single samples: noise paired with batches of the forget set.

The UNSIR paper leaves single samples out. This is the variant that later studies of sample-wise forgetting use under its name: for each
batch of the forget set, noise is learned whose logits are as far as possible from the batch's (squared error, a few steps), and one
training step takes it, under the labels of a batch of retained samples, together with that batch. A repair pass follows.

Its known limits: it moves membership attacks little (published results on faces: 0.199 from the ideal after repair, where fine-tuning
alone is of the same order), and noise with labels of its own costs accuracy. Prefer ``forsaken`` or ``lightweight`` for samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _tree
from ..._data import Source
from ..._trial import least_of
from ...ops import noise as noise_ops
from ...ops import update
from ..cost import FORWARD
from ..engine.loop import descend, gradients, steps, trainable, training
from ..task import Task
from .noise import Place, find_place
from .options import Options
from .train import KEEP, capped, repair

HELD = 64 << 20  # bytes of the forget set that are read at once
FORGET_ORDER, RETAIN_ORDER = 41, 42  # purposes of seeds


def run(options: Options, task: Task) -> dict[str, Any]:
    """Impairs with paired noise, then repairs."""
    if task.forget is None:
        raise ValueError("forget: not given; preset='samples' needs the samples to forget")
    assert task.retain is not None and options.impair_lr is not None
    retain = capped(task.retain, options.retain_per_class, task.generator(KEEP))
    place = find_place(task, options.noise_at, retain)
    optimizer = options.impair_optimizer(trainable(task.model), options.impair_lr)
    for epoch in range(options.impair_epochs):
        mean, seen = _impair_epoch(options, task, retain, place, optimizer, epoch)
        if not seen:  # no room in the budget
            break
        phase = f"impair {epoch + 1}"
        task.history.append({"phase": phase, "lr": options.impair_lr, "loss": mean, "samples": seen})
        if not math.isfinite(mean):
            raise FloatingPointError(f"{phase}: the loss became {mean}; the model is unchanged. Lower impair_lr")
    repair(options, task, retain)
    return {}


def _impair_epoch(
    options: Options, task: Task, retain: Source, place: Place, optimizer: torch.optim.Optimizer, epoch: int
) -> tuple[float, int]:
    """One pass over the forget set, each batch with noise of its own; returns the mean loss and the samples that were passed."""
    assert task.forget is not None and options.batch_size is not None
    order = task.generator(FORGET_ORDER + 1000 * epoch)
    positions = task.cut(torch.randperm(len(task.forget), generator=order), options.batch_size, task.forget)
    batches = _read(task.cost.reading(task.forget.at(positions, device=task.device)), len(positions))
    least = least_of(task.model, retain, task.forward) if len(retain) % options.batch_size == 1 else 1
    retained = task.cost.reading(retain.cycle(options.batch_size, task.generator(RETAIN_ORDER + 1000 * epoch), task.device, least))
    parameters = trainable(task.model)
    pairs, total, done, seen = zip(batches, retained, strict=False), 0.0, 0, 0
    # noise of the batch's size goes forward and backward at every noise step and in the training step, beside the retained batch
    each = (2 + options.noise_steps) * min(options.batch_size, len(positions[0])) + len(positions[0]) // FORWARD
    with training(task, "train"):
        for i in steps(task, len(positions), "impair", each=each, label=f"impair {epoch + 1}"):
            (forget_inputs, forget_labels), (inputs, labels) = next(pairs)
            # the same number of images on both sides: each noise image takes a retained one's label
            n = min(len(forget_labels), len(labels))
            forgotten = forget_inputs if n == len(forget_labels) else _tree.index(forget_inputs, slice(0, n))
            with task.cost.phase("noise"):
                images = paired_noise(options, task, forgotten, n, place, parameters, stream=len(positions) * epoch + i)
            task.train_mode()
            loss = F.cross_entropy(task.forward(task.model, inputs), labels)
            loss = loss + F.cross_entropy(place.logits(task, images), labels[:n])
            descend(task, optimizer, loss)
            total += float(loss.detach())
            done, seen = done + 1, seen + len(forget_labels)
    return total / max(done, 1), seen


def _read(batches: Iterator[tuple[Any, Tensor]], count: int) -> Iterable[tuple[Any, Tensor]]:
    """All batches at once where they are small, so that a set that augments at random draws for them before it does for the retained ones;
    a large set one by one.
    """
    first = next(batches)
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tree.tensors(first[0]))
    return [first, *batches] if size * count <= HELD else itertools.chain([first], batches)


def paired_noise(
    options: Options, task: Task, inputs: Any, count: int, place: Place, parameters: list[nn.Parameter], *, stream: int
) -> Tensor:
    """Images [count, ...] (or what stands in for a layer's output) whose logits are as far from those of ``inputs`` as ``noise_steps`` of
    Adam get them."""
    assert options.l2 is not None
    l2 = options.l2 / (place.like.numel() if options.l2_reduction == "mean" else 1)
    images = torch.empty(count, *place.like.shape, dtype=place.like.dtype, device=task.device)
    noise_ops.normal_(images, seed=task.seed, stream=stream)
    exp_avg, exp_avg_sq = torch.zeros_like(images), torch.zeros_like(images)
    task.train_mode() if options.noise_mode == "train" else task.model.eval()
    for p in parameters:
        p.requires_grad_(False)
    with torch.no_grad():
        target = task.forward(task.model, inputs)
    for step in range(1, options.noise_steps + 1):
        leaf = images.detach().requires_grad_()
        away = -F.mse_loss(place.logits(task, leaf), target)
        gradient = gradients(task, away, [leaf])[0]
        with task.cost.at("ops"):
            update.error_max_step_(
                images, gradient, exp_avg, exp_avg_sq, step=step, lr=options.noise_lr, l2=l2, clamp=options.noise_clamp
            )
    for p in parameters:
        p.requires_grad_(True)
    return images
