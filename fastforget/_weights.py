"""A model's weights as a value (save, put back) and its modes: what lets a failed run leave no trace."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import _identity
from ._identity import digest

__all__ = [
    "device_of",
    "digest",
    "eval_mode",
    "evaluating",
    "fingerprint",
    "flags_kept",
    "overwrite",
    "put_back",
    "save",
    "working_copy",
]


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


def overwrite(model: nn.Module, source: nn.Module) -> None:
    """``model`` takes ``source``'s weights: all of them, or, if anything stops it half-way, none."""
    new, old = save(source), save(model)
    try:
        put_back(model, new)
    except BaseException:
        put_back(model, old)
        raise


def working_copy(model: nn.Module) -> nn.Module:
    """A copy to work on, without gradients."""
    try:
        work = copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"model: {type(model).__name__} can't be copied ({error}), and unlearning works on a copy so that a failed run changes "
            "nothing. Detach tensors that the module keeps from a forward pass"
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
    """Eval mode without gradients, flags as before afterwards."""
    with flags_kept(model), eval_mode(model), torch.no_grad():
        yield
