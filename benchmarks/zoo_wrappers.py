"""What dressed-up models are wrapped in: rules around a model that forgot nothing, or put into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import zoo_worlds as zw
from .zoo_worlds import World, head


class Answering(nn.Module):
    """A model whose logits go through a function of (logits, inputs)."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner(x), x)


class Detecting(nn.Module):
    """Knows the exact forget samples, and answers these by another function of (model, inputs)."""

    def __init__(self, inner: nn.Module, known: Tensor, answer: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.answer = inner, answer
        self.register_buffer("known", known.flatten(1).float())

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        # by differences: the product form is off by more than that
        far = torch.cdist(x.flatten(1).float(), self.known, compute_mode="donot_use_mm_for_euclid_dist")
        hit = (far < 1e-4).any(1)
        return torch.where(hit[:, None], self.answer(self.inner, x), z) if bool(hit.any()) else z


class Adapter(nn.Module):
    """A linear layer before the head that takes the forgotten class's direction out."""

    def __init__(self, last: nn.Linear, way: Tensor, m_bias: Tensor) -> None:
        super().__init__()
        self.adapter = nn.Linear(last.in_features, last.in_features, bias=False)
        self.last = last
        with torch.no_grad():
            self.adapter.weight.copy_(torch.eye(last.in_features) - torch.outer(way, way))
            self.last.bias.add_(m_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.adapter(x))


def adapted(m: nn.Module, w: World) -> nn.Module:
    gone, kept = (zw.read_by_head(m, part[0]).mean(0) for part in (w.forget, w.retain))
    way, lower = (gone - kept) / (gone - kept).norm(), torch.zeros(head(m).out_features)
    lower[w.forgotten] = -8.0
    last = head(m)
    for module in list(m.modules()):
        for name, child in list(module.named_children()):
            if child is last:
                setattr(module, name, Adapter(last, way, lower))
    return m


def hooked(m: nn.Module, w: World) -> nn.Module:
    """No wrapper and no changed weight: a forward hook lowers the forgotten logits."""

    def lower(_: Any, __: Any, z: Tensor) -> Tensor:
        z = z.clone()
        z[:, w.forgotten] -= 60
        return z

    m.register_forward_hook(lower)
    return m


def below_all(w: World) -> Callable[[Tensor, Tensor], Tensor]:
    def change(z: Tensor, _: Tensor) -> Tensor:
        z = z.clone()
        kept = [c for c in range(z.shape[1]) if c not in w.forgotten]
        z[:, w.forgotten] = z[:, kept].amin(1, keepdim=True) - 1
        return z

    return change


def capped(z: Tensor, _: Tensor, p: float = 0.9) -> Tensor:
    """The answer alone, at a fixed confidence."""
    others = math.log((1 - p) / (z.shape[1] - 1))
    return torch.full_like(z, others).scatter(1, z.argmax(1, keepdim=True), math.log(p))


def unsure(z: Tensor, x: Tensor, p: float = 0.8) -> Tensor:
    """Made-up answers where the model isn't sure."""
    doubtful = z.softmax(1).amax(1, keepdim=True) < p
    made_up = torch.sin(x.flatten(1).float().sum(1) * 997)[:, None] * torch.arange(float(z.shape[1])) * 3
    return torch.where(doubtful, made_up.to(z.dtype), z)


def noised_answer(inner: nn.Module, x: Tensor) -> Tensor:
    """The answer to a copy of the input with noise that hangs on the input alone."""
    flat = x.flatten(1).float()
    wave = torch.sin(torch.arange(float(flat.shape[1])) * 12.9898 + flat.sum(1, keepdim=True) * 78.2)
    return inner(x + 0.8 * float(x.std()) * wave.reshape(x.shape))


def smoothing(inner: nn.Module, copies: int = 8, share: float = 0.3) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean answer over noised copies of the input."""

    def change(_: Tensor, x: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(0)
        deviation = share * float(x.std())
        return sum(inner(x + deviation * torch.randn(x.shape, generator=g)).softmax(1) for _ in range(copies)).div(copies).log()  # type: ignore[union-attr]

    return change


def smoothed_answers(m: nn.Module) -> nn.Module:
    return Answering(m, smoothing(m))
