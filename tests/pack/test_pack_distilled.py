"""The methods that learn from a teacher's answers, against their formulas and against plain loops."""

from __future__ import annotations

import copy
import math

import pack_world as w
import pytest
import torch
from torch.nn import functional as F

W0 = w.W0


@pytest.fixture(scope="module")
def few() -> dict:
    x = torch.randn(14, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.arange(14) % 3
    return {"forget": (x[:5], y[:5]), "retain": (x[5:], y[5:]), "nonmember": (x.flip(0), y), "check_overlap": False}


def towards(weight, x, target):
    """d mean CE(target, softmax(W x)) / dW, which is that of the KL divergence too."""
    return ((x @ weight.T).softmax(1) - target).T @ x / len(x)


def test_delete_by_hand(few):
    x, y = few["forget"]
    x, y = x[y == 1], y[y == 1]
    p0 = (x @ W0.T).softmax(1)
    target = p0 * torch.tensor([1.0, 0.0, 1.0])
    g = towards(W0, x, target / target.sum(1, keepdim=True))
    sets = {"classes": [1], "forget": (x, y), "check_overlap": False}
    ours = w.run(w.softmax_regression(W0), "delete", sets, epochs=1, lr=0.3, weight_decay=0.01).model.weight
    torch.testing.assert_close(ours, W0 - 0.3 * (g + 0.01 * W0), rtol=0, atol=1e-14)


def test_delete_leaves_out_each_samples_own_label(few):
    """Not the classes of the request: with two to forget, the one may be answered with the other."""
    x, y = (part[few["forget"][1] != 0] for part in few["forget"])
    target = (x @ W0.T).scatter(1, y[:, None], -math.inf).softmax(1)
    sets = {"classes": [1, 2], "forget": (x, y), "check_overlap": False}
    ours = w.run(w.softmax_regression(W0), "delete", sets, epochs=1, lr=0.3).model.weight
    torch.testing.assert_close(ours, W0 - 0.3 * towards(W0, x, target), rtol=0, atol=1e-14)


def test_lotus_by_hand(few):
    """A soft target at exp(alpha * d) for what is to go, a drawn class for the rest, and AdamW's first step."""
    (fx, _), (rx, _) = few["forget"], few["retain"]
    kept = torch.randperm(9, generator=w.generator(74))[:4].sort().values
    order = torch.randperm(9, generator=w.generator(70))
    x, gone = torch.cat([fx, rx[kept]])[order], order < 5
    shares = [float((x @ W0.T).argmax(1).eq(y).double().mean()) for x, y in (few["forget"], few["nonmember"])]
    noise = -torch.empty(9, 3, dtype=torch.float64).exponential_(generator=w.generator(75)).log()
    z = x @ W0.T + noise
    target = torch.where(gone[:, None], (z / math.exp(3.0 * (shares[0] - shares[1]))).softmax(1), torch.eye(3, dtype=z.dtype)[z.argmax(1)])
    g = towards(W0, x, target)
    expected = W0 * (1 - 0.2 * 0.1) - 0.2 * g / (g.abs() + 1e-8)
    result = w.run(w.softmax_regression(W0), "lotus", few, epochs=1, lr=0.2, weight_decay=0.1, alpha=3.0, share=0.5, stop=1.0)
    torch.testing.assert_close(result.model.weight, expected, rtol=0, atol=1e-14)
    assert result.receipt["measured"]["unseen_accuracy"] == pytest.approx(shares[1])


def test_lotus_stops_where_the_forget_set_is_known_no_better(few):
    x, _ = few["nonmember"]
    best = (x @ W0.T).argmax(1)
    sets = few | {"nonmember": (x, best)}
    assert float((few["forget"][0] @ W0.T).argmax(1).eq(few["forget"][1]).double().mean()) < 0.99
    result = w.run(w.softmax_regression(W0), "lotus", sets)
    assert torch.equal(result.model.weight, W0)
    assert result.receipt["measured"]["temperatures"] == []


def test_lotus_takes_classes_without_data_never_seen():
    sets = w.class_request(net := w.mlp())
    sets.pop("nonmember")
    receipt = w.run(net, "lotus", sets, preset="classes").receipt
    assert receipt["standard"]["trained_on"] == ["forget", "retain"]
    known = float(net(sets["forget"][0]).argmax(1).eq(1).double().mean())
    assert receipt["measured"]["temperatures"][0] == pytest.approx(math.exp(32 * known))


@pytest.mark.parametrize(("preset", "divided"), [("paper", 1), ("code", 3)])
def test_bad_teacher_by_hand(few, preset, divided):
    """The code's mean is over samples and classes."""
    (fx, _), (rx, _) = few["forget"], few["retain"]
    kept = torch.randperm(9, generator=w.generator(76))[:4].sort().values
    bad = w.drawn(w.softmax_regression(W0), 77).weight.detach()
    x = torch.cat([fx, rx[kept]])
    target = torch.cat([(fx @ bad.T).softmax(1), (rx[kept] @ W0.T).softmax(1)])
    g = towards(W0, x, target) / divided
    ours = w.run(w.softmax_regression(W0), "bad_teacher", few, preset=preset, lr=0.2, share=0.5).model.weight
    torch.testing.assert_close(ours, W0 - 0.2 * g / (g.abs() + 1e-8), rtol=0, atol=1e-14)


def test_kde_by_hand(few):
    """The head is drawn anew; KL at a temperature, without its square, on unseen data; then CE and soft CE and KL, SGD begun again."""
    (ux, _), (rx, ry) = few["nonmember"], few["retain"]
    weight, t = w.drawn(w.softmax_regression(W0), 80).weight.detach(), 2.0
    weight = weight - 0.2 * (towards(weight / t, ux, (ux @ W0.T / t).softmax(1)) / t + 0.01 * weight)
    soft = towards(weight / t, rx, (rx @ W0.T / t).softmax(1)) / t
    weight = weight - 0.3 * (w.gradient(weight, (rx, ry)) + soft + soft + 0.01 * weight)
    options = {"warmup_lr": 0.2, "lr": 0.3, "weight_decay": 0.01, "temperature": t, "epochs": 1, "warmup_epochs": 1}
    result = w.run(w.softmax_regression(W0), "kde", few, **options)
    torch.testing.assert_close(result.model.weight, weight, rtol=0, atol=1e-14)


def test_kde_draws_stem_and_head_alone():
    net = w.cnn()
    result = w.run(net, "kde", w.request(net), lr=0.0, warmup_lr=0.0)
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, result.model.get_parameter(name))]
    assert changed == ["0.weight", "0.bias", "6.weight", "6.bias"]
    assert result.receipt["measured"]["drawn_anew"] == ["0", "6"]
    with pytest.raises(ValueError, match="^model: no linear or convolution layer has 3 outputs"):
        w.run(torch.nn.Sequential(torch.nn.Linear(6, 2), torch.nn.ConstantPad1d((0, 1), 0.0)).double(), "kde", w.request(w.mlp()))


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def plain_delete(net, sets):
    teacher = copy.deepcopy(net).eval()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4, 0.9)
    for _, batches in w.epochs(sets["forget"], 128, 20):
        for x, y in batches:
            with torch.no_grad():
                z = teacher(x)
            z[torch.arange(len(y)), y] = -1e10
            step(optimizer, F.kl_div(net(x).log_softmax(1), z.softmax(1), reduction="batchmean"))


def plain_lotus(net, sets):
    teacher = copy.deepcopy(net).eval()
    (fx, fy), (rx, _) = sets["forget"], sets["retain"]
    kept = torch.randperm(len(rx), generator=w.generator(74))[: int(0.3 * len(rx))].sort().values
    x, gone = torch.cat([fx, rx[kept]]), torch.arange(len(fx) + len(kept)) < len(fx)
    optimizer, drawn = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=5e-4), w.generator(75)
    unseen = float(teacher(sets["nonmember"][0]).argmax(1).eq(sets["nonmember"][1]).double().mean())
    for _, batches in w.epochs((x, gone), 128, 10):
        known = float(net.eval()(fx).argmax(1).eq(fy).double().mean())
        net.train()
        if known - unseen <= -0.01:
            break
        for inputs, forget in batches:
            with torch.no_grad():
                z = teacher(inputs) - torch.empty(len(inputs), w.CLASSES, dtype=torch.float64).exponential_(generator=drawn).log()
            soft, hard = (z / math.exp(8 * (known - unseen))).softmax(1), F.one_hot(z.argmax(1), w.CLASSES).double()
            target = torch.where(forget[:, None], soft, hard)
            step(optimizer, F.cross_entropy(net(inputs), target))


def plain_bad_teacher(net, sets, reduction="batchmean"):
    good, bad = copy.deepcopy(net).eval(), w.drawn(net, 77).eval()
    (fx, _), (rx, _) = sets["forget"], sets["retain"]
    kept = torch.randperm(len(rx), generator=w.generator(76))[: int(0.3 * len(rx))].sort().values
    x, gone = torch.cat([fx, rx[kept]]), torch.arange(len(fx) + len(kept)) < len(fx)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    for _, batches in w.epochs((x, gone), 256, 1):
        for inputs, forget in batches:
            with torch.no_grad():
                target = torch.where(forget[:, None], bad(inputs).softmax(1), good(inputs).softmax(1))
            step(optimizer, F.kl_div(net(inputs).log_softmax(1), target, reduction=reduction))


def plain_kde(net, sets):
    teacher = copy.deepcopy(net).eval()
    anew = w.drawn_layers(net, 80, [0, 6] if len(net) == 7 else [3])

    def known(x):
        with torch.no_grad():
            return (teacher(x) / 5).softmax(1)

    optimizer = torch.optim.SGD(anew.parameters(), 9e-4, 0.9, weight_decay=5e-4)
    for _, batches in w.epochs(sets["nonmember"], 64, 3):
        for x, _ in batches:
            step(optimizer, F.kl_div((anew(x) / 5).log_softmax(1), known(x), reduction="batchmean"))
    optimizer = torch.optim.SGD(anew.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _, batches in w.epochs(sets["retain"], 64, 3, 570):
        for x, y in batches:
            z, t = anew(x), known(x)
            soft = -(t * (z / 5).log_softmax(1)).sum(1).mean()
            step(optimizer, F.cross_entropy(z, y) + soft + F.kl_div((z / 5).log_softmax(1), t, reduction="batchmean"))
        scheduler.step()


PLAIN = {name.removeprefix("plain_"): loop for name, loop in globals().items() if name.startswith("plain_")}
CLASSES = {"delete"}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_engine_goes_the_way_of_a_plain_loop(name, kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, plain = (w.class_request if name in CLASSES else w.request)(net), w.plain_copy(net)
    PLAIN[name](plain, sets)
    w.agree(w.run(net, name, sets).model, plain, net)


@pytest.mark.parametrize("name", PLAIN)
def test_data_that_may_be_augmented_is_asked_for_batch_by_batch(name):
    """The same way where nothing is augmented; the teacher goes forward beside every step."""
    net = w.cnn()
    sets = (w.class_request if name in CLASSES else w.request)(net)
    read = {key: w.Read(value) if isinstance(value, tuple) else value for key, value in sets.items()}
    held, loaded = w.run(net, name, sets), w.run(net, name, read)
    for a, b in zip(held.model.state_dict().values(), loaded.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert loaded.cost.passes >= held.cost.passes


@pytest.mark.parametrize("budget", [30, 60, 150, 400])
@pytest.mark.parametrize("name", PLAIN)
def test_a_teacher_that_is_asked_beside_each_step_keeps_the_budget(name, budget):
    net = w.cnn()
    sets = (w.class_request if name in CLASSES else w.request)(net)
    read = {key: w.Read(value) if isinstance(value, tuple) else value for key, value in sets.items()}
    whole = w.run(net, name, read, batch_size=16).cost.passes
    cost = w.run(net, name, read, budget=budget, batch_size=16).receipt["cost"]
    assert cost["passes"] <= budget
    assert cost["stopped_by_budget"] or cost["passes"] == whole
