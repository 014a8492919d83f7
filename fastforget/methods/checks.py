"""What is refused. Each error names the argument, what came, what is accepted and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import _weights
from .._data import Source
from .task import Forward


def seed(value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"seed: got {value!r}; accepted is an int from 0 to 2**63 - 1")


def model_device(model: Any) -> torch.device:
    """The one device of the model's weights."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; accepted is a torch.nn.Module that maps a batch to logits")
    parameters = list(model.named_parameters())
    if not parameters:
        raise ValueError(f"model: {type(model).__name__} has no parameters, so there is nothing to unlearn")
    tensors = parameters + list(model.named_buffers())
    first_name, first = tensors[0]
    for name, value in tensors:
        if value.device != first.device:
            raise ValueError(
                f"model: {first_name} is on {first.device} but {name} on {value.device}; accepted is one device. "
                f"Move it first: model.to({str(first.device)!r})"
            )
    if not any(p.requires_grad for _, p in parameters):
        raise ValueError("model: no parameter requires a gradient, so training passes would change nothing")
    return first.device


def class_list(classes: Any, forget: Source | None) -> list[int]:
    """The classes to forget, distinct and sorted; taken from ``forget`` when not named."""
    if classes is None:
        if forget is None:
            raise ValueError("classes: not given; accepted is a list of class ids to forget, e.g. classes=[3]")
        return sorted(set(forget.labels().tolist()))
    given = [classes] if isinstance(classes, int) else list(classes) if isinstance(classes, Iterable) else None
    ok = given is not None and all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in given)
    if isinstance(classes, Tensor) or not ok or not given:
        raise TypeError(f"classes: got {classes!r}; accepted is a list of class ids (Python ints >= 0), e.g. classes=[3]")
    if len(set(given)) != len(given):
        raise ValueError(f"classes: got {classes!r}; accepted are distinct class ids")
    return sorted(given)


def probe(model: nn.Module, forward: Forward, source: Source, device: torch.device, noisy: bool) -> int:
    """Number of classes the model knows, from one small batch; refuses what can't serve. ``noisy``: the method learns noise in the
    inputs' place, so they must be floating point.
    """
    inputs, _ = next(iter(source.at([torch.arange(min(2, len(source)))], device=device)))
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{source.name}: inputs are {type(inputs).__name__}; accepted are tensors (choose one by unpack=)")
    if noisy and not inputs.is_floating_point():
        raise TypeError(
            f"{source.name}: inputs are {inputs.dtype}; accepted are floating point tensors, prepared as in training. Convert them first, "
            "e.g. images.float() / 255; where they are numbers of words or the like, let the noise stand in for the output of the layer "
            "that embeds them: noise_at='name of the layer'"
        )
    with _weights.evaluating(model):
        logits = forward(model, inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(inputs):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(
            f"model: a batch of {len(inputs)} gives {got}; accepted are logits [batch, classes]. "
            "Pass forward=lambda model, inputs: ... that returns them"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"model: its logits on the first {source.name} batch aren't finite (NaN or inf); nothing was changed")
    return logits.shape[1]


def label_range(source: Source, outputs: int) -> None:
    labels = source.labels()
    wrong = ((labels < 0) | (labels >= outputs)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{source.name}: label {int(labels[at])} at sample {at} is out of range; accepted are 0 to {outputs - 1}, as the model gives "
            f"{outputs} logits"
        )


def known_classes(classes: list[int], outputs: int) -> None:
    unknown = [c for c in classes if c >= outputs]
    if unknown:
        raise ValueError(f"classes: {unknown} unknown to the model, which gives {outputs} logits; accepted are 0 to {outputs - 1}")


def clean_retain(retain: Source, classes: list[int], drop_forget: bool) -> Source:
    """The retain set, without a sample of the classes to forget."""
    inside = torch.isin(retain.labels(), torch.tensor(classes))
    count = int(inside.sum())
    if count and not drop_forget:
        raise ValueError(
            f"retain: {count} of its {len(retain)} samples have a label in classes={classes}: training on them would keep what is to be "
            "forgotten. Take them out, or pass drop_forget=True to have them left out here"
        )
    if count == len(retain):
        raise ValueError(f"retain: all {count} samples have a label in classes={classes}; accepted is a set of other classes")
    return retain.subset((~inside).nonzero()[:, 0]) if count else retain


def finite_weights(model: nn.Module) -> None:
    """Refuses what a run made of the weights."""
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"the run made {name} NaN or inf; the given model is unchanged. Lower the rates")
