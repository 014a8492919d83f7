"""The plain baselines, NegGrad+, SalUn and l1-sparse against their formulas and against plain loops."""

from __future__ import annotations

import copy

import pack_world as w
import pytest
import torch
from torch.nn import functional as F

W0 = w.W0


ONE = {"epochs": 1, "batch_size": 50, "lr": 0.3, "weight_decay": 0.01}


def test_one_step_by_hand(few):
    """theta - lr * (gradient + weight decay * theta), of each method's loss."""
    forget, retain, wd = few["forget"], few["retain"], ONE["weight_decay"]
    kept, known = w.gradient(W0, retain), w.gradient(W0, forget)
    sizes = {"neggrad_plus": {"alpha": 0.7, "forget_batch_size": 50}, "l1_sparse": {"alpha": 0.02}}
    expected = {
        "finetune": kept,
        "gradient_ascent": -known,
        "neggrad_plus": 0.7 * kept - 0.3 * known,
        "l1_sparse": kept + 0.02 * W0.sign(),
    }
    for name, g in expected.items():
        ours = w.run(w.softmax_regression(W0), name, few, **ONE, **sizes.get(name, {})).model.weight
        torch.testing.assert_close(ours, W0 - 0.3 * (g + wd * W0), rtol=0, atol=1e-14, msg=name)


def test_random_labels_by_hand(few):
    """A step on the forget set with drawn labels, then one on the retain set with momentum."""
    labels = torch.randint(0, 3, (5,), generator=w.generator(71))
    order = torch.randperm(5, generator=w.generator(70))
    first = w.gradient(W0, (few["forget"][0][order], labels)) + 0.01 * W0
    weight = W0 - 0.3 * first
    weight = weight - 0.3 * (0.9 * first + w.gradient(weight, few["retain"]) + 0.01 * weight)
    ours = w.run(w.softmax_regression(W0), "random_labels", few, **ONE, momentum=0.9).model.weight
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-14)


def test_salun_by_hand(few):
    """The mask holds the larger half of |gradient of the forget loss|; what is outside keeps its bits, or (code) decays all the same."""
    known = w.gradient(W0, few["forget"]).abs().flatten()
    inside = torch.zeros(9, dtype=torch.bool).index_fill(0, known.argsort(descending=True)[:4], True).view(3, 3)
    ours = w.run(w.softmax_regression(W0), "salun", few, keep=4 / 9, **ONE).model.weight
    assert torch.equal(ours[~inside], W0[~inside])
    assert bool((ours != W0)[inside].all())
    theirs = w.run(w.softmax_regression(W0), "salun", few, keep=4 / 9, preset="code", **ONE, momentum=0.0).model.weight
    decayed = W0 * (1 - 0.3 * 0.01) ** 2
    torch.testing.assert_close(theirs[~inside], decayed[~inside], rtol=0, atol=1e-15)
    assert not torch.allclose(theirs[inside], decayed[inside], atol=1e-3)


def test_proximal_l1_makes_zeros(few):
    ours = w.run(w.softmax_regression(W0), "l1_sparse", few, alpha=0.9, proximal=True, **ONE).model.weight
    stepped = W0 - 0.3 * (w.gradient(W0, few["retain"]) + 0.01 * W0)
    torch.testing.assert_close(ours, stepped.sign() * (stepped.abs() - 0.27).clamp_min(0), rtol=0, atol=1e-14)
    assert bool((ours == 0).any())


def _optimizer(net, lr, momentum=0.9, weight_decay=5e-4):
    return torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay)


def _step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_finetune(net, sets):
    optimizer = _optimizer(net, 0.01)
    for _, batches in w.epochs(sets["retain"], 256, 10):
        for x, y in batches:
            _step(optimizer, F.cross_entropy(net(x), y))


def plain_gradient_ascent(net, sets):
    optimizer = _optimizer(net, 1e-4)
    for _, batches in w.epochs(sets["forget"], 256, 5):
        for x, y in batches:
            _step(optimizer, -F.cross_entropy(net(x), y))


def plain_random_labels(net, sets, mask=None):
    optimizer, drawn = _optimizer(net, 0.013), w.generator(71)
    start = [p.detach().clone() for p in net.parameters()]

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        if mask is not None:
            for p, m in zip(net.parameters(), mask, strict=True):
                p.grad *= m
        optimizer.step()
        if mask is not None:
            with torch.no_grad():
                for p, m, s in zip(net.parameters(), mask, start, strict=True):
                    p[~m] = s[~m]
                    optimizer.state[p]["momentum_buffer"][~m] = 0.0

    for epoch in range(10):
        ((_, batches),) = w.epochs(sets["forget"], 256, 1, 70 + 2_000 * epoch)
        for x, y in batches:
            step(x, torch.randint(0, w.CLASSES, y.shape, generator=drawn))
        ((_, batches),) = w.epochs(sets["retain"], 256, 1, 70 + 2_000 * epoch + 1_000)
        for x, y in batches:
            step(x, y)


def plain_salun(net, sets):
    net.eval()
    sums = [torch.zeros_like(p) for p in net.parameters()]
    for x, y in zip(sets["forget"][0].split(256), sets["forget"][1].split(256), strict=True):
        for total, g in zip(sums, torch.autograd.grad(-F.cross_entropy(net(x), y), list(net.parameters())), strict=True):
            total += g
    flat = torch.cat([g.abs().flatten() for g in sums])
    on = torch.zeros(len(flat), dtype=torch.bool)
    on[flat.argsort(descending=True, stable=True)[: round(0.5 * len(flat))]] = True
    net.train()
    plain_random_labels(net, sets, [m.view_as(g) for m, g in zip(on.split([g.numel() for g in sums]), sums, strict=True)])


def plain_neggrad_plus(net, sets):
    net.eval()
    optimizer, forget = _optimizer(net, 0.01, 0.0, 0.0), w.cycled(sets["forget"], 64, 72)
    for _, batches in w.epochs(sets["retain"], 32, 10):
        for x, y in batches:
            fx, fy = next(forget)
            _step(optimizer, 0.95 * F.cross_entropy(net(x), y) - 0.05 * F.cross_entropy(net(fx), fy))


def plain_l1_sparse(net, sets):
    optimizer = _optimizer(net, 0.01)
    for epoch, batches in w.epochs(sets["retain"], 256, 10):
        for x, y in batches:
            norm = sum(p.abs().sum() for p in net.parameters())
            _step(optimizer, F.cross_entropy(net(x), y) + 5e-4 * (1 - epoch / 10) * norm)


PLAIN = {name.removeprefix("plain_"): loop for name, loop in globals().items() if name.startswith("plain_")}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_engine_goes_the_way_of_a_plain_loop(name, kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, plain = w.request(net), w.plain_copy(net)
    PLAIN[name](plain, sets)
    result = w.run(net, name, sets)
    w.agree(result.model, plain, net)


def test_salun_freezes_what_is_outside_of_its_mask():
    net = w.mlp()
    before = copy.deepcopy(net)
    result = w.run(net, "salun", w.request(net))
    same = torch.cat([(a == b).flatten() for a, b in zip(result.model.parameters(), before.parameters(), strict=True)])
    assert int(same.sum()) >= len(same) // 2
    assert not bool(same.all())
