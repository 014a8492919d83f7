"""The calls of a net's layers in one forward pass: each one's inputs, and where its outputs stand in the graph.

It holds only where every trainable parameter acts through a known layer's call, and each row of that layer's inputs is a sample. The graph
itself is asked, and two samples tried: anything else raises :class:`Alone`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..task import Forward
from . import per_sample


class Alone(Exception):
    """Why a batch can't be taken apart by its layers."""


@dataclass
class Call:
    """One call of a layer."""

    layer: nn.Module
    inputs: Tensor
    version: int  # of the inputs when they were read
    before: Any  # the graph's node that made the inputs
    outputs: torch.autograd.graph.GradientEdge


class Layers:
    """The layers of a net that have trainable parameters of their own.

    Raises:
        Alone: one of them isn't known by formula.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.names = {module: name or "the model" for name, module in net.named_modules()}
        self.layers = [m for m in net.modules() if any(p is not None and p.requires_grad for p in m._parameters.values())]
        for layer in self.layers:
            if why := per_sample.refusal(layer):
                raise Alone(self._named(layer, why))

    def _named(self, layer: nn.Module, why: str) -> str:
        return f"{self.names[layer]} ({type(layer).__name__}) {why}"

    def called(self, forward: Forward, inputs: Any, samples: int) -> tuple[Tensor, list[Call]]:
        """Logits of a batch, with their graph, and the layers' calls.

        Raises:
            Alone: a layer's rows aren't the samples, or the logits come from a parameter by another way than its layer's call.
        """
        calls: list[Call] = []
        refused: list[str] = []

        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = args[0] if len(args) == 1 and not kwargs else None
            if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not output.requires_grad:
                refused.append(self._named(layer, "is called with more than its inputs, or without gradients"))
            elif not per_sample.fits(layer, x, samples):
                refused.append(self._named(layer, f"is given {tuple(x.shape)} for {samples} samples"))
            else:
                calls.append(Call(layer, x.detach(), x._version, x.grad_fn, torch.autograd.graph.get_gradient_edge(output)))

        with contextlib.ExitStack() as hooks:
            for layer in self.layers:  # before the user's own hooks, which may change what the layer returns
                hooks.callback(layer.register_forward_hook(note, with_kwargs=True, prepend=True).remove)
            logits = forward(self.net, inputs)
        refused += [self._named(c.layer, "has inputs that are overwritten") for c in calls if c.inputs._version != c.version]
        if refused:
            raise Alone(refused[0])
        if not calls or not logits.requires_grad:
            raise Alone("the logits come from none of its layers")
        stray = _stray(logits, calls, {p for p in self.net.parameters() if p.requires_grad})
        if stray is not None:
            name = next(name for name, p in self.net.named_parameters() if p is stray)
            raise Alone(f"{name} is used other than by calling its layer")
        return logits, calls

    def try_two(self, forward: Forward, inputs: Any) -> None:
        """Runs two samples and goes back from the first alone.

        Raises:
            Alone: the second's rows get a gradient too: the samples are mixed, or a layer's rows are something else.
        """
        logits, calls = self.called(forward, inputs, 2)
        way = torch.linspace(1, 2, logits.shape[1], dtype=logits.dtype, device=logits.device)  # no direction that a net is blind to
        grads = torch.autograd.grad(logits[0], [call.outputs for call in calls], way, allow_unused=True)
        for call, g in zip(calls, grads, strict=True):
            if g is not None and bool(g[1:].any()):
                raise Alone(self._named(call.layer, "mixes samples, or its rows are something else"))


def _stray(logits: Tensor, calls: list[Call], params: set[nn.Parameter]) -> nn.Parameter | None:
    """A parameter that the logits come from by another way than the outputs of a call."""
    outputs: dict[Any, list[Any]] = {}
    for call in calls:
        outputs.setdefault(call.outputs.node, []).append(call.before)
    seen, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in outputs:
            todo += outputs[node]
            continue
        parameter = getattr(node, "variable", None)
        if parameter in params:
            return parameter
        todo += [before for before, _ in node.next_functions]
    return None
