"""Adam whose second moment is one number a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class TensorwiseAdam(torch.optim.Optimizer):
    """Adam with one second moment a tensor: the mean square of its whole gradient.

    A step is as large as Adam's, measured by its root mean square, but has the gradient's direction: weights on which the loss hardly
    depends hardly move. Adam moves all weights alike, and over the few steps of an unlearning run that is mostly noise: on ResNet-20 it
    cost three times as much of what was to be kept. One second moment a layer is NovoGrad's (Ginsburg et al., arXiv 1905.11286, equation
    6); the average of the gradients and the corrections are Adam's.

    Args:
        params: the tensors.
        rates: the learning rate of each, the root mean square of its first step.
        betas: as Adam's.

    >>> import torch
    >>> w = torch.zeros(2, requires_grad=True)
    >>> w.grad = torch.tensor([3.0, 4.0])  # root mean square: 5 / sqrt(2)
    >>> TensorwiseAdam([w], [5.0]).step()
    >>> w.detach()
    tensor([-4.2426, -5.6569])
    """

    def __init__(self, params: Sequence[Tensor], rates: Sequence[float], betas: tuple[float, float] = (0.9, 0.99)) -> None:
        self._params, self._betas, self._steps, self._share = list(params), betas, 0, 1.0
        super().__init__(self._params, {})
        self._rates = torch.tensor(rates, dtype=torch.float32)
        self._averages = [torch.zeros_like(p) for p in self._params]
        self._mean_sq = torch.zeros(len(self._params), dtype=torch.float32)

    def at(self, share: float) -> None:
        """From now on every rate is this share of the one given."""
        self._share = share

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter; one without a gradient as if that were zero."""
        first, second = self._betas
        device = self._params[0].device
        self._rates, self._mean_sq = self._rates.to(device), self._mean_sq.to(device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]
        torch._foreach_lerp_(self._averages, grads, 1 - first)
        norms = torch.stack([norm.float().to(device) for norm in torch._foreach_norm(grads)])
        sizes = torch.tensor([max(p.numel(), 1) for p in self._params], device=device)
        self._mean_sq.lerp_(norms.square() / sizes, 1 - second)
        self._steps += 1
        correction = math.sqrt(1 - second**self._steps) / (1 - first**self._steps)
        # a gradient that was always zero moves nothing
        scales = self._rates * (self._share * correction) * torch.where(self._mean_sq > 0, self._mean_sq.rsqrt(), 0.0)
        for p, average, scale in zip(self._params, self._averages, scales.unbind(), strict=True):
            p.sub_(average.to(torch.promote_types(p.dtype, torch.float32)) * scale.to(p.device))
