"""Losses with their gradients in one pass, the error-maximizing step of UNSIR (Tarun, Chundawat, Mandal & Kankanhalli, arXiv 2111.08947,
section IV), and the products of two gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _schema
from . import _arguments as arg
from . import _sharded

_error_max_loss = _schema.overload("error_max_loss")
_error_max_step = _schema.overload("error_max_step_")
_try_loss, _try_step = _schema.boxed("error_max_loss"), _schema.boxed("error_max_step_")
_distill_loss, _try_distill = _schema.overload("distill_loss"), _schema.boxed("distill_loss")
_gradient_products, _try_products = _schema.overload("gradient_products"), _schema.boxed("gradient_products")
_ALL_CLASSES = torch.empty(0, dtype=torch.bool, device="cpu")  # what a plain call leaves out of the teacher


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous()
    loss_dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = torch.empty(logits.shape[:1], dtype=loss_dtype, device=logits.device)
    dlogits = torch.empty_like(logits)
    arg.run("error_max_loss", _error_max_loss, [loss, dlogits], (logits, labels, loss, dlogits))
    return loss, dlogits


class _ErrorMaxLoss(torch.autograd.Function):
    """loss_b = log p_y, so d loss_b / d logits = onehot - softmax = batch * dlogits."""

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return _loss_and_gradient(logits, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def vmap(_info: Any, _in_dims: Any, *_args: Any) -> None:
        raise _schema.no_vmap("error_max_loss")

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> None:
        raise _schema.no_rule_for_tangents("error_max_loss")

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_dlogits: Tensor) -> tuple[Tensor, None]:
        logits, labels, dlogits = ctx.saved_tensors
        batch = dlogits.shape[0]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Somebody may differentiate again (create_graph): the same values, with the derivative of onehot - softmax.
            formula = F.one_hot(labels, logits.shape[1]) - logits.to(grad_loss.dtype).softmax(dim=1)
            slope = formula + (dlogits.to(formula.dtype) * batch - formula).detach()
            return (grad_loss[:, None] * slope).to(logits.dtype), None
        return grad_loss[:, None].to(dlogits.dtype) * dlogits * batch, None


def error_max_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The negated cross-entropy and its gradient, in one pass over the logits.

    UNSIR's noise maximises the model's error on the classes to forget: it minimises ``-CE`` (paper, equation 4; the L2 term is part of
    :func:`error_max_step_`).

    Args:
        logits: [B, K], float32, bfloat16, float16 or float64.
        labels: [B], int64 or int32, the class to forget, in [0, K).

    Returns:
        loss: [B], ``-CE_b = log p_y``; float32 (float64 for float64 logits).
        dlogits: [B, K] in the logits' dtype, ``d mean_b(-CE_b) / d logits = (onehot - softmax) / B``: pass it to ``logits.backward``.
        ``loss`` is differentiable with respect to ``logits``; ``dlogits`` is not.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device.
        RuntimeError: on the CPU, a label out of range (on CUDA that row is NaN instead: checking would stop the stream).

    >>> import torch
    >>> from fastforget.ops import update
    >>> loss, dlogits = update.error_max_loss(torch.zeros(1, 2), torch.tensor([0]))
    >>> loss.item(), dlogits.tolist()
    (-0.6931471824645996, [[0.5, -0.5]])
    """
    if arg.plain(logits, labels) and logits.dim() == 2 and logits.shape[1] > 0:
        dlogits = torch.empty_like(logits)
        loss = torch.empty(logits.shape[0], dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32, device="cpu")
        if arg.accepted(_try_loss, (logits, labels, loss, dlogits)):
            return loss, dlogits
    arg.floating("logits", logits)
    arg.no_tangents("error_max_loss", logits)
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits: got {arg.describe(logits)}; accepted is [batch, classes]")
    labels = arg.label_vector(labels, logits.shape[:1], logits)
    if logits.requires_grad and torch.is_grad_enabled():
        return _ErrorMaxLoss.apply(logits, labels)
    return _loss_and_gradient(logits, labels)


Clamp = tuple[float | None, float | None] | None


def _numbers(lr: float, betas: tuple[float, float], eps: float, l2: float, clamp: Clamp) -> tuple[float, ...]:
    """The checked numbers in the op's order."""
    for name, value in (("lr", lr), ("eps", eps), ("l2", l2)):
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")
    beta1, beta2 = betas
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise ValueError(f"betas: got {betas!r}; accepted are two numbers in [0, 1)")
    low, high = clamp if clamp is not None else (None, None)
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if not low <= high:
        raise ValueError(f"clamp: got {clamp!r}; accepted is (lowest, highest) with lowest <= highest")
    # + 0.0: a bound of -0.0 is one of 0.0, as it is to the memory of rules
    return lr, beta1, beta2, eps, l2, low + 0.0, high + 0.0


@functools.lru_cache(maxsize=64)
def _rule(lr: float, betas: tuple[float, float], eps: float, l2: float, clamp: Clamp) -> tuple[float, ...]:
    """:func:`_numbers`, remembered: most steps have those of the step before.

    Raises:
        TypeError: what could change after it was remembered, such as a number in a tensor.
    """
    for value in (*betas, *(clamp or ())):
        if not (value is None or isinstance(value, (int, float))):
            raise TypeError
    return _numbers(lr, betas, eps, l2, clamp)


def error_max_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    l2: float = 0.1,
    clamp: Clamp = None,
) -> Tensor:
    """One Adam step of UNSIR's noise on ``mean_b(-CE_b) + l2 * mean_b ||x_b||^2``, in one pass.

    The L2 term's gradient, Adam (as ``torch.optim.Adam``), the clamp and the sum of squares read and write each element once.

    Args:
        x: [B, ...] the noise, changed in place; float32, bfloat16, float16 or float64.
        grad: like ``x``, the gradient of ``mean_b(-CE_b)`` alone.
        exp_avg, exp_avg_sq: like ``x``, Adam's moments, changed in place (zeros before the first step).
        step: 1 for the first step.
        lr: learning rate (the paper's code: 0.1).
        betas, eps: as ``torch.optim.Adam``.
        l2: weight of the squared norm, summed over each image and averaged over the batch (paper: lambda = 0.1).
        clamp: ``(lowest, highest)`` value of the noise, ``None`` for an open end.

    Returns:
        0-d tensor: the sum of ``x**2`` before the step (float32; float64 for float64), e.g. to report the objective.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: a changed tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import update
    >>> x, m, v = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
    >>> update.error_max_step_(x, torch.zeros(1, 2), m, v, step=1, lr=0.1).item()
    2.0
    >>> x.tolist()
    [[0.8999999761581421, 0.8999999761581421]]
    """
    if type(step) is int and arg.plain(x, grad, exp_avg, exp_avg_sq):
        try:
            rule: tuple[float, ...] | None = _rule(lr, betas, eps, l2, clamp)
        except TypeError:
            rule = None
        if rule is not None:
            sum_sq = arg.unset_scalar(torch.float64 if x.dtype is torch.float64 else torch.float32)
            if arg.accepted(_try_step, (x, grad, exp_avg, exp_avg_sq, sum_sq, step, *rule), (x, exp_avg, exp_avg_sq)):
                return sum_sq
    arg.integer("step", step, 1, 2**63)
    numbers = _numbers(lr, betas, eps, l2, clamp)
    arg.floating("x", x)
    if x.dim() < 1:
        raise ValueError(f"x: got {arg.describe(x)}; accepted is [batch, ...]")
    for name, t in (("grad", grad), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        arg.same(name, t, "x", x)
    changed = [x, exp_avg, exp_avg_sq]
    staged = [
        t for name, c in zip(("x", "exp_avg", "exp_avg_sq"), changed, strict=True) for t in arg.writable(name, (c,))
    ]
    arg.apart("error_max_step_", x, grad, exp_avg, exp_avg_sq)
    sum_sq = torch.empty((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    (gradient,) = arg.readable((grad,))
    inputs = (staged[0], gradient, staged[1], staged[2], sum_sq, step, *numbers)
    arg.run("error_max_step_", _error_max_step, staged, inputs)
    arg.write_back(changed, staged)
    return sum_sq


def _distilled(logits: Tensor, teacher: Tensor, drop: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous()
    loss = torch.empty(logits.shape[:1], dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32, device=logits.device)
    dlogits = torch.empty_like(logits)
    inputs = (logits, teacher.contiguous(), drop, temperature, loss, dlogits)
    arg.run("distill_loss", _distill_loss, [loss, dlogits], inputs)
    return loss, dlogits


class _DistillLoss(torch.autograd.Function):
    """d loss_b / d logits = (p - q) / T = batch * dlogits. No rule that only refuses: torch.compile would trace none of it."""

    @staticmethod
    def forward(logits: Tensor, teacher: Tensor, drop: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return _distilled(logits, teacher, drop, temperature)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.temperature = inputs[3]

    @staticmethod
    def vmap(_info: Any, _in_dims: Any, *_args: Any) -> None:
        raise _schema.no_vmap("distill_loss")

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_dlogits: Tensor) -> tuple[Tensor, None, None, None]:
        logits, dlogits = ctx.saved_tensors
        scale = (grad_loss * dlogits.shape[0])[:, None]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Somebody may differentiate again (create_graph): the same values, with the derivative of p / T.
            own = (logits.to(grad_loss.dtype) / ctx.temperature).softmax(dim=1) / (ctx.temperature * dlogits.shape[0])
            slope = own + (dlogits.to(own.dtype) - own).detach()
            return (scale * slope).to(logits.dtype), None, None, None
        return (scale * dlogits).to(dlogits.dtype), None, None, None


def _left_out(drop: Any, logits: Tensor) -> Tensor:
    """``drop`` as the op takes it: bool[0] (none), bool[K] (these classes) or int64[B] (one a row)."""
    batch, classes = logits.shape
    accepted = f"accepted is None, a list of classes from 0 to {classes - 1}, bool[{classes}], or int64[{batch}], a class or -1 a row"
    if drop is None:
        return torch.empty(0, dtype=torch.bool, device=logits.device)
    if isinstance(drop, Tensor):
        if drop.device != logits.device:
            raise ValueError(f"drop: on {drop.device}, but logits is on {logits.device}; move one of them")
        if drop.dtype == torch.bool and drop.shape == (classes,):
            return drop.contiguous()
        if drop.dtype in (torch.int64, torch.int32) and drop.shape == (batch,):
            return drop.to(torch.int64).contiguous()
        kind = ValueError if drop.dtype in (torch.bool, torch.int64, torch.int32) else TypeError
        raise kind(f"drop: got {arg.describe(drop)}; {accepted}")
    if not isinstance(drop, (list, tuple)):
        raise TypeError(f"drop: got {arg.describe(drop)}; {accepted}")
    for k in drop:
        arg.integer("drop", k, 0, classes)
    if len(set(drop)) == classes:
        raise ValueError(f"drop: got all {classes} classes; accepted are fewer, so that the teacher has a class left")
    mask = torch.zeros(classes if drop else 0, dtype=torch.bool, device=logits.device)
    for k in drop:
        mask[k] = True
    return mask


def distill_loss(
    logits: Tensor, teacher: Tensor, *, temperature: float = 1.0, drop: Sequence[int] | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The divergence of a student from its teacher and the gradient, in one pass over the logits of both.

    ``KL(q || p)`` with ``p = softmax(logits / T)`` and ``q = softmax(teacher / T)``: the distillation loss of Hinton, Vinyals & Dean
    (arXiv 1503.02531, section 2) without the factor ``T**2``, which papers apply or not: multiply by it where yours does. With ``drop``
    the classes that the teacher is to forget leave ``q``, which is normalised over the others (DELETE: Zhou et al., CVPR'25:
    ``drop=labels``).

    Args:
        logits: [B, K], the student's; float32, bfloat16, float16 or float64.
        teacher: [B, K], like ``logits``. Treated as constant: it must not require grad.
        temperature: T, a finite number > 0.
        drop: classes left out of the teacher's distribution: a list of ints or bool [K] (True: left out) for all rows, or int64 (int32)
            [B], one a row, -1 for none.

    Returns:
        loss: [B], ``KL(q_b || p_b)``; float32 (float64 for float64 logits). A class with ``q = 0`` adds nothing; where ``q > 0 = p`` it is
        infinite. A row of the student or of the teacher with NaN, +inf or no finite logit left is NaN.
        dlogits: [B, K] in the logits' dtype, ``d mean_b(loss_b) / d logits = (p - q) / (T * B)``: pass it to ``logits.backward``.
        ``loss`` is differentiable with respect to ``logits``, so ``loss.mean().backward()`` does the same; ``dlogits`` is not.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range; a list ``drop`` of every class.
        RuntimeError: ``teacher`` requires grad outside ``torch.no_grad()``; on the CPU, an entry of ``drop`` out of range (on CUDA that row
            is NaN instead: checking would stop the stream).

    >>> import torch
    >>> from fastforget.ops import update
    >>> student, teacher = torch.zeros(1, 3), torch.tensor([[5.0, 0.0, 0.0]])
    >>> loss, dlogits = update.distill_loss(student, teacher, drop=[0])
    >>> round(loss.item(), 4), [round(g, 4) for g in dlogits[0].tolist()]
    (0.4055, [0.3333, -0.1667, -0.1667])
    """
    if (type(temperature) is float or type(temperature) is int) and (drop is None or type(drop) is Tensor):
        out = _ALL_CLASSES if drop is None else drop
        if arg.plain(logits, teacher, out) and logits.dim() == 2 and logits.shape[1] > 0 and (drop is None or drop.numel() > 0):
            dlogits = torch.empty_like(logits)
            loss = torch.empty(logits.shape[0], dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32, device="cpu")
            if arg.accepted(_try_distill, (logits, teacher, out, float(temperature), loss, dlogits)):
                return loss, dlogits
    if isinstance(temperature, bool) or not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ValueError(f"temperature: got {temperature!r}; accepted is a finite number > 0")
    arg.floating("logits", logits)
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits: got {arg.describe(logits)}; accepted is [batch, classes]")
    arg.same("teacher", teacher, "logits", logits)
    arg.no_tangents("distill_loss", logits)
    arg.not_differentiable("distill_loss", teacher=teacher)
    inputs = (logits, teacher, _left_out(drop, logits), float(temperature))
    if logits.requires_grad and torch.is_grad_enabled():
        return _DistillLoss.apply(*inputs)
    return _distilled(*inputs)


class GradientProducts(NamedTuple):
    """What :func:`gradient_products` finds, each 0-d float64."""

    dot: Tensor
    sum_sq_a: Tensor
    sum_sq_b: Tensor


def gradient_products(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> GradientProducts:
    """The inner product of two gradients and their squared norms, over whole lists in one pass.

    What the combination of two gradients is made of: their angle in MUNBa (Wu & Harandi, ICCV'25) is ``dot / sqrt(sum_sq_a * sum_sq_b)``.

    Args:
        a: a tensor or a list of tensors of any shapes; float32, bfloat16, float16 or float64. Must not require grad.
        b: for each of ``a`` a tensor of the same shape, dtype and device.

    Returns:
        dot: ``sum(a * b)`` over all elements of the list. sum_sq_a, sum_sq_b: ``sum(a**2)`` and ``sum(b**2)``. Each 0-d float64, added in
        float64 in an order that depends on the shapes alone.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or list length.
        RuntimeError: a tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import update
    >>> found = update.gradient_products([torch.tensor([1.0, 2.0]), torch.ones(1)], [torch.tensor([3.0, 0.0]), torch.ones(1)])
    >>> [x.item() for x in found]
    [4.0, 6.0, 10.0]
    """
    lists = arg.plain_lists(a, b)
    if lists is not None:
        out = torch.empty(3, dtype=torch.float64, device="cpu")
        if arg.accepted(_try_products, (*lists, out)):
            return GradientProducts(*out.unbind())
    if _sharded.found(a, b):
        parts = _sharded.Parts("a", a, changed=False)
        others = parts.like("b", b)
        own, _ = (gradient_products([parts.local[i] for i in some], [others[i] for i in some]) for some in parts.counted())
        return GradientProducts(*parts.total(torch.stack(own).to(parts.local[0].device)).unbind())
    xs = arg.listed("a", a)
    ys = arg.same_list("b", b, "a", xs)
    arg.no_gradient("gradient_products", "a", xs)
    arg.no_gradient("gradient_products", "b", ys)
    if not xs:
        return GradientProducts(*(torch.zeros((), dtype=torch.float64) for _ in range(3)))
    out = torch.empty(3, dtype=torch.float64, device=xs[0].device)
    arg.run("gradient_products", _gradient_products, [out], (arg.readable(xs), arg.readable(ys), out))
    return GradientProducts(*out.unbind())
