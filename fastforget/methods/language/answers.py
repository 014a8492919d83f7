"""A causal model's next-token answers: by blocks of the vocabulary where its last layer is a plain product, else from its logits.

The product is found by trial. The model must give the layer's output as it is, from one call of it: what is only near it now (a scale of 1
that is trained, a limit that no logit reaches yet) could differ later. Then it is called with that layer replaced by nothing, and the layer
must make the same logits of what comes out. From then on the layer is skipped, and its product made block by block (``ops/_head.py``).
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
    try:
        found = getattr(model, "get_output_embeddings", lambda: None)()
    except Exception:  # some have the method and no answer
        found = None
    linear = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and "forward" not in vars(m)]
    fitting = [(name, m) for name, m in linear if m.out_features == logits.shape[2] and (found is None or m is found)]
    if not fitting:
        return None
    name, head = fitting[-1]
    try:
        with torch.no_grad():
            if not product_alone(model, name, forward, inputs)[1]:
                return None
            with without(head):
                hidden = forward(model, inputs)
    except Exception:  # what comes after the layer can't do without it
        return None
    if hidden.shape != (*logits.shape[:2], head.in_features) or hidden.dtype != head.weight.dtype:
        return None
    return name if torch.equal(F.linear(hidden, head.weight, head.bias).to(logits.dtype), logits) else None


def product_alone(model: nn.Module, head: str, forward: Forward, inputs: Any) -> tuple[Tensor, bool]:
    """The logits, and whether they are what that layer gave in its only call: the same memory, unchanged."""
    made: list[tuple[Tensor, int]] = []

    def note(module: nn.Module, args: Any, out: Tensor) -> None:
        made.append((out, out._version))

    handle = model.get_submodule(head).register_forward_hook(note, prepend=True)  # before what other hooks make of it
    try:
        logits = forward(model, inputs)
    finally:
        handle.remove()
    if len(made) != 1:
        return logits, False
    (out, version), *_ = made
    alike = (logits.data_ptr(), logits.shape, logits.stride(), logits.dtype) == (out.data_ptr(), out.shape, out.stride(), out.dtype)
    return logits, alike and out._version == version


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


def _answers(task: Task, model: nn.Module, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """:func:`outputs`, one row a label.

    Raises:
        ValueError: there are more or fewer.
    """
    out, weight, bias = outputs(task, model, inputs)
    if out.shape[:2] != labels.shape:
        raise ValueError(
            f"labels: a batch has labels of shape {tuple(labels.shape)}, and the model answers {tuple(out.shape[:2])} tokens; accepted is "
            "one label for each token of the inputs, not shifted, with -100 where it isn't scored"
        )
    return out, weight, bias


def log_probs(task: Task, model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[N, T]: log p of each label, with a gradient; 0 where it isn't scored."""
    out, weight, bias = _answers(task, model, inputs, labels)
    if weight is not None:
        return membership.token_log_probs(out, labels, weight, bias)
    rows, of_label = rows_of(labels)
    flat = -F.cross_entropy(_wide(out.flatten(0, 1)[rows]), of_label, reduction="none")
    return flat.new_zeros(labels.shape).masked_scatter(scored(labels), flat)


def scores(task: Task, inputs: Any, labels: Tensor) -> membership.TokenScores:
    """Of the task's model, without a gradient."""
    out, weight, bias = _answers(task, task.model, inputs, labels)
    return membership.token_scores(out, labels, weight, bias)


def divergence(task: Task, teacher: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[R]: KL(teacher || model) of each scored token, in nats."""
    rows, _ = rows_of(labels)
    task.teaching = True
    try:
        with torch.no_grad():
            theirs, teacher_weight, teacher_bias = _answers(task, teacher, inputs, labels)
    finally:
        task.teaching = False
    own, weight, bias = _answers(task, task.model, inputs, labels)
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
