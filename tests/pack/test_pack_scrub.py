"""SCRUB and SCRUB+R against their formulas and against plain loops."""

from __future__ import annotations

import copy
import math

import pack_world as w
import pytest
import torch
from torch.nn import functional as F

import fastforget as ff

W0 = w.W0


def divergence_gradient(weight, x, t):
    """d T^2 mean KL(softmax(W0 x / T) || softmax(W x / T)) / dW = T mean (q - p) x^T."""
    p, q = ((x @ v.T / t).softmax(1) for v in (W0, weight))
    return t * (q - p).T @ x / len(x)


def test_two_epochs_by_hand(few):
    """Up the divergence, which is flat at the teacher itself, and down CE + KL; the second epoch has a tenth of the rate."""
    options = {"msteps": 2, "epochs": 2, "gamma": 0.8, "alpha": 0.3, "temperature": 3.0, "lr": 0.2, "weight_decay": 0.01, "momentum": 0.0}
    weight = W0.clone()
    for lr in (0.2, 0.02):
        weight = weight - lr * (-divergence_gradient(weight, few["forget"][0], 3.0) + 0.01 * weight)
        kept = 0.8 * w.gradient(weight, few["retain"]) + 0.3 * divergence_gradient(weight, few["retain"][0], 3.0)
        weight = weight - lr * (kept + 0.01 * weight)
    sizes = {"batch_size": 50, "forget_batch_size": 50, "decay": (1, 5)}
    ours = w.run(w.softmax_regression(W0), "scrub", few, optimizer="sgd", **options, **sizes)
    torch.testing.assert_close(ours.model.weight, weight, rtol=0, atol=1e-14)
    assert [h["epoch"] for h in ours.history] == [1, 1, 2, 2]
    assert [h["rate"] for h in ours.history] == [0.2, 0.2, pytest.approx(0.02), pytest.approx(0.02)]


def plain(net, sets, options):
    teacher = copy.deepcopy(net).eval()
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.SGD
    extra = {} if options.optimizer == "adam" else {"momentum": 0.9}
    optimizer = kind(net.parameters(), options.lr, weight_decay=options.weight_decay, **extra)
    t = options.temperature

    def kl(x, logits):
        with torch.no_grad():
            target = (teacher(x) / t).softmax(1)
        return F.kl_div((logits / t).log_softmax(1), target, reduction="sum") * t * t / len(x)

    models = []
    for epoch in range(1, options.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * 0.1 ** sum(epoch > at for at in options.decay)
        if epoch <= options.msteps:
            ((_, batches),) = w.epochs(sets["forget"], options.forget_batch_size, 1, 70 + 2_000 * epoch)
            for x, _ in batches:
                optimizer.zero_grad()
                (-kl(x, net(x))).backward()
                optimizer.step()
        ((_, batches),) = w.epochs(sets["retain"], options.batch_size, 1, 70 + 2_000 * epoch + 1_000)
        for x, y in batches:
            optimizer.zero_grad()
            logits = net(x)
            (options.gamma * F.cross_entropy(logits, y) + options.alpha * kl(x, logits)).backward()
            optimizer.step()
        models.append(copy.deepcopy(net).eval())
    return models


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("preset", ["paper", "code", "large"])
def test_the_engine_goes_the_way_of_a_plain_loop(preset, kind):
    """With the published constants."""
    net = getattr(w, kind)()
    sets, other = w.request(net), w.plain_copy(net)
    plain(other, sets, ff.methods.SCRUB(preset=preset))
    w.agree(w.run(net, "scrub", sets, preset=preset).model, other, net)


def error(net, sets):
    with torch.no_grad():
        return 1 - net(sets[0]).argmax(1).eq(sets[1]).double().mean().item()


def test_rewinding_returns_the_epoch_that_errs_as_on_unseen_samples():
    """The reference is the last model's error on non-members of the forget set's classes."""
    net = w.mlp()
    sets, other = w.request(net), w.plain_copy(net)
    keep = sets["forget"][1] != 2
    sets["forget"] = tuple(t[keep] for t in sets["forget"])
    options = {"lr": 0.05, "weight_decay": 0.01, "msteps": 8, "decay": (), "alpha": 0.0}
    models = plain(other, sets, ff.methods.SCRUB(**options))
    inside = sets["nonmember"][1] != 2
    reference = error(models[-1], tuple(t[inside] for t in sets["nonmember"]))
    errors = [error(model, sets["forget"]) for model in models]
    chosen = min(range(10), key=lambda i: abs(errors[i] - reference))
    assert chosen not in (0, 9)  # there is something to choose
    result = w.run(net, "scrub", sets, rewind=True, **options)
    measured = result.receipt["measured"]
    assert measured["rewound_to"] == chosen + 1
    assert measured["reference_error"] == pytest.approx(reference)
    assert list(measured["forget_error"].values()) == pytest.approx(errors)
    w.agree(result.model, models[chosen], net)


@pytest.mark.parametrize("budget", [1, 100, 300, 320, 400])
def test_rewinding_keeps_to_the_budget(budget):
    net = w.mlp()
    result = w.run(net, "scrub", w.request(net), rewind=True, budget=budget)
    assert result.cost.passes <= budget
    assert result.receipt["cost"]["stopped_by_budget"]


def test_what_rewinding_can_t_serve_is_refused():
    net = w.mlp()
    sets = w.request(net)
    with pytest.raises(ValueError, match=r"rewind: got True with classes=\[1\]"):
        w.run(net, "scrub", sets | {"classes": [1], "drop_forget": True}, rewind=True)
    without = {k: v for k, v in sets.items() if k != "nonmember"}
    with pytest.raises(ValueError, match="nonmember: not given; rewind=True needs"):
        w.run(net, "scrub", without, rewind=True)
    x, y = sets["nonmember"]
    alone = {"forget": tuple(t[sets["forget"][1] == 0] for t in sets["forget"]), "nonmember": (x[y != 0], y[y != 0])}
    with pytest.raises(ValueError, match="nonmember: holds no sample of the forget set's classes"):
        w.run(net, "scrub", sets | alone, rewind=True)
    with pytest.raises(ValueError, match=r"decay: got \(0, 3\); accepted are epochs"):
        ff.methods.SCRUB(decay=(0, 3))


def test_the_teacher_costs_forward_passes_alone():
    net = w.mlp()
    cost = w.run(net, "scrub", w.request(net), epochs=2, msteps=1).receipt["cost"]
    assert cost["phases"]["scrub forget"] == {"trained": 20, "forward": 20}
    assert cost["phases"]["scrub retain"] == {"trained": 140, "forward": 0}
    assert cost["phases"]["teacher"] == {"trained": 0, "forward": 70}  # of what is passed over again, once a sample
    assert cost["passes"] == 20 + math.ceil(20 / 3) + 140 + math.ceil(70 / 3)
