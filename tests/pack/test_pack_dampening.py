"""SSD and label-free SSD against their formulas and against plain loops; what the importance pass promises."""

from __future__ import annotations

import copy
import warnings

import pack_world as w
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastforget as ff
from fastforget._data import source
from fastforget.methods import request
from fastforget.methods.engine import importance as imp

W0 = w.W0


def joined(sets):
    return tuple(torch.cat([a, b]) for a, b in zip(sets["retain"], sets["forget"], strict=True))


def norm_gradient(weight, x):
    """d mean |W x|^2 / dW = 2 W mean(x x^T)."""
    return 2 * weight @ (x.T @ x) / len(x)


def dampened(weight, forget, every, alpha, lam):
    return torch.where(forget > alpha * every, weight * (lam * every / forget).clamp(max=1), weight)


def of(name, weight, x, y):
    return w.gradient(weight, (x, y)) ** 2 if name == "ssd" else norm_gradient(weight, x).abs()


@pytest.mark.parametrize("order", ["mixed", "in turn"])
@pytest.mark.parametrize("name", ["ssd", "lfssd"])
def test_by_hand(few, name, order):
    """I_f > alpha * I_D: theta *= min(lam * I_D / I_f, 1), with the means over batches of 4."""
    every = joined(few)
    rows = torch.randperm(14, generator=w.generator(73)) if order == "mixed" else torch.arange(14)
    parts = list(rows.split(4)) if order == "mixed" else [*rows[:9].split(4), *rows[9:].split(4)]
    all_data = torch.stack([of(name, W0, every[0][part], every[1][part]) for part in parts]).mean(0)
    own = list(torch.arange(5).split(4))
    forget = torch.stack([of(name, W0, few["forget"][0][part], few["forget"][1][part]) for part in own]).mean(0)
    expected = dampened(W0, forget, all_data, 1.1, 0.8)
    result = w.run(w.softmax_regression(W0), name, few, alpha=1.1, lam=0.8, batch_size=4, order=order)
    chosen = int((forget > 1.1 * all_data).sum())
    assert 0 < chosen < 9
    assert result.receipt["measured"] == {"dampened": chosen, "share_dampened": chosen / 9}
    torch.testing.assert_close(result.model.weight, expected, rtol=0, atol=1e-14)
    assert torch.equal(result.model.weight[forget <= 1.1 * all_data], W0[forget <= 1.1 * all_data])
    assert result.cost.passes == (19 if order == "mixed" else 14)


def plain(net, sets, loss, power, order):
    """Dampens the half of the weights that matters more for the forget set; returns ``alpha`` and ``lam``."""
    net.eval()
    every = joined(sets)
    rows = torch.arange(90) if order == "in turn" else torch.randperm(90, generator=w.generator(73))

    def importances(x, y, parts):
        total = [torch.zeros_like(p) for p in net.parameters()]
        for part in parts:
            net.zero_grad()
            loss(net(x[part]), y[part]).backward()
            for t, p in zip(total, net.parameters(), strict=True):
                t += p.grad.abs() ** power / len(parts)
        return total

    forget = importances(*sets["forget"], torch.arange(20).split(128))
    parts = [rows[:70], rows[70:]] if order == "in turn" else rows.split(128)
    everything = importances(*every, parts)
    alpha = float(torch.cat([(f / e).flatten() for f, e in zip(forget, everything, strict=True)]).nanmedian())
    lam = 1.1 * alpha  # a part of what is selected is dampened
    with torch.no_grad():
        for p, f, e in zip(net.parameters(), forget, everything, strict=True):
            p.copy_(dampened(p, f, e, alpha, lam))
    return alpha, lam


LOSSES = {"ssd": (F.cross_entropy, 2), "lfssd": (lambda z, y: (z.norm(dim=1) ** 2).mean(), 1)}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("preset", ["paper", "code"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_engine_goes_the_way_of_a_plain_loop(name, preset, kind):
    """With the published batch size and order; on so small a net the published ``alpha`` selects no weight."""
    net = getattr(w, kind)()
    sets, other = w.request(net), w.plain_copy(net)
    loss, power = LOSSES[name]
    alpha, lam = plain(other, sets, loss, power, ff.methods.pack.STANDARD[name](preset=preset).order)
    result = w.run(net, name, sets, preset=preset, alpha=alpha, lam=lam)
    w.agree(result.model, other, net)
    assert 0 < result.receipt["measured"]["share_dampened"] < 1
    assert all(torch.equal(a, b) for a, b in zip(result.model.buffers(), net.buffers(), strict=True))


def test_where_nothing_is_dampened_it_says_so(few):
    """In turn, no weight can matter more for the forget set than (batches of all) / (its batches) times as much as for all data."""
    net = w.softmax_regression(W0)
    with warnings.catch_warnings(), pytest.warns(UserWarning, match=r"ssd: no weight matters more than alpha=3.*the model is as given"):
        warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
        result = ff.unlearn(net, "ssd", alpha=3.0, order="in turn", batch_size=50, progress=False, **few)
    assert torch.equal(result.model.weight, W0)
    assert result.receipt["measured"] == {"dampened": 0, "share_dampened": 0.0}
    assert "samples drawn at random" in result.receipt["standard"]["weak"]


def test_labels_are_not_read(few):
    other = few | {"forget": (few["forget"][0], few["forget"][1].flip(0)), "retain": (few["retain"][0], few["retain"][1].flip(0))}
    kept = {"alpha": 1.1, "batch_size": 4}
    one, two = (w.run(w.softmax_regression(W0), "lfssd", sets, **kept) for sets in (few, other))
    assert torch.equal(one.model.weight, two.model.weight)
    assert not one.receipt["standard"]["forget_labels_read"]
    assert not torch.equal(*(w.run(w.softmax_regression(W0), "ssd", sets, **kept).model.weight for sets in (few, other)))


@pytest.mark.parametrize("budget", [18, 19])
def test_the_budget_takes_the_whole_or_nothing(few, budget):
    result = w.run(w.softmax_regression(W0), "ssd", few, alpha=1.0, budget=budget)
    assert torch.equal(result.model.weight, W0) == (budget < 19)
    assert result.cost.passes == (19 if budget >= 19 else 0)


def a_task(net, few):
    sets = {name: source(few[name], name=name) for name in ("forget", "retain")}
    empty = request.Sets(sets["retain"], sets["forget"], None, None)
    kept = {"device": torch.device("cpu"), "seed": w.SEED, "progress": False, "drop_forget": False}
    return request.make_task(net, ff.methods.SSD(), [], empty, forward=lambda model, x: model(x), **kept)


def test_signed_sums_and_batches_of_several_sets(few):
    """Samples of several sets in one batch count as if the sets were one."""
    task = a_task(w.softmax_regression(W0), few)
    (signed,) = imp.importance(task, [task.forget], 2, imp.SUM)
    parts = [w.gradient(W0, tuple(t[rows] for t in few["forget"])) for rows in torch.arange(5).split(2)]
    torch.testing.assert_close(signed, sum(parts), rtol=0, atol=1e-15)
    generator = torch.Generator().manual_seed(1)
    (mixed,) = imp.importance(task, [task.retain, task.forget], 4, imp.SQUARES, generator=generator)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    x, y = joined(few)
    expected = torch.stack([w.gradient(W0, (x[rows].contiguous(), y[rows])) ** 2 for rows in order.split(4)]).mean(0)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-15)


def test_sets_of_other_shapes_are_not_joined():
    """Sentences of two lengths can't stand in one tensor; their mean loss is that of the batch all the same."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3).double()

        def forward(self, x):
            return self.head(x.mean(1))

    generator = torch.Generator().manual_seed(4)
    long, short = (torch.randn(n, length, 2, generator=generator, dtype=torch.float64) for n, length in ((6, 5), (4, 3)))
    sets = {"retain": (long, torch.arange(6) % 3), "forget": (short, torch.arange(4) % 3)}
    net = Mean()
    task = a_task(net, sets)
    found = imp.importance(task, [task.retain, task.forget], 10, imp.SQUARES)
    x, y = torch.cat([long.mean(1), short.mean(1)]), torch.cat([sets["retain"][1], sets["forget"][1]])
    expected = torch.autograd.grad(F.cross_entropy(net.head(x), y), list(net.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b**2, rtol=1e-12, atol=1e-15)


def test_a_gradient_that_is_not_finite_is_refused(few):
    net = w.softmax_regression(W0)
    before = copy.deepcopy(net.state_dict())
    bad = few["retain"][0].clone()
    bad[3, 0] = 1e200  # its loss is finite, the square of its gradient isn't
    with warnings.catch_warnings(), pytest.raises(FloatingPointError, match="importance: a gradient became NaN or infinite"):
        warnings.simplefilter("ignore")
        ff.unlearn(net, "ssd", progress=False, **few | {"retain": (bad, few["retain"][1])})
    assert torch.equal(before["weight"], net.weight)


def test_importance_of_weights_of_16_bits_does_not_stall(few):
    """3,000 equal batches: in bfloat16 the sum of their squares would stop growing after 256."""
    x, y = torch.ones(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    net = w.softmax_regression(W0)
    many = {
        "forget": (x.bfloat16().repeat(3000, 1), y.repeat(3000)),
        "retain": tuple(t.bfloat16() if t.is_floating_point() else t for t in few["retain"]),
    }
    task = a_task(net.bfloat16(), many)
    (found,) = imp.importance(task, [task.forget], 1, imp.SQUARES)
    (once,) = imp.importance(task, [task.forget.subset([0])], 1, imp.SQUARES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, once, rtol=3000 * torch.finfo(torch.float32).eps, atol=0)  # the bound of a sum one by one
    assert w.run(net, "ssd", many | {"check_overlap": False}, alpha=1.0).model.weight.dtype == torch.bfloat16
