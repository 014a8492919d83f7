"""SFRon against its formula and against a plain loop."""

from __future__ import annotations

import math

import pack_world as w
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastforget as ff

W0 = w.W0


def ascended(weight, sets, adapt):
    """Minus the gradient of the mean loss in which a sample counts one over a power of its own loss, the weights' mean being one."""
    x, y = sets
    loss = -(x @ weight.T).log_softmax(1)[torch.arange(len(y)), y]
    share = loss**-adapt / (loss**-adapt).mean()
    p = (x @ weight.T).softmax(1)
    return -((p - torch.eye(3, dtype=p.dtype)[y]) * share[:, None]).T @ x / len(x)


@pytest.mark.parametrize("clip", [0.05, 100.0])
@pytest.mark.parametrize("every", [1, 2])
def test_by_hand(few, every, clip):
    """Two steps on the retain set, the first or both after one on the forget set. All share one momentum, so forget steps move the weights
    outside of the mask as well."""
    inside = w.gradient(W0, few["forget"]) ** 2 >= 1.2 * w.gradient(W0, few["retain"]) ** 2
    assert 0 < int(inside.sum()) < 9
    weight, buffer, outside = W0, torch.zeros_like(W0), []
    for step, fall in enumerate((1.0, 0.5)):  # a cosine of two steps
        if step % every == 0:
            g = 3.0 * fall * ascended(weight, few["forget"], 0.5) * inside
            g = g * min(1.0, clip / (float(g.norm()) + 1e-6))  # torch's clipping
            buffer = 0.9 * buffer + g + 0.01 * weight
            outside.append((0.1 * fall * buffer)[~inside])
            weight = weight - 0.1 * fall * buffer
        buffer = 0.9 * buffer + w.gradient(weight, few["retain"]) + 0.01 * weight
        weight = weight - 0.1 * fall * buffer
    assert all(bool((moved != 0).all()) for moved in outside)
    options = {"steps": 2, "every": every, "lr": 0.1, "weight_decay": 0.01, "ascent": 3.0, "threshold": 1.2, "clip": clip}
    result = w.run(w.softmax_regression(W0), "sfron", few, **options)
    torch.testing.assert_close(result.model.weight, weight, rtol=0, atol=1e-14)
    assert result.receipt["measured"] == {"share_in_mask": int(inside.sum()) / 9}


def plain(net, sets, options):
    net.eval()
    order = w.generator(77)
    means = []
    for name in ("forget", "retain"):
        total = [torch.zeros_like(p) for p in net.parameters()]
        parts = torch.randperm(len(sets[name][1]), generator=order).split(options.batch_size)
        for part in parts:
            net.zero_grad()
            F.cross_entropy(net(sets[name][0][part]), sets[name][1][part]).backward()
            for t, p in zip(total, net.parameters(), strict=True):
                t += p.grad**2 / len(parts)
        means.append(total)
    masks = [(f + 1e-15) / (r + 1e-15) >= 1 for f, r in zip(*means, strict=True)]
    net.train()
    if options.optimizer == "sgd":
        optimizer = torch.optim.SGD(net.parameters(), options.lr, 0.9, weight_decay=options.weight_decay)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), options.lr, weight_decay=options.weight_decay)
    forget, step = w.cycled(sets["forget"], options.batch_size, 76), 0
    for _, batches in w.epochs(sets["retain"], options.batch_size, options.steps):
        for x, y in batches:
            if step == options.steps:
                return
            fall = 0.5 * (1 + math.cos(math.pi * step / options.steps))
            optimizer.param_groups[0]["lr"] = options.lr * fall
            slow = [p.detach().clone() for p in net.parameters()]
            if step % options.every == 0:
                fx, fy = next(forget)
                optimizer.zero_grad()
                loss = F.cross_entropy(net(fx), fy, reduction="none")
                share = 1 / (loss.detach() ** options.adapt + 1e-15)
                (-options.ascent * fall * (share / share.sum() * loss).sum()).backward()
                for p, m in zip(net.parameters(), masks, strict=True):
                    p.grad *= m
                nn.utils.clip_grad_norm_(net.parameters(), 7.0)
                optimizer.step()
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for p, s in zip(net.parameters(), slow, strict=True):
                    p.copy_((1 - options.ema) * s + options.ema * p)
            step += 1


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("preset, more", [("paper", {}), ("tinyimagenet", {}), ("code", {"ema": 0.9, "batch_size": 30})])
def test_the_engine_goes_the_way_of_a_plain_loop(preset, more, kind):
    """With the published constants, but for the number of steps: a long ascent magnifies the last bits."""
    net = getattr(w, kind)()
    sets, other = w.request(net), w.plain_copy(net)
    plain(other, sets, ff.methods.SFRon(preset=preset, steps=25, **more))
    result = w.run(net, "sfron", sets, preset=preset, steps=25, **more)
    w.agree(result.model, other, net)
    assert result.receipt["cost"]["phases"]["sfron"]["trained"] > 25 * (30 if more else 70) * 0.7


def test_the_budget_has_room_for_the_mask_or_nothing_is_done():
    net = w.mlp()
    result = w.run(net, "sfron", w.request(net), budget=89)
    assert result.cost.passes == 0
    assert all(torch.equal(a, b) for a, b in zip(result.model.state_dict().values(), net.state_dict().values(), strict=True))
    assert w.run(net, "sfron", w.request(net), budget=300).cost.passes in range(90, 301)
