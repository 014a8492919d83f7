"""The error-maximizing update: the loss and gradient, and one fused Adam step, against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerance import FLOATS, assert_two_times, drawn_once
from torch.nn import functional as F

from fastforget.ops import update

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
LOSS_SHAPES = [(0, 10), (1, 1), (1, 2), (3, 10), (17, 7), (256, 10), (33, 100), (5, 1000), (2, 4099)]
STEP_SHAPES = [(1,), (1, 1), (3, 5), (2, 3, 7, 9), (4, 3, 32, 32), (1, 65537), (129, 33)]


def repeats(elements):
    """How many draws make plain PyTorch's largest error a measure and not an accident."""
    return max(1, min(64, 4096 // max(elements, 1)))


@drawn_once
def loss_case(shape, dtype, scale):
    """Draws, and what plain PyTorch and extended precision make of them: the same for every implementation."""
    draws = [
        ((scale * torch.randn(shape)).to(dtype), torch.randint(0, shape[1], shape[:1]))
        for _ in range(repeats(shape[0]))  # a row has one loss, however many classes
    ]
    plain, exact = (list(zip(*(f(*d) for d in draws), strict=True)) for f in (plain_loss, exact_loss))
    return draws[0], plain, exact


@drawn_once
def step_case(shape, dtype, step, clamp):
    draws = [draw_state(shape, dtype, step) for _ in range(repeats(math.prod(shape)))]
    plain, exact = (list(zip(*(f(*d, step, clamp) for d in draws), strict=True)) for f in (plain_step, exact_step))
    return draws[0], plain, exact


def plain_loss(logits, labels):
    return -F.cross_entropy(logits, labels, reduction="none"), (
        F.one_hot(labels, logits.shape[1]) - F.softmax(logits, 1)
    ).to(logits.dtype) / max(len(labels), 1)


def exact_loss(logits, labels):
    """The same in extended precision, rounded to float64."""
    z = logits.to(torch.float64).numpy().astype(np.longdouble)
    d = z - z.max(axis=1, keepdims=True, initial=-np.inf)
    log_p = d - np.log(np.exp(d).sum(axis=1, keepdims=True))
    y = labels.numpy()
    onehot = np.eye(z.shape[1], dtype=np.longdouble)[y]
    gradient = (onehot - np.exp(log_p)) / max(len(y), 1)
    return tuple(torch.from_numpy(a.astype(np.float64)) for a in (log_p[np.arange(len(y)), y], gradient))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", LOSS_SHAPES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_loss_and_gradient(implementation, shape, dtype, scale):
    inputs, plain, exact = loss_case(shape, dtype, scale)
    loss, dlogits = update.error_max_loss(*inputs)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype
    assert_two_times(loss, list(plain[0]), list(exact[0]), "loss")
    assert_two_times(dlogits, list(plain[1]), list(exact[1]), "dlogits")


def test_gradient_is_that_of_the_batch_mean(implementation):
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (6,))
    with torch.no_grad():
        _, dlogits = update.error_max_loss(logits.detach(), labels)
    (expected,) = torch.autograd.grad(-F.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(dlogits, expected)


def test_loss_is_differentiable():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (4,))
    assert torch.autograd.gradcheck(lambda z: update.error_max_loss(z, labels)[0], (logits,))


def test_infinite_and_nan_logits(implementation):
    logits = torch.tensor([[0.0, -math.inf, 1.0], [math.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss, dlogits = update.error_max_loss(logits, torch.tensor([0, 1, 2]))
    assert math.isclose(loss[0].item(), -math.log1p(math.e), rel_tol=1e-6)
    assert dlogits[0, 1] == 0
    assert torch.isnan(loss[1]) and torch.isnan(dlogits[1]).all()
    assert math.isclose(loss[2].item(), -math.log(3), rel_tol=1e-6)


def test_int32_labels_and_strided_logits(implementation):
    logits = torch.randn(10, 8).t()
    labels = torch.randint(0, 10, (8,))
    expected = update.error_max_loss(logits.contiguous(), labels)
    got = update.error_max_loss(logits, labels.to(torch.int32))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def plain_step(x, g, m, v, step, clamp):
    """One step of autograd regulariser, torch.optim.Adam and clamp_ from the given state, all in the tensors' dtype."""
    x = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([x], lr=0.1)
    optimizer.state[x] = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    (0.1 * x.pow(2).sum() / x.shape[0]).backward()
    x.grad += g
    optimizer.step()
    state = optimizer.state[x]
    value = x.detach() if clamp is None else x.detach().clamp_(*clamp)
    return value, state["exp_avg"], state["exp_avg_sq"]


def exact_step(x, g, m, v, step, clamp):
    """The same step in extended precision (numpy.longdouble has 64 bits of mantissa on x86), rounded to float64."""
    x, g, m, v = (t.to(torch.float64).numpy().astype(np.longdouble) for t in (x, g, m, v))
    beta1, beta2 = np.longdouble(0.9), np.longdouble(0.999)
    g = g + 2 * np.longdouble(0.1) / x.shape[0] * x
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    x = x - np.longdouble(0.1) * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + np.longdouble(1e-8))
    if clamp is not None:
        x = np.clip(x, -np.inf if clamp[0] is None else clamp[0], np.inf if clamp[1] is None else clamp[1])
    return tuple(torch.from_numpy(np.asarray(t, dtype=np.float64)) for t in (x, m, v))


def draw_state(shape, dtype, step):
    """(x, grad, exp_avg, exp_avg_sq) before the given step."""
    x, g, m = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
    v = (torch.rand(shape, dtype=torch.float64) + 0.01).to(dtype)
    if step == 1:
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        # a first step divides by |g|: keep what 16 bits can square
        g = (g.abs() + 0.25) * torch.where(x < 0, -1.0, 1.0).to(dtype)
    return x, g, m, v


@pytest.mark.parametrize("clamp", [None, (-0.5, None), (-0.4, 0.6)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", STEP_SHAPES)
@pytest.mark.parametrize("step", [1, 7])
def test_step_is_adam_on_the_regularised_objective(implementation, shape, dtype, clamp, step):
    (x, g, m, v), plain, exact = step_case(shape, dtype, step, clamp)
    ours = [t.clone() for t in (x, m, v)]
    total = update.error_max_step_(ours[0], g, ours[1], ours[2], step=step, lr=0.1, l2=0.1, clamp=clamp)
    for got, p, e, what in zip(ours, plain, exact, ("x", "exp_avg", "exp_avg_sq"), strict=True):
        assert_two_times(got, list(p), list(e), what)
    assert_two_times(total, *sums_of_squares(x, total.dtype), "sum of squares before the step")


@drawn_once
def sums_of_squares(x, dtype):
    """Plain PyTorch's and the exact sum of squares, of ``x`` and of further draws of its shape."""
    draws = [x] + [torch.randn(x.shape, dtype=torch.float64).to(x.dtype) for _ in range(31)]
    plain = [d.to(dtype).square().sum() for d in draws]
    exact = [
        torch.tensor(float((d.to(torch.float64).numpy().astype(np.longdouble) ** 2).sum()), dtype=torch.float64)
        for d in draws
    ]
    return plain, exact


def test_step_does_not_depend_on_the_thread_count(implementation):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            x, g = (torch.randn(5, 40_001, generator=generator) for _ in range(2))
            m, v = torch.zeros_like(x), torch.zeros_like(x)
            results.append((update.error_max_step_(x, g, m, v, step=1, lr=0.1), x, m, v))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_step_keeps_nan_and_obeys_the_clamp(implementation):
    x = torch.tensor([[math.nan, 100.0, -100.0, 0.0]])
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    update.error_max_step_(x, torch.zeros_like(x), m, v, step=1, lr=0.1, l2=0.0, clamp=(-1.0, 2.0))
    assert torch.isnan(x[0, 0])
    assert x[0, 1:].tolist() == [2.0, -1.0, 0.0]


def test_empty_and_strided_noise(implementation):
    empty = torch.empty(0, 3)
    assert update.error_max_step_(empty, empty.clone(), empty.clone(), empty.clone(), step=1, lr=0.1).item() == 0
    x = torch.randn(4, 3, 5, 5)
    g = torch.randn_like(x)
    strided = x.to(memory_format=torch.channels_last).clone(memory_format=torch.preserve_format)
    states = [[torch.zeros_like(t), torch.zeros_like(t)] for t in (x, strided)]
    update.error_max_step_(x, g, *states[0], step=1, lr=0.1)
    update.error_max_step_(strided, g, *states[1], step=1, lr=0.1)
    assert torch.equal(x, strided) and torch.equal(states[0][1], states[1][1])
