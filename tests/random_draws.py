"""Random arguments for tests/random_calls.py: a valid call of each op, and what may spoil it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OTHERS = [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.complex64]


class Draw:
    """The arguments of one call: a valid one, and then perhaps something that spoils it."""

    def __init__(self, seed: int) -> None:
        self.public = False
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def shape(self, most: int = 3) -> tuple[int, ...]:
        sizes = [self.pick(0, 1, 2, 3, 5, 7, 17, 33) for _ in range(self.random.randrange(most + 1))]
        if sizes and self.chance(0.1):
            sizes[self.random.randrange(len(sizes))] = 600  # one at most: three would be gigabytes
        return tuple(sizes)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if self.chance(0.1) and x.numel():
            bad = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, 1e30], dtype=torch.float64)
            at = torch.randint(x.numel(), (1 + x.numel() // 9,), generator=self.generator)
            x.view(-1)[at] = bad[torch.randint(len(bad), at.shape, generator=self.generator)]
        return x.to(dtype)

    def positive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.normal(shape, dtype).abs()

    def flags(self, shape: tuple[int, ...]) -> Tensor:
        on = torch.rand(shape, generator=self.generator) < self.pick(0.0, 0.2, 0.5, 1.0)
        return (on.to(torch.uint8) * self.pick(1, 1, 2, 255)).view(torch.bool)

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(max(high, 1), shape, generator=self.generator)

    def dtype(self) -> torch.dtype:
        return self.pick(*FLOATS)

    def wide(self) -> torch.dtype:
        return self.pick(torch.float32, torch.float64)

    def list_of(self, make: Callable[[int], Tensor]) -> list[Tensor]:
        return [make(i) for i in range(self.pick(0, 1, 1, 2, 3, 9))]

    # ---- spoiling

    def strided(self, x: Tensor) -> Tensor:
        """Another view with the same shape."""
        kind = self.random.randrange(5)
        if kind == 0 and x.dim() > 1:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        if kind == 1 and x.dim() > 0:
            return torch.stack((x, x), -1)[..., 0]
        if kind == 2 and x.dim() > 0:
            return x[:1].expand_as(x) if x.shape[0] else x
        if kind == 3:
            room = torch.zeros(x.numel() + 3, dtype=x.dtype)
            return room[self.random.randrange(1, 4) :][: x.numel()].view(x.shape).copy_(x)
        return x.clone()

    def overlapping(self, tensors: list[Tensor], like: Tensor) -> Tensor | None:
        """A view of the memory of one of them with this shape."""
        base = self.pick(*tensors)
        size = like.element_size()
        room = base.untyped_storage().nbytes() // size
        if like.numel() == 0 or room < like.numel():
            return None
        start = self.random.randrange(min(4, room - like.numel() + 1))
        return torch.tensor([], dtype=like.dtype).set_(base.untyped_storage(), start, like.shape)

    def spoiled_tensor(self, x: Tensor, every: list[Tensor]) -> Any:
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.device.type == "meta":  # spoiled already
            return x
        kind = self.random.randrange(12)
        if kind < 4:
            return self.strided(x)
        if kind < 8:
            others = [t for t in every if self.public or t.shape == x.shape]  # see kind 10
            like = self.pick(*every) if self.public else x
            return self.overlapping(every, like) if kind < 6 else self.pick(*others) if others else x
        if kind == 8:
            return x.to(self.pick(*FLOATS, *OTHERS))
        if kind == 9 and x.numel() > 0:
            return x.reshape(-1)[:-1].clone()
        if kind in (9, 10):  # a raw op counts elements where it isn't told their shape
            return x.unsqueeze(0) if self.public else x.clone()
        return self.pick(None, 3.0, x.to_sparse() if x.dim() and x.dtype.is_floating_point else x, x.to("meta"))

    def spoiled(self, args: list[Any]) -> list[Any]:
        every = [t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
        every = [t for t in every if t.layout == torch.strided and t.device.type == "cpu"]
        if not every:
            return args
        i = self.random.randrange(len(args))
        value = args[i]
        if isinstance(value, Tensor):
            new = self.spoiled_tensor(value, every)
            args[i] = value if new is None and self.chance(0.8) else new
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            kind = self.random.randrange(6)
            j = self.random.randrange(len(value))
            if kind == 0:
                value.pop(j)
            elif kind == 1:
                value.append(value[j])
            elif kind == 2:
                args[i] = []
            else:
                new = self.spoiled_tensor(value[j], every)
                value[j] = value[j] if new is None else new
        elif isinstance(value, bool):
            args[i] = not value
        elif isinstance(value, (int, float)):
            wild = (-1, 0, 1, 2, 2**31, 2**62) if isinstance(value, int) else (-1.0, 0.0, math.nan, math.inf, 1e30)
            args[i] = self.pick(*wild)
        return args


# ---- one valid call of each op: what comes before the spoiling


def single(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def out(d: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, 3, dtype=dtype)


def beside(d: Draw, xs: list[Tensor], make: Callable[..., Tensor] | None = None) -> list[Tensor]:
    return [(make or d.normal)(tuple(x.shape), x.dtype) for x in xs]


def masks(d: Draw, xs: list[Tensor], factors: bool) -> list[Tensor]:
    made = []
    for x in xs:
        kind = d.random.randrange(5 if factors else 4)
        if kind == 0 or (kind > 2 and x.dim() == 0):
            made.append(torch.empty(0, dtype=torch.int8))
        elif kind == 1:
            made.append(d.flags(tuple(x.shape)))
        elif kind == 2:
            made.append(torch.randint(256, (-(-x.numel() // 8),), generator=d.generator).to(torch.uint8))
        elif kind == 3:
            made.append(d.flags((x.shape[0],)))
        else:
            made.append(d.normal((x.shape[0],), torch.float32))
    return made


def noise_tail(d: Draw, n: int) -> tuple[Any, ...]:
    return d.random.randrange(2**40), d.random.randrange(9), d.random.randrange(9), [d.random.randrange(99)] * d.pick(1, max(n, 1))


def random_bits(d: Draw) -> list[Any]:
    return [out(d, (d.random.randrange(200),), torch.int32), d.random.randrange(2**40), 1, 2, d.random.randrange(99)]


def normal(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5], [2.0] * d.pick(1, max(len(xs), 1)), *noise_tail(d, len(xs))]


def add_normal(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5], *noise_tail(d, len(xs))]


def perturb(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    elements = beside(d, xs, d.positive) if d.chance(0.5) else []
    grads = beside(d, xs) if d.chance(0.8) else []
    return [xs, grads, 0.1, [] if elements else [0.5], elements, *noise_tail(d, len(xs))]


def loss(d: Draw) -> list[Any]:
    dtype, b, k = d.dtype(), d.pick(0, 1, 3, 40), d.pick(1, 2, 10, 33, 100, 5000)
    return [d.normal((b, k), dtype), d.integers(k, (b,)), out(d, (b,), single(dtype)), out(d, (b, k), dtype)]


def step(d: Draw) -> list[Any]:
    dtype, shape = d.dtype(), (d.pick(0, 1, 3, 9), *d.shape(2))
    # an infinite x has no penalty's gradient: the constant is multiplied in two parts
    tensors = [d.normal(shape, dtype).nan_to_num(1.0, 1.0, 1.0), *(d.normal(shape, dtype) for _ in range(2))]
    beta2 = d.pick(0.0, 0.5, 0.999)
    # with beta2 = 0 the step divides by the gradient itself: a penalty that nearly cancels it would leave its rounding alone
    numbers = (d.pick(1, 2, 50), 0.125, d.pick(0.0, 0.3, 0.9), beta2, 1e-8, 0.25 if beta2 else 0.0, -math.inf, math.inf)
    return [*tensors, d.positive(shape, dtype), out(d, (), single(dtype)), *numbers]


def distilled(d: Draw) -> list[Any]:
    dtype, b, k = d.dtype(), d.pick(0, 1, 3, 40), d.pick(1, 2, 10, 33, 100, 5000)
    several = d.pick(torch.empty(0, dtype=torch.bool), d.flags((k,)))
    drop = d.pick(several, d.integers(k + 1, (b,)) - 1, (d.integers(k + 1, (b,)) - 1).to(torch.int32))
    logits, teacher = d.normal((b, k), dtype), d.normal((b, k), dtype)
    return [logits, teacher, drop, d.pick(1.0, 2.0, 0.5), out(d, (b,), single(dtype)), out(d, (b, k), dtype)]


def products(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, beside(d, xs), out(d, (3,), torch.float64)]


def dampen(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, beside(d, xs, d.positive), beside(d, xs, d.positive), out(d, (), torch.int64), d.pick(1.0, 2.0), 0.5]


def importance(d: Draw) -> list[Any]:
    grads = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    wide = d.chance(0.5)
    kept = [d.positive(tuple(g.shape), torch.float32 if wide and g.element_size() == 2 else g.dtype) for g in grads]
    return [kept, grads, d.pick(1, 2), 0.5]


def shrink(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5] * d.pick(1, max(len(xs), 1)), out(d, (), torch.float64), out(d, (), torch.int64)]


def rows(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal((d.pick(0, 1, 3, 9), *d.shape(2)), d.dtype()))
    return [xs, 0, *([out(d, (x.shape[0],), single(x.dtype)) for x in xs] for _ in range(2))]


def saliency(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    n = sum(x.numel() for x in xs)
    made = [out(d, (-(-x.numel() // 8),), torch.uint8) if d.chance(0.5) else out(d, tuple(x.shape), torch.bool) for x in xs]
    return [xs, d.random.randrange(n + 1), made, out(d, (), torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32)]


def ratios(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.positive(d.shape(), d.dtype()))
    made = [out(d, (-(-x.numel() // 8),), torch.uint8) if d.chance(0.5) else out(d, tuple(x.shape), torch.bool) for x in xs]
    return [xs, beside(d, xs, d.positive), made, d.pick(0.0, 1.0, 3.0), d.pick(0.0, 1e-15)]


def sgd(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    buffers = beside(d, xs) if d.chance(0.5) else []
    flags = d.chance(0.3), d.chance(0.3), d.chance(0.3)
    return [xs, beside(d, xs), masks(d, xs, True), buffers, 0.125, 0.5 if buffers else 0.0, 0.25, d.pick(0.0, 0.25), *flags]


def adam(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    betas = d.pick(0.0, 0.3, 0.9), d.pick(0.0, 0.5, 0.999)
    state = beside(d, xs), beside(d, xs, d.positive)
    flags = d.chance(0.5), d.chance(0.3)
    decay = d.pick(0.0, 0.25) if betas[1] else 0.0  # as in step
    return [xs, beside(d, xs), masks(d, xs, False), *state, d.pick(1, 2, 50), 0.125, *betas, 1e-8, decay, *flags]


def scores(d: Draw) -> list[Any]:
    dtype, n, k = d.dtype(), d.pick(0, 1, 3, 40), d.pick(2, 10, 33, 300)
    return [d.normal((n, k), dtype), d.integers(k, (n,)), d.pick(1.0, 2.0), out(d, (6, n), single(dtype)), out(d, (n,), torch.bool)]


def roc(d: Draw) -> list[Any]:
    dtype, fprs = d.wide(), [0.1, 0.5][: d.random.randrange(3)]
    sides = [torch.randn(d.pick(1, 2, 50), generator=d.generator).mul(4).round().to(dtype) for _ in range(2)]
    return [*sides, fprs, out(d, (4 + 2 * len(fprs),), torch.float64)]


def bootstrap(d: Draw) -> list[Any]:
    *sides, fprs, _ = roc(d)
    return [*sides, fprs, d.random.randrange(2**40), out(d, (d.pick(0, 1, 5), 1 + len(fprs)), torch.float64)]


def counts(d: Draw) -> list[Any]:
    dtype, b, n, z = d.wide(), d.pick(1, 2), d.pick(0, 1, 40), d.pick(0, 1, 60)
    gammas = [1.0, 2.0][: d.random.randrange(3)]
    return [d.positive((b, n), dtype), d.positive((b, z), dtype), gammas, d.chance(0.5), out(d, (len(gammas), b, n), torch.int64)]


def vote(d: Draw) -> list[Any]:
    dtype, a, n, z = d.wide(), d.pick(1, 2, 3), d.pick(0, 1, 40), d.pick(0, 1, 60)
    return [d.positive((a, n), dtype), d.positive((a, z), dtype), d.pick(1.0, 2.0), d.chance(0.5), out(d, (n,), torch.int64)]


def shadow(d: Draw) -> tuple[torch.dtype, int, int, int, Tensor, Tensor]:
    dtype, m, n, a = d.wide(), d.pick(0, 1, 2, 9, 40), d.pick(0, 1, 9, 70), d.pick(1, 1, 3)
    scores = d.normal((m, n, a), dtype)
    scores[scores.isfinite() & (scores > 1e15)] = 1e10  # squares beyond float32's range are infinite or NaN as they come
    return dtype, m, n, a, scores, d.flags((m, n))


def stats(d: Draw) -> list[Any]:
    dtype, _, n, a, scores, member = shadow(d)
    return [scores, member, d.chance(0.5), *(out(d, (2, n, a), dtype) for _ in range(2)), out(d, (2, n), torch.int64)]


def ratio(d: Draw) -> list[Any]:
    dtype, m, n, a, scores, _ = shadow(d)
    one = d.chance(0.3)
    variance = d.positive((2,) if one else (2, n, a), dtype) + 0.5
    return [scores, d.normal((2, n, a), dtype), variance, d.integers(5, (2, n)), d.pick(0, 1, 2), 1e-6, d.pick(1, 2), out(d, (m, n), dtype)]


def loo(d: Draw) -> list[Any]:
    dtype, m, n, _, scores, member = shadow(d)
    variance = d.positive((2,), dtype) + 0.5 if d.chance(0.3) else torch.empty(0, dtype=dtype)
    return [scores, member, d.chance(0.5), variance, d.pick(0, 1, 2), 1e-6, d.pick(1, 2), out(d, (m, n), dtype)]


def update(d: Draw) -> list[Any]:
    _, m, n, a, scores, _ = shadow(d)
    group = torch.randint(-1, 2, (m, n), generator=d.generator).to(torch.int8)
    state = d.normal((2, n, a), torch.float64), d.positive((2, n, a), torch.float64)
    return [scores, group, d.integers(9, (2, n)), *state]


RAW: dict[str, Callable[[Draw], list[Any]]] = {
    "random_bits": random_bits, "normal_": normal, "add_normal_": add_normal, "perturb_step_": perturb, "error_max_loss": loss,
    "error_max_step_": step, "distill_loss": distilled, "gradient_products": products, "dampen_": dampen,
    "accumulate_importance_": importance, "soft_threshold_": shrink, "neuron_stats": rows, "saliency_mask": saliency, "ratio_mask": ratios,
    "masked_sgd_": sgd, "masked_adam_": adam, "membership_scores": scores, "roc_stats": roc, "roc_bootstrap": bootstrap,
    "rmia_counts": counts, "rmia_vote": vote, "lira_stats": stats, "lira_ratio": ratio, "lira_loo": loo, "lira_update_": update,
}  # fmt: skip
