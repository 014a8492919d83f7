"""Statistics of each neuron's weights or of each channel's activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg
from .. import _sharded

__all__ = ["NeuronStats", "NeuronStatsList", "neuron_stats"]

_neuron_stats = _schema.overload("neuron_stats")
_try_neuron_stats = _schema.boxed("neuron_stats")


class NeuronStats(NamedTuple):
    """Of each row: the mean magnitude and the sum of squares (tensors, or lists of them)."""

    mean_abs: Tensor
    sum_sq: Tensor


class NeuronStatsList(NamedTuple):
    """:class:`NeuronStats` of a list: for each tensor one of each."""

    mean_abs: list[Tensor]
    sum_sq: list[Tensor]


def _three(x: Tensor, dim: int) -> Tensor:
    """``x`` as contiguous [outer, rows, inner]. The statistics don't depend on the order of the other dimensions, so dense memory in
    another order (channels_last activations) is read where it is."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda d: (-strides[d], d))
    dense = x.permute(order)
    if dense.is_contiguous():
        x, dim = dense, order.index(dim)
    shape = x.shape
    return x.contiguous().view(shape[:dim].numel(), shape[dim], shape[dim + 1 :].numel())


def _of_sharded(x: Tensor | Sequence[Tensor], xs: list[Tensor], dim: int) -> NeuronStats | NeuronStatsList:
    """Whole slices for each rank, so that no sum is put together of parts."""
    means, squares = [], []
    for i, given in enumerate(xs):
        t: Any = given
        if not _sharded.is_sharded(t):
            mean, square = neuron_stats(t, dim=dim)
        else:
            along, where = dim % t.dim(), "x" if len(xs) == 1 else f"x[{i}]"
            _sharded.local_part(where, t)  # refuses a placement in words
            t = t.detach()
            if any(p.is_shard() and p.dim != along for p in t.placements):
                t = t.redistribute(placements=[type(p)(along) if p.is_shard() else p for p in t.placements])
            placements = [type(p)(0) if p.is_shard() else p for p in t.placements]
            mean, square = (
                _sharded.alike(one, t, (t.shape[along],), placements) for one in neuron_stats(_sharded.local_part(where, t), dim=along)
            )
        means.append(mean)
        squares.append(square)
    return NeuronStats(means[0], squares[0]) if isinstance(x, Tensor) else NeuronStatsList(means, squares)


@overload
def neuron_stats(x: Tensor, *, dim: int = 0) -> NeuronStats: ...
@overload
def neuron_stats(x: Sequence[Tensor], *, dim: int = 0) -> NeuronStatsList: ...


def neuron_stats(x: Tensor | Sequence[Tensor], *, dim: int = 0) -> NeuronStats | NeuronStatsList:
    """Mean magnitude and sum of squares of every slice along ``dim``, in one read.

    A weight's rows (``dim=0``) are its output neurons; an activation [N, C, H, W] has its channels in ``dim=1``. Comparing the mean
    magnitude of activations on the forget and on the retain set ranks neurons for pruning (Pochinkov & Schoots, arXiv 2403.01267, "abs"
    importance); a gradient's sums of squares rank them for a neuron mask.

    Args:
        x: a tensor or a list of tensors with at least ``dim + 1`` dimensions; float32, bfloat16, float16 or float64 (mixed dtypes
            allowed in a list). Must not require grad.
        dim: the dimension whose indices are the rows; negative counts from the end.

    Returns:
        mean_abs: [x.shape[dim]], mean of ``|x|`` over all other dimensions; NaN where there is nothing to average.
        sum_sq: [x.shape[dim]], sum of ``x**2``.
        Both float32 (float64 for float64 ``x``), for a list a list of them. Sums are held in float64 across blocks of a fixed cut: the
        result doesn't depend on the thread count.

    Raises:
        TypeError, ValueError: wrong dtype, device, or ``dim`` out of range.
        RuntimeError: a tensor requires grad outside ``torch.no_grad()``.

    >>> import torch
    >>> from fastforget.ops import mask
    >>> stats = mask.neuron_stats(torch.tensor([[1.0, -3.0], [0.0, 0.5]]))
    >>> stats.mean_abs.tolist(), stats.sum_sq.tolist()
    ([2.0, 0.25], [10.0, 0.25])
    """
    if isinstance(x, Tensor) and type(dim) is int and arg.plain(x) and -x.dim() <= dim < x.dim():
        mean = torch.empty(x.shape[dim], dtype=torch.float64 if x.dtype is torch.float64 else torch.float32, device="cpu")
        square = torch.empty_like(mean)
        if arg.accepted(_try_neuron_stats, ((x,), dim, (mean,), (square,))):
            return NeuronStats(mean, square)
    xs = arg.listed("x", x)
    arg.no_gradient("neuron_stats", "x", xs)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim: got {arg.describe(dim)}; accepted is an int")
    for i, t in enumerate(xs):
        if not -t.dim() <= dim < t.dim():
            where = "x" if len(xs) == 1 else f"x[{i}]"
            accepted = f"{-t.dim()} to {t.dim() - 1}" if t.dim() else "a tensor of at least one dimension"
            raise ValueError(f"dim: got {dim}, but {where} has {t.dim()} dimensions; accepted is {accepted}")
    if not xs:
        return NeuronStatsList([], [])
    if _sharded.found(xs):
        return _of_sharded(x, xs, dim)
    sources, along = [t.detach() if t.requires_grad else t for t in xs], dim
    if dim < 0 or not all(t.is_contiguous() for t in sources):
        sources, along = [_three(t, dim % t.dim()) for t in sources], 1
    single = [torch.float64 if t.dtype == torch.float64 else torch.float32 for t in xs]
    mean_abs = [torch.empty(t.shape[dim], dtype=d, device=t.device) for t, d in zip(xs, single, strict=True)]
    sum_sq = [torch.empty_like(m) for m in mean_abs]
    arg.run("neuron_stats", _neuron_stats, [*mean_abs, *sum_sq], (sources, along, mean_abs, sum_sq))
    return NeuronStats(mean_abs[0], sum_sq[0]) if isinstance(x, Tensor) else NeuronStatsList(mean_abs, sum_sq)
