"""Random calls of every op, public and raw: each gives what the reference gives, or is refused in words with nothing changed.

    python tests/random_calls.py [--count N] [--seed S] [--only K]

Call K of seed S is the same whatever the count is, so ``--only K`` replays a failure alone. test_sanitized.py runs this under the sanitizers.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastforget as ff
from fastforget import _schema
from fastforget.ops import mask, membership, noise, update

OPS = torch.ops.fastforget
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
        return tuple(self.pick(0, 1, 2, 3, 5, 7, 17, 33) if self.chance(0.9) else 600 for _ in range(self.random.randrange(most + 1)))

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

    def overlapping(self, tensors: list[Tensor]) -> Tensor | None:
        """A view of the memory of one of them with the shape of another."""
        base, like = self.pick(*tensors), self.pick(*tensors)
        size = like.element_size()
        room = base.untyped_storage().nbytes() // size
        if like.numel() == 0 or room < like.numel():
            return None
        start = self.random.randrange(min(4, room - like.numel() + 1))
        return torch.tensor([], dtype=like.dtype).set_(base.untyped_storage(), start, like.shape)

    def spoiled_tensor(self, x: Tensor, every: list[Tensor]) -> Any:
        kind = self.random.randrange(12)
        if kind < 4 and x.layout == torch.strided:
            return self.strided(x)
        if kind < 8:
            others = [t for t in every if self.public or t.shape == x.shape or t.numel() != x.numel()]  # see kind 10
            return self.overlapping(every) if kind < 6 else self.pick(*others) if others else x
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


def _random_bits(d: Draw) -> list[Any]:
    return [out(d, (d.random.randrange(200),), torch.int32), d.random.randrange(2**40), 1, 2, d.random.randrange(99)]


def _normal(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5], [2.0] * d.pick(1, max(len(xs), 1)), *noise_tail(d, len(xs))]


def _add_normal(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5], *noise_tail(d, len(xs))]


def _perturb(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    elements = beside(d, xs, d.positive) if d.chance(0.5) else []
    grads = beside(d, xs) if d.chance(0.8) else []
    return [xs, grads, 0.1, [] if elements else [0.5], elements, *noise_tail(d, len(xs))]


def _loss(d: Draw) -> list[Any]:
    dtype, b, k = d.dtype(), d.pick(0, 1, 3, 40), d.pick(1, 2, 10, 33, 100, 5000)
    return [d.normal((b, k), dtype), d.integers(k, (b,)), out(d, (b,), single(dtype)), out(d, (b, k), dtype)]


def _step(d: Draw) -> list[Any]:
    dtype, shape = d.dtype(), (d.pick(0, 1, 3, 9), *d.shape(2))
    # an infinite x has no penalty's gradient: the constant is multiplied in two parts
    tensors = [d.normal(shape, dtype).nan_to_num(1.0, 1.0, 1.0), *(d.normal(shape, dtype) for _ in range(2))]
    numbers = (d.pick(1, 2, 50), 0.125, d.pick(0.0, 0.3, 0.9), d.pick(0.0, 0.5, 0.999), 1e-8, 0.25, -math.inf, math.inf)
    return [*tensors, d.positive(shape, dtype), out(d, (), single(dtype)), *numbers]


def _dampen(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, beside(d, xs, d.positive), beside(d, xs, d.positive), out(d, (), torch.int64), d.pick(1.0, 2.0), 0.5]


def _importance(d: Draw) -> list[Any]:
    grads = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    wide = d.chance(0.5)
    kept = [d.positive(tuple(g.shape), torch.float32 if wide and g.element_size() == 2 else g.dtype) for g in grads]
    return [kept, grads, d.pick(1, 2), 0.5]


def _shrink(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    return [xs, [0.5] * d.pick(1, max(len(xs), 1)), out(d, (), torch.float64), out(d, (), torch.int64)]


def _rows(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal((d.pick(0, 1, 3, 9), *d.shape(2)), d.dtype()))
    return [xs, 0, *([out(d, (x.shape[0],), single(x.dtype)) for x in xs] for _ in range(2))]


def _saliency(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    n = sum(x.numel() for x in xs)
    made = [out(d, (-(-x.numel() // 8),), torch.uint8) if d.chance(0.5) else out(d, tuple(x.shape), torch.bool) for x in xs]
    return [xs, d.random.randrange(n + 1), made, out(d, (), torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32)]


def _sgd(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    buffers = beside(d, xs) if d.chance(0.5) else []
    flags = d.chance(0.3), d.chance(0.3), d.chance(0.3)
    return [xs, beside(d, xs), masks(d, xs, True), buffers, 0.125, 0.5 if buffers else 0.0, 0.25, d.pick(0.0, 0.25), *flags]


def _adam(d: Draw) -> list[Any]:
    xs = d.list_of(lambda _: d.normal(d.shape(), d.dtype()))
    betas = d.pick(0.0, 0.3, 0.9), d.pick(0.0, 0.5, 0.999)
    state = beside(d, xs), beside(d, xs, d.positive)
    return [xs, beside(d, xs), masks(d, xs, False), *state, d.pick(1, 2, 50), 0.125, *betas, 1e-8, d.pick(0.0, 0.25), d.chance(0.5), d.chance(0.3)]


def _scores(d: Draw) -> list[Any]:
    dtype, n, k = d.dtype(), d.pick(0, 1, 3, 40), d.pick(2, 10, 33, 300)
    return [d.normal((n, k), dtype), d.integers(k, (n,)), d.pick(1.0, 2.0), out(d, (6, n), single(dtype)), out(d, (n,), torch.bool)]


def _roc(d: Draw) -> list[Any]:
    dtype, fprs = d.wide(), [0.1, 0.5][: d.random.randrange(3)]
    sides = [torch.randn(d.pick(1, 2, 50), generator=d.generator).mul(4).round().to(dtype) for _ in range(2)]
    return [*sides, fprs, out(d, (4 + 2 * len(fprs),), torch.float64)]


def _bootstrap(d: Draw) -> list[Any]:
    *sides, fprs, _ = _roc(d)
    return [*sides, fprs, d.random.randrange(2**40), out(d, (d.pick(0, 1, 5), 1 + len(fprs)), torch.float64)]


def _counts(d: Draw) -> list[Any]:
    dtype, b, n, z = d.wide(), d.pick(1, 2), d.pick(0, 1, 40), d.pick(0, 1, 60)
    gammas = [1.0, 2.0][: d.random.randrange(3)]
    return [d.positive((b, n), dtype), d.positive((b, z), dtype), gammas, d.chance(0.5), out(d, (len(gammas), b, n), torch.int64)]


def _vote(d: Draw) -> list[Any]:
    dtype, a, n, z = d.wide(), d.pick(1, 2, 3), d.pick(0, 1, 40), d.pick(0, 1, 60)
    return [d.positive((a, n), dtype), d.positive((a, z), dtype), d.pick(1.0, 2.0), d.chance(0.5), out(d, (n,), torch.int64)]


def shadow(d: Draw) -> tuple[torch.dtype, int, int, int, Tensor, Tensor]:
    dtype, m, n, a = d.wide(), d.pick(0, 1, 2, 9, 40), d.pick(0, 1, 9, 70), d.pick(1, 1, 3)
    return dtype, m, n, a, d.normal((m, n, a), dtype), d.flags((m, n))


def _stats(d: Draw) -> list[Any]:
    dtype, _, n, a, scores, member = shadow(d)
    return [scores, member, d.chance(0.5), *(out(d, (2, n, a), dtype) for _ in range(2)), out(d, (2, n), torch.int64)]


def _ratio(d: Draw) -> list[Any]:
    dtype, m, n, a, scores, _ = shadow(d)
    one = d.chance(0.3)
    variance = d.positive((2,) if one else (2, n, a), dtype) + 0.5
    return [scores, d.normal((2, n, a), dtype), variance, d.integers(5, (2, n)), d.pick(0, 1, 2), 1e-6, d.pick(1, 2), out(d, (m, n), dtype)]


def _loo(d: Draw) -> list[Any]:
    dtype, m, n, _, scores, member = shadow(d)
    variance = d.positive((2,), dtype) + 0.5 if d.chance(0.3) else torch.empty(0, dtype=dtype)
    return [scores, member, d.chance(0.5), variance, d.pick(0, 1, 2), 1e-6, d.pick(1, 2), out(d, (m, n), dtype)]


def _update(d: Draw) -> list[Any]:
    _, m, n, a, scores, _ = shadow(d)
    group = torch.randint(-1, 2, (m, n), generator=d.generator).to(torch.int8)
    state = d.normal((2, n, a), torch.float64), d.positive((2, n, a), torch.float64)
    return [scores, group, d.integers(9, (2, n)), *state]


RAW: dict[str, Callable[[Draw], list[Any]]] = {
    "random_bits": _random_bits, "normal_": _normal, "add_normal_": _add_normal, "perturb_step_": _perturb, "error_max_loss": _loss,
    "error_max_step_": _step, "dampen_": _dampen, "accumulate_importance_": _importance, "soft_threshold_": _shrink,
    "neuron_stats": _rows, "saliency_mask": _saliency, "masked_sgd_": _sgd, "masked_adam_": _adam, "membership_scores": _scores,
    "roc_stats": _roc, "roc_bootstrap": _bootstrap, "rmia_counts": _counts, "rmia_vote": _vote, "lira_stats": _stats,
    "lira_ratio": _ratio, "lira_loo": _loo, "lira_update_": _update,
}  # fmt: skip


# ---- public functions from the same draws: their arguments, and the call


def _no_empty(given: list[Tensor]) -> list[Tensor | None]:
    return [None if isinstance(m, Tensor) and m.dtype == torch.int8 else m for m in given]


PUBLIC: dict[str, tuple[Callable[[Draw], list[Any]], Callable[..., Any]]] = {
    "normal_": (lambda d: _normal(d)[:1], lambda x: noise.normal_(x, 2.0, 0.5, seed=7)),
    "add_normal_": (lambda d: _add_normal(d)[:1], lambda x: noise.add_normal_(x, 0.5, seed=7, start=3)),
    "perturb_step_": (lambda d: _perturb(d)[:2], lambda x, g: noise.perturb_step_(x, g, lr=0.1, std=0.5, seed=7)),
    "error_max_loss": (lambda d: _loss(d)[:2], update.error_max_loss),
    "error_max_step_": (
        lambda d: _step(d)[:4], lambda x, g, m, v: update.error_max_step_(x, g, m, v, step=2, lr=0.1, betas=(0.0, 0.9), clamp=(-1, 1)),
    ),
    "dampen_": (lambda d: _dampen(d)[:3], lambda x, f, r: mask.dampen_(x, f, r, alpha=1, lam=0.5)),
    "accumulate_importance_": (lambda d: _importance(d)[:2], mask.accumulate_importance_),
    "soft_threshold_": (lambda d: _shrink(d)[:1], lambda x: mask.soft_threshold_(x, 0.5)),
    "neuron_stats": (lambda d: _rows(d)[:1], lambda x: mask.neuron_stats(x)),
    "saliency_mask": (lambda d: _saliency(d)[:1], lambda x: mask.saliency_mask(x, 0.3)),
    "masked_sgd_": (
        lambda d: [*_sgd(d)[:3], d.pick(None, 0)],
        lambda x, g, m, _: mask.masked_sgd_(x, g, _no_empty(m) if isinstance(m, list) else m, lr=0.1, weight_decay=0.1),
    ),
    "masked_adam_": (
        lambda d: _adam(d)[:5],
        lambda x, g, m, a, s: mask.masked_adam_(x, g, _no_empty(m) if isinstance(m, list) else m, a, s, step=2, lr=0.1, betas=(0.0, 0.9)),
    ),
    "membership_scores": (lambda d: _scores(d)[:2], membership.membership_scores),
    "roc_stats": (lambda d: _roc(d)[:2], membership.roc_stats),
    "roc_bootstrap": (lambda d: _roc(d)[:2], lambda m, n: membership.roc_bootstrap(m, n, resamples=5)),
    "rmia_counts": (lambda d: _counts(d)[:2], lambda x, z: membership.rmia_counts(x, z, gamma=(1.0, 2.0))),
    "lira": (lambda d: _loo(d)[:2], lambda s, m: membership.lira("loo", s, m)),
    "Lira": (lambda d: _loo(d)[:2], lambda s, m: membership.Lira(*s.shape[1:3]).update(s, m).score(s[:1])),
}  # fmt: skip


# ---- judging


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors_of(v)] if isinstance(value, (list, tuple)) else []


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.layout != torch.strided or a.device.type == "meta":
        return True
    if a.is_complex() or b.is_complex():
        return torch.equal(torch.view_as_real(a).nan_to_num(7.0), torch.view_as_real(b).nan_to_num(7.0))
    bits = [x.resolve_neg().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in (a, b)]
    return a.shape == b.shape and torch.equal(*bits)


def close(ours: Tensor, reference: Tensor) -> str | None:
    """Why not, if it isn't: exact where there is nothing to round, else within a few roundings of the largest element's."""
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return f"{ours.shape}, {ours.dtype} for {reference.shape}, {reference.dtype}"
    if ours.device.type == "meta" or ours.layout != torch.strided:
        return None
    if not ours.is_floating_point():
        return None if torch.equal(ours, reference) else "differs"
    a, b = ours.double(), reference.double()
    if not torch.equal(a.isnan(), b.isnan()):
        return "NaN elsewhere"
    least = torch.finfo(ours.dtype).max * 0.5
    a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    there = (a.abs() < least) & (b.abs() < least)  # near the largest number one may round to infinity
    if not torch.equal(a.abs() < least, b.abs() < least) and (a.clamp(-least, least) - b.clamp(-least, least)).abs().max() > least * 0.01:
        return "infinite elsewhere"
    eps = max(torch.finfo(ours.dtype).eps, torch.finfo(torch.float32).eps if ours.dtype != torch.float64 else 0.0)
    scale = b[there].abs().max().item() if bool(there.any()) else 0.0
    error = (a[there] - b[there]).abs().max().item() if bool(there.any()) else 0.0
    allowed = 64 * eps * max(scale, 1e-6)
    return None if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}"


def words(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError)) and len(str(error)) > 10


def outcome(call: Callable[..., Any], args: list[Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(*args), None
    except Exception as error:
        return None, error


def one_call(seed: int, number: int) -> str:
    """Makes call ``number`` and judges it; returns "served" or "refused".

    Raises:
        AssertionError: with the call, if it is neither right nor refused in words.
    """
    d = Draw(seed * 1_000_003 + number)
    d.public = public = d.chance(0.4)
    name = d.pick(*(PUBLIC if public else RAW))
    make = PUBLIC[name][0] if public else RAW[name]
    args = make(d)
    for _ in range(d.pick(0, 0, 1, 1, 1, 2)):
        args = d.spoiled(args)
    if not public and d.chance(0.02):
        args = args[: d.random.randrange(len(args))]
    before, theirs = copy.deepcopy(args), copy.deepcopy(args)
    label = f"call {number} of seed {seed}, {'public' if public else 'raw'} {name}: {described(before)}"

    ours = PUBLIC[name][1] if public else getattr(OPS, name)
    torch.ops.fastforget._cpu_isa(d.pick(2, 3, 4))
    result, error = outcome(ours, args)
    if error is not None:
        assert words(error), f"{label}\nno words: {error!r}"
        for a, b in zip(tensors_of(args), tensors_of(before), strict=True):
            assert same_bits(a, b), f"{label}\nchanged, though it was refused: {error}"
        return "refused"
    if public:
        with ff.use_backend("reference"):
            expected, failed = outcome(PUBLIC[name][1], theirs)
    else:
        _schema.refuse_shared(name, before)
        defaults = [argument.default_value for argument in getattr(OPS, name).default._schema.arguments]
        expected, failed = outcome(_schema.SCHEMAS[name][1], [*theirs, *defaults[len(theirs) :]])
    assert failed is None, f"{label}\nserved, though the reference says: {failed!r}"
    for i, (a, b) in enumerate(zip(tensors_of([result, args]), tensors_of([expected, theirs]), strict=True)):
        reason = close(a, b)
        assert reason is None, f"{label}\ntensor {i}: {reason}\n{a}\n{b}"
    return "served"


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        where = f"@{value.data_ptr():x}" if value.layout == torch.strided and value.device.type == "cpu" else str(value.layout)
        return f"{str(value.dtype)[6:]}{list(value.shape)}{list(value.stride()) if value.layout == torch.strided else ''}{where}"
    if isinstance(value, list):
        return f"[{', '.join(map(described, value))}]"
    return repr(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FASTFORGET_TEST_SEED", "0")))
    parser.add_argument("--only", type=int, help="this call alone")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty hands out NaN
    counts = {"served": 0, "refused": 0}
    for number in [options.only] if options.only is not None else range(options.count):
        if options.only is not None or os.environ.get("FASTFORGET_EACH_CALL"):
            print(f"call {number}", flush=True)
        # A crash says nothing itself: the number of the call in hand is written where the parent finds it.
        if "FASTFORGET_CALL_FILE" in os.environ:
            with open(os.environ["FASTFORGET_CALL_FILE"], "w") as file:
                file.write(f"python tests/random_calls.py --seed {options.seed} --only {number}")
        try:
            counts[one_call(options.seed, number)] += 1
        except AssertionError as error:
            print(error)
            print(f"replay: python tests/random_calls.py --seed {options.seed} --only {number}")
            return 1
    print(f"{sum(counts.values())} calls: {counts['served']} served, {counts['refused']} refused in words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
