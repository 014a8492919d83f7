"""Statistics of rows and channels, importance sums and soft thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastforget.ops import mask

from . import shapes
from .cases import Case, Judge, Options, Place, Work, compiled, limit

STATS = {
    "64x576": ((64, 576), 0),
    "512x4608": ((512, 4608), 0),
    "4096x4096": ((4096, 4096), 0),
    "128x64x32x32": ((128, 64, 32, 32), 1),
    "128x512x7x7": ((128, 512, 7, 7), 1),
}
SIZES = {"64K": 1 << 16, "1M": 1 << 20, "11.2M": shapes.numel(shapes.RESNET18)}
LARGE = {"4096x4096", "128x64x32x32", "11.2M"}
SCALE, THRESHOLD = 1e-6, 1e-9  # so small that thousands of calls on the same buffers change next to nothing


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


def eager_importance(importance: Tensor, grad: Tensor) -> None:
    importance += grad.pow(2) * SCALE


def _importance_work(place: Place, n: int, options: Options) -> Work:
    importance, start, grad = place.empty(n), place.uniform(n), place.normal(n)
    run = {
        "ours": lambda: mask.accumulate_importance_(importance, grad, scale=SCALE),
        "eager": lambda: eager_importance(importance, grad),
        "addcmul": lambda: importance.addcmul_(grad, grad, value=SCALE),
        **limit([importance, grad], "2r1w"),
    }
    if options.compiled:
        form = compiled(eager_importance)
        run["compiled"] = lambda: form(importance, grad)
    truth = start.double() + grad.double().square() * SCALE
    return Work(run, Judge([truth], lambda _name, _result: [importance]), lambda: importance.copy_(start))


def eager_shrink(x: Tensor) -> tuple[Tensor, Tensor]:
    x.copy_(torch.sign(x) * torch.relu(x.abs() - THRESHOLD))
    return x.abs().sum(), torch.count_nonzero(x)


def _shrink_work(place: Place, n: int, options: Options) -> Work:
    x, start = place.empty(n), place.normal(n)
    run = {
        "ours": lambda: mask.soft_threshold_(x, THRESHOLD),
        "eager": lambda: eager_shrink(x),
        **limit([x], "rw"),
    }
    if options.compiled:
        form = compiled(eager_shrink)
        run["compiled"] = lambda: form(x)
    moved = torch.nn.functional.softshrink(start.double(), THRESHOLD)
    judge = Judge([moved, moved.abs().sum(), torch.count_nonzero(start)], lambda _name, result: [x, *result])
    return Work(run, judge, lambda: x.copy_(start))


def accumulate_importance(label: str, n: int, options: Options, large: bool) -> Case:
    return Case(
        "accumulate_importance_",
        label,
        str(n),
        "float32",
        n,
        lambda place: _importance_work(place, n, options),
        bytes_touched=12 * n,
        family="mask",
        large=large,
    )


def soft_threshold(label: str, n: int, options: Options, large: bool) -> Case:
    return Case(
        "soft_threshold_",
        label,
        str(n),
        "float32",
        n,
        lambda place: _shrink_work(place, n, options),
        bytes_touched=8 * n,
        family="mask",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    rows = [neuron_stats(label, shape, dim, options, label in LARGE) for label, (shape, dim) in STATS.items()]
    for label, n in SIZES.items():
        rows.append(accumulate_importance(label, n, options, label in LARGE))
        rows.append(soft_threshold(label, n, options, label in LARGE))
    return rows
