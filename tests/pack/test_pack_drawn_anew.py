"""MSG and CT against their formulas and against plain loops: what is drawn anew or turned, and what the rates and factors reach."""

from __future__ import annotations

import copy
import math

import pack_world as w
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastforget as ff
from fastforget.methods.engine import reinit

W0 = w.W0


def sample(n, most):
    """The positions of as many retain samples, in the set's order."""
    return torch.randperm(n, generator=w.generator(74))[:most].sort().values


def drawn(shape, generator):
    """He's normal by the number of outputs: the size of the kernel times the number of channels out."""
    std = math.sqrt(2 / (shape[0] * math.prod(shape[2:])))
    return torch.empty(shape, dtype=torch.float64).normal_(0, std, generator=generator)


def test_msg_by_hand(few):
    """A third of the weights are drawn anew, where |g_retain - g_forget| is smallest; two steps with momentum: the gradient counts a tenth
    elsewhere, weight decay in full."""
    some = sample(9, 5)
    g = w.gradient(W0, tuple(t[some] for t in few["retain"])) - w.gradient(W0, few["forget"])
    again = torch.zeros(9, dtype=torch.bool).index_fill(0, g.abs().flatten().argsort()[:3], True).view(3, 3)
    weight = torch.where(again, drawn((3, 3), w.generator(75)), W0)
    factor, buffer = torch.where(again, 1.0, 0.1), torch.zeros_like(W0)
    for rate in (1.0, 0.5):  # of two epochs
        buffer = 0.9 * buffer + factor * w.gradient(weight, few["retain"]) + 0.01 * weight
        weight = weight - 0.3 * rate * buffer
    options = {"epochs": 2, "batch_size": 50, "lr": 0.3, "weight_decay": 0.01, "share": 1 / 3}
    result = w.run(w.softmax_regression(W0), "msg", few, **options)
    torch.testing.assert_close(result.model.weight, weight, rtol=0, atol=1e-14)
    assert result.receipt["measured"] == {"layers": 1, "kinds": ["Linear"], "drawn_anew": 3}


def test_msg_leaves_what_it_does_not_draw(few):
    """With a rate of zero the other weights keep their bits."""
    net = w.cnn()
    result = w.run(net, "msg", w.request(net), lr=0.0)
    changed = {name: int((a != b).sum()) for (name, a), b in zip(result.model.named_parameters(), net.parameters(), strict=True)}
    assert changed == {name: round(0.3 * p.numel()) if p.dim() == 4 else 0 for name, p in net.named_parameters()}
    code = w.run(net, "msg", w.request(net), lr=0.0, preset="code").model
    assert all(bool((a != b).all()) for a, b in ((code[0].bias, net[0].bias), (code[3].bias, net[3].bias)))
    assert torch.equal(code[6].bias, net[6].bias)


def layers_of(net):
    convolutions = [m for m in net if isinstance(m, nn.Conv2d)]
    return convolutions or [m for m in net if isinstance(m, nn.Linear)]


def plain_msg(net, sets, biases=False):
    net.eval()
    rows = sample(70, 20)
    for x, y, sign in ((sets["retain"][0][rows], sets["retain"][1][rows], 1), (*sets["forget"], -1)):
        (sign * F.cross_entropy(net(x), y)).backward()
    factors, generator = {}, w.generator(75)
    with torch.no_grad():
        for layer in layers_of(net):
            grad = layer.weight.grad.abs().flatten()
            on = torch.zeros_like(grad, dtype=torch.bool)
            on[grad.argsort()[: round(0.3 * len(grad))]] = True
            on = on.view_as(layer.weight)
            layer.weight[on] = drawn(layer.weight.shape, generator)[on]
            if biases:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.bias.copy_(torch.empty(len(layer.bias), dtype=torch.float64).uniform_(-bound, bound, generator=generator))
            factors[layer.weight] = torch.where(on, 1.0, 0.1)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    for epoch, batches in w.epochs(sets["retain"], 64, 5):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 / 3, 2 / 3, 1, 2 / 3, 1 / 3)[epoch]
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for p, factor in factors.items():
                p.grad *= factor
            optimizer.step()


def plain_ct(net, sets):
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.weight = nn.Parameter(layer.weight.detach().swapaxes(2, 3).contiguous())
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _, batches in w.epochs(sets["retain"], 64, 3):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_msg_goes_the_way_of_a_plain_loop(kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, other = w.request(net), w.plain_copy(net)
    plain_msg(other, sets)
    w.agree(w.run(net, "msg", sets).model, other, net)


def test_msg_as_the_code_has_it_goes_the_way_of_a_plain_loop():
    net = w.cnn()
    sets, other = w.request(net), w.plain_copy(net)
    plain_msg(other, sets, biases=True)
    w.agree(w.run(net, "msg", sets, preset="code").model, other, net)


def test_ct_goes_the_way_of_a_plain_loop():
    """With the published constants."""
    net = w.cnn()
    sets, other = w.request(net), w.plain_copy(net)
    plain_ct(other, sets)
    result = w.run(net, "ct", sets)
    w.agree(result.model, other, net)
    assert result.receipt["measured"] == {"transposed": 2}


def test_ct_by_hand():
    """One kernel on one pixel's neighbourhood: transposed, and a step down the gradient there."""
    kernel = torch.arange(18.0, dtype=torch.float64).view(2, 1, 3, 3) / 10
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten()).double()
    with torch.no_grad():
        net[0].weight.copy_(kernel)
    x = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(6) % 2
    turned = torch.stack([row.view(3, 3).T for row in kernel]).view(2, 9)
    keep = y == 0
    step = w.gradient(turned, (x.view(6, 9)[keep], y[keep])) + 0.01 * turned
    sets = {"retain": (x, y), "classes": [1], "drop_forget": True}
    ours = w.run(net, "ct", sets, epochs=1, lr=0.2, weight_decay=0.01)
    torch.testing.assert_close(ours.model[0].weight.view(2, 9), turned - 0.2 * step, rtol=0, atol=1e-14)


def test_what_is_turned_and_what_is_not():
    """Square kernels larger than 1x1 alone; one that two layers share once; a frozen one not at all."""
    layers = [nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, (3, 5)), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 2, 3)]
    net = nn.Sequential(*layers, nn.Conv2d(2, 2, 3), nn.Conv1d(2, 2, 3), nn.Linear(3, 3))
    net[5].weight = net[0].weight
    net[4].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    assert reinit.transpose_kernels_(net) == 2
    after = net.state_dict()
    for at in (0, 3):
        assert torch.equal(after[f"{at}.weight"], before[f"{at}.weight"].transpose(2, 3))
    assert all(torch.equal(after[key], before[key]) for key in before if key not in ("0.weight", "3.weight", "5.weight"))


def test_nets_that_can_t_be_served_are_refused():
    net = w.mlp()
    sets = w.request(net)
    with pytest.raises(ValueError, match="model: has no square 2-d convolution kernel larger than 1x1"):
        w.run(net, "ct", sets)
    with pytest.raises(ValueError, match="layers: got 'conv', but the model has no such layer"):
        w.run(net, "msg", sets, layers="conv")
    with pytest.raises(ValueError, match=r"share: got 1\.5; accepted is a number from 0 to 1"):
        w.run(net, "msg", sets, share=1.5)
    measured = w.run(w.cnn(), "msg", w.request(w.cnn()), layers="all").receipt["measured"]
    assert measured["kinds"] == ["Conv2d", "Linear"]


@pytest.mark.parametrize("epochs, rates", [(1, [1]), (2, [1, 1 / 2]), (4, [1 / 2, 1, 2 / 3, 1 / 3])])
def test_the_rate_rises_and_falls(epochs, rates):
    assert ff.methods.MSG(epochs=epochs).rates() == pytest.approx(rates)
