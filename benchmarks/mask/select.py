"""The mask of the largest magnitudes over a parameter list, against the published argsorts and plain forms that avoid them; and that of the
largest ratios of two importances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from fastforget.ops import mask
from fastforget.reference.mask import select as reference

from .. import shapes
from ..cases import Case, Judge, Options, Place, Work, WrongResult, compiled, limit

KEEP = 0.5
LISTS = {"1M": [(1 << 20,)], "ResNet-18": shapes.RESNET18, "ResNet-50": shapes.RESNET50}
PUBLISHED = "SalUn's mask: cat of |g|, argsort, argsort of the order (ranks), scatter by rank < k, cut up by name"


def _cut(chosen: Tensor, grads: Sequence[Tensor]) -> list[Tensor]:
    return [part.view(g.shape) for part, g in zip(chosen.split([g.numel() for g in grads]), grads, strict=True)]


def published(grads: Sequence[Tensor]) -> list[Tensor]:
    """The published procedure in our words: the rank of every weight from two sorts of the whole model."""
    flat = -torch.cat([g.abs().flatten() for g in grads])
    k = int(flat.numel() * KEEP)
    positions = torch.argsort(flat)
    ranks = torch.argsort(positions)
    chosen = torch.zeros_like(flat)
    chosen[ranks < k] = 1
    return _cut(chosen, grads)


def kth(grads: Sequence[Tensor]) -> list[Tensor]:
    """One selection instead of two sorts."""
    magnitudes = [g.abs() for g in grads]
    flat = torch.cat([m.flatten() for m in magnitudes])
    threshold = flat.kthvalue(flat.numel() - int(flat.numel() * KEEP) + 1).values
    return [m >= threshold for m in magnitudes]


def partition(grads: Sequence[Tensor]) -> list[Tensor]:
    """The same by NumPy's introselect."""
    magnitudes = [g.abs() for g in grads]
    flat = torch.cat([m.flatten() for m in magnitudes]).numpy()
    at = flat.size - int(flat.size * KEEP)
    threshold = float(numpy.partition(flat, at)[at])
    return [m >= threshold for m in magnitudes]


def _work(place: Place, shape_list: Sequence[Sequence[int]]) -> Work:
    grads = [place.normal(*shape) for shape in shape_list]
    n = sum(g.numel() for g in grads)
    truth = [torch.empty(g.shape, dtype=torch.bool, device=g.device) for g in grads]
    reference.saliency_mask(grads, n // 2, truth, torch.empty((), device=place.device))
    exact = Judge(truth, lambda _name, result: result, exact=True)

    def judge(name: str, result: Any) -> None:
        if name.startswith("ours"):
            return exact(name, result)
        # a plain threshold also turns on what equals it, and a sort that isn't stable settles that by chance
        if sum(int((r.bool() != t).sum()) for r, t in zip(result, truth, strict=True)) > 4:
            raise WrongResult(f"{name}: another choice")

    run = {
        "ours": lambda: mask.saliency_mask(grads, KEEP)[0],
        "eager": lambda: kth(grads),
        "published": lambda: published(grads),
        "packed": lambda: mask.saliency_mask(grads, KEEP, packed=True)[0],
        **limit([place.zeros(n)], "read"),
    }
    if place.device.type == "cpu":
        run["partition"] = lambda: partition(grads)
    return Work(run, judge, unjudged=frozenset({"limit", "packed"}))


def saliency_mask(label: str, shape_list: Sequence[Sequence[int]], large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    return Case(
        "saliency_mask",
        label,
        str(count) if len(shape_list) == 1 else f"{len(shape_list)} tensors, {count}",
        "float32",
        count,
        lambda place: _work(place, shape_list),
        bytes_touched=5 * count,
        family="mask",
        large=large,
        published=PUBLISHED,
    )


def quotients(numerators: Sequence[Tensor], denominators: Sequence[Tensor]) -> list[Tensor]:
    """SFRon's mask in our words."""
    return [(a + 1e-15) / (b + 1e-15) >= 1.0 for a, b in zip(numerators, denominators, strict=True)]


def _ratio_work(place: Place, shape_list: Sequence[Sequence[int]], options: Options) -> Work:
    a, b = ([place.normal(*shape).square_() for shape in shape_list] for _ in range(2))
    run = {
        "ours": lambda: mask.ratio_mask(a, b, 1.0),
        "eager": lambda: quotients(a, b),
        "packed": lambda: mask.ratio_mask(a, b, 1.0, packed=True),
        **limit([place.zeros(2 * sum(x.numel() for x in a))], "read"),
    }
    if options.compiled:
        form = compiled(quotients)
        run["compiled"] = lambda: form(a, b)
    truth = [torch.empty(x.shape, dtype=torch.bool, device=x.device) for x in a]
    reference.ratio_mask(a, b, truth, 1.0, 1e-15)
    return Work(run, Judge(truth, lambda _name, result: result, exact=True), unjudged=frozenset({"limit", "packed"}))


def ratio_mask(label: str, shape_list: Sequence[Sequence[int]], options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    return Case(
        "ratio_mask",
        label,
        f"{len(shape_list)} tensors, {count}",
        "float32",
        count,
        lambda place: _ratio_work(place, shape_list, options),
        bytes_touched=9 * count,
        family="mask",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    rows = [saliency_mask(label, shape_list, label != "1M") for label, shape_list in LISTS.items()]
    return rows + [ratio_mask(label, shape_list, options, label != "small net") for label, shape_list in shapes.LISTS.items()]
