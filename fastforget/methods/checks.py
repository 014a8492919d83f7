"""What is refused. Each error names the argument, what came, what is accepted and what to do."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _outputs, _tree, _weights
from .._data import Pair, Source
from .._modules import refuse_kind
from .._random import own_randomness
from .task import Forward

# what a model's forward raises on data that isn't its own
UNFIT = (RuntimeError, LookupError, TypeError, AttributeError, ValueError, AssertionError)


def seed(value: Any) -> int:
    whole = _whole_number(value)
    if whole is None or not 0 <= whole < 2**63:
        raise ValueError(f"seed: got {value!r}; accepted is an int from 0 to 2**63 - 1")
    return whole


def precision(value: Any) -> Any:
    if value not in (None, "auto", "float32", "bfloat16"):
        raise ValueError(f"precision: got {value!r}; accepted are 'auto', 'float32', 'bfloat16', or None for the method's own")
    return value


def _whole_number(value: Any) -> int | None:
    """An int, also numpy's or a tensor of one; None for anything else, truth values included."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and (value.dtype == torch.bool or value.dim())):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def model_device(model: Any) -> torch.device:
    """The one device of the model's weights."""
    refuse_kind("model", model)
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
    single = _whole_number(classes) is not None
    given = [_whole_number(c) for c in ([classes] if single else _items(classes))]
    ids = [c for c in given if c is not None and c >= 0]
    if not ids or len(ids) < len(given):
        raise TypeError(f"classes: got {classes!r}; accepted is a list of class ids (ints >= 0), e.g. classes=[3]")
    if len(set(ids)) != len(ids):
        raise ValueError(f"classes: got {classes!r}; accepted are distinct class ids")
    return sorted(ids)


def _items(values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:  # not iterable, or an array without dimensions
        return []


@dataclass
class Probed:
    """What one small batch showed: the batch on the model's device, and how many classes the model knows."""

    inputs: Any
    labels: Tensor
    outputs: int


def probe(model: nn.Module, forward: Forward, source: Source, device: torch.device, noisy: bool) -> Probed:
    """What one small batch shows of the model; refuses what can't serve. ``noisy``: the method learns noise in the inputs' place, so they
    must be one floating point tensor.
    """
    inputs, labels = next(iter(source.at([torch.arange(min(2, len(source)))], device=device)))
    if noisy and not isinstance(inputs, Tensor):
        raise TypeError(
            f"{source.name}: inputs are {_tree.describe(inputs)}, and this method learns noise in the place of one tensor. Choose one by "
            "unpack=, or let the noise stand in for the output of a layer that embeds them: noise_at='name of the layer'"
        )
    if noisy and not inputs.is_floating_point():
        raise TypeError(
            f"{source.name}: inputs are {inputs.dtype}; accepted are floating point tensors, prepared as in training. Convert them first, "
            "e.g. images.float() / 255; where they are numbers of words or the like, let the noise stand in for the output of the layer "
            "that embeds them: noise_at='name of the layer'"
        )
    with _weights.evaluating(model):
        logits = answered(model, forward, source, inputs)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels) or not logits.is_floating_point():
        got = f"shape {tuple(logits.shape)}, {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(
            f"model: a batch of {len(labels)} gives {got}; accepted are logits [batch, classes]. "
            "Pass forward=lambda model, inputs: ... that returns them"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"model: its logits on the first {source.name} batch aren't finite (NaN or inf); nothing was changed. Where it masks classes "
            "by -inf, pass forward=lambda model, inputs: model(inputs).clamp_min(-1e4)"
        )
    _warn_of_probabilities(model, forward, source, device, logits)
    return Probed(inputs, labels, logits.shape[1])


def answered(model: nn.Module, forward: Forward, source: Source, inputs: Any) -> Any:
    """What the model answers to samples of a set; what its forward can't do with them is said with the set's name."""
    try:
        return forward(model, inputs)
    except UNFIT as error:
        if _of_this_package(error):
            raise
        raise RuntimeError(
            f"{source.name}: the model's forward failed on {_tree.describe(inputs)} of it with {type(error).__name__}: {error}. "
            "Give samples prepared as in training; nothing was changed"
        ) from error


def _of_this_package(error: Exception) -> bool:
    """Whether an error was raised in this package, whose messages say all."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("fastforget.")


def must_be_answered(model: nn.Module, forward: Forward, sets: list[Source], device: torch.device) -> None:
    """Refuses sets that the model can't take: their first samples, and those of tensors that hold NaN or infinities, since some models take
    these as missing values, and others answer NaN.
    """
    with own_randomness(0), _weights.evaluating(model):
        for source in sets:
            rows = torch.cat((torch.arange(min(2, len(source))), _not_finite(source)))
            inputs, _ = next(iter(source.at([rows], device=device)))
            logits = answered(model, forward, source, inputs)
            bad = (~torch.isfinite(logits)).any(dim=1).nonzero() if logits.dim() == 2 else rows[:0]
            if len(bad):
                raise ValueError(
                    f"{source.name}: the model's logits on sample {int(rows[bad[0]])} aren't finite (NaN or inf); accepted are "
                    "samples that it answers. Mend it or leave it out; nothing was changed"
                )


def _not_finite(source: Source) -> Tensor:
    """Positions of samples with NaN or infinities in their inputs, the first few, where the set is a tensor."""
    none = torch.empty(0, dtype=torch.int64)
    x = source.samples.inputs if isinstance(source.samples, Pair) else none
    if not x.is_floating_point() or x.element_size() < 2 or bool(torch.isfinite(x.sum())):
        return none
    rows = torch.arange(len(source)) if source.indices is None else source.indices
    whole = [torch.isfinite(x[part.to(x.device)].reshape(len(part), -1)).all(dim=1).cpu() for part in rows.split(4096)]
    return (~torch.cat(whole)).nonzero()[:64, 0]


def _warn_of_probabilities(model: nn.Module, forward: Forward, source: Source, device: torch.device, logits: Tensor) -> None:
    single = logits.shape[1] == 2 and not bool(logits[:, 0].any())
    if single and _outputs.between_0_and_1(logits):  # a few logits may lie there by chance
        inputs, _ = next(iter(source.at([torch.arange(min(64, len(source)))], device=device)))
        with _weights.evaluating(model):
            logits = forward(model, inputs)
    remedy = _outputs.probabilities(logits)
    if remedy is not None:
        _outputs.warn_of_probabilities("model", remedy, stacklevel=7)


def label_range(source: Source, outputs: int) -> None:
    labels = source.labels()
    wrong = ((labels < 0) | (labels >= outputs)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"{source.name}: label {int(labels[at])} at sample {at} is out of range; accepted are 0 to {outputs - 1}, as the model gives "
            f"{outputs} logits. Labels were read from {source.read_from}; for others pass unpack=lambda batch: (inputs, labels)"
        )


def known_classes(classes: list[int], outputs: int) -> None:
    unknown = [c for c in classes if c >= outputs]
    if unknown:
        raise ValueError(f"classes: {unknown} unknown to the model, which gives {outputs} logits; accepted are 0 to {outputs - 1}")


def clean_retain(retain: Source, classes: list[int], drop_forget: bool, by_class: str | None = None) -> Source:
    """The retain set, without a sample of the classes to forget. ``by_class``: the method that takes a forget set's classes as a whole."""
    inside = torch.isin(retain.labels(), torch.tensor(classes))
    count = int(inside.sum())
    if count and not drop_forget:
        raise ValueError(
            f"retain: {count} of its {len(retain)} samples have a label in classes={classes}: training on them would keep what is to be "
            "forgotten. Take them out, or pass drop_forget=True to have them left out here"
            + (f". {by_class} forgets whole classes, without classes= those of forget; for single samples take 'sweep'" if by_class else "")
        )
    if count == len(retain):
        raise ValueError(f"retain: all {count} samples have a label in classes={classes}; accepted is a set of other classes")
    return retain.subset((~inside).nonzero()[:, 0]) if count else retain


def finite_weights(model: nn.Module) -> None:
    """Refuses what a run made of the weights."""
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"the run made {name} NaN or inf; the given model is unchanged. Lower the rates")
