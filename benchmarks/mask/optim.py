"""Optimiser steps under a mask: one weight matrix with rows or single weights off, and whole networks against the procedure of
gradient-masked unlearning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastforget.ops import mask
from fastforget.reference.mask import optim as reference
from fastforget.reference.mask.select import pack_bits

from .. import shapes
from ..cases import Call, Case, Judge, Options, Place, Work, compiled, limit

LR, MOMENTUM, DECAY, BETAS, EPS = 1e-3, 0.9, 5e-4, (0.9, 0.999), 1e-8
CHECKED_STEPS = 2
SIZES = {"2.4M": (512, 4608), "16.8M": (4096, 4096)}
ROWS_ON = {"rows, all on": 1.0, "rows, 30 % on": 0.3}
PUBLISHED = "a step of SalUn: gradients times mask, torch.optim's step, frozen weights put back from a copy"


def eager(p: Tensor, g: Tensor, m: Tensor) -> None:
    p.sub_(LR * m * g)


def one_matrix(place: Place, shape: tuple[int, int], form: str, share: float, options: Options) -> Work:
    """``form``: rows, bytes or bits. The rivals get the float mask that they are fastest with."""
    p, g = place.normal(*shape), place.normal(*shape)
    start = p.clone()
    rows = place.uniform(shape[0]) < share
    on = rows if form == "rows" else place.uniform(*shape) < share
    ours = pack_bits(on.flatten()) if form == "bits" else on
    floats = on.float()[:, None].clone() if form == "rows" else place.empty(*shape).copy_(on)

    truth = start.double()
    reference.masked_sgd_([truth], [g.double()], [on], [], LR, 0.0, 0.0, 0.0, False, False, False)
    run: dict[str, Call] = {
        "ours": lambda: mask.masked_sgd_(p, g, ours, lr=LR),
        "eager": lambda: eager(p, g, floats),
        "addcmul": lambda: p.addcmul_(floats, g, value=-LR),
        **limit((p, g), "2r1w"),
    }
    if form != "rows":
        run["bool mask"] = lambda: eager(p, g, on)
    if options.compiled:
        # as a user has it: a bool mask, which the compiled loop reads
        plain = compiled(eager)
        column = on[:, None] if form == "rows" else on
        run["compiled"] = lambda: plain(p, g, column)
    return Work(run, Judge([truth], lambda _name, _result: [p]), lambda: p.copy_(start))


def matrix(label: str, shape: tuple[int, int], form: str, share: float, options: Options, large: bool) -> Case:
    count = shape[0] * shape[1]
    per_weight = {"rows": 12 * share, "bytes": 13, "bits": 12.125}[form]
    return Case(
        "masked_sgd_",
        label,
        f"{shape[0]}x{shape[1]}",
        "float32",
        count,
        lambda place: one_matrix(place, shape, form, share, options),
        bytes_touched=int(per_weight * count),
        family="mask",
        large=large,
    )


class Published:
    """The published procedure with torch.optim, in our words. Weight decay and momentum move frozen weights, so they are put back."""

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor], floats: Sequence[Tensor], make: Callable) -> None:
        self.given = grads
        self.params = [torch.nn.Parameter(p) for p in params]
        self.grads, self.floats = [g.clone() for g in grads], floats
        self.off = [f == 0 for f in floats]
        self.optimizer: torch.optim.Optimizer = make(self.params)

    def __call__(self) -> None:
        kept = [p.detach().clone() for p in self.params]
        for p, g, f in zip(self.params, self.grads, self.floats, strict=True):
            p.grad = g.mul_(f)
        self.optimizer.step()
        for p, k, off in zip(self.params, kept, self.off, strict=True):
            p.data.copy_(torch.where(off, k, p.data))

    def restart(self) -> None:
        self.optimizer.state.clear()
        for g, given in zip(self.grads, self.given, strict=True):
            g.copy_(given)


def network(place: Place, shape_list: Sequence[Sequence[int]], op: str) -> Work:
    params = [place.normal(*s) for s in shape_list]
    # of the weight's sign and away from zero: Adam divides by |gradient|, and no rounding is blown up
    grads = [place.normal(*s).abs_().add_(0.5).copysign_(p) for s, p in zip(shape_list, params, strict=True)]
    on = [place.uniform(*s) < 0.5 for s in shape_list]
    first, second = ([place.zeros(*s) for s in shape_list] for _ in range(2))
    start, count = [p.clone() for p in params], {"steps": 0}
    masks, floats = on, [m.float() for m in on]
    adam = op == "masked_adam_"

    def ours() -> None:
        count["steps"] += 1
        if adam:
            mask.masked_adam_(params, grads, masks, first, second, step=count["steps"], lr=LR, weight_decay=DECAY)
        else:
            begin = count["steps"] == 1
            rest = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
            mask.masked_sgd_(params, grads, masks, momentum_buffers=first, first=begin, **rest)  # type: ignore[arg-type]

    def make(fused: bool) -> Callable:
        if adam:
            return lambda ps: torch.optim.Adam(ps, lr=LR, weight_decay=DECAY, fused=fused)
        return lambda ps: torch.optim.SGD(ps, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=fused)

    rivals = {"eager": Published(params, grads, floats, make(False)), "fused": Published(params, grads, floats, make(True))}

    def reset() -> None:
        count["steps"] = 0
        for p, s in zip(params, start, strict=True):
            p.copy_(s)
        for state in (*first, *second):
            state.zero_()
        for rival in rivals.values():
            rival.restart()

    truth, wide = [s.double() for s in start], [g.double() for g in grads]
    m, v = ([torch.zeros_like(t) for t in truth] for _ in range(2))
    for t in range(1, CHECKED_STEPS + 1):
        if adam:
            reference.masked_adam_(truth, wide, on, m, v, t, LR, *BETAS, EPS, DECAY, False, False)
        else:
            reference.masked_sgd_(truth, wide, on, m, LR, MOMENTUM, 0.0, DECAY, False, False, t == 1)
    run: dict[str, Call] = {"ours": ours, **rivals}

    def after(name: str, _result: object) -> Sequence[Tensor]:
        for _ in range(CHECKED_STEPS - 1):
            run[name.split("@")[0]]()
        return params

    flat = [place.zeros(sum(p.numel() for p in params)) for _ in range(4 if adam else 3)]
    run |= limit(flat, "4r3w" if adam else "3r1w")
    return Work(run, Judge(truth, after), reset)


def step(op: str, label: str, shape_list: Sequence[Sequence[int]], large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    return Case(
        op,
        label,
        f"{len(shape_list)} tensors, {count}",
        "float32",
        count,
        lambda place: network(place, shape_list, op),
        bytes_touched=(29 if op == "masked_adam_" else 21) * count,
        family="mask",
        large=large,
        published=PUBLISHED,
    )


def cases(options: Options) -> list[Case]:
    rows = []
    for size, shape in SIZES.items():
        large = size != "2.4M"
        rows += [matrix(f"{size}, {label}", shape, "rows", share, options, large) for label, share in ROWS_ON.items()]
        rows += [matrix(f"{size}, {form}", shape, form, 0.5, options, large) for form in ("bytes", "bits")]
    return [*rows, *(step(op, "ResNet-18", shapes.RESNET18, True) for op in ("masked_sgd_", "masked_adam_"))]
