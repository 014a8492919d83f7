"""Optimiser steps on unmasked coordinates: torch.optim's values where a mask is on, the same bits where it is off."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerance import FLOATS, assert_two_times, drawn_once

from fastforget.ops import mask
from fastforget.reference.mask.select import pack_bits

SHAPES = [(), (7,), (5, 3, 3, 3), (70, 1009)]
SGD = {
    "plain": {"lr": 0.1},
    "decay, ascent": {"lr": 0.1, "weight_decay": 0.05, "maximize": True},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "first": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "dampening": 0.3, "first": True},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "maximize": True},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
}
ADAM = {
    "plain": {"step": 7},
    "first step": {"step": 1},
    "l2, ascent": {"step": 7, "weight_decay": 0.05, "maximize": True},
    "first step, l2": {"step": 1, "weight_decay": 0.05},
    "decoupled": {"step": 7, "weight_decay": 0.05, "decoupled": True, "betas": (0.8, 0.99), "eps": 1e-3},
    "first step, decoupled": {"step": 1, "weight_decay": 0.05, "decoupled": True, "maximize": True},
}


def bits(x):
    """The bits themselves: NaN differs from NaN unless it is the same one."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(a, b):
    return torch.equal(bits(a), bits(b))


def wide(x):
    return x.to(torch.float64).numpy().astype(np.longdouble)


def narrow(x):
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def call_sgd(x, g, m, b, options):
    mask.masked_sgd_(x, g, m, momentum_buffers=b if "momentum" in options else None, **options)


def plain_sgd(x, g, b, options):
    """torch.optim.SGD from the given state, in the tensors' dtype."""
    keys = {k: v for k, v in options.items() if k != "first"}
    w = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.SGD([w], **keys)
    if "momentum" in options and not options.get("first"):
        optimizer.state[w] = {"momentum_buffer": b.clone()}
    w.grad = g.clone()
    optimizer.step()
    return w.detach(), optimizer.state[w].get("momentum_buffer", b)


def exact_sgd(x, g, b, options):
    """The formulas of torch.optim.SGD's documentation in extended precision."""
    x, g, b = map(wide, (x, g, b))
    o = {k: np.longdouble(options.get(k, 0.0)) for k in ("lr", "momentum", "dampening", "weight_decay")}
    g = (-g if options.get("maximize") else g) + o["weight_decay"] * x
    if "momentum" in options:
        b = g if options.get("first") else o["momentum"] * b + (1 - o["dampening"]) * g
        g = g + o["momentum"] * b if options.get("nesterov") else b
    return narrow(x - o["lr"] * g), narrow(b)


def call_adam(x, g, m, a, v, options):
    mask.masked_adam_(x, g, m, a, v, lr=0.1, **options)


def plain_adam(x, g, m, v, options):
    w = torch.nn.Parameter(x.clone())
    kind = torch.optim.AdamW if options.get("decoupled") else torch.optim.Adam
    keys = {k: options[k] for k in ("betas", "eps", "maximize") if k in options}
    optimizer = kind([w], lr=0.1, weight_decay=options.get("weight_decay", 0.0), **keys)
    step = torch.tensor(float(options["step"] - 1))
    optimizer.state[w] = {"step": step, "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    w.grad = g.clone()
    optimizer.step()
    state = optimizer.state[w]
    return w.detach(), state["exp_avg"], state["exp_avg_sq"]


def exact_adam(x, g, m, v, options):
    x, g, m, v = map(wide, (x, g, m, v))
    beta1, beta2 = map(np.longdouble, options.get("betas", (0.9, 0.999)))
    decay, eps, lr = np.longdouble(options.get("weight_decay", 0.0)), np.longdouble(options.get("eps", 1e-8)), np.longdouble(0.1)
    g = -g if options.get("maximize") else g
    if options.get("decoupled"):
        x = x - lr * decay * x
    else:
        g = g + decay * x
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    t = options["step"]
    x = x - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return narrow(x), narrow(m), narrow(v)


def draw(shape, dtype, step=7, maximize=False):
    """(x, grad, a first and a second moment) before a step."""
    x, g, m = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
    v = (torch.rand(shape, dtype=torch.float64) + 0.01).to(dtype)
    if step == 1:
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        # a first step divides by |g|: keep what 16 bits can square, and what L2 doesn't cancel
        up = (x >= 0) != maximize
        g = (g.abs() + 0.25) * torch.where(up, 1.0, -1.0).to(dtype)
    return x, g, m, v


@drawn_once
def case(shape, dtype, kind, name):
    """Draws, and what torch.optim and extended precision make of them: the same for every implementation. Enough draws that
    torch's largest error is a measure and not an accident."""
    options = (SGD if kind == "sgd" else ADAM)[name]
    repeats = max(1, min(64, 4096 // max(math.prod(shape), 1)))
    draws = [draw(shape, dtype, options.get("step", 7), options.get("maximize", False)) for _ in range(repeats)]
    if kind == "sgd":
        draws = [d[:3] for d in draws]
        plain, exact = ([f(*d, options) for d in draws] for f in (plain_sgd, exact_sgd))
    else:
        plain, exact = ([f(*d, options) for d in draws] for f in (plain_adam, exact_adam))
    on = torch.rand(shape) < 0.6
    return draws[0], on, list(zip(*plain, strict=True)), list(zip(*exact, strict=True))


@pytest.mark.parametrize("kind,name", [("sgd", n) for n in SGD] + [("adam", n) for n in ADAM])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_torchs_step_where_on_and_the_same_bits_where_off(implementation, shape, dtype, kind, name):
    (x, g, *state), on, plain, exact = case(shape, dtype, kind, name)
    options = (SGD if kind == "sgd" else ADAM)[name]
    for m in (None, on):
        ours = [x.clone(), *(s.clone() for s in state)]
        (call_sgd if kind == "sgd" else call_adam)(ours[0], g, m, *ours[1:], options)
        moves = [True, "momentum" in options] if kind == "sgd" else [True] * 3
        for got, before, p, e, moved in zip(ours, (x, *state), plain, exact, moves, strict=True):
            if not moved:
                assert same_bits(got, before)
                continue
            if m is not None:
                assert same_bits(got[~on], before[~on])
                got = torch.where(on, got, e[0].to(got.dtype))  # the tolerance speaks of what moved
            assert_two_times(got, list(p), list(e), f"{kind} {name}")


ROW_SHAPES = [(1, 3), (6, 9), (33, 2, 3), (5, 64), (40, 1000), (2, 40_000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", ROW_SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_every_form_of_mask_gives_the_same_bits(implementation, shape, dtype, share):
    rows = torch.rand(shape[0]) < share
    on = rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    forms = [on.contiguous(), rows, pack_bits(on.flatten()), on]
    if share == 1.0:
        forms.append(None)
    x, g, m, v = draw(shape, dtype)
    for kind, variants in (("sgd", SGD), ("adam", ADAM)):
        for name in ("plain", *list(variants)[-2:]):
            results = []
            for form in [*forms, rows.float()] if kind == "sgd" else forms:
                ours = [x.clone(), m.clone()] if kind == "sgd" else [x.clone(), m.clone(), v.clone()]
                (call_sgd if kind == "sgd" else call_adam)(ours[0], g, form, *ours[1:], variants[name])
                results.append(ours)
            for other in results[1:]:
                assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))
            moved = (results[0][0] != x).any().item()
            assert moved == bool(rows.any())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(4,), (6, 9), (7, 100)])
def test_factors_scale_the_gradient_of_their_row(implementation, shape, dtype):
    factors = torch.tensor([0.5, 0.0, -2.0, 1.0, 4.0, 0.0, 0.25])[: shape[0]]  # powers of two: the product is exact
    column = factors.view(-1, *[1] * (len(shape) - 1))
    x, g, b, _ = draw(shape, dtype)
    for options in SGD.values():
        ours, scaled = [x.clone(), b.clone()], [x.clone(), b.clone()]
        call_sgd(ours[0], g, factors, ours[1], options)
        call_sgd(scaled[0], g * column.to(dtype), factors != 0, scaled[1], options)
        assert all(same_bits(a, e) for a, e in zip(ours, scaled, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("inner", [1, 5, 700])
def test_no_nan_comes_from_or_goes_to_a_frozen_coordinate(implementation, inner, dtype):
    """Weights, gradients and state are NaN with a payload, or infinite, where frozen, and keep their bits."""
    rows = torch.tensor([False, True, True, False, False, True])
    on = rows[:, None].expand(6, inner)
    poison = bits(torch.full((1,), math.nan, dtype=dtype)) + 5
    state = [t.clone() for t in draw((6, inner), dtype)]
    for t in state:
        bits(t)[~on] = poison
        t[3] = -math.inf
    for form in (rows, on.contiguous(), pack_bits(on.flatten())):
        x, g, m, v = (t.clone() for t in state)
        mask.masked_adam_(x, g, form, m, v, step=3, lr=0.1, weight_decay=0.1)
        for got, before in ((x, state[0]), (m, state[2]), (v, state[3])):
            assert same_bits(got[~on], before[~on]) and torch.isfinite(got[on]).all()
        for m_form in (form, rows.float()):
            x, b = state[0].clone(), state[2].clone()
            mask.masked_sgd_(x, g, m_form, lr=0.1, momentum=0.9, momentum_buffers=b, weight_decay=0.1)
            for got, before in ((x, state[0]), (b, state[2])):
                assert same_bits(got[~on], before[~on]) and torch.isfinite(got[on]).all()


UNREADABLE = """
import ctypes, mmap, sys, torch
from fastforget.ops import mask
page = mmap.PAGESIZE
torch.ops.fastforget._cpu_isa(int(sys.argv[1]))
def rows():  # three rows, of which the middle one may be neither read nor written
    memory = mmap.mmap(-1, 3 * page)
    t = torch.frombuffer(memory, dtype=torch.float32).view(3, -1)
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(t[1].data_ptr()), ctypes.c_size_t(page), 0) != 0:
        raise SystemExit(3)
    return t
x, g, m, v = (rows() for _ in range(4))
on = torch.tensor([True, False, True])
mask.masked_sgd_(x, g, on, lr=0.1, momentum=0.9, momentum_buffers=m, weight_decay=0.1)
mask.masked_sgd_(x, g, on.float(), lr=0.1)
mask.masked_adam_(x, g, on, m, v, step=1, lr=0.1)
print("untouched", flush=True)
import os; os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects memory pages by Linux's calls")
def test_rows_that_are_off_are_not_even_read(implementation):
    if implementation == "reference":
        return  # plain PyTorch reads everything
    level = {"baseline": "2", "avx2": "3", "avx512": "4"}[implementation]
    done = subprocess.run([sys.executable, "-c", UNREADABLE, level], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "untouched", f"exit status {done.returncode}\n{done.stderr}"


def test_infinite_weights_without_decay_stay_infinite(implementation):
    """As in torch.optim: no 0 * inf."""
    x = torch.tensor([math.inf, -math.inf, 1.0])
    assert mask.masked_sgd_(x.clone(), torch.ones(3), None, lr=0.5).tolist() == [math.inf, -math.inf, 0.5]
    moments = torch.zeros(3), torch.zeros(3)
    assert mask.masked_adam_(x, torch.ones(3), None, *moments, step=1, lr=0.5)[:2].tolist() == [math.inf, -math.inf]


def mixed_list():
    shapes = [(64, 3, 7, 7), (64,), (0,), (), (128, 64), (300, 333), (5, 1001)]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.float32, torch.bfloat16]
    items = [draw(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    on = [torch.rand(s) < 0.5 for s in shapes]
    rows = [torch.rand(s[:1]) < 0.5 for s in shapes]
    masks = [rows[0], on[1], on[2], None, pack_bits(on[4].flatten()), pack_bits(on[5].flatten()), rows[6]]
    return [list(t) for t in zip(*items, strict=True)], masks


def test_lists_equal_single_calls(implementation):
    (xs, gs, ms, vs), masks = mixed_list()
    together, alone = ([[t.clone() for t in ts] for ts in (xs, ms, vs)] for _ in range(2))
    assert mask.masked_adam_(together[0], gs, masks, together[1], together[2], step=2, lr=0.1) is together[0]
    mask.masked_sgd_(together[0], gs, masks, lr=0.1, momentum=0.9, momentum_buffers=together[1])
    for x, g, keep, m, v in zip(alone[0], gs, masks, alone[1], alone[2], strict=True):
        mask.masked_adam_(x, g, keep, m, v, step=2, lr=0.1)
        mask.masked_sgd_(x, g, keep, lr=0.1, momentum=0.9, momentum_buffers=m)
    for a, b in zip(together, alone, strict=True):
        assert all(same_bits(s, t) for s, t in zip(a, b, strict=True))


def test_the_thread_count_changes_nothing(implementation):
    (xs, gs, ms, vs), masks = mixed_list()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            ours = [[t.clone() for t in ts] for ts in (xs, ms, vs)]
            mask.masked_adam_(ours[0], gs, masks, ours[1], ours[2], step=2, lr=0.1)
            mask.masked_sgd_(ours[0], gs, masks, lr=0.1, momentum=0.9, momentum_buffers=ours[1])
            results.append([t for ts in ours for t in ts])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shift", [1, 3, 17])
def test_misaligned_views(implementation, shift, dtype):
    """Every tensor and mask begins inside its memory; the neighbours stay as they are."""
    n = 1237

    def offset(t):
        memory = torch.full((shift + t.numel() + 5,), 3, dtype=t.dtype)
        return memory, memory[shift : shift + t.numel()].copy_(t)

    x, g, m, v = draw((n,), dtype)
    on = torch.rand(n) < 0.5
    for form in (None, on, pack_bits(on)):
        expected = [x.clone(), m.clone(), v.clone()]
        mask.masked_adam_(expected[0], g, form, *expected[1:], step=2, lr=0.1)
        memories, views = zip(*(offset(t) for t in (x, g, m, v)), strict=True)
        mask.masked_adam_(views[0], views[1], None if form is None else offset(form)[1], views[2], views[3], step=2, lr=0.1)
        assert all(same_bits(views[i], e) for i, e in zip((0, 2, 3), expected, strict=True))
        assert all((s[:shift] == 3).all() and (s[shift + n :] == 3).all() for s in memories)


def test_strided_tensors(implementation):
    x, g, m, v = draw((8, 6), torch.float32)
    on = torch.rand(8, 6) < 0.5
    expected = [x.clone(), m.clone(), v.clone()]
    mask.masked_adam_(expected[0], g, on, *expected[1:], step=2, lr=0.1)
    strided = [torch.empty(6, 8).t().copy_(t) for t in (x, m, v)]
    mask.masked_adam_(strided[0], g.t().contiguous().t(), on.t().contiguous().t(), *strided[1:], step=2, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(strided, expected, strict=True))
    b = [torch.empty(6, 8).t().copy_(t) for t in (x, m)]
    expected = [x.clone(), m.clone()]
    for p, buffer in (b, expected):
        mask.masked_sgd_(p, g, on, lr=0.1, momentum=0.9, momentum_buffers=buffer)
    assert all(torch.equal(s, t) for s, t in zip(b, expected, strict=True))


X = torch.zeros(4, 3)
ALL_FORMS = (
    r"bool \(4, 3\), one a coordinate; bool \(4,\), one a row; uint8 \(2,\), one bit a coordinate.*"
    r"float32 \(4,\), a factor on each row's gradient; or None"
)
BAD = {
    "float element mask": (torch.ones(4, 3), ValueError, r"masks\[0\]: got .*\(4, 3\), torch.float32.*" + ALL_FORMS + ".*mask != 0"),
    "mask shape": (torch.ones(3, 4, dtype=torch.bool), ValueError, r"masks\[0\]: got .*\(3, 4\).*" + ALL_FORMS),
    "flat mask": (torch.ones(12, dtype=torch.bool), ValueError, ALL_FORMS),
    "column mask": (torch.ones(3, dtype=torch.bool), ValueError, ALL_FORMS),
    "unpacked bytes": (torch.ones(4, 3, dtype=torch.uint8), ValueError, ALL_FORMS),
    "too many bytes": (torch.ones(3, dtype=torch.uint8), ValueError, ALL_FORMS),
    "integer rows": (torch.ones(4, dtype=torch.int64), ValueError, "int64.*" + ALL_FORMS),
    "double factors": (torch.ones(4, dtype=torch.float64), ValueError, "float64.*" + ALL_FORMS),
    "mask device": (torch.ones(4, dtype=torch.bool, device="meta"), ValueError, r"on meta; accepted .* on cpu"),
    "no tensor": ([True], TypeError, r"masks\[0\]: got bool True.*" + ALL_FORMS),
    "count": ([None, None], ValueError, "masks: got 2 masks; accepted are 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_mask_is_told_all_forms(implementation, name):
    bad, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        mask.masked_sgd_(X, torch.ones(4, 3), bad, lr=0.1)
    with pytest.raises(kind, match=message.replace(r"float32 \(4,\), a factor on each row's gradient; ", "")):
        mask.masked_adam_(X, torch.ones(4, 3), bad, torch.zeros(4, 3), torch.zeros(4, 3), step=1, lr=0.1)
    assert (X == 0).all()


def test_adam_takes_no_factors(implementation):
    with pytest.raises(ValueError, match=r"masks\[0\]: got a tensor of shape \(4,\), torch.float32"):
        mask.masked_adam_(X, torch.ones(4, 3), torch.ones(4), torch.zeros(4, 3), torch.zeros(4, 3), step=1, lr=0.1)


G, Z = torch.ones(4, 3), torch.zeros(4, 3)
BAD_CALLS = {
    "grad shape": (lambda: mask.masked_sgd_(X, G[:2], None, lr=0.1), ValueError, r"grads\[0\]: .*shape"),
    "grad count": (lambda: mask.masked_sgd_([X], [G, G], None, lr=0.1), ValueError, "grads: got 2 tensors; accepted are 1"),
    "sparse grad": (lambda: mask.masked_sgd_(X, G.to_sparse(), None, lr=0.1), TypeError, "grads: got layout torch.sparse"),
    "lr": (lambda: mask.masked_sgd_(X, G, None, lr=-1.0), ValueError, "lr: got -1.0"),
    "nan decay": (lambda: mask.masked_sgd_(X, G, None, lr=0.1, weight_decay=math.nan), ValueError, "weight_decay: got nan"),
    "no buffers": (lambda: mask.masked_sgd_(X, G, None, lr=0.1, momentum=0.9), ValueError, "momentum_buffers: got None.*first=True"),
    "buffer dtype": (
        lambda: mask.masked_sgd_(X, G, None, lr=0.1, momentum=0.9, momentum_buffers=Z.double()), ValueError,
        r"momentum_buffers\[0\]: .*dtype"),
    "nesterov": (lambda: mask.masked_sgd_(X, G, None, lr=0.1, nesterov=True), ValueError, "nesterov: needs a momentum"),
    "moment shape": (lambda: mask.masked_adam_(X, G, None, Z[:1], Z, step=1, lr=0.1), ValueError, r"exp_avgs\[0\]: .*shape"),
    "step": (lambda: mask.masked_adam_(X, G, None, Z, Z.clone(), step=0, lr=0.1), ValueError, "step: got 0"),
    "betas": (lambda: mask.masked_adam_(X, G, None, Z, Z.clone(), step=1, lr=0.1, betas=(0.9, 1.0)), ValueError, "betas"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named_and_change_nothing(implementation, name):
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind, match=message):
        call()
    assert (X == 0).all() and (Z == 0).all()


def test_empty_lists_are_fine():
    assert mask.masked_sgd_([], [], None, lr=0.1) == []
    assert mask.masked_adam_([], [], [], [], [], step=1, lr=0.1) == []
