"""Adam whose second moment is one number a tensor, but for tensors of which each batch uses a small part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...ops.mask import masked_adam_

SPARSE = 0.5  # of a gradient's numbers that are zero: from there on its tensor has a second moment a weight


class TensorwiseAdam(torch.optim.Optimizer):
    """Adam with one second moment a tensor: the mean square of its whole gradient.

    A step is as large as Adam's, measured by its root mean square, but has the gradient's direction: weights on which the loss hardly
    depends hardly move. Adam moves all weights alike, and over the few steps of an unlearning run that is mostly noise: on ResNet-20 it
    cost half as much again of what was to be kept. One second moment a layer is NovoGrad's (Ginsburg et al., arXiv 1905.11286, equation
    6); the average of the gradients and the corrections are Adam's. Of bfloat16 and float16 weights it keeps float32 ones, which are
    rounded after each step: most steps are smaller than what the weights can hold, and would be lost one by one.

    Tensors of whose first gradient more than half is zero, such as the embeddings of words, are Adam's own: what a model has memorised
    sits in rare rows, whose gradients are small beside the others', so that one number for all of them would leave it there.

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
        self._params, self._rates, self._betas = list(params), list(rates), betas
        super().__init__(self._params, {})
        self._steps, self._share = 0, 1.0
        self._exact = [p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in self._params]  # the tensor itself, if it is
        self._averages = [torch.zeros_like(exact) for exact in self._exact]
        self._squares: dict[int, Tensor] = {}  # of sparse tensors, a number a weight
        self._mean_sq = torch.zeros(len(self._params), dtype=torch.float32, device=self._params[0].device)
        self._sizes = self._mean_sq.new_tensor([max(p.numel(), 1) for p in self._params])
        self._rate = self._mean_sq.new_tensor(self._rates)

    def at(self, share: float) -> None:
        """From now on every rate is this share of the one given."""
        self._share = share

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves every parameter; one without a gradient as if that were zero."""
        grads = [
            torch.zeros_like(exact) if p.grad is None else _dense(p.grad).to(exact.dtype)
            for p, exact in zip(self._params, self._exact, strict=True)
        ]
        if not self._steps:
            self._squares = {i: torch.zeros_like(g) for i, g in enumerate(grads) if is_sparse(g)}
        self._steps += 1
        for i, square in self._squares.items():
            lr = self._rates[i] * self._share
            masked_adam_(self._exact[i], grads[i], None, self._averages[i], square, step=self._steps, lr=lr, betas=self._betas)
        self._move_others(grads)
        for p, exact in zip(self._params, self._exact, strict=True):
            if exact.dtype != p.dtype:
                p.copy_(exact)

    def _move_others(self, grads: list[Tensor]) -> None:
        first, second = self._betas
        others = [i for i in range(len(grads)) if i not in self._squares]
        norms = torch.stack([norm.float().to(self._mean_sq.device) for norm in torch._foreach_norm(grads)])
        self._mean_sq.lerp_(norms.square() / self._sizes, 1 - second)
        correction = math.sqrt(1 - second**self._steps) / (1 - first**self._steps)
        # a gradient that was always zero moves nothing
        scales = self._rate * (self._share * correction) * torch.where(self._mean_sq > 0, self._mean_sq.rsqrt(), 0.0)
        for i in others:
            exact, average = self._exact[i], self._averages[i].lerp_(grads[i], 1 - first)
            exact.sub_(average * scales[i].to(exact.device))


def is_sparse(gradient: Tensor) -> bool:
    """Whether more than half of a gradient is zero."""
    return gradient.numel() > 0 and float((_dense(gradient) == 0).float().mean()) > SPARSE


def direction(gradient: Tensor) -> Tensor:
    """The optimiser's first step at rate 1, uphill."""
    gradient = _dense(gradient)
    if is_sparse(gradient):
        return gradient.sign()
    return gradient / max(float(gradient.float().square().mean().sqrt()), torch.finfo(torch.float32).tiny)


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
