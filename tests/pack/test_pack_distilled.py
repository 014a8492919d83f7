"""The methods that learn from a teacher's answers, against their formulas and against plain loops."""

from __future__ import annotations

import copy
import math

import pack_world as w
import pytest
import torch
from torch.nn import functional as F

W0 = torch.tensor([[0.4, -0.2, 0.1], [-0.3, 0.5, 0.2], [0.1, 0.1, -0.6]], dtype=torch.float64)


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
