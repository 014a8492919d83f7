"""Counter-based normal noise: a value is a function of (seed, stream, step, global element index) and of nothing else.

So the result doesn't depend on the thread count, the backend (integers exactly, normals to a few ulp), how a list is split or how a
tensor is sharded: a shard passes the global index of its first element as ``start``. Generator: Philox4x32-10 (Salmon et al., SC'11)
and Box-Muller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _schema
from . import _arguments as arg
from . import _sharded

T = TypeVar("T", Tensor, Sequence[Tensor])

_random_bits = _schema.overload("random_bits")
_normal = _schema.overload("normal_")
_add_normal = _schema.overload("add_normal_")
_perturb_step = _schema.overload("perturb_step_")
_try_normal, _try_add_normal = _schema.boxed("normal_"), _schema.boxed("add_normal_")
_try_perturb_step = _schema.boxed("perturb_step_")

_NUMBER = (float, int)
Std = float | Tensor | Sequence[float] | Sequence[Tensor]


def _counter(seed: int, stream: int, step: int, tensors: int = 1) -> tuple[int, int, int]:
    plain = type(seed) is int and type(stream) is int and type(step) is int
    if not (plain and 0 <= seed < 2**64 and 0 <= stream <= 2**32 - tensors and 0 <= step < 2**32):
        arg.integer("seed", seed, 0, 2**64)
        arg.integer("stream", stream, 0, 2**32 - tensors + 1)
        arg.integer("step", step, 0, 2**32)
    return arg.signed64(seed), stream, step


def _starts(start: int | Sequence[int], tensors: int) -> list[int]:
    if isinstance(start, int):
        return [arg.integer("start", start, 0, 2**63)]
    starts = [arg.integer(f"start[{i}]", s, 0, 2**63) for i, s in enumerate(start)]
    if len(starts) != tensors:
        raise ValueError(f"start: got {len(starts)} values; accepted is one int, or one for each of the {tensors} tensors")
    return starts


def _fast(
    op: Callable[..., None],
    tensors: tuple[Any, ...],
    numbers: tuple[Any, ...],
    seed: int,
    stream: int,
    step: int,
    start: int | Sequence[int],
) -> bool:
    """Whether the op took the call as it is. ``numbers``: its arguments between the tensors and the place in the stream."""
    if type(start) is not int:
        return False
    lists: list[Sequence[Tensor]] | None
    if isinstance(tensors[0], Tensor) and len(tensors) == 1:
        lists = [tensors] if arg.plain(tensors[0]) else None
    else:
        lists = arg.plain_lists(*tensors)
    if lists is None:
        return False
    changed = lists[0]
    key, stream, step = _counter(seed, stream, step, len(changed))
    # Arguments that have their default value are left out: a list of one start would take the dispatcher as long as two tensors.
    place = (key, stream, step, (start,)) if start else (key, stream, step) if stream or step else (key,)
    try:
        op(*lists, *numbers, *place)
    except RuntimeError:
        return False
    arg.increment_version(changed)
    return True


def _prepared(
    name: str, x: Tensor | Sequence[Tensor], seed: int, stream: int, step: int, start: int | Sequence[int]
) -> tuple[list[Tensor], list[Tensor], tuple[int, int, int, list[int]]]:
    """What the in-place ops check: the tensors, their contiguous stand-ins, and (key, stream, step, starts)."""
    xs = arg.listed(name, x)
    staged = arg.writable(name, xs)
    key, stream, step = _counter(seed, stream, step, len(xs))
    return xs, staged, (key, stream, step, _starts(start, len(xs)))


def _floats(name: str, value: Std, tensors: int) -> list[float]:
    if isinstance(value, (float, int)):
        return [float(value)]
    if isinstance(value, Tensor) or not all(isinstance(v, (float, int)) for v in value):
        raise TypeError(f"{name}: got {arg.describe(value)}; accepted is a float, or a list of floats, one a tensor")
    if len(value) != tensors:
        raise ValueError(f"{name}: got {len(value)} values; accepted is one float, or one for each of the {tensors} tensors")
    return [float(v) for v in value]


def _stds(std: Std, like_name: str, like: list[Tensor]) -> tuple[list[float], list[Tensor]]:
    """``std`` as floats, or as one tensor for each of ``like``; the other list is empty."""
    if isinstance(std, Tensor) or (isinstance(std, (list, tuple)) and any(isinstance(s, Tensor) for s in std)):
        return [], arg.readable(arg.same_list("std", std, like_name, like))
    return _floats("std", std, len(like)), []


def _each(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _local_std(parts: _sharded.Parts, std: Std) -> Any:
    tensors = isinstance(std, Tensor) or (isinstance(std, (list, tuple)) and any(isinstance(s, Tensor) for s in std))
    return parts.like("std", std) if tensors else _each(std)


def _keyed(op: Callable[..., Any], names: Sequence[str], seed: int, step: int, **numbers: float) -> Callable[..., Any]:
    """``op`` as a call on local parts, what goes with them in the order of ``names``."""

    def call(xs: list[Tensor], *partners: Any, stream: int, start: int | Sequence[int]) -> None:
        op(xs, **dict(zip(names, partners, strict=True)), seed=seed, step=step, stream=stream, start=start, **numbers)

    return call


def random_bits(
    n: int, *, seed: int, stream: int = 0, step: int = 0, start: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """The raw Philox words behind the noise.

    Args:
        n: how many 32-bit words.
        seed: 64-bit key, 0 to 2**64 - 1.
        stream: third counter word (in a list of tensors, tensor i uses ``stream + i``), 0 to 2**32 - 1.
        step: fourth counter word, e.g. the training step, 0 to 2**32 - 1.
        start: global index of the first word.
        device: where the result lives.

    Returns:
        int32[n]; word ``i`` is word ``(start + i) % 4`` of counter block ``(start + i) // 4``.

    Raises:
        ValueError, TypeError: an argument is out of its range.

    >>> from fastforget.ops import noise
    >>> [hex(int(w) & 0xffffffff) for w in noise.random_bits(4, seed=0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    arg.integer("n", n, 0, 2**63)
    key, stream, step = _counter(seed, stream, step)
    (first,) = _starts(start, 1)
    out = torch.empty(n, dtype=torch.int32, device=device)
    arg.run("random_bits", _random_bits, [out], (out, key, stream, step, first))
    return out


def normal_(
    x: T,
    std: float | Sequence[float] = 1.0,
    mean: float | Sequence[float] = 0.0,
    *,
    seed: int,
    stream: int = 0,
    step: int = 0,
    start: int | Sequence[int] = 0,
) -> T:
    """Fills ``x`` with ``mean + std * N(0, 1)``, in place.

    Args:
        x: a tensor or a list of tensors of any shape; float32, bfloat16, float16 or float64 (mixed dtypes allowed in a list).
            Elements are numbered in row-major order whatever the strides.
        std, mean: a float, or one float a tensor.
        seed: 64-bit key.
        stream: counter word of the first tensor; tensor ``i`` of a list uses ``stream + i``.
        step: counter word of the step.
        start: global index of the first element (one for all tensors, or one a tensor): a shard passes where it begins.

    Returns:
        ``x``.

    Raises:
        TypeError: an integer tensor, a tensor ``std``.
        ValueError: tensors on different devices, overlapping memory, a value out of range.
        RuntimeError: ``x`` requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import noise
    >>> whole = noise.normal_(torch.empty(6), seed=7)
    >>> torch.equal(whole[4:], noise.normal_(torch.empty(2), seed=7, start=4))
    True
    """
    numbers = isinstance(mean, _NUMBER) and isinstance(std, _NUMBER)
    if numbers and _fast(_try_normal, (x,), ((mean,), (std,)), seed, stream, step, start):
        return x
    if _sharded.found(x):
        parts = _sharded.Parts("x", x)
        _sharded.in_stream(_keyed(normal_, ("std", "mean"), seed, step), parts, (_each(std), _each(mean)), stream=stream, start=start)
        return x
    xs, staged, (key, stream, step, starts) = _prepared("x", x, seed, stream, step, start)
    if xs:
        arg.apart("normal_", xs)
        means, stds = _floats("mean", mean, len(xs)), _floats("std", std, len(xs))
        arg.run("normal_", _normal, staged, (staged, means, stds, key, stream, step, starts))
        arg.write_back(xs, staged)
    return x


def add_normal_(
    x: T,
    std: Std,
    *,
    seed: int,
    stream: int = 0,
    step: int = 0,
    start: int | Sequence[int] = 0,
) -> T:
    """Adds ``std * N(0, 1)`` to ``x``, in place: ``x += std * N``, in one pass with no noise tensor in memory.

    Args:
        x: a tensor or a list of tensors of any shape; float32, bfloat16, float16 or float64.
        std: a float; or floats, one a tensor; or a tensor like ``x`` (a list of tensors for a list), one value an element.
        seed, stream, step, start: as for :func:`normal_`.

    Returns:
        ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`normal_`; ``std`` with another count, shape, dtype or device than ``x``.

    >>> import torch
    >>> from fastforget.ops import noise
    >>> params = [torch.zeros(3, 2), torch.zeros(5)]
    >>> _ = noise.add_normal_(params, 0.1, seed=7)
    >>> alone = noise.add_normal_(torch.zeros(5), 0.1, seed=7, stream=1)   # the list's second tensor has stream 1
    >>> torch.equal(params[1], alone)
    True
    >>> only_last = noise.add_normal_(torch.zeros(3), torch.tensor([0.0, 0.0, 0.1]), seed=7)
    >>> only_last[:2].tolist(), torch.equal(only_last[2:], params[0].view(-1)[2:3])
    ([0.0, 0.0], True)
    """
    if isinstance(std, _NUMBER) and _fast(_try_add_normal, (x,), ((std,),), seed, stream, step, start):
        return x
    if _sharded.found(x, std):
        parts = _sharded.Parts("x", x)
        _sharded.in_stream(_keyed(add_normal_, ("std",), seed, step), parts, (_local_std(parts, std),), stream=stream, start=start)
        return x
    xs, staged, (key, stream, step, starts) = _prepared("x", x, seed, stream, step, start)
    if xs:
        stds, elements = _stds(std, "x", xs)
        if elements:
            arg.apart("perturb_step_", xs, [], 0.0, [], arg.same_list("std", std, "x", xs))
            # no gradient term is a step without grads
            arg.run("perturb_step_", _perturb_step, staged, (staged, [], 0.0, stds, elements, key, stream, step, starts))
        else:
            arg.apart("add_normal_", xs)
            arg.run("add_normal_", _add_normal, staged, (staged, stds, key, stream, step, starts))
        arg.write_back(xs, staged)
    return x


def perturb_step_(
    params: T,
    grads: Tensor | Sequence[Tensor],
    *,
    lr: float,
    std: Std,
    seed: int,
    stream: int = 0,
    step: int = 0,
    start: int | Sequence[int] = 0,
) -> T:
    """A gradient step with noise, in place: ``p += -lr * g + std * N(0, 1)``, in one pass with no noise tensor in memory.

    With ``std = sqrt(2 * lr * temperature)`` this is the step of stochastic gradient Langevin dynamics (Welling & Teh, ICML'11,
    equation 4); unlearning by small perturbations of the weights and noisy fine-tuning take it with a ``std`` of their own.

    Args:
        params: a tensor or a list of tensors of any shape; float32, bfloat16, float16 or float64 (mixed dtypes allowed in a list).
        grads: like ``params``: as many tensors, each with its parameter's shape, dtype and device.
        lr: the step size; negative to ascend.
        std: a float; or floats, one a tensor; or a tensor like ``params`` (a list of tensors for a list), one value an element.
        seed, stream, step, start: as for :func:`normal_`. Pass the number of the training step as ``step``, or every step adds the
            same noise.

    Returns:
        ``params``.

    Raises:
        TypeError: an integer tensor; grads or std that are neither tensors nor, for std, floats.
        ValueError: a count, shape, dtype or device that differs from ``params``; overlapping memory; a value out of range.
        RuntimeError: ``params`` requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import noise
    >>> weight = torch.tensor([1.0, 2.0])
    >>> noise.perturb_step_(weight, torch.tensor([2.0, -2.0]), lr=0.5, std=0.0, seed=7)
    tensor([0., 3.])
    >>> a = noise.perturb_step_(torch.zeros(2), torch.ones(2), lr=0.5, std=0.1, seed=7, step=3)
    >>> b = noise.add_normal_(torch.full((2,), -0.5), 0.1, seed=7, step=3)
    >>> torch.equal(a, b)
    True
    """
    if isinstance(lr, bool) or not isinstance(lr, (int, float)):
        raise TypeError(f"lr: got {arg.describe(lr)}; accepted is a float")
    if not math.isfinite(lr):
        raise ValueError(f"lr: got {lr}; accepted is a finite number")
    # the op takes no gradients at all for a step without them
    some = isinstance(grads, Tensor) or (isinstance(grads, (list, tuple)) and len(grads) > 0)
    if some and isinstance(std, _NUMBER) and _fast(_try_perturb_step, (params, grads), (lr, (std,), ()), seed, stream, step, start):
        return params
    if _sharded.found(params, grads, std):
        parts = _sharded.Parts("params", params)
        others = (parts.like("grads", grads), _local_std(parts, std))
        _sharded.in_stream(_keyed(perturb_step_, ("grads", "std"), seed, step, lr=lr), parts, others, stream=stream, start=start)
        return params
    xs, staged, (key, stream, step, starts) = _prepared("params", params, seed, stream, step, start)
    gradients = arg.same_list("grads", grads, "params", xs)
    slopes = arg.readable(gradients)
    if xs:
        stds, elements = _stds(std, "params", xs)
        arg.apart("perturb_step_", xs, gradients, 0.0, [], arg.same_list("std", std, "params", xs) if elements else [])
        arg.run("perturb_step_", _perturb_step, staged, (staged, slopes, float(lr), stds, elements, key, stream, step, starts))
        arg.write_back(xs, staged)
    return params
