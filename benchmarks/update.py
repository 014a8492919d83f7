"""Losses with their gradients (UNSIR's error-maximizing one, distillation), UNSIR's noise step (penalty, Adam, clamp, sum of squares), and
the products of two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastforget.ops import update
from fastforget.reference import update as reference

from . import shapes
from .cases import Call, Case, Judge, Options, Place, Work, compiled, limit

LR, L2, BETAS, EPS, LOW, HIGH = 0.1, 0.1, (0.9, 0.999), 1e-8, -1.0, 1.0
CHECKED_STEPS = 3
LOSS_SHAPES = {"256x10": (256, 10), "768x100": (768, 100)}
DISTILL_SHAPES = {"64x10": (64, 10), "128x100": (128, 100), "128x1000": (128, 1000), "32x30000": (32, 30_000), "8x150000": (8, 150_000)}
TEMPERATURE = 2.0
STEP_SHAPES = {
    "20x3x32x32": (20, 3, 32, 32),
    "256x3x32x32": (256, 3, 32, 32),
    "64x3x224x224": (64, 3, 224, 224),
}


def eager_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As UNSIR's code has it: minus the mean cross-entropy, differentiated."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        loss = -F.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same without autograd, for torch.compile."""
    log_p = F.log_softmax(logits, dim=1)
    gradient = F.one_hot(labels, logits.shape[1]) - log_p.exp()
    return log_p.gather(1, labels[:, None]).mean(), gradient / logits.shape[0]


def _loss_work(place: Place, batch: int, classes: int, options: Options) -> Work:
    logits = place.normal(batch, classes, scale=2.0)
    labels = place.integers(classes, batch)
    other = place.empty(batch, classes)
    run: dict[str, Call] = {
        "ours": lambda: update.error_max_loss(logits, labels),
        "eager": lambda: eager_loss(logits, labels),
        "limit": lambda: other.copy_(logits),
    }
    if options.compiled:
        form = compiled(plain_loss)
        run["compiled"] = lambda: form(logits, labels)
    loss, gradient = plain_loss(logits.double(), labels)
    judge = Judge([loss, gradient], lambda _name, result: (result[0].mean(), result[1]))
    return Work(run, judge)


def error_max_loss(label: str, batch: int, classes: int, options: Options) -> Case:
    return Case(
        "error_max_loss",
        label,
        f"{batch}x{classes}",
        "float32",
        batch * classes,
        lambda place: _loss_work(place, batch, classes, options),
        bytes_touched=8 * batch * classes + 12 * batch,
        unit="logit",
        family="update",
    )


def eager_distill(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """As the methods' codes have it: kl_div of log_softmax and softmax, differentiated."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        log_p = F.log_softmax(logits / TEMPERATURE, dim=1)
        loss = F.kl_div(log_p, F.softmax(teacher / TEMPERATURE, dim=1), reduction="batchmean")
        (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def plain_distill(logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The same without autograd, for torch.compile."""
    log_p, log_q = (F.log_softmax(x / TEMPERATURE, dim=1) for x in (logits, teacher))
    q = log_q.exp()
    return (q * (log_q - log_p)).sum(1).mean(), (log_p.exp() - q) / (TEMPERATURE * logits.shape[0])


def _distill_work(place: Place, batch: int, classes: int, options: Options) -> Work:
    logits, teacher = (place.normal(batch, classes, scale=2.0) for _ in range(2))
    other = place.empty(batch, classes)
    run: dict[str, Call] = {
        "ours": lambda: update.distill_loss(logits, teacher, temperature=TEMPERATURE),
        "eager": lambda: eager_distill(logits, teacher),
        **limit((other, teacher), "2r1w"),
    }
    if options.compiled:
        form = compiled(plain_distill)
        run["compiled"] = lambda: form(logits, teacher)
    judge = Judge(plain_distill(logits.double(), teacher.double()), lambda _name, result: (result[0].mean(), result[1]))
    return Work(run, judge)


def distill_loss(label: str, batch: int, classes: int, options: Options) -> Case:
    return Case(
        "distill_loss",
        label,
        f"{batch}x{classes}",
        "float32",
        batch * classes,
        lambda place: _distill_work(place, batch, classes, options),
        bytes_touched=12 * batch * classes + 4 * batch,
        unit="logit",
        family="update",
    )


Sums = tuple[Tensor, Tensor, Tensor]


def joined_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Sums:
    """As the methods' codes have it: both gradients joined to a vector each."""
    x, y = (torch.cat([t.flatten() for t in ts]) for ts in (a, b))
    return torch.dot(x, y), x.norm().square(), y.norm().square()


def looped_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Sums:
    """Tensor by tensor, without a copy of the gradients."""
    dot = torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()
    norms = [torch.stack(list(torch._foreach_norm(list(ts)))).square().sum() for ts in (a, b)]
    return dot, norms[0], norms[1]


def plain_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Sums:
    """For torch.compile."""
    dot = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
    return dot, torch.stack([x.square().sum() for x in a]).sum(), torch.stack([y.square().sum() for y in b]).sum()


def _products_work(place: Place, shape_list: Sequence[Sequence[int]], options: Options) -> Work:
    a, b = ([place.normal(*shape) for shape in shape_list] for _ in range(2))
    b = [y.add_(x) for x, y in zip(a, b, strict=True)]  # at an angle, so that the inner product has digits to judge
    run: dict[str, Call] = {
        "ours": lambda: update.gradient_products(a, b),
        "eager": lambda: joined_products(a, b),
        "foreach": lambda: looped_products(a, b),
        **limit([place.zeros(2 * shapes.numel([tuple(s) for s in shape_list]))], "read"),
    }
    if options.compiled:
        form = compiled(plain_products)
        run["compiled"] = lambda: form(a, b)
    truth = plain_products([x.double() for x in a], [y.double() for y in b])
    return Work(run, Judge(truth, lambda _name, result: result))


def gradient_products(label: str, shape_list: Sequence[Sequence[int]], options: Options, large: bool) -> Case:
    count = shapes.numel([tuple(s) for s in shape_list])
    return Case(
        "gradient_products",
        label,
        f"{len(shape_list)} tensors, {count}",
        "float32",
        count,
        lambda place: _products_work(place, shape_list, options),
        bytes_touched=8 * count,
        family="update",
        large=large,
    )


class EagerStep:
    """One step of the noise as users write it: penalty by autograd, torch.optim.Adam, clamp.

    The network's gradient is given, and reaches the noise through autograd as it would from the network's
    backward.
    """

    def __init__(self, x: Tensor, grad: Tensor, **adam: bool) -> None:
        self.x, self.grad = torch.nn.Parameter(x), grad
        self.optimizer = torch.optim.Adam([self.x], lr=LR, betas=BETAS, eps=EPS, **adam)
        self.dims = list(range(1, x.dim()))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.enable_grad():
            penalty = L2 * torch.mean(torch.sum(torch.square(self.x), self.dims))
            torch.autograd.backward((self.x.view_as(self.x), penalty), (self.grad, None))
        self.optimizer.step()
        self.x.data.clamp_(LOW, HIGH)

    def restart(self) -> None:
        self.optimizer.state.clear()


class AdamOnly(EagerStep):
    """Fused Adam and the clamp with the whole gradient given: no penalty. Faster and less; shown as a
    bound, not as an equal."""

    def __call__(self) -> None:
        self.x.grad = self.grad
        self.optimizer.step()
        self.x.data.clamp_(LOW, HIGH)


def plain_step(x: Tensor, grad: Tensor, m: Tensor, v: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The whole update in plain operations, for torch.compile; the bias corrections are 0-d tensors, so that
    it compiles once."""
    sum_sq = x.square().sum()
    g = grad + (2.0 * L2 / x.shape[0]) * x
    m.mul_(BETAS[0]).add_(g, alpha=1.0 - BETAS[0])
    v.mul_(BETAS[1]).addcmul_(g, g, value=1.0 - BETAS[1])
    x.sub_(LR / first * m / (v.sqrt() / second + EPS)).clamp_(LOW, HIGH)
    return sum_sq


class CompiledStep:
    """:func:`plain_step`, compiled; counts its steps."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors, self.count, self.form = tensors, 0, compiled(plain_step)
        self.corrections = [torch.ones((), device=tensors[0].device) for _ in BETAS]

    def __call__(self) -> Tensor:
        self.count += 1
        first, second = (1.0 - beta**self.count for beta in BETAS)
        for tensor, value in zip(self.corrections, (first, second**0.5), strict=True):
            tensor.fill_(value)
        return self.form(*self.tensors, *self.corrections)

    def restart(self) -> None:
        self.count = 0


def _step_work(place: Place, shape: tuple[int, ...], options: Options) -> Work:
    x, grad = place.normal(*shape, scale=0.5), place.normal(*shape)
    # Adam divides by |gradient|: away from zero no rounding is blown up, so that the judge can be strict
    grad.abs_().add_(1.0).mul_(0.02).copysign_(x)
    m, v = place.zeros(*shape), place.zeros(*shape)
    start = x.clone()
    count = {"ours": 0}
    eager, fused = EagerStep(x, grad, foreach=True), EagerStep(x, grad, fused=True)
    bare = AdamOnly(x, grad, fused=True)
    fast = CompiledStep(x, grad, m, v) if options.compiled else None

    def ours() -> Tensor:
        count["ours"] += 1
        return update.error_max_step_(x, grad, m, v, step=count["ours"], lr=LR, betas=BETAS, eps=EPS, l2=L2, clamp=(LOW, HIGH))

    def reset() -> None:
        x.copy_(start)
        m.zero_()
        v.zero_()
        count["ours"] = 0
        for one in (eager, fused, bare, fast):
            if one is not None:
                one.restart()

    run: dict[str, Call] = {
        "ours": ours,
        "eager": eager,
        "fused": fused,
        "adam_only": bare,
        **limit((x, grad, m, v), "4r3w"),
    }
    if fast is not None:
        run["compiled"] = fast

    truth, tm, tv = (t.double() for t in (start, torch.zeros_like(start), torch.zeros_like(start)))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for t in range(1, CHECKED_STEPS + 1):
        reference.error_max_step_(truth, grad.double(), tm, tv, total, t, LR, *BETAS, EPS, L2, LOW, HIGH)

    def after(name: str, _result: object) -> tuple[Tensor]:
        for _ in range(CHECKED_STEPS - 1):
            run[name.split("@")[0]]()
        return (x,)

    return Work(run, Judge([truth], after), reset, unjudged=frozenset({"limit", "adam_only"}))


def error_max_step(label: str, shape: tuple[int, ...], options: Options, large: bool) -> Case:
    count = torch.Size(shape).numel()
    return Case(
        "error_max_step_",
        label,
        "x".join(map(str, shape)),
        "float32",
        count,
        lambda place: _step_work(place, shape, options),
        bytes_touched=28 * count,
        family="update",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    rows = [error_max_loss(label, *shape, options) for label, shape in LOSS_SHAPES.items()]
    rows += [error_max_step(label, shape, options, label == "64x3x224x224") for label, shape in STEP_SHAPES.items()]
    rows += [distill_loss(label, *shape, options) for label, shape in DISTILL_SHAPES.items()]
    rows += [gradient_products(label, shape_list, options, label != "small net") for label, shape_list in shapes.LISTS.items()]
    return rows
