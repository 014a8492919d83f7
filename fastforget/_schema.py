"""Every op's schema, in one place, with its definition.

Schemas live in Python so that an op exists even where no compiled library does: the pure-PyTorch reference is registered as the
default for every device, and the native libraries and Triton override it where they can serve. Ops change preallocated outputs and
return nothing, so tracing needs no shape functions.

An implementation checks its tensors before it writes: their dtype, shape, strides and device. So a call that raises has changed
nothing, and the public functions may try the op before they check anything (``ops/_arguments.py``, the fast path).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C import _functorch as functorch
from torch._functorch import pyfunctorch
from torch.autograd import forward_ad

from . import _apart
from .reference import noise, update
from .reference.mask import elementwise, optim, rows, select
from .reference.membership import lira, rmia, roc, scores

NAMESPACE = "fastforget"

SCHEMAS: dict[str, tuple[str, Callable[..., None]]] = {
    # noise
    "random_bits": (
        "(Tensor(a!) out, int seed, int stream=0, int step=0, int start=0) -> ()",
        noise.random_bits,
    ),
    "normal_": (
        "(Tensor(a!)[] xs, float[] mean, float[] std, int seed, int stream=0, int step=0, int[] start=[0]) -> ()",
        noise.normal_,
    ),
    "add_normal_": (
        "(Tensor(a!)[] xs, float[] std, int seed, int stream=0, int step=0, int[] start=[0]) -> ()",
        noise.add_normal_,
    ),
    "perturb_step_": (
        "(Tensor(a!)[] params, Tensor[] grads, float lr, float[] std, Tensor[] std_elements, int seed, int stream=0, "
        "int step=0, int[] start=[0]) -> ()",
        noise.perturb_step_,
    ),
    # update
    "error_max_loss": (
        "(Tensor logits, Tensor labels, Tensor(a!) loss, Tensor(b!) dlogits) -> ()",
        update.error_max_loss,
    ),
    "error_max_step_": (
        "(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) sum_sq, int step, float lr, "
        "float beta1, float beta2, float eps, float l2, float clamp_min, float clamp_max) -> ()",
        update.error_max_step_,
    ),
    "distill_loss": (
        "(Tensor logits, Tensor teacher, Tensor drop, float temperature, Tensor(a!) loss, Tensor(b!) dlogits) -> ()",
        update.distill_loss,
    ),
    "gradient_products": (
        "(Tensor[] a, Tensor[] b, Tensor(a!) out) -> ()",
        update.gradient_products,
    ),
    # mask
    "dampen_": (
        "(Tensor(a!)[] params, Tensor[] forget_importance, Tensor[] retain_importance, Tensor(b!) count, float alpha, "
        "float lam) -> ()",
        elementwise.dampen_,
    ),
    "accumulate_importance_": (
        "(Tensor(a!)[] importances, Tensor[] grads, int power, float scale) -> ()",
        elementwise.accumulate_importance_,
    ),
    "soft_threshold_": (
        "(Tensor(a!)[] xs, float[] threshold, Tensor(b!) l1, Tensor(c!) nnz) -> ()",
        elementwise.soft_threshold_,
    ),
    "neuron_stats": (
        "(Tensor[] xs, int dim, Tensor(a!)[] mean_abs, Tensor(b!)[] sum_sq) -> ()",
        rows.neuron_stats,
    ),
    "saliency_mask": (
        "(Tensor[] xs, int k, Tensor(a!)[] masks, Tensor(b!) threshold) -> ()",
        select.saliency_mask,
    ),
    "ratio_mask": (
        "(Tensor[] numerators, Tensor[] denominators, Tensor(a!)[] masks, float threshold, float eps) -> ()",
        select.ratio_mask,
    ),
    "masked_sgd_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor[] masks, Tensor(b!)[] momentum_buffers, float lr, float momentum, "
        "float dampening, float weight_decay, bool nesterov, bool maximize, bool first) -> ()",
        optim.masked_sgd_,
    ),
    "masked_adam_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor[] masks, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, int step, "
        "float lr, float beta1, float beta2, float eps, float weight_decay, bool decoupled, bool maximize) -> ()",
        optim.masked_adam_,
    ),
    # membership
    "membership_scores": (
        "(Tensor logits, Tensor labels, float temperature, Tensor(a!) scores, Tensor(b!) correct) -> ()",
        scores.membership_scores,
    ),
    "roc_stats": (
        "(Tensor member, Tensor nonmember, float[] fprs, Tensor(a!) out) -> ()",
        roc.roc_stats,
    ),
    "roc_bootstrap": (
        "(Tensor member, Tensor nonmember, float[] fprs, int seed, Tensor(a!) out) -> ()",
        roc.roc_bootstrap,
    ),
    "rmia_counts": (
        "(Tensor ratio_x, Tensor ratio_z, float[] gammas, bool strict, Tensor(a!) counts) -> ()",
        rmia.rmia_counts,
    ),
    "rmia_vote": (
        "(Tensor ratio_x, Tensor ratio_z, float gamma, bool strict, Tensor(a!) counts) -> ()",
        rmia.rmia_vote,
    ),
    "lira_stats": (
        "(Tensor scores, Tensor member, bool median, Tensor(a!) center, Tensor(b!) variance, Tensor(c!) count) -> ()",
        lira.lira_stats,
    ),
    # "form", not "mode": torch.compile's handling of ops that change their arguments has a parameter of that name
    "lira_ratio": (
        "(Tensor target, Tensor center, Tensor variance, Tensor count, int form, float var_floor, int min_count, "
        "Tensor(a!) out) -> ()",
        lira.lira_ratio,
    ),
    "lira_loo": (
        "(Tensor scores, Tensor member, bool median, Tensor variance, int form, float var_floor, int min_count, "
        "Tensor(a!) out) -> ()",
        lira.lira_loo,
    ),
    "lira_update_": (
        "(Tensor scores, Tensor member, Tensor(a!) count, Tensor(b!) mean, Tensor(c!) m2) -> ()",
        lira.lira_update_,
    ),
}

# Where every floor keeps an op: "noise", "update", "mask.rows", "membership.rmia" ...
MODULE_OF = {op: definition.__module__.partition(".reference.")[2] for op, (_, definition) in SCHEMAS.items()}

_library = torch.library.Library(NAMESPACE, "DEF")


def overload(name: str) -> Any:
    """The callable ``torch.ops.fastforget.<name>.default``."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def boxed(name: str) -> Any:
    """What calling the overload calls. The frame in between would be a tenth of a small call."""
    return overload(name)._op


def _refuse_mixed(name: str, args: Sequence[Any]) -> None:
    """Torch sends a call to one implementation for all its tensors, wherever the others are and whatever their layout."""
    device = None
    for value in args:
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(x, torch.Tensor):
                continue
            device = device or x.device
            if x.device != device:
                raise RuntimeError(f"fastforget.{name}: tensors on {device} and {x.device}; accepted is one device a call")
            if x.layout is not torch.strided or x.is_quantized:
                form = "quantized" if x.is_quantized else x.layout
                raise RuntimeError(f"fastforget.{name}: a tensor is {form}; accepted is torch.strided")


def has_tangent(x: torch.Tensor) -> bool:
    """Whether it is a dual tensor of forward mode; to be asked where a level is open (``forward_ad._current_level >= 0``)."""
    return x.is_floating_point() and forward_ad.unpack_dual(x).tangent is not None


def no_rule_for_tangents(name: str) -> RuntimeError:
    return RuntimeError(
        f"fastforget.{name} can't run in forward mode (torch.func.jvp, torch.autograd.forward_ad): a tensor has a tangent, and the op has "
        "no rule for it. Pass x.detach(), or call it outside"
    )


def refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """In place, an op would leave them as they were: silently wrong."""
    if forward_ad._current_level < 0:
        return
    for value in args:
        for x in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(x, torch.Tensor) and has_tangent(x):
                raise no_rule_for_tangents(name)


def refuse_shared(name: str, args: Sequence[Any]) -> None:
    """:func:`fastforget._apart.refuse_shared` for op ``name``."""
    _apart.refuse_shared(name, overload(name)._schema.arguments, args)


def _no_output(name: str) -> Callable[..., None]:
    def shapes(*args: Any) -> None:  # nothing is returned, so there is nothing to infer
        _refuse_mixed(name, args)
        refuse_tangents(name, args)

    return shapes


def no_vmap(name: str) -> RuntimeError:
    return RuntimeError(
        f"fastforget.{name} can't run under torch.vmap: it works in place on whole tensors. "
        "Call it once on the stacked tensor, or on a list of tensors, outside vmap."
    )


def _refuse_vmap(name: str) -> Callable[..., None]:
    def refuse(_info: Any, _in_dims: Any, *_args: Any) -> None:
        raise no_vmap(name)

    return refuse


def _outside_transforms(name: str) -> Callable[..., None]:
    """What torch.func's transforms call: refuses the tensors that they track, and hands on the others as they are beneath."""

    def bare(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [bare(one) for one in x]
        if not isinstance(x, torch.Tensor):
            return x
        if functorch.is_batchedtensor(x):
            raise no_vmap(name)
        if functorch.is_functionaltensor(x):
            raise RuntimeError(
                f"fastforget.{name} can't run under torch.func.functionalize: it works in place, and torch has no form of it that doesn't. "
                "Call it outside"
            )
        if forward_ad._current_level >= 0 and has_tangent(x):
            raise no_rule_for_tangents(name)
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"fastforget.{name} has no rule for torch.func.grad: a tensor is differentiated. Pass x.detach(), or call it outside"
            )
        return bare(functorch.get_unwrapped(x)) if functorch.is_functorch_wrapped_tensor(x) else x

    def call(*args: Any) -> None:
        plain = bare(args)
        with pyfunctorch.temporarily_clear_interpreter_stack():
            overload(name)(*plain)

    return call


def _guarded(name: str, implementation: Callable[..., None]) -> Callable[..., None]:
    defaults = [argument.default_value for argument in overload(name)._schema.arguments]

    def call(*args: Any) -> None:  # torch leaves out trailing arguments that have their default value
        _refuse_mixed(name, args)
        refuse_tangents(name, args)
        refuse_shared(name, args)
        implementation(*args, *defaults[len(args) :])

    return call


def _refuse_negated(name: str) -> Callable[..., None]:
    def refuse(*_args: Any) -> None:
        raise RuntimeError(f"fastforget.{name}: a tensor is a lazily negated view; accepted is x.resolve_neg()")

    return refuse


for _name, (_signature, _definition) in SCHEMAS.items():
    _library.define(f"{_name}{_signature}", tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _no_output(_name), lib=_library)
    torch.library.register_vmap(f"{NAMESPACE}::{_name}", _refuse_vmap(_name), lib=_library)
    _library.impl(_name, _guarded(_name, _definition), "CompositeExplicitAutograd")
    _library.impl(_name, _outside_transforms(_name), "FuncTorchDynamicLayerFrontMode")


# Torch would compute on a copy of such a view, change the other tensors, and fail to copy the result back. (A list of them it refuses.)
_library.impl("error_max_step_", _refuse_negated("error_max_step_"), "Negative")


def register(name: str, implementation: Callable[..., None], dispatch_key: str) -> None:
    """Registers a further implementation of op ``name`` (used for Triton on CUDA tensors)."""
    _library.impl(name, _guarded(name, implementation), dispatch_key)
