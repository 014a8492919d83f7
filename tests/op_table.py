"""Every op once: arguments of its raw form, its public calls, and what it must give.

The tests that hold for every op take their cases from here: tracing and refusals (test_contract.py), the fast path (test_calls.py), and
that each implementation is right, native levels and the emulated device (test_parity.py) as well as a GPU (test_gpu.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastforget import _schema
from fastforget.ops import mask, membership, noise, update

LABELS = torch.tensor([0, 3, 1])
MATRIX = (3, 4)
SHAPES = [MATRIX, (7,), (), (2, 0), (5, 1)]


@dataclass(frozen=True)
class Public:
    """One way to call a public function.

    call: the function of ``count`` arguments, of which the first ``changed`` are changed in place.
    kind: what each argument is: "lists", a tensor or a list of them; "tensor", a tensor alone; or "own", what ``inputs`` makes.
    inputs: arguments for tracing; without it two tensors an argument, or one.
    fast: whether plain CPU tensors are served by the fast path.
    """

    call: Callable[..., Any]
    count: int
    changed: int = 0
    kind: str = "lists"
    inputs: Callable[[], tuple[Any, ...]] | None = None
    fast: bool = True

    def traced(self) -> tuple[Any, ...]:
        """Arguments for a call that is traced."""
        if self.inputs is not None:
            return self.inputs()
        if self.kind == "lists":
            return tuple([torch.rand(9) + 0.1, torch.rand(2, 2) + 0.1] for _ in range(self.count))
        return tuple((torch.rand(MATRIX) + 0.1) * 0.5 for _ in range(self.count))


@dataclass(frozen=True)
class Row:
    """raw: arguments of a small valid call of the raw op, of a dtype. public: calls of the public function, by what they show.
    kept: the positions of raw arguments whose dtype has a meaning, so that it stays in float64.
    timed: whether benchmarks/gpu.py has the op."""

    raw: Callable[[torch.dtype], tuple[Any, ...]]
    public: dict[str, Public]
    kept: tuple[int, ...] = ()
    timed: bool = True


def single(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def normals(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def positives(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64).to(dtype)


def two(dtype: torch.dtype, draw: Callable[..., Tensor] = normals) -> list[Tensor]:
    return [draw(dtype, 5), draw(dtype, 2, 3)]


def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# ---- raw arguments that take more than a line


def lira_pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normals(dtype, 6, 3, 2), torch.arange(18).view(6, 3) % 2 == 0


def saliency_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    return two(dtype), 4, [zeros(5, dtype=torch.bool), zeros(1, dtype=torch.uint8)], zeros(dtype=single(dtype))


def ratio_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    masks = [zeros(5, dtype=torch.bool), zeros(1, dtype=torch.uint8)]
    return two(dtype, positives), two(dtype, positives), masks, 0.5, 1e-15


def distill_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    drop = torch.tensor([False, True, False, False])
    return normals(dtype, 3, 4), normals(dtype, 3, 4), drop, 2.0, zeros(3, dtype=single(dtype)), normals(dtype, 3, 4)


def stats_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    sums = [[zeros(n, dtype=single(dtype)) for n in (5, 2)] for _ in range(2)]
    return ([normals(dtype, 5, 2), normals(dtype, 2, 3)], 0, *sums)


def sgd_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    masks = [torch.ones(5, dtype=torch.bool), torch.tensor([0.0, 2.0])]
    return two(dtype), two(dtype), masks, two(dtype), 0.1, 0.9, 0.1, 0.1, False, False, False


def adam_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    masks = [torch.tensor([5], dtype=torch.uint8), torch.tensor([True, False])]
    numbers = (2, 0.1, 0.9, 0.999, 1e-8, 0.1, True, False)
    return two(dtype), two(dtype), masks, two(dtype), two(dtype, positives), *numbers


def step_raw(dtype: torch.dtype) -> tuple[Any, ...]:
    x, grad, mean = (normals(dtype, 3, 4) for _ in range(3))
    square, total = positives(dtype, 3, 4), zeros(dtype=single(dtype))
    return x, grad, mean, square, total, 1, 0.1, 0.9, 0.999, 1e-8, 0.1, -math.inf, math.inf


# ---- public calls that take more than a line


def step(x: Any, mean: Any, square: Any, grad: Any) -> Tensor:
    return update.error_max_step_(x, grad, mean, square, step=3, lr=0.1, clamp=(-1.0, 1.0))


def half_on(x: Any) -> Any:
    """Each second tensor of a list without a mask, the others and a tensor alone with one of another form."""
    if isinstance(x, Tensor):
        return x > 0.5
    return [[None, x[i] > 0.5, mask.pack_bits(x[i] > 0.5)][i % 3] for i in range(len(x))]


def sgd(x: Any, moved: Any, grad: Any) -> Any:
    return mask.masked_sgd_(x, grad, half_on(x), lr=0.1, momentum=0.9, momentum_buffers=moved)


def adam(x: Any, mean: Any, square: Any, grad: Any) -> Any:
    return mask.masked_adam_(x, grad, half_on(x), mean, square, step=3, lr=0.1, weight_decay=0.1)


def sgd_by_bits(x: Any, moved: Any, grad: Any, on: Tensor, bits: Tensor) -> Any:
    return mask.masked_sgd_(x, grad, [on, bits], lr=0.1, momentum=0.9, momentum_buffers=moved)


def lira_three_ways(target: Tensor, scores: Tensor, member: Tensor) -> tuple[Tensor, ...]:
    stream = membership.Lira(5).update(scores, member)
    return membership.lira(target, scores, member), membership.lira("loo", scores, member), stream.score(target)


def bootstrap(member: Tensor, nonmember: Tensor) -> Tensor:
    out = torch.zeros(4, 2, dtype=torch.float64)
    torch.ops.fastforget.roc_bootstrap(member, nonmember, [0.1], 7, out)
    return out


def own(call: Callable[..., Any], inputs: Callable[[], tuple[Any, ...]], changed: int = 0) -> dict[str, Public]:
    return {"": Public(call, len(inputs()), changed, "own", inputs, fast=False)}


TABLE: dict[str, Row] = {
    # noise
    "random_bits": Row(
        lambda dtype: (zeros(9, dtype=torch.int32), 7, 1, 2, 3),
        own(lambda x: noise.random_bits(9, seed=3, start=2) + x, lambda: (zeros(9, dtype=torch.int32),)),
    ),
    "normal_": Row(
        lambda dtype: (two(dtype), [0.0], [1.0, 2.0], 7, 0, 0, [0]),
        {"": Public(lambda x: noise.normal_(x, 2.0, 1.0, seed=3), 1, 1)},
    ),
    "add_normal_": Row(
        lambda dtype: (two(dtype), [0.5], 7, 0, 0, [0, 4]),
        {
            "": Public(lambda x: noise.add_normal_(x, 0.5, seed=2**64 - 1, stream=5, step=2, start=3), 1, 1),
            "plain": Public(lambda x: noise.add_normal_(x, 1, seed=3), 1, 1),
            "by element": Public(lambda x, std: noise.add_normal_(x, std, seed=3), 2, 1, fast=False),
        },
    ),
    "perturb_step_": Row(
        lambda dtype: (two(dtype), two(dtype), 0.1, [], two(dtype, positives), 7, 0, 0, [0, 4]),
        {"": Public(lambda x, grad: noise.perturb_step_(x, grad, lr=0.1, std=0.5, seed=3, start=1), 2, 1)},
    ),
    # update
    "error_max_loss": Row(
        lambda dtype: (normals(dtype, 3, 4), LABELS, zeros(3, dtype=single(dtype)), normals(dtype, 3, 4)),
        own(update.error_max_loss, lambda: (torch.randn(6, 5), torch.randint(0, 5, (6,)))),
    ),
    "error_max_step_": Row(step_raw, {"": Public(step, 4, 3, "tensor")}),
    "distill_loss": Row(
        distill_raw,
        {
            "": Public(lambda logits, teacher: update.distill_loss(logits, teacher, temperature=2.0), 2, 0, "tensor"),
            "one a row": Public(lambda logits, teacher: update.distill_loss(logits, teacher, drop=LABELS), 2, 0, "tensor"),
            "classes": Public(
                lambda logits, teacher: update.distill_loss(logits, teacher, temperature=0.5, drop=[0, 2]), 2, 0, "tensor", fast=False
            ),
        },
    ),
    "gradient_products": Row(
        lambda dtype: (two(dtype), two(dtype), zeros(3, dtype=torch.float64)),
        {"": Public(update.gradient_products, 2)},
    ),
    # mask
    "dampen_": Row(
        lambda dtype: (two(dtype), two(dtype), two(dtype), zeros(dtype=torch.int64), 1.0, 0.5),
        {"": Public(lambda x, forget, retain: mask.dampen_(x, forget, retain, alpha=1, lam=0.5), 3, 1)},
    ),
    "accumulate_importance_": Row(
        lambda dtype: (two(dtype), two(dtype), 2, 0.5),
        {
            "": Public(lambda x, grad: mask.accumulate_importance_(x, grad, scale=0.5), 2, 1),
            "of 16 bits": Public(
                lambda x, grad: mask.accumulate_importance_(x, grad), 2, 1, "own",
                lambda: ([torch.rand(9), torch.rand(2, 2)], [torch.randn(9), torch.randn(2, 2).bfloat16()]), fast=False,
            ),
        },
    ),
    "soft_threshold_": Row(
        lambda dtype: (two(dtype), [0.5], zeros(dtype=torch.float64), zeros(dtype=torch.int64)),
        {"": Public(lambda x: mask.soft_threshold_(x, 0.5), 1, 1)},
    ),
    "neuron_stats": Row(
        stats_raw,
        {
            "": Public(mask.neuron_stats, 1, 0, "tensor"),
            "last": Public(lambda x: mask.neuron_stats(x, dim=-1), 1, 0, "tensor"),
            "of a list": Public(
                lambda xs: mask.neuron_stats(xs, dim=1), 1, 0, "own", lambda: ([torch.randn(9, 3), torch.randn(2, 2, 4)],), fast=False
            ),
        },
    ),
    "saliency_mask": Row(
        saliency_raw,
        {
            "": Public(lambda xs: mask.saliency_mask(xs, 0.3), 1, fast=False),
            "packed": Public(lambda x: mask.saliency_mask(x, 0.3, packed=True), 1, kind="tensor", fast=False),
        },
    ),
    "ratio_mask": Row(
        ratio_raw,
        {
            "": Public(lambda forget, retain: mask.ratio_mask(forget, retain, 1), 2),
            "packed": Public(lambda forget, retain: mask.ratio_mask(forget, retain, 0.5, eps=0.1, packed=True), 2),
        },
    ),
    "masked_sgd_": Row(
        sgd_raw,
        {
            "": Public(sgd, 3, 2),
            "no masks": Public(lambda x, grad: mask.masked_sgd_(x, grad, None, lr=1), 2, 1),
            "two forms": Public(
                sgd_by_bits, 5, 2, "own",
                lambda: (*([torch.randn(9), torch.randn(2, 2)] for _ in range(3)), torch.arange(9) % 2 == 0,
                         torch.tensor([9], dtype=torch.uint8)), fast=False,
            ),
        },
        kept=(2,),
    ),
    "masked_adam_": Row(adam_raw, {"": Public(adam, 4, 3)}),
    # membership
    "membership_scores": Row(
        lambda dtype: (normals(dtype, 3, 4), LABELS, 1.0, zeros(6, 3, dtype=single(dtype)), zeros(3, dtype=torch.bool)),
        {"": Public(lambda logits: membership.membership_scores(logits, LABELS), 1, 0, "tensor")},
    ),
    "roc_stats": Row(
        lambda dtype: (normals(single(dtype), 5), normals(single(dtype), 6), [0.1], zeros(6, dtype=torch.float64)), {}
    ),
    "roc_bootstrap": Row(
        lambda dtype: (normals(single(dtype), 5), normals(single(dtype), 6), [0.1], 7, zeros(3, 2, dtype=torch.float64)),
        own(bootstrap, lambda: (torch.randn(5), torch.randn(6))), timed=False,
    ),
    "rmia_counts": Row(
        lambda dtype: (
            positives(single(dtype), 2, 5), positives(single(dtype), 2, 6), [1.0, 2.0], False, zeros(2, 2, 5, dtype=torch.int64),
        ),
        {
            **own(lambda x, z: membership.rmia_counts(x, z, gamma=(1.0, 2.0)), lambda: (torch.rand(2, 5), torch.rand(2, 6))),
            "rmia": Public(
                lambda x, rx, z, rz, m: membership.rmia(x, rx, z, rz, member=m, self_in_z=m[0]), 5, 0, "own",
                lambda: (-torch.rand(5), -torch.rand(3, 5), -torch.rand(6), -torch.rand(3, 6), torch.eye(3).bool()[:, [0, 1, 2, 0, 1]]),
                fast=False,
            ),
        },
    ),
    "rmia_vote": Row(
        lambda dtype: (positives(single(dtype), 3, 5), positives(single(dtype), 3, 6), 2.0, False, zeros(5, dtype=torch.int64)),
        own(membership.rmia_vote, lambda: (-torch.rand(4, 5), -torch.rand(3, 4, 5), -torch.rand(4, 6), -torch.rand(3, 4, 6))),
        timed=False,  # a row would call the raw op, which no backend can be forced on
    ),
    "lira_stats": Row(
        lambda dtype: (
            *lira_pair(single(dtype)), True, *(zeros(2, 3, 2, dtype=single(dtype)) for _ in range(2)), zeros(2, 3, dtype=torch.int64),
        ),
        own(lira_three_ways, lambda: (torch.randn(5), torch.randn(8, 5), torch.arange(40).view(8, 5) % 2 == 0)),
    ),
    "lira_ratio": Row(
        lambda dtype: (
            normals(single(dtype), 6, 3, 2), normals(single(dtype), 2, 3, 2), positives(single(dtype), 2, 3, 2) + 0.5,
            torch.full((2, 3), 3), 0, 1e-6, 1, zeros(6, 3, dtype=single(dtype)),
        ),
        {},
        timed=False,
    ),
    "lira_loo": Row(
        lambda dtype: (*lira_pair(single(dtype)), True, zeros(0, dtype=single(dtype)), 0, 1e-6, 1, zeros(6, 3, dtype=single(dtype))), {}
    ),
    "lira_update_": Row(
        lambda dtype: (
            normals(single(dtype), 6, 3, 2), (torch.arange(18).view(6, 3) % 2).to(torch.int8), torch.full((2, 3), 3),
            torch.ones(2, 3, 2, dtype=torch.float64), torch.ones(2, 3, 2, dtype=torch.float64),
        ),
        {},
    ),
}  # fmt: skip
# "dampen_", or "add_normal_, plain" where an op has several
PUBLIC = {f"{op}, {form}" if form else op: public for op, row in TABLE.items() for form, public in row.public.items()}


def mapped(value: Any, f: Callable[[Tensor], Any]) -> Any:
    """``f`` of each tensor in nested lists and tuples; other things stay."""
    if isinstance(value, Tensor):
        return f(value)
    return type(value)(mapped(v, f) for v in value) if type(value) in (list, tuple) else value


def flat(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else []


def copied(value: Any) -> Any:
    return mapped(value, lambda x: x.detach().clone())


def raw(op: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    return TABLE[op].raw(dtype)


def exact(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the op makes of the arguments in float64, from their values as they are stored: the reference's definition."""
    def widened(x: Tensor) -> Tensor:
        return x.to(torch.float64, copy=True) if x.is_floating_point() else x.clone()

    args = tuple(copied(value) if i in TABLE[op].kept else mapped(value, widened) for i, value in enumerate(args))
    _schema.SCHEMAS[op][1](*args)
    return args


def check(op: str, run: Callable[..., None], dtype: torch.dtype, put: Callable[[Tensor], Tensor] = torch.clone) -> None:
    """``run``, an implementation of the raw op, is right on the table's arguments, to its dtype's usual tolerance; the families' tests
    say how exact each op is. ``put``: to where it computes."""
    args = raw(op, dtype)
    ours = mapped(args, put)
    run(*ours)
    for i, (got, expected) in enumerate(zip(flat(ours), flat(exact(op, copied(args))), strict=True)):
        torch.testing.assert_close(got.cpu(), expected.to(got.dtype), equal_nan=True, msg=lambda text, i=i: f"{op}, tensor {i}: {text}")
