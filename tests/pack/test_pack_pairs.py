"""The methods whose steps look at both sets, or at examples made of one, against their formulas and against plain loops."""

from __future__ import annotations

import math

import pack_world as w
import pytest
import torch
from torch.nn import functional as F

from fastforget.methods.engine import bargain

W0 = w.W0
ONE = {"epochs": 1, "batch_size": 50, "lr": 0.3}


def labels_drawn(n, generator):
    return torch.randint(0, w.CLASSES, (n,), generator=generator)


def test_munba_by_hand(few):
    """Unit gradients over the root of one plus their cosine, of norm sqrt(2), clipped to 1."""
    order = next(w.cycled((torch.arange(5), torch.arange(5)), 50, 78))[0]
    kept = w.gradient(W0, few["retain"])
    gone = w.gradient(W0, (few["forget"][0][order], labels_drawn(5, w.generator(71))))
    c = float((kept * gone).sum() / kept.norm() / gone.norm())
    g = (kept / kept.norm() + gone / gone.norm()) / math.sqrt(1 + c)
    g = g / (g.norm() + 1e-6)
    ours = w.run(w.softmax_regression(W0), "munba", few, **ONE, weight_decay=0.01).model.weight
    torch.testing.assert_close(ours, W0 - 0.3 * (g + 0.01 * W0), rtol=0, atol=1e-14)


def test_munba_as_coded_by_hand(few):
    order = next(w.cycled((torch.arange(5), torch.arange(5)), 50, 78))[0]
    kept = w.gradient(W0, few["retain"])
    gone = w.gradient(W0, (few["forget"][0][order], labels_drawn(5, w.generator(71))))
    g1, g2, g3 = (kept * kept).sum(), (kept * gone).sum(), (gone * gone).sum()
    a = ((g1 * g3 - g2 * (g1 * g3).sqrt()) / (g1 * g1 * g3 - g1 * g2 * g2 + 1e-8)).sqrt()
    b = (1 - g1 * a * a) / (g2 * a + 1e-8)
    g = a * kept + b * gone if a > 0 and b > 0 else kept + 0.1 * gone
    g = g / max(1.0, float(g.norm() + 1e-6))
    ours = w.run(w.softmax_regression(W0), "munba", few, preset="code", **ONE).model.weight
    torch.testing.assert_close(ours, W0 - 0.3 * (g + 5e-4 * W0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("cosine", [-0.999, -0.5, 0.0, 0.3, 1.0])
@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (1e-5, 3.0), (40.0, 1e-3)])
def test_the_bargain_is_nashs(cosine, first, second):
    """Each one's weight is one over what it gains, g_i . g, as the bargaining solution demands; and the code's agrees where it can."""
    one = [torch.tensor([first, 0.0], dtype=torch.float64)]
    two = [second * torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)]
    a, b = bargain.nash(one, two)
    (g,) = bargain.combined((a, b), one, two)
    assert float(one[0] @ g) * a == pytest.approx(1)
    assert float(two[0] @ g) * b == pytest.approx(1)
    if first == second and abs(cosine) in (0.3, 0.5):
        assert bargain.nash_as_coded(one, two) == pytest.approx((a, b), rel=1e-6)


def test_gradients_that_leave_nothing_to_bargain_about():
    g, none = [torch.tensor([3.0, -1.0])], [torch.zeros(2)]
    assert bargain.nash(g, [-2 * g[0]]) == (0.0, 0.0)
    assert bargain.nash(none, none) == (0.0, 0.0)
    assert bargain.nash(g, none) == pytest.approx((1 / math.sqrt(10), 0.0))
    assert bargain.nash(none, g) == pytest.approx((0.0, 1 / math.sqrt(10)))
    for pair in ((g, none), (none, none)):
        assert bargain.nash_as_coded(*pair) == (1.0, 0.1)


def test_munba_shows_all_forget_batches_beside_fewer_retain_batches():
    net = w.mlp()
    sets = w.request(net)
    result = w.run(net, "munba", {**sets, "forget": sets["retain"], "retain": sets["forget"]}, epochs=2, batch_size=16)
    assert result.receipt["cost"]["phases"]["munba"]["trained"] == 2 * (20 + 2 * 16)


def test_fcs_by_hand(few):
    """Towards even answers; the contrast of logits, those of the retain set fixed; and cross-entropy with a rate for its batch."""
    (fx, _), (rx, ry) = few["forget"], few["retain"]
    even = ((fx @ W0.T).softmax(1) - 1 / 3).T @ fx / 5
    weight = W0 - 0.3 * even
    similar = (fx @ weight.T @ (rx @ weight.T).T / 0.7).softmax(1)
    weight = weight - 0.2 * ((similar - 1 / 9) @ (rx @ weight.T) / 0.7 / 5).T @ fx
    weight = weight - 0.1 * 50 / 64 * (w.gradient(weight, (rx, ry)) + 0.02 * weight)
    options = {"forget_lr": 0.2, "retain_lr": 0.1, "retain_weight_decay": 0.02, "temperature": 0.7}
    ours = w.run(w.softmax_regression(W0), "fcs", few, **ONE, **options).model.weight
    torch.testing.assert_close(ours, weight, rtol=0, atol=1e-14)


def test_adversarial_examples_by_hand():
    """A tenth of the radius a step, back into the ball, and twice the radius after three steps: 1.00 falls to .92, .88, .80, .72, .68,
    .52, .36 and stays at distance .64, then falls to .04 and beneath zero, where the other class is answered."""
    net = w.softmax_regression(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))
    x, y = torch.tensor([[1.0, 5.0], [-2.0, 1.0], [-0.01, 1.0]], dtype=torch.float64), torch.tensor([0, 0, 1])
    path, radius, at = [], 0.4, 1.0
    while at > 0:
        for _ in range(3):
            if at > 0:
                at = max(at - 0.1 * radius, 1.0 - radius)
                path.append(at)
        radius *= 2
    receipt = w.run(net, "amun", {"forget": (x, y), "retain": (x, y), "check_overlap": False}, eps=0.4, steps=3).receipt
    near = 0.04 * 0.4 / 0.4
    assert receipt["measured"]["adversarial"] == 3
    assert receipt["measured"]["withstood"] == 0
    assert receipt["measured"]["distance"] == pytest.approx((1.0 - path[-1] + 0.0 + near) / 3)
    assert receipt["cost"]["phases"]["adversarial"]["trained"] == len(path) + 1 + 1 + 2


def nearest_wrong(net, x, y, eps=0.04, steps=50):
    """Of one sample; ``None`` where there is no gradient to go by (all of the net's ReLUs are off) in 21 balls."""
    at, radius = x.clone(), eps
    for _ in range(21):
        for _ in range(steps):
            leaf = at[None].clone().requires_grad_()
            logits = net(leaf)
            if int(logits.argmax()) != int(y):
                return at, logits.argmax(1)[0].detach()
            g = torch.autograd.grad(F.cross_entropy(logits, y[None]), leaf)[0][0]
            if not g.any():
                return None
            delta = at + radius / 10 * g / g.norm() - x
            at = x + delta * min(1.0, float(radius / delta.norm()))
        radius *= 2
    return None


def examples(net, sets):
    """Of every sample that has one."""
    found = [nearest_wrong(net, x, y) for x, y in zip(*sets, strict=True)]
    return tuple(map(torch.stack, zip(*(one for one in found if one is not None), strict=True)))


@pytest.mark.parametrize(
    ("preset", "sets_used"),
    [("paper", "retain forget"), ("no_retain", "forget"), ("advonly", "retain"), ("advonly_no_retain", "")],
)
def test_amun_by_hand(few, preset, sets_used):
    """One step of cross-entropy on the adversarial examples with the wrong labels, and on the sets beside them with their own."""
    net = w.softmax_regression(W0)
    sets = [few[name] for name in sets_used.split()] + [examples(net, few["forget"])]
    x, y = (torch.cat(parts) for parts in zip(*sets, strict=True))
    result = w.run(net, "amun", few, preset=preset, **ONE)
    torch.testing.assert_close(result.model.weight, W0 - 0.3 * (w.gradient(W0, (x, y)) + 5e-4 * W0), rtol=0, atol=1e-13)
    assert result.receipt["standard"]["trained_on"] == (["forget", "retain"] if "retain" in sets_used else ["forget"])


def test_amun_names_inputs_that_it_cannot_move(few):
    (x, y), net = few["forget"], w.softmax_regression(W0)
    with pytest.raises(ValueError, match="^forget: inputs go from .* clip='unit' takes pixels from 0 to 1"):
        w.run(net, "amun", few, preset="code")
    words = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    ids = torch.arange(10).view(5, 2) % 9
    with pytest.raises(TypeError, match=r"^forget: inputs are a tensor of shape \(5, 2\), torch.int64; accepted is one floating point"):
        w.run(words, "amun", {"forget": (ids, y), "retain": (ids, y), "check_overlap": False})
    flat = w.softmax_regression(0 * W0)
    with pytest.raises(ValueError, match="^forget: no sample was answered wrongly"):
        w.run(flat, "amun", {"forget": (x, 0 * y), "retain": few["retain"], "check_overlap": False})


def step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sgd(net, lr, momentum=0.9, weight_decay=5e-4):
    return torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay)


def plain_amun(net, sets):
    net.eval()
    x, y = (torch.cat(parts) for parts in zip(sets["retain"], sets["forget"], examples(net, sets["forget"]), strict=True))
    optimizer = sgd(net.train(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    for _, batches in w.epochs((x, y), 128, 10):
        for inputs, labels in batches:
            step(optimizer, F.cross_entropy(net(inputs), labels))
        scheduler.step()


def plain_munba(net, sets, size=256):
    optimizer, drawn, params = sgd(net, 0.01), w.generator(71), list(net.parameters())
    forget, most = w.cycled(sets["forget"], size, 78), len(w.cut(torch.arange(len(sets["forget"][1])), size))
    for _, batches in w.epochs(sets["retain"], size, 10):
        for number, (x, y) in enumerate(batches):
            kept = torch.autograd.grad(F.cross_entropy(net(x), y), params)
            if number < most:
                fx, fy = next(forget)
                gone = torch.autograd.grad(F.cross_entropy(net(fx), labels_drawn(len(fy), drawn)), params)
                a, b = (torch.cat([g.flatten() for g in grads]) for grads in (kept, gone))
                one, two, c = a.norm(), b.norm(), torch.cosine_similarity(a, b, dim=0)
                kept = [(g / one + h / two) / (1 + c).sqrt() for g, h in zip(kept, gone, strict=True)]
            for p, g in zip(params, kept, strict=True):
                p.grad = g
            if number < most:
                torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()


def plain_fcs(net, sets, size=256):
    first, apart, repair = sgd(net, 0.005, weight_decay=0), sgd(net, 3e-4, weight_decay=0), sgd(net, 0.001 * size / 64, weight_decay=1e-2)
    for _, batches in w.epochs(sets["forget"], size, 1):
        for x, _ in batches:
            step(
                first,
                F.kl_div(net(x).log_softmax(1), torch.full((len(x), w.CLASSES), 1 / w.CLASSES, dtype=torch.float64), reduction="batchmean"),
            )
    number = len(w.cut(torch.arange(len(sets["forget"][1])), size))
    scheduler, retain = torch.optim.lr_scheduler.CosineAnnealingLR(apart, 8 * number, 1e-6), w.cycled(sets["retain"], size, 79)
    for epoch in range(8):
        ((_, batches),) = w.epochs(sets["forget"], size, 1, 70 + 2_000 * (epoch + 1))
        for x, _ in batches:
            z, others = net(x), net(next(retain)[0]).detach()
            step(apart, -(z @ others.T / 1.15).log_softmax(1).mean())
            scheduler.step()
        ((_, batches),) = w.epochs(sets["retain"], size, 1, 70 + 2_000 * (epoch + 1) + 1_000)
        for x, y in batches:
            step(repair, F.cross_entropy(net(x), y))


PLAIN = {name.removeprefix("plain_"): loop for name, loop in globals().items() if name.startswith("plain_")}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_engine_goes_the_way_of_a_plain_loop(name, kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, plain = w.request(net), w.plain_copy(net)
    if name == "amun":  # its plain loop goes sample by sample
        sets["forget"] = tuple(part[:8] for part in sets["forget"])
    PLAIN[name](plain, sets)
    w.agree(w.run(net, name, sets).model, plain, net)


@pytest.mark.parametrize("name", ["munba", "fcs"])
def test_in_several_batches_too(name):
    """So that some retain batches have a forget batch beside them and some have none."""
    net = w.mlp()
    sets, plain = w.request(net), w.plain_copy(net)
    PLAIN[name](plain, sets, 13)
    w.agree(w.run(net, name, sets, batch_size=13).model, plain, net)
