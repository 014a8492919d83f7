"""The ops under torch's transforms, on shared memory, on values that another thread writes, and where others force a backend."""

from __future__ import annotations

import threading
import time

import torch
from torch.nn import functional as F

import fastforget as ff
from fastforget.ops import mask, membership, noise, update

from . import case, refusal

ONE = (torch.ones(5),)
TRANSFORMS = {
    "functionalize": lambda f: torch.func.functionalize(f)(*ONE),
    "vmap": lambda f: torch.vmap(f)(torch.ones(2, 5)),
    "grad": lambda f: torch.func.grad(lambda t: f(t).sum())(*ONE),
    "forward mode": lambda f: torch.func.jvp(f, ONE, ONE),
}
RULELESS = {
    "soft_threshold_": lambda t: mask.soft_threshold_(t.clone(), 0.5).l1,
    "normal_": lambda t: noise.normal_(t.clone(), seed=1),
    "raw normal_": lambda t: (lambda y: (torch.ops.fastforget.normal_([y], [0.0], [1.0], 1), y)[1])(t.clone()),
    "lira": lambda t: membership.lira(t, torch.ones(4, 5), torch.arange(20).view(4, 5) % 2 > 0),
}
for _transform, _apply in TRANSFORMS.items():
    for _op, _call in RULELESS.items():

        @case(f"kernels: {_transform} of {_op}, which has no rule for it", "refused")
        def _(apply=_apply, call=_call, word=_transform):
            return refusal(lambda: apply(call), word)


def _twice(loss) -> torch.Tensor:
    z = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4).requires_grad_()
    (slope,) = torch.autograd.grad((loss(z, torch.tensor([0, 1, 2])) ** 2).sum(), z, create_graph=True)
    return torch.autograd.grad(slope.pow(2).sum(), z)[0]


@case("kernels: error_max_loss differentiated twice, as torch's", True)
def _():
    theirs = _twice(lambda z, y: -F.cross_entropy(z, y, reduction="none"))
    return torch.allclose(_twice(lambda z, y: update.error_max_loss(z, y)[0]), theirs, rtol=1e-12)


@case("kernels: masks of bytes 0 and 255, lira and a step", (True, True))
def _():
    generator = torch.Generator().manual_seed(0)
    scores, on = torch.randn(40, 9, generator=generator), torch.rand(40, 9, generator=generator) < 0.5
    odd = (on.to(torch.uint8) * 255).view(torch.bool)
    two = [membership.lira(scores[0], scores, m, location="median") for m in (on, odd)]
    steps = [mask.masked_sgd_(torch.ones(40, 9), scores, m, lr=0.1) for m in (on, odd)]
    return torch.equal(*two), torch.equal(*steps)


@case("kernels: values that another thread writes meanwhile", "a mask each time")
def _():
    x, stop = torch.randn(100_000), threading.Event()

    def write() -> None:
        while not stop.is_set():
            x.copy_(torch.randn(100_000) * 10.0 ** torch.randint(-3, 4, ()).item())
            x[:50_000] = 1.0

    thread, end = threading.Thread(target=write), time.time() + 1
    thread.start()
    try:
        while time.time() < end:
            mask.saliency_mask(x, 0.5)
    finally:
        stop.set()
        thread.join()
    return "a mask each time"


def _b() -> torch.Tensor:
    return torch.arange(1.0, 31.0)


SHARED = {
    "a parameter and its gradient overlap": lambda b: mask.masked_sgd_(b[4:24], b[:20], None, lr=0.1),
    "strided views that overlap": lambda b: noise.perturb_step_(b.view(5, 6)[:, 1:], b.view(5, 6)[:, :-1], lr=0.1, std=0.0, seed=1),
    "the same tensor twice in a list": lambda b: mask.accumulate_importance_([b, b], [b.clone(), b.clone()], power=1),
    "an average in two lists": lambda b: mask.masked_adam_(b, b.clone(), None, a := torch.zeros(30), a, step=1, lr=0.1),
    "an expanded tensor is changed": lambda b: noise.normal_(b[:1].expand(30), seed=1),
}
for _what, _change in SHARED.items():

    @case(f"kernels: {_what}", ("refused", True))
    def _(change=_change):
        b = _b()
        return refusal(lambda: change(b), "memory"), torch.equal(b, _b())


@case("kernels: views of one block that lie apart", True)
def _():
    b, apart = _b(), _b()
    mask.masked_sgd_(b[:15], b[15:], None, lr=0.5)
    return torch.equal(b[:15], apart[:15] - 0.5 * apart[15:])


for _beta in (0.0, 0.3, 0.9):

    @case(f"kernels: Adam with beta1 {_beta}, a small gradient after a large one, as torch's", True)
    def _(beta=_beta):
        states = []
        for kind in (ff.optim.MaskedAdam, torch.optim.Adam):
            p = torch.nn.Parameter(torch.ones(4))
            optimiser = kind([p], lr=0.01, betas=(beta, 0.9))
            for g in (1e6, 1e-3):
                p.grad = torch.full((4,), g)
                optimiser.step()
            states.append((optimiser.state[p]["exp_avg"], p.detach()))
        return all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*states, strict=True))


@case("kernels: use_backend in two threads that end crosswise", (None, "native", None))
def _():
    entered, both, left, seen = threading.Event(), threading.Event(), threading.Event(), []

    def first() -> None:
        with ff.use_backend("reference"):
            entered.set()
            both.wait(10)
        left.set()

    def second() -> None:
        entered.wait(10)
        seen.append(ff.backend.forced)
        with ff.use_backend("native"):
            both.set()
            left.wait(10)
            seen.append(ff.backend.forced)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (*seen, ff.backend.forced)


@case("kernels: a tensor whose storage was freed", "refused")
def _():
    x = torch.ones(5)
    x.untyped_storage().resize_(0)
    return refusal(lambda: noise.normal_(x, seed=1), "storage was freed")
