"""A layer's output in a forward pass, and which weights lead up to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..._labels import shown
from ..task import Task
from .answers import outputs


class States:
    """The outputs of one layer of a model, and of its copies.

    Args:
        model: the model.
        layer: the layer's name; None: the middle one of the longest ``ModuleList`` that lies in no other.

    Raises:
        ValueError: there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self.model = model
        lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
        if layer is None:
            if not lists:
                raise ValueError("layer: not given, and the model has no ModuleList to take the middle of; accepted is a module's name")
            outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]  # experts lie in layers
            longest = max(outer, key=lambda name: len(lists[name]))
            layer = f"{longest}.{(len(lists[longest]) - 1) // 2}".removeprefix(".")
        named = dict(model.named_modules())
        if layer not in named or not layer:
            some = ", ".join(repr(f"{name}.0".removeprefix(".")) for name in lists) or repr(next((n for n in named if n), ""))
            raise ValueError(f"layer: the model has no module {layer!r}; accepted are names of model.named_modules(), e.g. {some}")
        self.name = layer
        above, _, place = layer.rpartition(".")
        self.before = [f"{above}.{i}".removeprefix(".") for i in range(int(place))] if above in lists else []

    def train_last(self, count: int, part: str) -> list[str]:
        """Freezes all weights but those of the layer and the ones before it in its list, ``count`` layers in all; returns their names.

        ``part``: what a name must contain, or "".

        Raises:
            ValueError: none of them is trained.
        """
        layers = [*self.before, self.name][-count:]
        trained = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and part in name and any(name.startswith(f"{one}.") for one in layers):
                trained.append(name)
            else:
                parameter.requires_grad_(False)
        if not trained:
            raise ValueError(
                f"weights: no trainable parameter of {', '.join(layers)} has {part!r} in its name; accepted is a part of the name of one, "
                "or layer= with weights that are trained"
            )
        return trained

    def of(self, task: Task, model: nn.Module, inputs: Any) -> Tensor:
        """[N, T, D], of a batch."""
        caught: list[Any] = []
        handle = model.get_submodule(self.name).register_forward_hook(lambda module, args, out: caught.append(out))
        task.teaching = not torch.is_grad_enabled()
        try:
            outputs(task, model, inputs)
        finally:
            task.teaching = False
            handle.remove()
        h = caught[-1] if caught else None
        h = h[0] if isinstance(h, (tuple, list)) and h else h
        if not isinstance(h, Tensor) or h.dim() != 3 or not h.is_floating_point():
            raise TypeError(f"layer: {self.name!r} gives {type(h).__name__} where hidden states [N, T, D] are needed; name another one")
        return h.to(torch.promote_types(h.dtype, torch.float32))


def attended(inputs: Any, like: Tensor) -> Tensor:
    """[N, T]: 1 where ``attention_mask`` among the inputs shows a token; all where there is none."""
    mask = shown(inputs, like.shape[:2])
    return like.new_ones(like.shape[:2]) if mask is None else mask.to(like.dtype)
