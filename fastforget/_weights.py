"""A model's weights as a value (save, put back) and its modes: what lets a failed run leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import _identity
from ._dtensors import Box, local_part
from ._identity import digest
from ._modules import copy_of
from ._unwrapped import inner

__all__ = [
    "device_of",
    "digest",
    "eval_mode",
    "evaluating",
    "fingerprint",
    "flags_kept",
    "overwriting",
    "put_back",
    "reading_copy",
    "save",
    "training_mode",
    "working_copy",
]
T = TypeVar("T")


def fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, buffers and packed weights, whatever the wrapper.

    Where a module keeps something in its state_dict that has no bytes, the hash is over parameters and buffers alone: enough to tell
    whether a run changed them. An audit's hashes (``auditing/proof/hashes.py``) have a reason there instead.
    """
    try:
        return _identity.fingerprint(model)
    except _identity.Unhashable:
        return digest(_tensors(model))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # buffers outside the state_dict (persistent=False) count too: they change what a model answers
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def save(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in _tensors(model).items()}


def put_back(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Writes :func:`save`'s copy into the same model (or one of the same shape), in place."""
    with torch.no_grad():
        for name, value in _tensors(model).items():
            value.copy_(saved[name])


def overwriting(model: nn.Module, source: nn.Module) -> Overwriting:
    """``model`` is to take ``source``'s weights. Nothing is written yet; whatever can be refused is refused here."""
    old, new = _tensors(inner(model)), _tensors(source)
    for name, value in old.items():
        if name not in new or new[name].shape != value.shape:
            got = f"shape {tuple(new[name].shape)}" if name in new else "none"
            raise RuntimeError(f"model: the run left {got} for {name} of shape {tuple(value.shape)}; with inplace=False it can be had")
    # detached: the same memory, outside of autograd, so that no context is needed around the write
    target = [local_part(name, value.detach()) for name, value in old.items()]
    return Overwriting(target, [Box.of(value).cut(new[name].detach()) for name, value in old.items()])


class Overwriting:
    """A write that was prepared: one call into torch, which no interrupt of Python's can divide."""

    def __init__(self, target: list[Tensor], new: list[Tensor]) -> None:
        self.target, self.new, self.old = target, new, [value.clone() for value in target]

    def give(self, result: T) -> T:
        """Writes all, and returns ``result``; where that is interrupted, nothing is written."""
        try:
            # one line, so that nothing comes after the write
            return (torch._foreach_copy_(self.target, self.new), result)[1]  # type: ignore[func-returns-value]
        except BaseException:
            torch._foreach_copy_(self.target, self.old)
            raise


def working_copy(model: nn.Module) -> nn.Module:
    """A copy to work on, without gradients."""
    try:
        work = copy_of(model)
    except Exception as error:
        raise TypeError(
            f"model: {type(model).__name__} can't be copied ({error}), and unlearning works on a copy so that a failed run changes "
            "nothing. Take off it what copy.deepcopy can't copy (locks, files, generators, tensors kept from a forward pass), or give it a "
            "__deepcopy__"
        ) from error
    for parameter in work.parameters():
        parameter.grad = None
    return work


def device_of(model: nn.Module) -> torch.device:
    """Where a batch for this model belongs: the device of its first parameter or buffer."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Every module's training flag and every parameter's requires_grad are as before afterwards."""
    training = [(module, module.training) for module in model.modules()]
    gradient = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in gradient:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """All models in eval mode; afterwards every submodule's own training flag is as it was."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; flags and buffers (a model may count its calls) as before afterwards."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with flags_kept(model), eval_mode(model), torch.no_grad():
        try:
            yield
        finally:
            for held, name, buffer, saved, version in buffers:
                if held.get(name) is not buffer:
                    held[name] = buffer
                if _version(buffer) != version:
                    buffer.copy_(saved)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def training_mode(model: nn.Module, given: nn.Module) -> None:
    """Train mode, but for the norms that are frozen in the model as ``given``: they keep their statistics."""
    frozen = frozen_norms(given)  # before, as ``given`` may be the model itself
    model.train()
    modules = dict(model.named_modules())
    for name in frozen:
        modules[name].eval()


def frozen_norms(model: nn.Module) -> list[str]:
    """Names of the batch norms (and the like) that aren't trained: all their parameters are frozen (of one without parameters: those of the
    module around it), or they are in eval mode while the model isn't."""
    modules = dict(model.named_modules())
    mixed = any(module.training for module in modules.values())
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and ((mixed and not module.training) or not any(p.requires_grad for p in _around(name, modules).parameters()))
    ]


def _around(name: str, modules: Mapping[str, nn.Module]) -> nn.Module:
    """The module, or the nearest one around it that has parameters."""
    while name and next(modules[name].parameters(), None) is None:
        name = name.rpartition(".")[0]
    return modules[name]


def reading_copy(model: nn.Module) -> nn.Module:
    """A copy to be called and not trained: it shares the parameters' memory, and has modes, buffers and whatever a forward pass counts or
    keeps of its own. Where that can't be made, the model itself."""
    if any(_shared_with_others(module) for module in model.modules()):
        return model
    shared: dict[int, Any] = {}
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter and not parameter.is_inference()
        shared[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad) if plain else parameter
    try:
        return copy_of(model, shared)
    except Exception:
        return model


def _shared_with_others(module: nn.Module) -> bool:
    """Compiled modules, whose copy would be compiled again, and distributed ones, whose copy would hook itself to the same parameters."""
    return hasattr(module, "_orig_mod") or type(module).__module__.startswith(("torch.distributed", "torch.nn.parallel"))
