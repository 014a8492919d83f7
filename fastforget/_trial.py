"""One step on a copy before any work is spent: it finds the models that training passes can't serve, and says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import _tree
from ._data import Source
from ._modules import copy_of, dense_gradients, refuse_half
from ._outputs import Forward
from ._random import own_randomness
from ._weights import device_of, training_mode

REMEDIES = {
    "out of bounds": "A label is out of the model's range",
    "heckpointing is not compatible": "It checkpoints activations the old way: use torch.utils.checkpoint with use_reentrant=False",
    "checkpoint is incompatible": "It checkpoints activations the old way: use torch.utils.checkpoint with use_reentrant=False",
    "cudnn RNN backward": "cuDNN's recurrent layers have no gradient in eval mode; call inside torch.backends.cudnn.flags(enabled=False)",
    "more than 1 value per channel": "Batch norm can't train on a single sample; give at least two",
    "fabric.backward": "Lightning Fabric wraps it for a precision of its own: pass model.module",
    "inference mode": "Make the model outside of torch.inference_mode()",
    "a view of a leaf Variable that requires grad is being used in an in-place": (
        "bitsandbytes' 4-bit layers pack their weights for inference, for good, at a first call in eval mode on a CPU with AVX512-BF16; "
        "before any call set support_avx512bf16_for_cpu = False on these layers"
    ),
    "modified by an inplace operation": "A module changes in place what its gradient needs; take inplace=True out of it",
}


def first_step(model: nn.Module, inputs: Any, labels: Tensor, forward: Forward, *, name: str = "model", modes: tuple[str, ...]) -> None:
    """Tries a step on a copy; the model and all random states stay as they are.

    Args:
        model: what is to be trained.
        inputs, labels: a small batch on its device.
        forward: (model, inputs) -> logits, of :func:`fastforget._outputs.reading`.
        name: the argument's name, for errors.
        modes: "train": gradients of all parameters by ``backward()``, in training mode; "eval": by ``autograd.grad``, in eval mode.

    Nothing is tried of networks that torch's own layers make up: there is nothing to find.

    Raises:
        TypeError, RuntimeError: what failed, and what to do; an error of the model's own comes as it is.
    """
    if modes:
        refuse_half(name, model)
    if not modes or _of_torch_alone(model):
        return
    inputs, labels = _at_least_two(inputs, labels)
    with own_randomness(0), torch.enable_grad():
        for mode in modes:
            work = copy_of(model)
            with explained(name, mode), dense_gradients(work):
                training_mode(work, model) if mode == "train" else work.eval()
                _step(work, inputs, labels, forward, name, mode)


def _of_torch_alone(model: nn.Module) -> bool:
    # a forward of its own, set on the module: what it is a closure of isn't copied with it
    plain = all(type(m).__module__.startswith("torch.nn.modules.") and "forward" not in vars(m) for m in model.modules())
    return plain and not any(isinstance(module, nn.RNNBase) for module in model.modules())


def _at_least_two(inputs: Any, labels: Tensor) -> tuple[Any, Tensor]:
    if len(labels) > 1 or _tree.rows(inputs) != 1:
        return inputs, labels
    return _tree.cat([inputs, inputs]), torch.cat((labels, labels))


@contextlib.contextmanager
def explained(name: str, mode: str = "train") -> Iterator[None]:
    """What fails inside is said in one line, with what to do."""
    try:
        yield
    except UntrainableError:
        raise
    except Exception as error:
        text = str(error)
        remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in text), None)
        if remedy is None:
            raise
        said = text.splitlines()[0]
        raise RuntimeError(
            f"{name}: a training step on a copy, in {mode} mode, failed with {type(error).__name__}: {said}. Nothing was changed. {remedy}"
        ) from error


class UntrainableError(TypeError):
    """An error that says already what to do."""


def _step(work: nn.Module, inputs: Any, labels: Tensor, forward: Forward, name: str, mode: str) -> None:
    weights = [p for p in work.parameters() if p.requires_grad]
    for weight in weights:
        weight.grad = None
    logits = forward(work, inputs)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and logits.is_floating_point() and len(logits) == len(labels)):
        raise UntrainableError(
            f"{name}: in {mode} mode a batch of {len(labels)} gives {_tree.describe(logits)}; accepted are logits [batch, classes]. "
            "Pass forward=lambda model, inputs: ... that returns them in either mode"
        )
    # whether labels are in range is another check's business
    loss = F.cross_entropy(logits.float(), labels.remainder(logits.shape[1]))
    if mode == "train":
        loss.backward()
        gradients = [p.grad for p in weights]
    else:
        gradients = list(torch.autograd.grad(loss, weights, allow_unused=True))
    if all(gradient is None for gradient in gradients):
        raise UntrainableError(
            f"{name}: in {mode} mode no parameter gets a gradient; nothing was changed. Its forward works under no_grad, or detaches, "
            "or was replaced by a function that calls the model as given, whatever copy it belongs to; with checkpointing pass "
            "use_reentrant=False"
        )
    refuse_single_gradients(name, work)


def refuse_single_gradients(name: str, work: nn.Module) -> None:
    """After a step: refuses a module that keeps a gradient for every sample."""
    if any(hasattr(weight, "grad_sample") for weight in work.parameters()):
        raise UntrainableError(
            f"{name}: {type(work).__name__} keeps a gradient for every single sample, which these passes would pile up; accepted is the "
            "module inside of it: model._module"
        )


def least_of(model: nn.Module, data: Source, forward: Forward) -> int:
    """How many samples a training batch must have: 2 where batch norm has a single value a channel for one (tried with the set's first
    sample), else 1.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return 1
    with own_randomness(0):
        inputs, _ = next(iter(data.at([torch.tensor([0])], device=device_of(model))))
    return 1 if trains_on_one(model, inputs, forward) else 2


def trains_on_one(model: nn.Module, inputs: Any, forward: Forward) -> bool:
    """Whether a copy goes through a batch of one sample in training mode: not where batch norm has a single value a channel."""
    work = copy_of(model)
    training_mode(work, model)
    with own_randomness(0), torch.no_grad():
        try:
            forward(work, inputs)
        except ValueError as error:
            return "more than 1 value per channel" not in str(error)
    return True
