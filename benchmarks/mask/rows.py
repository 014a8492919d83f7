"""Statistics of rows and channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastforget.ops import mask

from .. import shapes
from ..cases import Case, Judge, Options, Place, Work, compiled, limit

STATS = {
    "64x576": ((64, 576), 0),
    "512x4608": ((512, 4608), 0),
    "4096x4096": ((4096, 4096), 0),
    "128x64x32x32": ((128, 64, 32, 32), 1),
    "128x512x7x7": ((128, 512, 7, 7), 1),
}
LARGE = {"4096x4096", "128x64x32x32"}


def eager_stats(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    dims = [d for d in range(x.dim()) if d != dim]
    return x.abs().mean(dims), x.pow(2).sum(dims)


def _stats_work(place: Place, shape: Sequence[int], dim: int, options: Options) -> Work:
    x = place.normal(*shape)
    run = {
        "ours": lambda: mask.neuron_stats(x, dim=dim),
        "eager": lambda: eager_stats(x, dim),
        **limit([x], "read"),
    }
    if hasattr(torch.ops.fastforget, "_limit"):
        out = [torch.empty(x.shape[dim], device=place.device) for _ in range(2)]
        op = torch.ops.fastforget.neuron_stats.default

        def raw() -> list[Tensor]:
            op([x], dim, out[:1], out[1:])
            return out

        run["op"] = raw
    if options.compiled:
        form = compiled(eager_stats)
        run["compiled"] = lambda: form(x, dim)
    truth = [t.clone() for t in eager_stats(x.double(), dim)]
    return Work(run, Judge(truth, lambda _name, result: result))


def neuron_stats(label: str, shape: Sequence[int], dim: int, options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(shape)])
    return Case(
        "neuron_stats",
        label,
        f"{label}, dim {dim}",
        "float32",
        count,
        lambda place: _stats_work(place, shape, dim, options),
        bytes_touched=4 * count,
        family="mask",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    return [neuron_stats(label, shape, dim, options, label in LARGE) for label, (shape, dim) in STATS.items()]
