"""Counter-based normal noise: a value is a function of (seed, stream, step, global element index) and of nothing else.

So the result doesn't depend on the thread count, the backend (integers exactly, normals to a few ulp), how a list is split or how a
tensor is sharded: a shard passes the global index of its first element as ``start``. Generator: Philox4x32-10 (Salmon et al., SC'11)
and Box-Muller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .. import _schema
from . import _arguments as arg

T = TypeVar("T", Tensor, Sequence[Tensor])

_random_bits = _schema.overload("random_bits")
_normal = _schema.overload("normal_")
_add_normal = _schema.overload("add_normal_")


def _counter(seed: int, stream: int, step: int, tensors: int = 1) -> tuple[int, int, int]:
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


def _prepared(
    x: Tensor | Sequence[Tensor], seed: int, stream: int, step: int, start: int | Sequence[int]
) -> tuple[list[Tensor], list[Tensor], tuple[int, int, int, list[int]]]:
    """What both in-place ops check: the tensors, their contiguous stand-ins, and (key, stream, step, starts)."""
    xs = arg.listed("x", x)
    staged = arg.writable("x", xs)
    key, stream, step = _counter(seed, stream, step, len(xs))
    return xs, staged, (key, stream, step, _starts(start, len(xs)))


def _floats(name: str, value: float | Sequence[float], tensors: int) -> list[float]:
    if isinstance(value, (float, int)):
        return [float(value)]
    if isinstance(value, Tensor) or not all(isinstance(v, (float, int)) for v in value):
        raise TypeError(f"{name}: got {arg.describe(value)}; accepted is a float, or a list of floats, one a tensor")
    if len(value) != tensors:
        raise ValueError(f"{name}: got {len(value)} values; accepted is one float, or one for each of the {tensors} tensors")
    return [float(v) for v in value]


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
    xs, staged, (key, stream, step, starts) = _prepared(x, seed, stream, step, start)
    if xs:
        means, stds = _floats("mean", mean, len(xs)), _floats("std", std, len(xs))
        arg.run("normal_", _normal, staged, (staged, means, stds, key, stream, step, starts))
        arg.write_back(xs, staged)
    return x


def add_normal_(
    x: T,
    std: float | Sequence[float],
    *,
    seed: int,
    stream: int = 0,
    step: int = 0,
    start: int | Sequence[int] = 0,
) -> T:
    """Adds ``std * N(0, 1)`` to ``x``, in place: ``x += std * N``, in one pass with no noise tensor in memory.

    Args:
        x: a tensor or a list of tensors of any shape; float32, bfloat16, float16 or float64.
        std: a float, or one float a tensor.
        seed, stream, step, start: as for :func:`normal_`.

    Returns:
        ``x``.

    Raises:
        As :func:`normal_`.

    >>> import torch
    >>> from fastforget.ops import noise
    >>> params = [torch.zeros(3, 2), torch.zeros(5)]
    >>> _ = noise.add_normal_(params, 0.1, seed=7)
    >>> alone = noise.add_normal_(torch.zeros(5), 0.1, seed=7, stream=1)   # the list's second tensor has stream 1
    >>> torch.equal(params[1], alone)
    True
    """
    xs, staged, (key, stream, step, starts) = _prepared(x, seed, stream, step, start)
    if xs:
        stds = _floats("std", std, len(xs))
        arg.run("add_normal_", _add_normal, staged, (staged, stds, key, stream, step, starts))
        arg.write_back(xs, staged)
    return x
