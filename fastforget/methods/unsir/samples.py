"""UNSIR for single samples: noise paired with batches of the forget set.

The UNSIR paper leaves single samples out. This is the variant that later studies of sample-wise forgetting use under its name: for each
batch of the forget set, noise is learned whose logits are as far as possible from the batch's (squared error, a few steps), and one
training step takes it, under the labels of a batch of retained samples, together with that batch. A repair pass follows.

Its known limits: it moves membership attacks little (published results on faces: 0.199 from the ideal after repair, where fine-tuning
alone is of the same order), and noise with labels of its own costs accuracy. Prefer ``forsaken`` or ``lightweight`` for samples.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ..._progress import Progress, progress
from ...ops import noise as noise_ops
from ...ops import update
from ..perturb import match as _match
from ..task import Task
from . import train as unsir
from .place import Place, place

if TYPE_CHECKING:
    from .train import UNSIR

FORGET_ORDER, RETAIN_ORDER = 41, 42  # purposes of seeds


def run(options: UNSIR, task: Task) -> dict[str, Any]:
    """Impairs with paired noise, then repairs."""
    if task.forget is None:
        raise ValueError("forget: not given; preset='samples' needs the samples to forget")
    assert task.retain is not None and options.impair_lr is not None and options.batch_size is not None
    retain = unsir.capped(task.retain, options.retain_per_class, task.generator(unsir.KEEP))
    at = place(task, options.noise_at, retain)
    parameters = unsir.trainable(task.model)
    optimizer = options.impair_optimizer(parameters, options.impair_lr)
    for epoch in range(options.impair_epochs):
        order = task.generator(FORGET_ORDER + 1000 * epoch)
        batches = list(task.forget.batches(generator=order, device=task.device, batch_size=options.batch_size))
        kept_order = task.generator(RETAIN_ORDER + 1000 * epoch)
        pairs = zip(batches, _match.cycle(retain, options.batch_size, kept_order, task.device), strict=False)
        total = 0.0
        bar: Progress[int]
        with _weights.flags_kept(task.model), torch.enable_grad(), progress(len(batches), f"impair {epoch + 1}", task.progress) as bar:
            for i, ((x, _), (kept, labels)) in enumerate(pairs):
                # the same number of images on both sides: each noise image takes a retained one's label
                n = min(len(x), len(kept))
                images = paired_noise(options, task, x[:n], at, parameters, stream=len(batches) * epoch + i)
                task.model.train()
                loss = F.cross_entropy(task.forward(task.model, kept), labels)
                loss = loss + F.cross_entropy(at.logits(task, images), labels[:n])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach())
                bar.step()
        mean = total / len(batches)
        task.history.append({"phase": f"impair {epoch + 1}", "lr": options.impair_lr, "loss": mean, "samples": len(task.forget)})
        if not math.isfinite(mean):
            raise FloatingPointError(f"impair {epoch + 1}: the loss became {mean}; the model is unchanged. Lower impair_lr")
    unsir.repair(options, task, retain)
    return {}


def paired_noise(options: UNSIR, task: Task, x: Tensor, at: Place, parameters: list[torch.nn.Parameter], *, stream: int) -> Tensor:
    """Images [B, ...] (or what stands in for a layer's output) whose logits are as far from those of ``x`` as ``noise_steps`` of Adam
    get them."""
    assert options.l2 is not None
    l2 = options.l2 / (at.like.numel() if options.l2_reduction == "mean" else 1)
    images = torch.empty(len(x), *at.like.shape, dtype=at.like.dtype, device=task.device)
    noise_ops.normal_(images, seed=task.seed, stream=stream)
    exp_avg, exp_avg_sq = torch.zeros_like(images), torch.zeros_like(images)
    task.model.train(options.noise_mode == "train")
    for p in parameters:
        p.requires_grad_(False)
    with torch.no_grad():
        target = task.forward(task.model, x)
    for step in range(1, options.noise_steps + 1):
        leaf = images.detach().requires_grad_()
        away = -F.mse_loss(at.logits(task, leaf), target)
        gradient = torch.autograd.grad(away, leaf)[0]
        update.error_max_step_(
            images, gradient, exp_avg, exp_avg_sq, step=step, lr=options.noise_lr, l2=l2, clamp=options.noise_clamp
        )
    for p in parameters:
        p.requires_grad_(True)
    return images
