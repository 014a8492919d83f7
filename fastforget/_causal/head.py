"""The layer whose product makes a causal model's logits, found by trial.

The model must give the layer's output as it is, from one call of it: what is only near it now (a scale of 1 that is trained, a limit that
no logit reaches yet) could differ later. Then it is called with that layer replaced by nothing, and the layer must make the same logits of
what comes out. From then on the layer can be skipped, and its product made block by block (``ops/_head.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[[nn.Module, Any], Tensor]


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
def without(head: nn.Module) -> Iterator[list[Tensor]]:
    """The layer gives what it is given, and each of its calls adds that to the list."""
    given: list[Tensor] = []

    def same(x: Tensor) -> Tensor:
        given.append(x)
        return x

    head.forward = same
    try:
        yield given
    finally:
        del head.forward


def untouched(given: list[Tensor], hidden: Tensor) -> bool:
    """Whether the model gave what its skipped layer got in its only call: for other batches it may do more than for the one that was tried.
    Another dtype is nothing, as the product is wide.
    """
    return len(given) == 1 and (hidden is given[0] or torch.equal(hidden, given[0].to(hidden)))
