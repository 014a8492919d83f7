"""torch.optim's SGD, Adam and AdamW with a mask: what is masked out keeps the bits of its weight and of its optimiser state.

>>> import torch, fastforget as ff
>>> net = torch.nn.Linear(3, 2)
>>> before = net.weight.detach().clone()
>>> optimizer = ff.optim.MaskedAdam(net.named_parameters(), lr=0.1, mask={"weight": torch.tensor([True, False])})
>>> net(torch.ones(1, 3)).sum().backward()
>>> _ = optimizer.step()
>>> (net.weight != before).any(1).tolist()
[True, False]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .ops.mask import optim as mask_optim

__all__ = ["MaskedAdam", "MaskedAdamW", "MaskedSGD"]

Mask = Mapping[Any, Tensor | None]

_REFUSED = {
    "amsgrad": "there is no AMSGrad variant; leave it out",
    "capturable": "the step count lives on the host; capture the op fastforget.ops.mask.masked_adam_ itself",
    "differentiable": "the step is one in-place kernel, which autograd can't follow; leave it out",
}


def _named(group: dict[str, Any]) -> Iterator[tuple[str | None, Tensor]]:
    params = group["params"]
    return zip(group.get("param_names") or [None] * len(params), params, strict=True)


def _refuse(owner: str, group: dict[str, Any]) -> None:
    for option, advice in _REFUSED.items():
        if group.get(option):
            raise ValueError(f"{owner}: {option}={group[option]!r} is not supported: {advice}")


class _Masked(torch.optim.Optimizer):
    """What the three share: the masks, and what may not be asked for."""

    _masks: dict[Tensor, Tensor]
    _factors = False  # whether a float32 factor a row is a mask

    def set_mask(self, mask: Mask | None) -> None:
        """Replaces all masks; ``{}`` or None takes them away.

        Args:
            mask: for some parameters, given themselves or by name (where the optimizer got named parameters), a mask in any form that
                :func:`fastforget.ops.mask.masked_adam_` takes, or :func:`~fastforget.ops.mask.masked_sgd_` for SGD. Parameters that
                aren't in it update as in torch.optim. The tensor isn't copied: changing it changes the mask.

        Raises:
            KeyError: a name or parameter that this optimizer doesn't have.
            TypeError, ValueError: not a mask for its parameter.
        """
        owner = type(self).__name__
        if mask is not None and not isinstance(mask, Mapping):
            raise TypeError(f"{owner}: mask: got {type(mask).__name__}; accepted is a dict of parameters (or their names) to masks")
        names = {name: p for group in self.param_groups for name, p in _named(group) if name is not None}
        known = {p: name for group in self.param_groups for name, p in _named(group)}
        masks: dict[Tensor, Tensor] = {}
        for key, value in (mask or {}).items():
            p = names.get(key) if isinstance(key, str) else key if isinstance(key, Tensor) and key in known else None
            if p is None:
                raise KeyError(_unknown(owner, key, list(names)))
            if p in masks:
                raise ValueError(f"{owner}: mask: {known[p]!r} is given twice, as a name and as a parameter; give it once")
            if value is not None:
                masks[p] = mask_optim.check_mask(f"{owner}: mask[{_key(key)}]", value, p, self._factors)
        self._masks = masks

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            _refuse(type(self).__name__, param_group)
        super().add_param_group(param_group)

    def _ready(self, group: dict[str, Any]) -> dict[torch.device, list[Tensor]]:
        """The group's parameters that have a gradient, by device."""
        ready: dict[torch.device, list[Tensor]] = {}
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__}: a gradient of shape {tuple(grad.shape)} is sparse; accepted are dense gradients. "
                    "Make the layer with sparse=False"
                )
            ready.setdefault(p.device, []).append(p)
        return ready

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs a step; ``closure`` reevaluates the model and returns the loss, which is returned."""
        loss = _loss(closure)
        for group in self.param_groups:
            for ready in self._ready(group).values():
                self._update(group, ready)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """One step of a group's parameters on one device."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_masks": self._masks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state.get("param_groups", ()):
            _refuse(type(self).__name__, group)
        super().__setstate__(state)


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, str) else f"a parameter of shape {tuple(key.shape)}"


def _unknown(owner: str, key: Any, names: list[str]) -> str:
    if isinstance(key, Tensor):
        return f"{owner}: mask: {_key(key)} is not among this optimizer's parameters"
    if not names:
        return (
            f"{owner}: mask: {key!r} is a name, but the parameters came without names. "
            "Pass model.named_parameters(), or use the parameters themselves as keys"
        )
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"{owner}: mask: no parameter is named {key!r}; there are {shown}"


def _loss(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class MaskedSGD(_Masked, torch.optim.SGD):
    """``torch.optim.SGD`` that leaves masked coordinates, and their momentum, bit for bit as they are.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD`` (lr may be a tensor of one element).
        foreach, fused: accepted for drop-in use and without effect: a step is one fused call a group and device anyhow.
        differentiable: refused.
        mask: for some parameters, given themselves or by name (where ``params`` is ``model.named_parameters()``), what is on: bool of
            the parameter's shape; bool[rows], one a neuron or output channel; uint8 packed bits (``saliency_mask(packed=True)``); or
            float32[rows], a factor on each row's gradient. Others update as in ``torch.optim.SGD``. See :meth:`set_mask`.

    Its state has torch's names, so ``state_dict`` passes between this class and ``torch.optim.SGD`` both ways. Masks are no state:
    they are given at construction, and belong to neither ``state_dict`` nor ``load_state_dict`` (copies and pickles have them).

    Raises:
        KeyError: the mask names a parameter that isn't there.
        TypeError, ValueError: an option out of range or refused, or not a mask for its parameter.

    >>> import torch, fastforget as ff
    >>> w = torch.nn.Parameter(torch.ones(2, 2))
    >>> optimizer = ff.optim.MaskedSGD([w], lr=0.5, mask={w: torch.tensor([True, False])})
    >>> w.sum().backward()
    >>> _ = optimizer.step()
    >>> w.tolist()
    [[0.5, 0.5], [1.0, 1.0]]
    """

    _factors = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        mask: Mask | None = None,
    ) -> None:
        _refuse(type(self).__name__, {"differentiable": differentiable})
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)
        self.set_mask(mask)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        options = {name: float(group[name]) for name in ("lr", "momentum", "dampening", "weight_decay")}
        options |= {name: group[name] for name in ("nesterov", "maximize")}
        held = [self.state[p].get("momentum_buffer") for p in params] if group["momentum"] != 0 else []
        new, old = [], params
        if any(buffer is None for buffer in held):
            new = [p for p, buffer in zip(params, held, strict=True) if buffer is None]
            old = [p for p, buffer in zip(params, held, strict=True) if buffer is not None]
            held = [buffer for buffer in held if buffer is not None]
        for chosen, first in ((new, True), (old, False)):
            if not chosen:
                continue
            buffers = None
            if first:  # zeros, not empty: frozen coordinates keep what is there
                buffers = [torch.zeros_like(p, memory_format=torch.preserve_format) for p in chosen]
            elif held:
                buffers = held
            masks = [self._masks.get(p) for p in chosen]
            grads = [p.grad for p in chosen]
            mask_optim.masked_sgd_(chosen, grads, masks, momentum_buffers=buffers, first=first, **options)  # type: ignore[arg-type]
            if first and buffers is not None:
                for p, buffer in zip(chosen, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer


class MaskedAdam(_Masked, torch.optim.Adam):
    """``torch.optim.Adam`` that leaves masked coordinates, and their moments, bit for bit as they are.

    Args:
        params, lr, betas, eps, weight_decay, maximize, decoupled_weight_decay: as in ``torch.optim.Adam`` (lr may be a tensor of one
            element).
        foreach, fused: accepted for drop-in use and without effect: a step is one fused call a group and device anyhow.
        amsgrad, capturable, differentiable: refused.
        mask: for some parameters, given themselves or by name (where ``params`` is ``model.named_parameters()``), what is on: bool of
            the parameter's shape; bool[rows], one a neuron or output channel; or uint8 packed bits (``saliency_mask(packed=True)``).
            Others update as in ``torch.optim.Adam``. See :meth:`set_mask`.

    Its state has torch's names, so ``state_dict`` passes between this class and ``torch.optim.Adam`` both ways. Masks are no state:
    they are given at construction, and belong to neither ``state_dict`` nor ``load_state_dict`` (copies and pickles have them).

    Raises:
        KeyError: the mask names a parameter that isn't there.
        TypeError, ValueError: an option out of range or refused, or not a mask for its parameter.

    >>> import torch, fastforget as ff
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = ff.optim.MaskedAdam([w], lr=0.5, mask={w: torch.tensor([True, False, True])})
    >>> w.sum().backward()
    >>> _ = optimizer.step()
    >>> w.tolist()
    [0.5, 1.0, 0.5]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        mask: Mask | None = None,
    ) -> None:
        _refuse(type(self).__name__, {"amsgrad": amsgrad, "capturable": capturable, "differentiable": differentiable})
        super().__init__(
            params, lr, betas, eps, weight_decay, maximize=maximize, decoupled_weight_decay=decoupled_weight_decay
        )
        self.set_mask(mask)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        states = [self.state[p] for p in params]
        averages, squares, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        lr, (beta1, beta2) = group["lr"], group["betas"]
        rate = lr if isinstance(lr, Tensor) else None
        options = [0.0 if rate is not None else float(lr), *map(float, (beta1, beta2, group["eps"], group["weight_decay"]))]
        update = _counted_op if torch.compiler.is_compiling() else _counted
        update(
            params,
            [p.grad for p in params],  # type: ignore[misc]
            [self._masks.get(p) for p in params],
            averages,
            squares,
            counts,
            rate,
            options,
            group["decoupled_weight_decay"],
            group["maximize"],
        )


def _counted(
    params: list[Tensor],
    grads: list[Tensor],
    masks: list[Tensor | None],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    rate: Tensor | None,
    options: list[float],
    decoupled: bool,
    maximize: bool,
) -> None:
    """A step of Adam for parameters that may have taken different numbers of steps, as their ``steps`` count, and one more of these.

    Args:
        rate: the learning rate, where it is a tensor.
        options: the learning rate otherwise, both betas, eps, weight decay.
    """
    lr, beta1, beta2, eps, weight_decay = options
    by_step: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        by_step.setdefault(int(step) + 1, []).append(i)
    for count, chosen in by_step.items():
        mask_optim.masked_adam_(
            [params[i] for i in chosen],
            [grads[i] for i in chosen],
            [masks[i] for i in chosen],
            [exp_avgs[i] for i in chosen],
            [exp_avg_sqs[i] for i in chosen],
            step=count,
            lr=lr if rate is None else float(rate),
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            decoupled=decoupled,
            maximize=maximize,
        )
    # with a number instead of this tensor, torch would make a tensor of it for each step
    torch._foreach_add_(steps, torch.tensor(1.0, device="cpu"), alpha=1.0)


# torch keeps the count in a tensor, and a number that is read from a tensor ends a compiled graph: there the whole step is one op.
_counted_op = torch.library.custom_op(
    "fastforget::_adam_counted_",
    _counted,
    mutates_args=("params", "exp_avgs", "exp_avg_sqs", "steps"),
    schema="(Tensor(a!)[] params, Tensor[] grads, Tensor?[] masks, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "Tensor? rate, float[] options, bool decoupled, bool maximize) -> ()",
)


class MaskedAdamW(MaskedAdam):
    """``torch.optim.AdamW`` that leaves masked coordinates, and their moments, bit for bit as they are: no weight decay reaches them.

    Arguments, state and errors are those of :class:`MaskedAdam`, with AdamW's default ``weight_decay`` and its decoupled decay.

    >>> import torch, fastforget as ff
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = ff.optim.MaskedAdamW([w], lr=0.5, weight_decay=1.0, mask={w: torch.tensor([True, False])})
    >>> w.grad = torch.zeros(2)
    >>> _ = optimizer.step()
    >>> w.tolist()
    [0.5, 1.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        mask: Mask | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, capturable=capturable,
            differentiable=differentiable, decoupled_weight_decay=True, mask=mask,
        )  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # whatever optimizer's state was loaded
            group["decoupled_weight_decay"] = True
