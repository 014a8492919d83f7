"""Where UNSIR's noise enters the model: as its input (the paper), or in the place of a layer's output.

Words and other numbered inputs have no gradient, so no noise can be learned in their place. A layer that turns them into numbers, such as
an embedding, has an output that noise can stand in for: the rest of the model then forgets by the paper's procedure, and the layer itself
learns from the retained samples alone. This is our extension; the paper treats images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..task import Task

LOOK = 256  # retained samples that show how large a layer's outputs are


@dataclass
class Place:
    """``like``: the shape, dtype of one noise item. For a layer: ``stand_in``, the input of one retained sample, which goes through the
    layers before in the noise's stead, and the mean and standard deviation of the layer's outputs, in whose units the noise is learned.
    """

    like: Tensor
    layer: str | None = None
    stand_in: Tensor | None = None
    mean: float = 0.0
    deviation: float = 1.0

    def logits(self, task: Task, noise: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The model's answers to ``inputs`` (none: to no samples), and after them those to the noise."""
        if self.layer is None:
            return task.forward(task.model, noise if inputs is None else torch.cat((inputs, noise)))
        assert self.stand_in is not None
        in_stead = self.stand_in.expand(len(noise), *self.stand_in.shape)
        first = 0 if inputs is None else len(inputs)
        values = noise * self.deviation + self.mean

        def replaced(output: Tensor) -> Tensor:
            return torch.cat((output[:first], values.to(output.dtype)))

        whole = in_stead if inputs is None else torch.cat((inputs, in_stead))
        return _with_output(task, self.layer, whole, replaced)


def place(task: Task, layer: str | None, retain: Source) -> Place:
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
    inputs, _ = next(iter(retain.at([torch.arange(min(LOOK, len(retain)))], device=task.device)))
    seen: list[Tensor] = []

    def noted(output: Tensor) -> Tensor:
        seen.append(output)
        return output

    with _weights.evaluating(task.model):
        _with_output(task, layer, inputs, noted)
    if len(seen) != 1:
        raise ValueError(f"noise_at: layer {layer!r} ran {len(seen)} times in one pass; accepted is a layer that runs once")
    output = seen[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.dim() < 1 or len(output) != len(inputs):
        got = f"{tuple(output.shape)}, {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            f"noise_at: layer {layer!r} gives {got} for {len(inputs)} samples; accepted is a floating point tensor [samples, ...]"
        )
    deviation, mean = torch.std_mean(output.double(), correction=0)
    if not (torch.isfinite(deviation) and deviation > 0):
        raise ValueError(f"noise_at: layer {layer!r} gives the same or no finite values for all samples, so noise can't stand in for it")
    return Place(output[0].detach(), layer, inputs[0], float(mean), float(deviation))


def _with_output(task: Task, layer: str, inputs: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's answers when ``layer``'s output is changed on the way."""
    handle = task.model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: change(output))
    try:
        return task.forward(task.model, inputs)
    finally:
        handle.remove()
