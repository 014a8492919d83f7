"""Dampening of weights by importance (selective synaptic dampening), importance sums and soft thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastforget.ops import mask
from fastforget.reference.mask import elementwise as reference

from .. import shapes
from ..cases import Case, Judge, Options, Place, Work, compiled, limit

ALPHA, LAM = 1.0, 1.0
SCALE, THRESHOLD = 1e-6, 1e-9  # so small that thousands of calls on the same buffers change next to nothing
SELECTED = 0.28  # share of the weights that are dampened
SIZES = {"64K": 1 << 16, "1M": 1 << 20, "11.2M": shapes.numel(shapes.RESNET18)}
PUBLISHED = "SSD's loop: boolean compare, index lists by torch.where, gather, clamp, scatter"


def published(params: Sequence[Tensor], forget: Sequence[Tensor], retain: Sequence[Tensor]) -> None:
    """The published procedure in our words: the selected weights are listed, gathered, scaled by at most
    one and scattered back."""
    for p, f, r in zip(params, forget, retain, strict=True):
        listed = torch.where(f > r.mul(ALPHA))
        factors = r.mul(LAM).div(f)[listed]
        factors[torch.where(factors > 1.0)] = 1.0
        p[listed] = p[listed].mul(factors)


def where(params: Sequence[Tensor], forget: Sequence[Tensor], retain: Sequence[Tensor]) -> None:
    """The elementwise rewrite without index lists."""
    for p, f, r in zip(params, forget, retain, strict=True):
        p.mul_(torch.where(f > ALPHA * r, (LAM * r / f).clamp(max=1.0), 1.0))


def importances(place: Place, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A retain importance like a squared gradient's, and a forget importance that exceeds it by a few
    roundings where selected.

    So a weight shrinks by a millionth a call and the op can be repeated thousands of times without ending
    in denormals; the work of every variant is that of one call on a fresh network.
    """
    retain = place.normal(*shape).square_().add_(1e-6)
    pick, size = place.uniform(*shape), place.uniform(*shape)
    forget = place.empty(*shape)
    torch.where(pick < SELECTED, retain * (1.0 + 1e-6 * (1.0 + size)), retain * size * 0.99, out=forget)
    return forget, retain


def _work(place: Place, shape_list: Sequence[Sequence[int]], options: Options) -> Work:
    params = [place.normal(*shape) for shape in shape_list]
    forget, retain = map(list, zip(*(importances(place, shape) for shape in shape_list), strict=True))
    start = [p.clone() for p in params]

    truth = [p.clone() for p in params]  # float32 operations in the definition's order: bit-exact is what is asked
    count = torch.zeros((), dtype=torch.int64, device=params[0].device)
    reference.dampen_(truth, forget, retain, count, ALPHA, LAM)

    def reset() -> None:
        for p, s in zip(params, start, strict=True):
            p.copy_(s)

    run = {
        "ours": lambda: mask.dampen_(params, forget, retain, alpha=ALPHA, lam=LAM),
        "eager": lambda: where(params, forget, retain),
        "published": lambda: published(params, forget, retain),
    }
    if len(params) == 1:
        run |= limit((params[0], forget[0], retain[0]), "3r1w")
    else:
        flat = [place.zeros(sum(p.numel() for p in params)) for _ in range(3)]
        run |= limit(flat, "3r1w")
    if options.compiled:
        form = compiled(where)
        run["compiled"] = lambda: form(params, forget, retain)
    return Work(run, Judge(truth, lambda _name, _result: params, exact=True), reset)


def dampen(label: str, shape_list: Sequence[Sequence[int]], options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    shape = str(count) if len(shape_list) == 1 else f"{len(shape_list)} tensors, {count}"
    return Case(
        "dampen_",
        label,
        shape,
        "float32",
        count,
        lambda place: _work(place, shape_list, options),
        bytes_touched=16 * count,
        family="mask",
        large=large,
        published=PUBLISHED,
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
    rows = [dampen(label, [(n,)], options, label == "11.2M") for label, n in SIZES.items()]
    rows.append(dampen("ResNet-18", shapes.RESNET18, options, True))
    for label, n in SIZES.items():
        rows.append(accumulate_importance(label, n, options, label == "11.2M"))
        rows.append(soft_threshold(label, n, options, label == "11.2M"))
    return rows
