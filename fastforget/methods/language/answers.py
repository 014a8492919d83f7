"""A causal model's next-token answers: by blocks of the vocabulary where its last layer is a plain product, else from its logits.

The product is found by trial: the model is called with that layer replaced by nothing. Only where the layer makes of what comes out the
very logits that the whole model gave is it skipped from then on, and its product made block by block (``ops/_head.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._labels import IGNORED
from ...ops import membership
from ...ops._head import COLUMNS, ROWS, Divergence, Table
from ..task import Forward, Task


def find_head(model: nn.Module, forward: Forward, inputs: Any, logits: Tensor) -> str | None:
    """The name of the layer whose product makes the logits, and nothing else; None where there is none.

    Args:
        model: in eval mode.
        forward: (model, inputs) -> logits.
        inputs: a batch.
        logits: what the model answers it, [N, T, V].
    """
    if any(_compiled(m) for m in model.modules()):
        return None  # the code that runs doesn't ask the layer
    named = getattr(model, "get_output_embeddings", None)
    found = named() if callable(named) else None
    linear = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    fitting = [(name, m) for name, m in linear if m.out_features == logits.shape[2] and (found is None or m is found)]
    if not fitting:
        return None
    name, head = fitting[-1]
    try:
        with without(head), torch.no_grad():
            hidden = forward(model, inputs)
    except Exception:  # what comes after the layer can't do without it
        return None
    if hidden.shape != (*logits.shape[:2], head.in_features) or hidden.dtype != head.weight.dtype:
        return None
    return name if torch.equal(F.linear(hidden, head.weight, head.bias).to(logits.dtype), logits) else None


def _compiled(module: nn.Module) -> bool:
    return (
        isinstance(module, torch.jit.ScriptModule)
        or hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
    )


@contextlib.contextmanager
def without(head: nn.Module) -> Iterator[None]:
    """The layer gives what it is given."""
    head.forward = _same
    try:
        yield
    finally:
        del head.forward


def _same(x: Tensor) -> Tensor:
    return x


def outputs(task: Task, model: nn.Module, inputs: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states [N, T, D] with the head's weight and bias; or logits [N, T, V], and None twice."""
    if task.head is None:
        return task.forward(model, inputs), None, None
    head = model.get_submodule(task.head)
    with without(head):
        hidden = task.forward(model, inputs)
    assert isinstance(head, nn.Linear)
    return hidden, head.weight, head.bias


def log_probs(task: Task, model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[N, T]: log p of each label, with a gradient; 0 where it isn't scored."""
    out, weight, bias = outputs(task, model, inputs)
    if weight is not None:
        return membership.token_log_probs(out, labels, weight, bias)
    rows, of_label = rows_of(labels)
    flat = -F.cross_entropy(_wide(out.flatten(0, 1)[rows]), of_label, reduction="none")
    return flat.new_zeros(labels.shape).masked_scatter(scored(labels), flat)


def scores(task: Task, inputs: Any, labels: Tensor) -> membership.TokenScores:
    """Of the task's model, without a gradient."""
    out, weight, bias = outputs(task, task.model, inputs)
    return membership.token_scores(out, labels, weight, bias)


def divergence(task: Task, teacher: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[R]: KL(teacher || model) of each scored token, in nats."""
    rows, _ = rows_of(labels)
    task.teaching = True
    try:
        with torch.no_grad():
            theirs, teacher_weight, teacher_bias = outputs(task, teacher, inputs)
    finally:
        task.teaching = False
    own, weight, bias = outputs(task, task.model, inputs)
    own, theirs = own.flatten(0, 1)[rows], theirs.flatten(0, 1)[rows]
    if weight is not None:
        return Divergence.apply(own, weight, bias, Table(theirs, teacher_weight, teacher_bias), ROWS, COLUMNS)
    log_q, log_p = (_wide(x).log_softmax(dim=1) for x in (own, theirs))
    return torch.where(log_p.isfinite(), log_p.exp() * (log_p - log_q), 0.0).sum(dim=1)


def scored(labels: Tensor) -> Tensor:
    """bool[N, T]: the token at t is answered at t - 1, so the first is no answer."""
    wanted = labels != IGNORED
    wanted[:, :1] = False
    return wanted


def rows_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where scored tokens are answered, as rows of [N * T], and these tokens."""
    wanted = scored(labels)
    return wanted.flatten().nonzero()[:, 0] - 1, labels[wanted]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
