"""The default recipe of shadow models: one after another, or several at once with their weights stacked (torch.func).

Both follow one schedule, that of the demonstration's recipe: Adam, a rate that rises and falls once, an epoch's random order cut into
batches that differ by at most one sample. Stacked and single training give the same models up to rounding (dropout draws differ).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from ..._modules import copy_of, dense_gradients
from ..._outputs import reading
from ..._random import own_randomness
from ..._weights import device_of, training_mode

Forward = Callable[[nn.Module, Any], Tensor]
# Measured on one AVX-512 core (benchmarks/results/shadows-stack.json): where a step is mostly overhead, stacks of 16 give 1.2 to 2.6 times
# the speed and stacks of 64 give 1.9 to 4.2 times, stacks of 4 nothing; from some 20,000 parameters on the gain is small, and at
# 270,000 a stack loses, because its weights and moments leave the cache.
SMALL_ON_CPU = 20_000  # parameters
STACK_ON_CPU = 64
LEAST_STACK = 16
STACK_ON_CUDA = 64
BYTES_ON_CUDA = 2 << 30  # of weights, gradients and moments
_KEEPS_STATISTICS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Recipe:
    """How a shadow model is trained."""

    epochs: int
    lr: float
    batch_size: int
    steps: int  # an epoch
    forward: Forward | None = None

    @classmethod
    def for_pool(cls, samples: int, epochs: int, lr: float, batch_size: int, forward: Forward | None) -> Recipe:
        """For training sets of half of a pool of ``samples``, or one less."""
        return cls(epochs, lr, batch_size, math.ceil(math.ceil(samples / 2) / batch_size), forward)

    def optimiser(self, parameters: Any) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.OneCycleLR]:
        weights = [p for p in parameters if p.requires_grad]
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in weights)
        adam = torch.optim.Adam(weights, lr=self.lr, fused=fused)
        return adam, torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=self.lr, total_steps=self.epochs * self.steps)

    def orders(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """One epoch's batches of positions."""
        return indices[torch.randperm(len(indices), generator=generator)].tensor_split(self.steps)


class _Called(nn.Module):
    """The model with its ``forward=``, in one module that torch.func can call with other weights."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self.call = model, reading(forward)

    def forward(self, inputs: Any) -> Tensor:
        return self.call(self.model, inputs)


def train_one(
    model: nn.Module, inputs: Any, labels: Tensor, indices: Tensor, seed: int, recipe: Recipe, tick: Callable[[str], None]
) -> None:
    """Trains in place on the samples at ``indices``. Inputs and labels are on the model's device."""
    optimiser, schedule = recipe.optimiser(model.parameters())
    called, generator = _Called(model, recipe.forward), torch.Generator().manual_seed(seed)
    training_mode(model, model)
    with own_randomness(seed), dense_gradients(model):
        for epoch in range(recipe.epochs):
            for batch in recipe.orders(indices, generator):
                at = batch.to(labels.device)
                optimiser.zero_grad(set_to_none=True)
                F.cross_entropy(called(inputs[at]), labels[at]).backward()
                optimiser.step()
                schedule.step()
            tick(f"epoch {epoch + 1}/{recipe.epochs}")


def train_stack(
    models: list[nn.Module],
    inputs: Any,
    labels: Tensor,
    indices: list[Tensor],
    seeds: list[int],
    recipe: Recipe,
    tick: Callable[[str], None],
) -> None:
    """Trains all models in place at once, each on its own samples in its own order."""
    for model in models:
        training_mode(model, model)
    called = [_Called(model, recipe.forward) for model in models]
    parameters, buffers = stack_module_state(called)
    skeleton = copy_of(called[0]).to("meta")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    optimiser, schedule = recipe.optimiser(parameters.values())

    def loss(weights: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return (F.cross_entropy(functional_call(skeleton, (weights, state), (x,)), y, reduction="none") * share).sum()

    losses = vmap(loss, randomness="different")
    with own_randomness(seeds[0]):
        for epoch in range(recipe.epochs):
            orders = [recipe.orders(i, g) for i, g in zip(indices, generators, strict=True)]
            for batches in zip(*orders, strict=True):
                at, share = _padded(batches)
                at, share = at.to(labels.device), share.to(labels.device)
                optimiser.zero_grad(set_to_none=True)
                losses(parameters, buffers, inputs[at], labels[at], share).sum().backward()
                optimiser.step()
                schedule.step()
            tick(f"epoch {epoch + 1}/{recipe.epochs}")
    with torch.no_grad():
        for i, one in enumerate(called):
            for name, weight in one.named_parameters():
                weight.copy_(parameters[name][i])


def _padded(batches: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Positions [S, B] and each sample's weight [S, B] in its model's mean; a shorter batch is filled up with weight 0."""
    longest = max(map(len, batches))
    at = torch.zeros((len(batches), longest), dtype=torch.int64)
    share = torch.zeros((len(batches), longest))
    for i, batch in enumerate(batches):
        at[i, : len(batch)] = batch
        share[i, : len(batch)] = 1.0 / len(batch)
    return at, share


def why_not_stacked(models: list[nn.Module], inputs: Any, forward: Forward | None) -> str | None:
    """Why these models (two are enough) can't be trained as a stack; ``None`` if they can."""
    for module in models[0].modules():
        if isinstance(module, _KEEPS_STATISTICS) and module.track_running_stats:
            return f"{type(module).__name__} keeps running statistics, which each model would need of its own"
    called = [_Called(copy_of(m), forward).eval() for m in models[:2]]
    try:
        two = torch.arange(2, device=device_of(models[0]))
        few, twice = inputs[two], inputs[two.expand(len(called), 2)]
        parameters, buffers = stack_module_state(called)
        skeleton = copy_of(called[0]).to("meta")

        def run(weights: dict[str, Tensor], state: dict[str, Tensor], x: Any) -> Tensor:
            return functional_call(skeleton, (weights, state), (x,))

        with torch.no_grad(), own_randomness(0):
            stacked = vmap(run, randomness="different")(parameters, buffers, twice)
            expected = torch.stack([one(few) for one in called])
            skeleton.train()
            vmap(run, randomness="different")(parameters, buffers, twice)
    except Exception as error:
        return f"torch.func can't map over this network ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    if stacked.shape != expected.shape or not torch.allclose(stacked, expected, rtol=1e-3, atol=1e-4):
        return "its stacked answer differs from the single model's"
    return None


def stack_size(model: nn.Module, n: int) -> int:
    """How many of n models at once, by measurement: 1 where stacking does not pay."""
    size = min(n, _most_at_once(model))
    return size if size >= LEAST_STACK else 1


def _most_at_once(model: nn.Module) -> int:
    count = sum(p.numel() for p in model.parameters())
    if device_of(model).type == "cuda":
        # weights, gradients and two moments
        return max(1, min(STACK_ON_CUDA, BYTES_ON_CUDA // (16 * max(count, 1))))
    return STACK_ON_CPU if count <= SMALL_ON_CPU else 1
