"""What models return, read as logits [batch, classes]."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import _tree

Forward = Callable[[nn.Module, Any], Tensor]
ADVICE = "Pass forward=lambda model, inputs: ... that returns the logits [batch, classes], or [N, T, vocabulary] of a language model"
OTHER_TASKS = ("regression", "multi_label_classification")  # what transformers' configs call them
_ENOUGH = 16  # answers of one logit that say whether they are probabilities


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output. A mapping goes in by name where the model's forward has parameters of these names, else as one argument.

    Raises:
        TypeError: some of the names are parameters and others aren't.
    """
    if isinstance(inputs, Mapping) and _by_name(model, inputs):
        return model(**inputs)
    return model(inputs)


def _by_name(model: nn.Module, inputs: Mapping[Any, Any]) -> bool:
    parameters = _parameters(model)
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    known = [key for key in inputs if key in named]
    unknown = [key for key in inputs if key not in named]
    if known and unknown and all(p.kind is not p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"model: {type(model).__name__} takes {', '.join(map(repr, known))} of a batch's entries, but not "
            f"{', '.join(map(repr, unknown))}. Take these out of the data, or pass unpack=lambda batch: (inputs, labels)"
        )
    return bool(known)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Those of the forward of the module inside of wrappers, whose own takes anything."""
    while True:
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # scripted
            return []
        inside = list(model.children())
        if any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters) or len(inside) != 1:
            return parameters
        model = inside[0]


def reading(forward: Callable[[nn.Module, Any], Any] | None) -> Forward:
    """``forward`` (default: :func:`call`) that returns logits [batch, classes] whatever the model returns.

    Raises:
        TypeError: at a call whose output holds no logits that could be told, or of a model for another task.
    """

    by_default = forward is None or inspect.unwrap(forward) is call  # wrapped where the caller has a default device
    asked: nn.Module | None = None  # the last model, since to ask at every step of a small net would take a fifth of it

    def logits(model: nn.Module, inputs: Any) -> Tensor:
        nonlocal asked
        if by_default and model is not asked:
            refuse_other_tasks("model", model)
            asked = model
        output = (forward or call)(model, inputs)
        if type(output) is Tensor and output.dim() == 2 and output.shape[1] > 1:
            return _as_asked(output)
        picked = pick(output)
        if picked is None:
            raise TypeError(f"model: it returned {_tree.describe(output)}, in which the logits can't be told. {ADVICE}")
        return _as_asked(as_columns(picked, _tree.rows(inputs)))

    return logits


def refuse_other_tasks(who: str, model: nn.Module) -> None:
    """Refuses a model of transformers whose config says that its outputs aren't logits of classes of which a sample has one.

    Raises:
        TypeError: ``config.problem_type`` is one of OTHER_TASKS. transformers writes it there itself at the first loss: "regression" where
            there is one output, "multi_label_classification" where labels are floats.
    """
    while not hasattr(model, "config") and len(inside := list(model.children())) == 1:
        model = inside[0]
    task = getattr(getattr(model, "config", None), "problem_type", None)
    if task in OTHER_TASKS:
        raise TypeError(
            f"{who}: its config has problem_type={task!r}; accepted are models whose outputs are logits of classes, one class a sample "
            "('single_label_classification'). Pass forward=lambda model, inputs: ... that returns such logits, if it has any"
        )


def _as_asked(logits: Tensor) -> Tensor:
    """A scripted model's output has a graph even under no_grad."""
    return logits if torch.is_grad_enabled() or not logits.requires_grad else logits.detach()


def pick(output: Any) -> Tensor | None:
    """The logits in a model's output: itself, its ``.logits`` or ``["logits"]``, or the first of several (the others are auxiliary, as
    Inception's in training mode). None where that isn't sure: the first is no batch, or another one has other columns (features?).
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    parts = _parts(output)
    if not parts or not isinstance(parts[0], Tensor) or not parts[0].is_floating_point() or parts[0].dim() not in (1, 2):
        return None
    for other in parts[1:]:
        if isinstance(other, Tensor) and other.is_floating_point() and other.dim() == 2 and other.shape != parts[0].shape:
            return None
    return parts[0]


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return []


def as_columns(output: Tensor, count: int | None = None) -> Tensor:
    """One logit for each of two classes where a model gives one for both: [B] or [B, 1] becomes [0, z].

    ``count``: how many samples there are, where it is known; a model that squeezes its output drops the batch of a single sample.

    >>> import torch
    >>> as_columns(torch.tensor([[2.0], [-1.0]])).tolist()
    [[0.0, 2.0], [0.0, -1.0]]
    """
    if count == 1 and output.dim() in (0, 1) and output.numel() > 1:
        output = output[None]
    elif count == 1 and output.dim() == 0:
        output = output.reshape(1)
    if not output.is_floating_point() or output.dim() not in (1, 2) or (output.dim() == 2 and output.shape[1] != 1):
        return output
    column = output.reshape(-1, 1)
    return torch.cat((torch.zeros_like(column), column), dim=1)


def probabilities(logits: Tensor) -> str | None:
    """How probabilities would be made logits, if that is what these "logits" are; None if not."""
    values = logits.detach().double()
    if values.dim() != 2 or len(values) == 0 or not between_0_and_1(values):
        return None
    loose = 1e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if bool(((values.sum(dim=1) - 1).abs() <= loose).all()):
        return "model(x).clamp_min(1e-30).log()"
    one = values.shape[1] == 2 and not bool(values[:, 0].any()) and len(values) >= _ENOUGH
    return "torch.logit(model(x), 1e-7)" if one and float(values[:, 1].max() - values[:, 1].min()) > 0.5 else None


def between_0_and_1(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def warn_of_probabilities(who: str, remedy: str, stacklevel: int = 3) -> None:
    """Says that a model's outputs are read as logits but look like probabilities."""
    warnings.warn(
        f"fastforget: {who}: its outputs look like probabilities (within 0 and 1, as after a softmax or sigmoid), but are read as logits, "
        f"so losses, attacks and training passes are wrong. Pass forward=lambda model, x: {remedy}, or the model without its last layer",
        UserWarning,
        stacklevel=stacklevel,
    )
