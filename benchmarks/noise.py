"""Noise: raw words, normals, normals added in place, noisy gradient steps; one tensor and whole parameter lists."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastforget.ops import noise
from fastforget.reference import noise as reference

from . import shapes
from .cases import Call, Case, Options, Place, Work, WrongResult, compiled, limit

STD = 0.5
LR = 1e-3
SEED = 20_240_601
SIZES = {"16K": 16384, "1M": 1 << 20, "11.2M": shapes.numel(shapes.RESNET18)}
WINDOW = 1 << 16  # elements compared with float64 at the start, in the middle and at the end of a tensor


def windows(count: int) -> Iterator[slice]:
    if count <= 3 * WINDOW:
        yield slice(0, count)
        return
    for begin in (0, count // 2 - 3, count - WINDOW):
        yield slice(begin, begin + WINDOW)


def check_defined(name: str, before: Sequence[Tensor | None], after: Sequence[Tensor], std: float, step: int) -> None:
    """Ours is a function of (seed, stream, step, index): within 1e-6 of its float64 value, plus one
    rounding of the storage."""
    for i, x in enumerate(after):
        flat = x.view(-1)
        for part in windows(flat.numel()):
            count = part.stop - part.start
            z = reference.standard_normals(count, seed=SEED, stream=i, step=step, start=part.start, device=x.device)
            base = before[i]
            truth = std * z if base is None else base.view(-1)[part].double() + std * z
            worst = (flat[part].double() - truth).abs()
            allowed = std * 1e-6 + truth.abs() * torch.finfo(x.dtype).eps
            if not bool((worst <= allowed).all()):
                raise WrongResult(f"{name}: tensor {i} is off by up to {float(worst.max()):.3g} from the definition")


def check_distribution(name: str, before: Sequence[Tensor | None], after: Sequence[Tensor], std: float) -> None:
    """Other generators draw other numbers; what can be asked of them is N(0, std): mean and variance within
    six of their sigmas."""
    zs = []
    for base, x in zip(before, after, strict=True):
        zs.append((x.double() if base is None else x.double() - base.double()).view(-1) / std)
    z = torch.cat(zs)
    mean, variance, n = float(z.mean()), float(z.var()), z.numel()
    rounding = torch.finfo(after[0].dtype).eps
    if abs(mean) > 6 / math.sqrt(n) + rounding or abs(variance - 1) > 6 * math.sqrt(2 / n) + 4 * rounding:
        raise WrongResult(f"{name}: mean {mean:.4g} and variance {variance:.4g} where 0 and 1 are due")


def eager_add(x: Tensor) -> None:
    x.add_(torch.randn_like(x) * STD)


def eager_add_list(xs: list[Tensor]) -> None:
    for x in xs:
        x.add_(torch.randn_like(x) * STD)


def eager_step(params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.add_(g, alpha=-LR)
        p.add_(torch.randn_like(p), alpha=STD)


def eager_bits(n: int, device: torch.device) -> Tensor:
    return torch.randint(-(2**31), 2**31, (n,), dtype=torch.int32, device=device)


def _add_work(place: Place, shape_list: Sequence[Sequence[int]], dtype: torch.dtype, options: Options) -> Work:
    single = len(shape_list) == 1
    xs = [place.normal(*shape, dtype=dtype) for shape in shape_list]
    start = [x.clone() for x in xs]
    calls = {"steps": 0}

    def ours() -> None:
        calls["steps"] += 1
        if single:
            noise.add_normal_(xs[0], STD, seed=SEED, step=calls["steps"])
        else:
            noise.add_normal_(xs, STD, seed=SEED, step=calls["steps"])

    def reset() -> None:
        for x, s in zip(xs, start, strict=True):
            x.copy_(s)

    def judge(name: str, _result: object) -> None:
        if name.startswith("ours"):
            check_defined(name, start, xs, STD, calls["steps"])
        else:
            check_distribution(name, start, xs, STD)

    run: dict[str, Call] = {
        "ours": ours,
        "eager": (lambda: eager_add(xs[0])) if single else (lambda: eager_add_list(xs)),
    }
    if single:
        buffer = place.empty(*xs[0].shape, dtype=dtype)
        run["prealloc"] = lambda: xs[0].add_(buffer.normal_(), alpha=STD)
        run |= limit(xs, "rw")
    else:
        buffers = [place.empty(*x.shape, dtype=dtype) for x in xs]
        run["prealloc"] = lambda: [x.add_(b.normal_(), alpha=STD) for x, b in zip(xs, buffers, strict=True)]
        run["foreach"] = lambda: torch._foreach_add_(xs, [torch.randn_like(x) for x in xs], alpha=STD)
        run |= limit([place.zeros(sum(x.numel() for x in xs))], "rw")
    if options.compiled:
        form = compiled(eager_add if single else eager_add_list)
        run["compiled"] = lambda: form(xs[0] if single else xs)
    return Work(run, judge, reset)


def _perturb_work(place: Place, shape_list: Sequence[Sequence[int]], options: Options) -> Work:
    params = [place.normal(*shape) for shape in shape_list]
    grads = [place.normal(*shape) for shape in shape_list]
    start = [p.clone() for p in params]
    calls = {"steps": 0}

    def ours() -> None:
        calls["steps"] += 1
        noise.perturb_step_(params, grads, lr=LR, std=STD, seed=SEED, step=calls["steps"])

    def reset() -> None:
        for p, s in zip(params, start, strict=True):
            p.copy_(s)

    def judge(name: str, _result: object) -> None:
        # |lr * g| is far below |p|, so one rounding of the result covers that of the descent too
        stepped = [s.double() - LR * g.double() for s, g in zip(start, grads, strict=True)]
        if name.startswith("ours"):
            check_defined(name, stepped, params, STD, calls["steps"])
        else:
            check_distribution(name, stepped, params, STD)

    buffers = [place.empty(*p.shape) for p in params]

    def prealloc() -> None:
        for p, g, b in zip(params, grads, buffers, strict=True):
            p.add_(g, alpha=-LR)
            p.add_(b.normal_(), alpha=STD)

    run: dict[str, Call] = {"ours": ours, "eager": lambda: eager_step(params, grads), "prealloc": prealloc}
    if len(params) == 1:
        run |= limit((params[0], grads[0]), "2r1w")
    else:
        run |= limit([place.zeros(sum(p.numel() for p in params)) for _ in range(2)], "2r1w")
    if options.compiled:
        form = compiled(eager_step)
        run["compiled"] = lambda: form(params, grads)
    return Work(run, judge, reset)


def perturb_step(label: str, shape_list: Sequence[Sequence[int]], options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    return Case(
        "perturb_step_",
        label,
        str(count) if len(shape_list) == 1 else f"{len(shape_list)} tensors, {count}",
        "float32",
        count,
        lambda place: _perturb_work(place, shape_list, options),
        bytes_touched=12 * count,
        family="noise",
        large=large,
    )


def add_normal(label: str, shape_list: Sequence[Sequence[int]], dtype: torch.dtype, options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    shape = "x".join(map(str, shape_list[0])) if len(shape_list) == 1 else f"{len(shape_list)} tensors, {count}"
    return Case(
        "add_normal_",
        label,
        shape,
        str(dtype).removeprefix("torch."),
        count,
        lambda place: _add_work(place, shape_list, dtype, options),
        bytes_touched=2 * count * dtype.itemsize,
        family="noise",
        large=large,
    )


def _normal_work(place: Place, n: int, dtype: torch.dtype) -> Work:
    x = place.empty(n, dtype=dtype)

    def judge(name: str, _result: object) -> None:
        if name.startswith("ours"):
            check_defined(name, [None], [x], STD, 1)
        else:
            check_distribution(name, [None], [x], STD)

    run = {
        "ours": lambda: noise.normal_(x, STD, seed=SEED, step=1),
        "eager": lambda: x.normal_(0.0, STD),
        "limit": lambda: x.fill_(0.0),
    }
    return Work(run, judge, lambda: x.fill_(float("nan")))


def normal(label: str, n: int, dtype: torch.dtype, large: bool) -> Case:
    return Case(
        "normal_",
        label,
        str(n),
        str(dtype).removeprefix("torch."),
        n,
        lambda place: _normal_work(place, n, dtype),
        bytes_touched=n * dtype.itemsize,
        family="noise",
        large=large,
    )


def _bits_work(place: Place, n: int) -> Work:
    def judge(name: str, result: Tensor) -> None:
        if name.startswith("ours"):
            for part in windows(n):
                truth = torch.empty(part.stop - part.start, dtype=torch.int32, device=result.device)
                reference.random_bits(truth, SEED, 0, 0, part.start)
                if not torch.equal(result[part], truth):
                    raise WrongResult(f"{name}: words differ from the definition")
            return
        share = float((result < 0).double().mean())
        if result.shape != (n,) or abs(share - 0.5) > 3 / math.sqrt(n):
            raise WrongResult(f"{name}: {share:.4g} of the words have their top bit set")

    blank = place.empty(n, dtype=torch.int32)
    run = {
        "ours": lambda: noise.random_bits(n, seed=SEED, device=place.device),
        "eager": lambda: eager_bits(n, place.device),
        "prealloc": lambda: blank.random_(-(2**31), 2**31),
        "limit": lambda: blank.fill_(0),
    }
    return Work(run, judge)


def random_bits(label: str, n: int, large: bool) -> Case:
    return Case(
        "random_bits",
        label,
        str(n),
        "int32",
        n,
        lambda place: _bits_work(place, n),
        bytes_touched=4 * n,
        unit="word",
        family="noise",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    f32, bf16 = torch.float32, torch.bfloat16
    big = {"11.2M"}
    rows = [random_bits(label, n, label in big) for label, n in SIZES.items()]
    rows += [normal(label, n, f32, label in big) for label, n in SIZES.items()]
    rows.append(normal("1M bfloat16", SIZES["1M"], bf16, False))
    rows += [add_normal(label, [(n,)], f32, options, label in big) for label, n in SIZES.items()]
    rows.append(add_normal("1M bfloat16", [(SIZES["1M"],)], bf16, options, False))
    rows.append(add_normal("ResNet-18", shapes.RESNET18, f32, options, True))
    rows.append(add_normal("ResNet-50", shapes.RESNET50, f32, options, True))
    rows += [perturb_step(label, [(SIZES[label],)], options, label in big) for label in ("1M", "11.2M")]
    rows.append(perturb_step("ResNet-18", shapes.RESNET18, options, True))
    rows.append(perturb_step("ResNet-50", shapes.RESNET50, options, True))
    return rows
