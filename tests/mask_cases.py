"""Cases of the mask family's lists, with their checks: for the emulated device, Triton's interpreter and the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tolerance import assert_two_times
from torch import Tensor

from fastforget.reference.mask import elementwise as mask
from fastforget.reference.mask import select as mask_select
from fastforget.reference.mask.optim import element_mask
from fastforget.reference.mask.select import pack_bits

Put = Callable[[Tensor], Tensor]  # to the place under test: another device, an odd address


def _stay(x: Tensor) -> Tensor:
    return x


MASK_FORMS = ["all", "elements", "rows", "bits"]
SGD = [
    {"momentum": None},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "nesterov": False, "first": True, "maximize": True},
    {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01},
]
ADAM = [
    {"step": 1},
    {"step": 7, "weight_decay": 0.1},
    {"step": 1000, "weight_decay": 0.1, "decoupled": True, "maximize": True},
]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def sgd_arguments(o: dict[str, Any]) -> tuple[Any, ...]:
    flags = o.get("nesterov", False), o.get("maximize", False), o.get("first", False)
    return (0.1, o.get("momentum") or 0.0, o.get("dampening", 0.0), o.get("weight_decay", 0.0), *flags)


def adam_arguments(o: dict[str, Any]) -> tuple[Any, ...]:
    return (
        o["step"],
        0.1,
        0.9,
        0.999,
        1e-8,
        o.get("weight_decay", 0.0),
        o.get("decoupled", False),
        o.get("maximize", False),
    )


def extended(x: Tensor) -> Any:
    return x.to(torch.float64).numpy().astype(np.longdouble)


def exact_steps(tensors: Sequence[Tensor], grad: Tensor, mask: Tensor, o: dict[str, Any]) -> list[Tensor]:
    """The parameter and the states after one step in extended precision, as if every coordinate were on."""
    p, *states = map(extended, tensors)
    g = extended(grad)
    if mask.dtype == torch.float32 and mask.numel():
        g = g * extended(mask).reshape(-1, *[1] * (g.ndim - 1))
    scalars = sgd_arguments(o) if "step" not in o else adam_arguments(o)
    g = -g if o.get("maximize") else g
    decay, one = np.longdouble(o.get("weight_decay", 0.0)), np.longdouble(1)
    if "step" not in o:
        lr, momentum, dampening = map(np.longdouble, scalars[:3])
        g = g + decay * p
        if states:
            states = [g if o.get("first") else momentum * states[0] + (one - dampening) * g]
            g = g + momentum * states[0] if o.get("nesterov") else states[0]
        results = [p - lr * g, *states]
    else:
        step, (lr, beta1, beta2, eps) = scalars[0], map(np.longdouble, scalars[1:5])
        if o.get("decoupled"):
            p = p * (one - lr * decay)
        else:
            g = g + decay * p
        m, v = beta1 * states[0] + (one - beta1) * g, beta2 * states[1] + (one - beta2) * g * g
        results = [p - lr / (one - beta1**step) * m / (np.sqrt(v / (one - beta2**step)) + eps), m, v]
    return [torch.from_numpy(np.asarray(r, dtype=np.float64)) for r in results]


def draw_mask(form: str, shape: Sequence[int], share: float = 0.6) -> Tensor:
    rows = shape[0] if len(shape) else 1
    if form == "all":
        return torch.empty(0, dtype=torch.int8)
    if form == "elements":
        return torch.rand(tuple(shape)) < share
    if form == "rows":
        return torch.rand(rows) < share
    if form == "bits":
        return pack_bits(torch.rand(tuple(shape)) < share)
    return torch.where(torch.rand(rows) < share, torch.randn(rows), 0.0)


def check_steps(
    op: Callable[..., None],
    definition: Callable[..., None],
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    form: str,
    arguments: Callable[[dict[str, Any]], tuple[Any, ...]],
    options: dict[str, Any],
    put: Put = _stay,
) -> None:
    """One step on a list against the definition, by the two-times rule; what is off keeps its bits."""
    shapes = [s for s in shapes if len(s) or form != "factors"]
    states = 2 if "step" in options else int(options["momentum"] is not None)

    def draw() -> list[Tensor]:
        return [torch.randn(tuple(s), dtype=torch.float64).to(dtype) for s in shapes]

    masks = [draw_mask(form, s) for s in shapes]
    before = [draw() for _ in range(1 + states)]
    if states == 2:
        before[2] = [v.abs() for v in before[2]]
    grads = draw()
    ons = [element_mask(m, p) for m, p in zip(masks, before[0], strict=True)]
    poisoned = [
        torch.where(on, g, math.nan) for on, g in zip(ons, grads, strict=True)
    ]  # nothing of it may come through

    def run(call: Callable[..., None], put: Put) -> list[list[Tensor]]:
        tensors = [[put(t.clone()) for t in part] for part in before]
        buffers = tensors[1:] if states else [[]]
        call(tensors[0], [put(g) for g in poisoned], [put(m) for m in masks], *buffers, *arguments(options))
        return [[t.cpu() for t in part] for part in tensors]

    ours, plain = run(op, put), run(definition, _stay)
    moved = [exact_steps([part[i] for part in before], grads[i], masks[i], options) for i in range(len(shapes))]
    kept = [
        [torch.where(on, m, t) for on, m, t in zip(ons, part, old, strict=True)]
        for part, old in zip(zip(*moved, strict=True), before, strict=True)
    ]
    exact = [[t.to(torch.float64) for t in part] for part in kept]
    for name, old, got, p, e in zip(("p", "state", "second state"), before, ours, plain, exact, strict=False):
        flat = [torch.cat([t.flatten() for t in part]) for part in (got, p, e)]
        assert_two_times(*flat, f"{name} {dtype} {form} {options}")
        for a, b, on in zip(got, old, ons, strict=True):
            assert torch.equal(a[~on], b[~on])


class Guarded:
    """Puts tensors ``shift`` elements behind an aligned address, between guards that must survive."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.held: list[tuple[Tensor, Tensor]] = []

    def __call__(self, values: Tensor) -> Tensor:
        fill = 1 if values.dtype == torch.bool else 7
        memory = torch.full((self.shift + values.numel() + 8,), fill, dtype=values.dtype)
        view = memory[self.shift : self.shift + values.numel()].view(values.shape)
        self.held.append((memory, view))
        return view.copy_(values)

    def check(self) -> list[Tensor]:
        results = [view.clone() for _, view in self.held]
        for memory, view in self.held:
            guard = torch.full_like(memory, 1 if memory.dtype == torch.bool else 7)
            memory[self.shift : self.shift + view.numel()] = guard[0]
            assert torch.equal(memory, guard), "wrote beyond a tensor"
        return results


# ---- elementwise


def check_importances(
    op: Callable[..., None], importances: list[Tensor], grads: list[Tensor], power: int, put: Put = _stay
) -> None:
    plain = [x.clone() for x in importances]
    exact = [
        extended(x) + np.longdouble(0.3) * abs(extended(g)) ** power for x, g in zip(importances, grads, strict=True)
    ]
    mask.accumulate_importance_(plain, grads, power, 0.3)
    got = [put(x) for x in importances]
    op(got, [put(g) for g in grads], power, 0.3)
    assert_two_times(
        torch.cat([x.cpu() for x in got]),
        torch.cat(plain),
        torch.from_numpy(np.concatenate(exact).astype(float)),
        "importances",
    )


def check_shrink(op: Callable[..., None], xs: list[Tensor], threshold: list[float], put: Put = _stay) -> None:
    plain, exact = [x.clone() for x in xs], [x.to(torch.float64, copy=True) for x in xs]
    l1, nnz = put(torch.full((), math.nan, dtype=torch.float64)), put(torch.full((), -7))
    totals = torch.empty((), dtype=torch.float64), torch.empty((), dtype=torch.int64)
    mask.soft_threshold_(plain, threshold, *totals)
    mask.soft_threshold_(exact, threshold, *totals)  # one subtraction, which float64 rounds as plain PyTorch does
    got = [put(x) for x in xs]
    op(got, threshold, l1, nnz)
    stored = torch.cat([x.cpu() for x in got])
    assert_two_times(stored, torch.cat(plain), torch.cat(exact), "xs")
    assert nnz.item() == stored.count_nonzero().item()
    # plain: summed one after the other in float64, in several orders, as one order would measure its luck
    exact_sum = torch.tensor(float(np.abs(extended(stored)).sum()), dtype=torch.float64)
    sizes = stored.double().abs()
    plain_sums = [sizes[torch.randperm(len(sizes))].cumsum(0)[-1] for _ in range(16)]
    assert_two_times(l1.cpu(), plain_sums, [exact_sum] * 16, "l1")


# ---- neuron_stats

STAT_SHAPES = [
    (
        0,
        [
            (0,),
            (1,),
            (7,),
            (3, 0),
            (5, 3),
            (64, 27),
            (33, 64),
            (10, 577),
            (3, 4099),
            (2, 20_000),
            (300, 1),
            (6, 2, 3, 3),
        ],
    ),
    (
        1,
        [
            (0, 3),
            (4, 0, 5),
            (2, 3, 0),
            (1, 1),
            (7, 5),
            (300, 10),
            (520, 33),
            (9, 130),
            (2, 3, 4, 4),
            (70, 6, 7, 7),
            (3, 2, 65, 64),
        ],
    ),
    (1, [(600, 2, 3), (5, 4, 1000), (2, 2, 9001), (33, 17, 8)]),
]


def check_stats(
    op: Callable[..., None], dim: int, shapes: Sequence[Sequence[int]], dtype: torch.dtype, put: Put = _stay
) -> None:
    wide = wide_dtype(dtype)
    xs = [torch.randn(tuple(s), dtype=torch.float64).to(dtype) for s in shapes]
    outputs = [[put(torch.full((s[dim],), -3.0, dtype=wide)) for s in shapes] for _ in range(2)]
    op([put(x) for x in xs], dim, *outputs)
    for i, x in enumerate(xs):
        rows = x.movedim(dim, 0).unsqueeze(-1).flatten(1).to(wide)
        # few rows would measure plain PyTorch's luck: its error is taken over more of their kind
        more = [
            rows,
            *(
                torch.randn(rows.shape, dtype=torch.float64).to(dtype).to(wide)
                for _ in range(max(0, min(40, 40 // max(1, len(rows)))))
            ),
        ]
        count = np.longdouble(rows.shape[1]) if rows.shape[1] else np.longdouble("nan")
        wides = [extended(r) for r in more]
        plain = [[r.abs().mean(1) for r in more], [r.square().sum(1) for r in more]]
        exact = [
            [torch.from_numpy((np.abs(w).sum(1) / count).astype(float)) for w in wides],
            [torch.from_numpy((w * w).sum(1).astype(float)) for w in wides],
        ]
        for name, got, ps, es in zip(("mean_abs", "sum_sq"), outputs, plain, exact, strict=True):
            assert_two_times(got[i].cpu(), ps, es, f"{name} {tuple(x.shape)} {dtype} dim {dim}")


# ---- saliency_mask


def saliency_lists(dtypes: Sequence[torch.dtype]) -> list[list[Tensor]]:
    """Lists with few and many ties, zeros, infinities and NaN."""

    def cast(values: Tensor, i: int) -> Tensor:
        return values.to(dtypes[i % len(dtypes)])

    sizes = [3, 0, 1, 4097, 5000, 17]
    normal = [cast(torch.randn(n, dtype=torch.float64), i) for i, n in enumerate(sizes)]
    tied = [cast(torch.randn(n, dtype=torch.float64).mul(2).round() / 2, i) for i, n in enumerate(sizes)]
    zeros = [cast(torch.zeros(n, dtype=torch.float64), i) for i, n in enumerate(sizes)]
    special = [x.clone() for x in tied]
    for x in special:
        x[::5] = math.nan
        x[1::7] = math.inf
        x[2::7] = -math.inf
        x[3::9] = -0.0
    tiny = [cast(torch.randn(n, dtype=torch.float64) * 1e-41, i) for i, n in enumerate(sizes)]
    return [normal, tied, zeros, special, tiny]


def check_saliency(op: Callable[..., None], xs: list[Tensor], k: int, packed: Sequence[bool], put: Put = _stay) -> None:
    wide = torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32

    def masks() -> list[Tensor]:
        flags = [packed[i % len(packed)] for i in range(len(xs))]
        return [
            torch.full((-(-x.numel() // 8),), 0xA5, dtype=torch.uint8) if flag else torch.rand(x.shape) < 0.5
            for x, flag in zip(xs, flags, strict=True)
        ]

    got, threshold = [put(m) for m in masks()], put(torch.full((), -3.0, dtype=wide))
    op([put(x) for x in xs], k, got, threshold)
    expected, limit = masks(), torch.empty((), dtype=wide)
    mask_select.saliency_mask(xs, k, expected, limit)
    assert torch.equal(threshold.cpu().nan_to_num(-1.0, posinf=-2.0), limit.nan_to_num(-1.0, posinf=-2.0)), (
        threshold,
        limit,
        k,
    )
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b), (k, a.shape)


def published(p, forget, retain, alpha, lam):
    """Selective synaptic dampening as its paper states it: choose, then scale the chosen by at most one."""
    p = p.clone()
    chosen = torch.where(forget > alpha * retain)
    factor = lam * retain / forget
    scale = factor[chosen]
    scale[scale > 1.0] = 1.0
    p[chosen] = p[chosen] * scale
    return p, chosen[0].numel()
