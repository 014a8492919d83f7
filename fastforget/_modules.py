"""Modules as people have them: copies of those that keep results of a forward pass, dense gradients, and what no copy can serve."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

INSIDE = ("module_", "model")  # where skorch's nets, and trainers, hold the model


def copy_of(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also where modules keep tensors that a forward pass made (weight_norm, pruning, attention maps, features): of those
    the copy holds the values alone. ``memo``: what stands for objects that aren't to be copied, by their ids.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        _note_made(vars(module), memo, set())
    with torch.no_grad():  # else a scripted module's copy would be computed from the original, and train that
        work = copy.deepcopy(model, memo)
    for given, own in zip(model.parameters(), work.parameters(), strict=True):
        if own.requires_grad != given.requires_grad:
            own.requires_grad_(given.requires_grad)
    return work


def _note_made(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Puts a detached copy of every tensor that has a graph behind it where deepcopy will look for it."""
    if id(value) in seen or isinstance(value, nn.Module):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None and id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, Mapping):
        for part in value.values():
            _note_made(part, memo, seen)
    elif isinstance(value, (tuple, list, set, frozenset)):
        for part in value:
            _note_made(part, memo, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        _note_made(vars(value), memo, seen)


@contextlib.contextmanager
def dense_gradients(model: nn.Module) -> Iterator[None]:
    """Embeddings with ``sparse=True`` give ordinary gradients meanwhile: Adam and the fused steps take no others."""
    sparse = [module for module in model.modules() if getattr(module, "sparse", None) is True]
    try:
        for module in sparse:
            setattr(module, "sparse", False)  # noqa: B010
        yield
    finally:
        for module in sparse:
            setattr(module, "sparse", True)  # noqa: B010


def refuse_kind(name: str, model: Any) -> None:
    """Refuses what looks like a model but can't be worked with, and says what to pass."""
    if type(model).__name__ == "ExportedProgram":
        raise TypeError(f"{name}: got an ExportedProgram; accepted is a torch.nn.Module. Pass the module that was exported, or .module()")
    if not isinstance(model, nn.Module):
        inside = next((place for place in INSIDE if isinstance(getattr(model, place, None), nn.Module)), None)
        if inside is not None:
            about = f"{name}: got {type(model).__name__}; accepted is a torch.nn.Module"
            raise TypeError(f"{about}. Pass the one inside of it: {name}.{inside} (with inplace=True it is changed where it is)")
        return
    if any(isinstance(module, torch.fx.GraphModule) and "train" in vars(module) for module in model.modules()):
        raise TypeError(
            f"{name}: got a module made by torch.export, which can't be set to training and evaluation; accepted is the module that was "
            "exported"
        )
    lazy = [key for key, value in model.named_parameters() if isinstance(value, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(f"{name}: {lazy[0]} isn't initialised yet; accepted is a model that has seen a batch. Call it on one first")


def refuse_half(name: str, model: nn.Module) -> None:
    """Refuses a model to be trained in float16."""
    half = [key for key, value in model.named_parameters() if value.requires_grad and value.dtype == torch.float16]
    if half:
        raise TypeError(
            f"{name}: {half[0]} is float16, in which training steps vanish or overflow without loss scaling; accepted are float32, "
            "bfloat16 and float64. Pass model.float() with inputs to match, and take .half() of the result"
        )
