"""Images of what the model takes for the classes, where there are no samples of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _tree
from ..._data import Source
from ...ops import update
from ..engine.drawn import Batch, together
from ..task import Task
from ..unsir.noise import find_place, learn_noise
from ..unsir.options import Options

LR = 0.1  # of the images, as in UNSIR's code
L2 = 0.1  # of their squared norm, over their elements
SHOWN, LEAST, STEPS = 16, 4, 10  # images in a step; of each class at least; steps in which they are learned before the first


def must_be_learnable(retain: Source) -> None:
    """Refuses inputs in whose place no images can be learned.

    Raises:
        TypeError: they aren't one floating point tensor.
    """
    inputs, _ = next(iter(retain.at([torch.tensor([0])])))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = f"of {inputs.dtype}" if isinstance(inputs, Tensor) else _tree.describe(inputs)
        raise TypeError(
            f"forget: not given, and retain's inputs are {got}; accepted without forget= is one floating point tensor, as the sweep learns "
            "images in the place of the missing samples. Give forget=, samples of the classes, or take method='unsir' with "
            "noise_at='name of the layer that embeds the inputs'"
        )


def options(classes: int, at_least: int) -> Options:
    """How the images are learned: ``at_least`` so many in all."""
    return Options(noise_batch=max(LEAST, -(-max(SHOWN, at_least) // classes)), noise_steps=STEPS, l2=L2)


class Images:
    """Inputs, learned as UNSIR's noise is but down the error: the model is sure that they are of the classes.

    They move on, up the error that the sweep pushes down, by a step of the same kernel for every step of the weights, so that a class
    isn't forgotten in those places alone. That takes no further pass: the images' gradient comes with the weights'. Iterating yields them
    for ever.
    """

    def __init__(self, task: Task, learned: Options) -> None:
        assert task.retain is not None
        self.task = task
        with task.cost.phase("noise"):
            noise = learn_noise(learned, task, task.classes, find_place(task, None, task.retain), sign=-1)
        self.place, self.inputs = noise.place, noise.images.requires_grad_()
        self._moments, self._steps = (torch.zeros_like(noise.images), torch.zeros_like(noise.images)), 0

    def __iter__(self) -> Images:
        return self

    def __next__(self) -> Images:
        return self

    def beside(self, batches: list[Batch]) -> list[Tensor]:
        """The model's answers, float32, to each batch and last to the images, which batch norm normalises together."""
        *first, last = together([batch.inputs for batch in batches])
        task = self.task
        logits = [*(task.forward(task.model, inputs) for inputs in first), self.place.logits(task, self.inputs, last)]
        return list(torch.cat(logits).float().split([*map(len, batches), len(self.inputs)]))

    def move(self) -> None:
        """A step up the error whose gradient is there."""
        gradient, images = self.inputs.grad, self.inputs.detach()
        assert gradient is not None
        self._steps += 1
        with self.task.cost.at("ops"):
            update.error_max_step_(images, -gradient * len(images), *self._moments, step=self._steps, lr=LR, l2=L2 / images[0].numel())
        self.inputs.grad = None
