"""UNSIR's noise: where it enters the model, and how it is learned.

It enters as the model's input (the paper), or in the place of a layer's output. Words and other numbered inputs have no gradient, so no
noise can be learned in their place. A layer that turns them into numbers, such as an embedding, has an output that noise can stand in
for: the rest of the model then forgets by the paper's procedure, and the layer itself learns from the retained samples alone. This is our
extension; the paper treats images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import _tree, _weights
from ..._data import Source
from ..._progress import Progress, progress
from ...ops import noise as noise_ops
from ...ops import update
from ..task import Task
from .options import Options

LOOK = 256  # retained samples that show how large a layer's outputs are
CPU_PART = 256  # images in one pass of the model while noise is learned on a CPU


@dataclass
class Place:
    """Where the noise enters the model.

    ``like`` has the shape and dtype of one noise item. For a layer: ``stand_in`` is the input of one retained sample, which goes through
    the layers before in the noise's stead; ``mean`` and ``deviation`` are those of the layer's outputs, and the noise is learned in them as
    its units.
    """

    like: Tensor
    layer: str | None = None
    stand_in: Any = None
    mean: float = 0.0
    deviation: float = 1.0

    def logits(self, task: Task, noise: Tensor, inputs: Any = None) -> Tensor:
        """The model's answers to ``inputs`` (none: to no samples), and after them those to the noise."""
        if self.layer is None:
            return task.forward(task.model, noise if inputs is None else torch.cat((inputs, noise)))
        assert self.stand_in is not None
        stand_ins = _tree.repeat(self.stand_in, len(noise))
        first = 0 if inputs is None else _tree.rows(inputs)
        values = noise * self.deviation + self.mean

        def replace_rows(output: Tensor) -> Tensor:
            return torch.cat((output[:first], values.to(output.dtype)))

        whole = stand_ins if inputs is None else _tree.cat([inputs, stand_ins])
        return _with_output(task, self.layer, whole, replace_rows)


@dataclass
class Noise:
    """Learned images [classes * per class, ...], the label of each, and where they enter the model."""

    images: Tensor
    labels: Tensor
    place: Place


def find_place(task: Task, layer: str | None, retain: Source) -> Place:
    """The place of the noise, from a few retained samples.

    Raises:
        ValueError: the model has no layer of that name, or the layer isn't used once a pass.
        TypeError: what it gives isn't a floating point tensor with a row for each sample.
    """
    if layer is None:
        inputs, _ = next(iter(retain.at([torch.tensor([0])])))
        return Place(inputs[0])
    if layer not in dict(task.model.named_modules()) or not layer:
        names = [name for name, _ in task.model.named_modules() if name]
        raise ValueError(f"noise_at: got {layer!r}; accepted is a layer of the model: {', '.join(names[:20])}")
    if isinstance(dict(task.model.named_modules())[layer], torch.jit.ScriptModule):
        raise TypeError(f"noise_at: layer {layer!r} is scripted, and such layers take no hooks; accepted is the module that was scripted")
    inputs, labels = next(iter(retain.at([torch.arange(min(LOOK, len(retain)))], device=task.device)))
    if _tree.rows(inputs) is None:
        raise TypeError(
            f"retain: inputs are {_tree.describe(inputs)}, whose rows aren't samples, so noise can't be put beside them; accepted for "
            "UNSIR are tensors with the samples as rows, also in dicts and lists. Use method='forsaken' or 'lightweight'"
        )
    seen: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        seen.append(output)
        return output

    with _weights.evaluating(task.model):
        _with_output(task, layer, inputs, note)
    if len(seen) != 1:
        raise ValueError(f"noise_at: layer {layer!r} ran {len(seen)} times in one pass; accepted is a layer that runs once")
    output = seen[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 1 or len(output) != len(labels):
        got = f"{tuple(output.shape)}, {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            f"noise_at: layer {layer!r} gives {got} for {len(labels)} samples; accepted is a floating point tensor [samples, ...]"
        )
    deviation, mean = torch.std_mean(output.double(), correction=0)
    if not (torch.isfinite(deviation) and deviation > 0):
        raise ValueError(f"noise_at: layer {layer!r} gives the same or no finite values for all samples, so noise can't stand in for it")
    # where texts are padded, one without padding: what stands where a mask hides it has no effect
    stand_in = _tree.index(inputs, 0) if retain.longest is None else retain.longest_sample(task.device)
    return Place(output[0].detach(), layer, stand_in, float(mean), float(deviation))


def _with_output(task: Task, layer: str, inputs: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's answers when ``layer``'s output is changed on the way."""
    handle = task.model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: change(output))
    try:
        return task.forward(task.model, inputs)
    finally:
        handle.remove()


def learn_noise(options: Options, task: Task, classes: list[int], place: Place, *, sign: float = 1.0, stream: int = 0) -> Noise:
    """Error-maximising noise for ``classes`` (paper, equation 4); with ``sign=-1`` error-minimising: images of what a class looks like.

    A class's noise is the same whichever classes learn beside it (up to rounding, where the model answers each image on its own).
    """
    per_class = _learned_per_class(options, task.model)
    images = torch.empty(len(classes) * per_class, *place.like.shape, dtype=place.like.dtype, device=task.device)
    for own, c in zip(images.split(per_class), classes, strict=True):
        noise_ops.normal_(own, seed=task.seed, stream=stream + c)
    labels = torch.tensor(classes, device=task.device).repeat_interleave(per_class)
    rows = per_class * (options.classes_per_batch or len(classes))
    statistics = _weights.save(task.model) if options.noise_mode != "eval" else None
    with _weights.flags_kept(task.model), torch.enable_grad():
        if options.noise_mode == "train":
            task.train_mode()
        elif options.noise_mode == "eval":
            task.model.eval()
        for parameter in task.model.parameters():
            parameter.requires_grad_(False)
        for some, their_labels in zip(images.split(rows), labels.split(rows), strict=True):
            bar: Progress[int]
            with progress(options.noise_steps, "learning noise" if sign > 0 else "learning images", task.progress) as bar:
                _learn_in_place(options, task, Noise(some, their_labels, place), sign, bar)
    if statistics is not None and options.noise_statistics == "restore":
        _weights.put_back(task.model, statistics)
    if options.label_rule == "zero":
        labels = torch.zeros_like(labels)
    if options.images_used is not None:
        used = torch.arange(len(images), device=task.device) % per_class < options.images_used
        images, labels = images[used], labels[used]
    return Noise(images, labels, place)


def _learned_per_class(options: Options, model: nn.Module) -> int:
    """An image that is never used needn't be learned, where the model answers each image on its own."""
    if options.images_used is None or options.noise_mode != "eval" or not _answers_alone(model):
        return options.noise_batch
    return min(options.noise_batch, options.images_used)


def _answers_alone(model: nn.Module) -> bool:
    """Whether, in eval mode, no image's answer depends on the others in its batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return all(m.running_mean is not None for m in norms)


def _learn_in_place(options: Options, task: Task, noise: Noise, sign: float, bar: Any) -> None:
    """Adam on the images themselves: ``noise_steps`` times up the error and down the squared norm."""
    assert options.l2 is not None
    images = noise.images
    exp_avg, exp_avg_sq = torch.zeros_like(images), torch.zeros_like(images)
    l2 = options.l2 / (images[0].numel() if options.l2_reduction == "mean" else 1)
    # l2 is a mean over one class's noise_batch images; the kernel divides by all the images that it is given
    scale = len(images) / options.noise_batch
    rows = []
    for step in range(1, options.noise_steps + 1):
        loss, gradient = _error_and_gradient(options, task, noise, sign)
        lr = options.noise_lr * (1 - (step - 1) / options.noise_steps if options.noise_lr_decay == "linear" else 1)
        sum_sq = update.error_max_step_(images, gradient, exp_avg, exp_avg_sq, step=step, lr=lr, l2=l2 * scale, clamp=options.noise_clamp)
        rows.append((step, sign * loss.mean() + l2 * sum_sq / len(images), -loss.mean()))
        bar.step()
    phase = "noise" if sign > 0 else "images"
    task.history += [{"phase": phase, "step": s, "objective": float(j), "error": float(e)} for s, j, e in rows]
    if not all(math.isfinite(float(j)) for _, j, _ in rows):
        raise RuntimeError(f"learning {phase} gave NaN or inf; the model is unchanged. Lower noise_lr, or check the model's logits")


def _error_and_gradient(options: Options, task: Task, noise: Noise, sign: float) -> tuple[Tensor, Tensor]:
    """-CE of every image, and its gradient as the mean over one class's ``noise_batch`` images has it."""
    images = noise.images
    # where an image's answer doesn't depend on its neighbours, a CPU's caches prefer fewer at a time
    part = CPU_PART if options.noise_mode == "eval" and images.device.type == "cpu" else len(images)
    losses, gradient = [], torch.empty_like(images)
    for some, labels, out in zip(images.split(part), noise.labels.split(part), gradient.split(part), strict=True):
        leaf = some.detach().requires_grad_()
        logits = noise.place.logits(task, leaf)
        loss, dlogits = update.error_max_loss(logits.detach(), labels)
        dlogits.mul_(sign * len(some) / options.noise_batch)
        out.copy_(torch.autograd.grad(logits, leaf, dlogits)[0])
        losses.append(loss)
    return torch.cat(losses), gradient
