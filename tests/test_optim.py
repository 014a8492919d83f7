"""ff.optim against torch.optim: the same training without a mask, frozen bits with one, state that passes both ways."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from digits_world import right, small_mlp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fastforget as ff

PAIRS = {
    "sgd": (ff.optim.MaskedSGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd momentum": (ff.optim.MaskedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.2, "weight_decay": 1e-3}),
    "sgd nesterov": (ff.optim.MaskedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "sgd ascent": (ff.optim.MaskedSGD, torch.optim.SGD, {"lr": 1e-3, "maximize": True}),
    "adam": (ff.optim.MaskedAdam, torch.optim.Adam, {"lr": 0.01}),
    "adam l2": (ff.optim.MaskedAdam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4}),
    "adam decoupled": (ff.optim.MaskedAdam, torch.optim.Adam, {"weight_decay": 1e-2, "decoupled_weight_decay": True}),
    "adamw": (ff.optim.MaskedAdamW, torch.optim.AdamW, {}),
    "adamw ascent": (ff.optim.MaskedAdamW, torch.optim.AdamW, {"lr": 1e-4, "maximize": True}),
}
KINDS = {"sgd": "sgd momentum", "adam": "adam l2", "adamw": "adamw"}


def net(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def batches(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(16, 6, generator=generator, dtype=torch.float64)
        yield x.to(dtype), (x[:, :3] > 0).to(dtype)


def train(model, optimizer, count=100, skip=0):
    for i, (x, y) in enumerate(batches(skip + count)):
        if i >= skip:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    return model


def masks_for(model, form="element"):
    generator = torch.Generator().manual_seed(2)
    weight = model[0].weight
    if form == "rows":
        return {"0.weight": torch.arange(9) % 3 == 0, "2.bias": torch.tensor([True, False, False])}
    return {"0.weight": torch.rand(weight.shape, generator=generator) < 0.5, "2.weight": torch.zeros(3, 9, dtype=torch.bool)}


def states(optimizer):
    return [
        value for group in optimizer.param_groups for p in group["params"] for _, value in sorted(optimizer.state[p].items())
    ]


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "all ones"])
@pytest.mark.parametrize("name", PAIRS)
def test_without_a_mask_it_trains_as_torch_does(name, masked):
    """float64 over 100 steps: what rounding differs by stays far below what any difference of formula makes."""
    ours, theirs, options = PAIRS[name]
    a, b = net(), net()
    mask = {p: torch.ones_like(p, dtype=torch.bool) for p in a.parameters()} if masked else None
    mine, plain = ours(a.parameters(), **options, mask=mask), theirs(b.parameters(), **options)
    train(a, mine), train(b, plain)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    for s, t in zip(states(mine), states(plain), strict=True):
        torch.testing.assert_close(s, t, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), net().parameters(), strict=True))


@pytest.mark.parametrize("form", ["element", "rows"])
@pytest.mark.parametrize("name", KINDS.values())
def test_masked_training(name, form):
    """Frozen weights and their state keep their bits, the others move; parameters without a mask move as a whole."""
    ours, _, options = PAIRS[name]
    model, before = net(), net()
    optimizer = ours(model.named_parameters(), **options, mask=masks_for(model, form))
    train(model, optimizer, 20)
    masks = masks_for(model, form)
    for (key, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        on = masks.get(key, torch.ones(p.shape[0], dtype=torch.bool))
        on = on.view(*on.shape, *[1] * (p.dim() - on.dim())).expand(p.shape)
        assert torch.equal(p[~on], q[~on]) and (p[on] != q[on]).all()
        for state, value in optimizer.state[p].items():
            assert state == "step" or ((value[~on] == 0).all() and (value[on] != 0).all())


@pytest.mark.parametrize("name", KINDS.values())
def test_interrupted_training_gives_the_same_bytes(name):
    ours, _, options = PAIRS[name]
    whole = net()
    train(whole, ours(whole.named_parameters(), **options, mask=masks_for(whole)), 30)
    first = net()
    optimizer = ours(first.named_parameters(), **options, mask=masks_for(first))
    train(first, optimizer, 12)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = net()
    second.load_state_dict(saved["model"])
    other = ours(second.named_parameters(), lr=7.0, mask=masks_for(second))
    other.load_state_dict(saved["optimizer"])
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] != 7.0
    train(second, other, 18, skip=12)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", KINDS.values())
@pytest.mark.parametrize("there", [True, False], ids=["from torch", "to torch"])
def test_state_passes_to_and_from_torch(name, there):
    ours, theirs, options = PAIRS[name]
    a, plain = net(), net()
    train(plain, theirs(plain.parameters(), **options), 20)
    first, second = (theirs, ours) if there else (ours, theirs)
    optimizer = first(a.parameters(), **options)
    train(a, optimizer, 10)
    other = second(a.parameters())
    other.load_state_dict(optimizer.state_dict())
    train(a, other, 10, skip=10)
    for p, q in zip(a.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", KINDS.values())
def test_copies_go_on_alike_with_their_masks(name, how):
    ours, _, options = PAIRS[name]
    model = net()
    optimizer = ours(model.named_parameters(), **options, mask=masks_for(model))
    train(model, optimizer, 3)
    twin, other = how((model, optimizer))
    assert next(twin.parameters()) is other.param_groups[0]["params"][0]
    train(model, optimizer, 3, skip=3), train(twin, other, 3, skip=3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert torch.equal(twin[2].weight, net()[2].weight)


@pytest.mark.parametrize("name", KINDS.values())
def test_groups_schedules_tensor_rates_and_late_gradients(name):
    """Groups with options of their own, a scheduler, lr as a tensor, a parameter that gets its gradient only later, one added late."""
    ours, theirs, options = PAIRS[name]
    results = []
    for kind in (ours, theirs):
        model = net()
        p = list(model.parameters())
        rate = torch.tensor(0.02, dtype=torch.float64)
        optimizer = kind([{"params": p[:1], "lr": rate}, {"params": p[1:2], "weight_decay": 0.1}], **options)
        p[1].requires_grad_(False)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        for i, (x, y) in enumerate(batches(10)):
            if i == 3:
                p[1].requires_grad_(True)
            if i == 5:
                optimizer.add_param_group({"params": p[2:]})
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            schedule.step()
        results.append(p)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_step_returns_what_the_closure_returns_and_runs_hooks():
    w = nn.Parameter(torch.ones(2))
    optimizer = ff.optim.MaskedSGD([w], lr=0.5)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0 and w.tolist() == [0.0, 0.0]
    assert optimizer.step() is None and seen == ["post", "post"]


def test_mixed_dtypes_and_all_forms_of_mask():
    a, b = nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(9, dtype=torch.float64))
    c = nn.Parameter(torch.ones(2, 2))
    packed = torch.tensor([0b00000101, 1], dtype=torch.uint8)
    mask = {a: torch.tensor([True, False, True]), b: packed, c: torch.tensor([0.0, 2.0])}
    optimizer = ff.optim.MaskedSGD([a, b, c], lr=0.25, mask=mask)
    (a.sum() + b.sum() + c.sum()).backward()
    optimizer.step()
    assert a.tolist() == [[0.75] * 2, [1.0] * 2, [0.75] * 2] and c.tolist() == [[1.0] * 2, [0.5] * 2]
    assert b.tolist() == [0.75, 1, 0.75, 1, 1, 1, 1, 1, 0.75]


def test_set_mask_replaces_all_masks():
    w, u = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ff.optim.MaskedAdam([("w", w), ("u", u)], lr=0.5, mask={"w": torch.tensor([True, False])})
    optimizer.set_mask({u: torch.tensor([False, True])})
    w.grad, u.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert (w != 1).tolist() == [True, True] and (u != 1).tolist() == [False, True]
    optimizer.set_mask(None)
    optimizer.step()
    assert (u != 1).all()


W = nn.Parameter(torch.ones(4, 3))
ON = torch.ones(4, dtype=torch.bool)
REFUSED = {
    "amsgrad": (lambda: ff.optim.MaskedAdam([W], amsgrad=True), ValueError, "MaskedAdam: amsgrad=True is not supported"),
    "capturable": (lambda: ff.optim.MaskedAdamW([W], capturable=True), ValueError, "MaskedAdamW: capturable=True.*masked_adam_"),
    "differentiable": (lambda: ff.optim.MaskedSGD([W], differentiable=True), ValueError, "MaskedSGD: differentiable=True"),
    "in a group": (lambda: ff.optim.MaskedAdam([{"params": [W], "amsgrad": True}]), ValueError, "amsgrad=True"),
    "lr": (lambda: ff.optim.MaskedSGD([W], lr=-1.0), ValueError, "learning rate"),
    "unknown name": (lambda: ff.optim.MaskedSGD([("w", W)], mask={"v": ON}), KeyError, "no parameter is named 'v'; there are 'w'"),
    "no names": (lambda: ff.optim.MaskedSGD([W], mask={"w": ON}), KeyError, "came without names. Pass model.named_parameters"),
    "stranger": (lambda: ff.optim.MaskedSGD([W], mask={nn.Parameter(torch.ones(2)): ON}), KeyError, r"shape \(2,\) is not among"),
    "twice": (lambda: ff.optim.MaskedSGD([("w", W)], mask={"w": ON, W: ON}), ValueError, "'w' is given twice"),
    "not a dict": (lambda: ff.optim.MaskedSGD([W], mask=[ON]), TypeError, "mask: got list; accepted is a dict"),
    "mask shape": (lambda: ff.optim.MaskedAdam([("w", W)], mask={"w": ON[:3]}), ValueError, r"mask\['w'\]: got .*\(3,\).*accepted"),
    "adam factors": (lambda: ff.optim.MaskedAdam([W], mask={W: torch.ones(4)}), ValueError, r"a parameter of shape \(4, 3\)\]: got"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_to_do(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_refused_state_leaves_the_optimizer_as_it_was():
    optimizer = ff.optim.MaskedAdam([W], lr=0.3)
    with pytest.raises(ValueError, match="amsgrad=True"):
        optimizer.load_state_dict(torch.optim.Adam([W], amsgrad=True).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3 and not optimizer.param_groups[0]["amsgrad"]


def test_sparse_gradients_are_refused_before_anything_moves():
    table, w = nn.Embedding(5, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = ff.optim.MaskedSGD([w, table.weight], lr=0.1)
    (table(torch.tensor([1])).sum() + w.sum()).backward()
    with pytest.raises(RuntimeError, match="sparse; accepted are dense gradients"):
        optimizer.step()
    assert w.tolist() == [1.0, 1.0]


def test_ignored_options_change_nothing():
    for options in ({"foreach": True}, {"fused": True}):
        w = nn.Parameter(torch.ones(2))
        optimizer = ff.optim.MaskedAdamW([w], lr=0.5, weight_decay=0.0, **options)
        w.grad = torch.ones(2)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        torch.testing.assert_close(w.detach(), torch.tensor([0.5, 0.5]))
        assert (w.grad == 0).all()


@pytest.mark.parametrize("name", KINDS.values())
def test_a_net_learns_digits_with_half_its_weights_frozen(implementation, name):
    """SalUn's setting on real images: a mask over every weight, and an accuracy that frozen halves leave well within reach."""
    ours, _, options = PAIRS[name]
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = small_mlp()
        masks = {n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters()}
    before = copy.deepcopy(model)
    optimizer = ours(model.named_parameters(), **options, mask=masks)
    start = right(model, (x, y))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for batch in torch.randperm(len(y), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    assert start < 0.3 and right(model, (x, y)) > 0.8
    for (n, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p[~masks[n]], q[~masks[n]]) and not torch.equal(p, q)
