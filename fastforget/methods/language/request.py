"""A request about sequences: what is refused, and what a first small batch shows of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import _weights
from ..._causal import checks
from ..._causal.head import find_head, product_alone
from ..._data import Source
from ..._labels import TOKENS
from ..._trial import first_step
from ..checks import answered as asked
from ..kind import Kind, Shown
from ..task import Forward
from .verdict import judge, look_before, losses, right


def wanted(method: Any, classes: Any, forget: Source | None) -> list[int]:
    """No classes: the sequences of ``forget``."""
    if classes is not None:
        raise ValueError(f"classes: got {classes!r}; {method.name} is for language models and forgets the sequences of forget=, no classes")
    if forget is None:
        raise ValueError(f"forget: not given; {method.name} needs the sequences to forget")
    return []


def check(model: nn.Module, forward: Forward, given: list[Source], classes: list[int], device: torch.device, method: Any) -> Shown:
    """Refuses what isn't a causal model with labels that fit it."""
    checks.refuse_encoders("model", model)
    source = given[0]
    inputs, labels = next(iter(source.at([torch.arange(min(2, len(source)))], device=device)))
    with _weights.evaluating(model):
        words, head = checks.look("model", model, lambda net, x: asked(net, forward, source, x), inputs, labels, source.name, stacklevel=6)
    for data in given:
        checks.check_labels(data, words)

    def answered(work: nn.Module, x: Any) -> Tensor:
        nonlocal head
        if head is None:
            return forward(work, x).flatten(0, 1)
        answers, alone = product_alone(work, head, forward, x)
        head = head if alone else None  # in this mode something is done to it
        return answers.flatten(0, 1)

    first_step(model, inputs, labels.flatten().clamp_min(0), answered, modes=getattr(method, "gradients", ()))
    return Shown(words, head)


def head(model: nn.Module, forward: Forward, data: Source) -> str | None:
    """The layer whose product makes the logits, told by two sequences."""
    inputs, _ = next(iter(data.at([torch.arange(min(2, len(data)))], device=_weights.device_of(model))))
    with _weights.evaluating(model):
        return find_head(model, forward, inputs, forward(model, inputs))


SEQUENCES = Kind("sequences", TOKENS, wanted, check, look_before, judge, right, losses, head)
