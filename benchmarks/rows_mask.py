"""Dampening of weights by importance (selective synaptic dampening): one tensor and whole parameter lists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastforget.ops import mask
from fastforget.reference import mask as reference

from . import shapes
from .cases import Case, Judge, Options, Place, Work, compiled, limit

ALPHA, LAM = 1.0, 1.0
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
    """The elementwise rewrite that a careful user would make."""
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


def cases(options: Options) -> list[Case]:
    rows = [dampen(label, [(n,)], options, label == "11.2M") for label, n in SIZES.items()]
    return [*rows, dampen("ResNet-18", shapes.RESNET18, options, True)]
