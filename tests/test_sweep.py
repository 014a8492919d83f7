"""The sweep where little is given: no samples of the classes, few samples, few steps; and what its steps are made of."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from digits_world import World, fit, quiet, right, small_mlp
from torch import nn

from fastforget._data import source
from fastforget.methods import Sweep
from fastforget.methods.attack import comparable, of_same_classes
from fastforget.methods.engine.drawn import Drawn
from fastforget.methods.engine.tensorwise import TensorwiseAdam
from fastforget.methods.sweep import looks, options


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
@pytest.mark.parametrize("classes", [[3], [1, 2]])
def test_classes_without_samples_are_forgotten_and_the_rest_kept(world, kind, classes):
    half = len(world.test[1]) // 2
    sets = {"retain": world.part(world.train, classes, False), "nonmember": tuple(t[:half] for t in world.test)}
    model, kept = world.net(kind), world.part(world.test, classes, False)
    result = quiet(model, "sweep", classes=classes, progress=False, **sets)
    assert right(result.model, world.part(world.train, classes, True)) <= 0.01
    assert right(result.model, kept) >= right(model, kept) - 0.03
    assert result.cost.passes <= 2 * len(sets["retain"][1])
    assert result.receipt["cost"]["phases"]["noise"]["trained"] > 0
    learned = json.loads(json.dumps(result.receipt))["chosen"]["images"]
    assert learned["noise_batch"] * len(classes) == 16


def test_a_budget_bounds_a_run_without_samples(world):
    retain = world.part(world.train, [3], False)
    result = quiet(world.net("cnn"), "sweep", classes=[3], retain=retain, budget=900, progress=False)
    assert 700 <= result.cost.passes <= 900


def test_few_samples_are_enough_to_forget_a_class(world):
    """Two epochs over 60 samples would be 120 passes: nothing."""
    first = tuple(t[:100] for t in world.train)
    sets = {"forget": world.part(first, [4], True), "retain": world.part(first, [4], False)}
    assert len(sets["retain"][1]) < 100
    result = quiet(world.net("mlp"), "sweep", classes=[4], progress=False, **sets)
    assert result.forgot, result.why
    assert result.cost.passes <= 2_400
    kept = world.part(world.test, [4], False)
    assert right(result.model, kept) >= right(world.net("mlp"), kept) - 0.03


def test_batch_norm_doesn_t_lag_behind_after_few_steps(world):
    """With a momentum of 0.01 the running statistics would still be those of the original when the weights have gone far."""
    model = world.net("cnn")
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.01
    sets = {"forget": world.part(world.train, [3], True), "retain": world.part(world.train, [3], False)}
    result = quiet(model, "sweep", classes=[3], progress=False, budget=1_200, **sets)
    assert result.forgot, result.why
    kept = world.part(world.test, [3], False)
    assert right(result.model, kept) >= right(model, kept) - 0.03


def test_one_unseen_sample_is_no_reason_to_fail(world):
    sets = {"forget": world.part(world.train, [3], True), "retain": world.part(world.train, [3], False)}
    one = tuple(t[:1] for t in world.part(world.test, [3], False))
    result = quiet(world.net("mlp"), "sweep", classes=[3], nonmember=one, progress=False, **sets)
    assert result.forgot, result.why


@pytest.mark.parametrize("rare", [20, 300])
def test_a_look_at_several_classes_takes_as_many_of_each(rare):
    """At random, 512 of these would have four of the rare class's twenty, and one that is still known there could be missed."""
    labels = torch.cat((torch.zeros(2000), torch.ones(rare), torch.full((900,), 2.0))).long()
    forget = source((torch.arange(len(labels), dtype=torch.float32)[:, None], labels), name="forget")
    task = SimpleNamespace(forget=forget, classes=[0, 1, 2], generator=lambda purpose: torch.Generator().manual_seed(purpose))
    counts = looks.some_to_forget(task).labels().bincount().tolist()
    assert counts == [246, 20, 246] if rare == 20 else sorted(counts) == [170, 171, 171]


class OfAnyLength(nn.Module):
    """Sequences of numbers, averaged, through batch norm; batches of different lengths can't be joined."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(x.mean(1))


@pytest.mark.parametrize("given", [{"forget": 1}, {"nonmember": 1}, {"retain": 1}, {"batch_size": 1}, {"batch_size": 2}])
def test_batch_norm_never_sees_one_sample_alone(given):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    means = 2.0 * torch.eye(3, 4)[labels]

    def some(wanted, length, name):
        x = means[wanted, None] + 0.3 * torch.randn(int(wanted.sum()), length, 4, generator=generator)
        return tuple(t[: given.get(name)] for t in (x, labels[wanted]))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = fit(OfAnyLength(), *some(labels >= 0, 6, "train"), epochs=6)
    sets = {name: some(wanted, length, name) for name, wanted, length in (("forget", labels == 2, 5), ("retain", labels < 2, 6))}
    if "nonmember" in given:
        sets["nonmember"] = some(labels < 2, 7, "nonmember")
    options = {"batch_size": given["batch_size"]} if "batch_size" in given else {}
    result = quiet(net, "sweep", classes=[2], progress=False, budget=600, **sets, **options)
    assert 0 < result.cost.passes <= 600
    assert result.receipt["measured"]["sweeps"]
    assert right(result.model, sets["forget"]) <= 0.01


def test_a_budget_without_end_takes_no_more_memory_than_its_steps(world, monkeypatch):
    monkeypatch.setattr(options, "MOST", 40)
    sets = {"forget": world.part(world.train, [3], True), "retain": world.part(world.train, [3], False)}
    result = quiet(world.net("mlp"), "sweep", classes=[3], budget="1000000 epochs", progress=False, **sets)
    assert result.receipt["chosen"]["steps"] == round(0.95 * 40)


@pytest.mark.parametrize("kind", ["numbers of words", "a dict"])
def test_without_samples_inputs_must_be_such_that_images_can_be_learned(kind):
    words, labels = torch.arange(60).reshape(20, 3) % 7, torch.arange(20) % 2
    net = nn.Sequential(nn.EmbeddingBag(7, 8), nn.Linear(8, 2))
    rows = [(w if kind == "numbers of words" else {"x": w}, label) for w, label in zip(words, labels, strict=True)]
    retain = torch.utils.data.DataLoader(rows, batch_size=5)
    forward = None if kind == "numbers of words" else lambda model, batch: model(batch["x"])
    got = "of torch.int64" if kind == "numbers of words" else "a dict"
    with pytest.raises(TypeError, match=rf"forget: not given, and retain's inputs are {got}.*; accepted .* Give forget=.* noise_at="):
        quiet(net, "sweep", classes=[1], retain=retain, drop_forget=True, forward=forward, progress=False)


def test_a_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="rate: got 0; accepted is a finite number > 0"):
        Sweep(rate=0)


def test_frozen_norms_keep_their_statistics(world):
    model = world.net("cnn")
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    sets = {"forget": world.part(world.train, [3], True), "retain": world.part(world.train, [3], False)}
    after = quiet(model, "sweep", classes=[3], progress=False, **sets).model.state_dict()
    statistics = [name for name in before if "running" in name]
    assert len(statistics) == 4
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert not torch.equal(before["0.weight"], after["0.weight"])


@pytest.mark.parametrize("width", [64, 512])
def test_the_rate_follows_the_model_not_its_width(world, width):
    """A step down the gradient moves a wide net's answers more than a narrow one's; one of random signs says nothing of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    fit(net, *world.train, epochs=6)
    sets = {"forget": world.part(world.train, [3], True), "retain": world.part(world.train, [3], False)}
    result = quiet(net, "sweep", classes=[3], progress=False, **sets)
    kept = world.part(world.test, [3], False)
    assert result.forgot, result.why
    assert right(result.model, kept) >= right(net, kept) - 0.02


def test_its_steps_are_adam_s_with_one_second_moment_a_tensor():
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), ())]
    rates, (first, second) = [0.1, 0.02, 0.3], (0.9, 0.99)
    want, averages, moments = [p.clone() for p in params], [torch.zeros_like(p) for p in params], [0.0] * 3
    optimizer = TensorwiseAdam(params, rates)
    for step in range(1, 8):
        share = 1 / step
        optimizer.at(share)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        for i, (p, rate) in enumerate(zip(params, rates, strict=True)):
            averages[i] = first * averages[i] + (1 - first) * p.grad
            moments[i] = second * moments[i] + (1 - second) * float((p.grad**2).mean())
            size = math.sqrt(moments[i] / (1 - second**step))
            want[i] = want[i] - share * rate * averages[i] / (1 - first**step) / size
        optimizer.step()
    for p, right_value in zip(params, want, strict=True):
        assert torch.allclose(p, right_value, rtol=1e-5, atol=0)  # the moments are float32


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_a_tensor_of_which_a_batch_uses_little_moves_as_by_adam(layout):
    """Else the rows of rare words, where a text net keeps what it has memorised, would hardly move beside those of common ones."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    ours, plain = start.clone(), start.clone().requires_grad_()
    optimizer, adam = TensorwiseAdam([ours], [0.1]), torch.optim.Adam([plain], lr=0.1, betas=(0.9, 0.99))
    for _ in range(5):
        gradient = torch.zeros(10, 3, dtype=torch.float64)
        gradient[torch.randint(10, (3,), generator=generator)] = torch.randn(3, generator=generator, dtype=torch.float64)
        ours.grad = gradient.clone() if layout == torch.strided else gradient.to_sparse(1)
        plain.grad = gradient.clone()
        optimizer.step()
        adam.step()
    assert torch.allclose(ours, plain.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_smaller_than_the_weights_precision_add_up(dtype):
    """One step of 1e-4 from 1 is lost in both; a thousand of them are 0.1."""
    weight = torch.ones(8, dtype=dtype)
    optimizer = TensorwiseAdam([weight], [1e-4])
    for _ in range(1000):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    assert torch.allclose(weight.float(), torch.full((8,), 0.9), atol=4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_without_a_gradient_stays(dtype):
    moved, still, empty = torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype), torch.ones(0, dtype=dtype)
    optimizer = TensorwiseAdam([moved, still, empty], [0.5, 0.5, 0.5])
    moved.grad, still.grad = torch.full((3,), 1e-4, dtype=dtype), torch.zeros(3, dtype=dtype)
    optimizer.step()
    assert torch.allclose(moved.float(), torch.full((3,), 0.5), rtol=1e-2)
    assert torch.equal(still, torch.ones(3, dtype=dtype))
    assert not optimizer.state  # nothing that a checkpoint of ours would have to hold


@pytest.fixture(scope="module")
def noisy() -> World:
    """Digits that small nets learn by heart."""
    world, generator = World(), torch.Generator().manual_seed(0)
    for name in ("train", "test"):
        x, y = getattr(world, name)
        setattr(world, name, (x + torch.randn(x.shape, generator=generator), y))
    return world


def half_of(world: World, c: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Half of the samples of one class are to be forgotten."""
    x, y = world.train
    gone = torch.zeros(len(y), dtype=torch.bool)
    gone[(y == c).nonzero()[::2, 0]] = True
    return {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone])}


def test_samples_of_one_class_become_like_unseen_ones_of_that_class(noisy):
    torch.manual_seed(0)
    model, found = fit(small_mlp(), *noisy.train, epochs=40), []
    half = len(noisy.test[1]) // 2
    unseen, rest = tuple(t[:half] for t in noisy.test), source(tuple(t[half:] for t in noisy.test), name="test")
    for c in (1, 3, 5, 8):
        sets = half_of(noisy, c)
        result = quiet(model, "sweep", nonmember=unseen, progress=False, **sets)
        forget = source(sets["forget"], name="forget")
        found.append([attack(net, forget, comparable(forget, rest)) for net in (model, result.model)])
    before, after = torch.tensor(found).mean(dim=0).tolist()
    assert before > 0.6
    assert after - 0.5 < 0.6 * (before - 0.5)


def test_few_steps_for_samples_of_one_class_end_well(noisy):
    """The budget has room for a step: fewer unseen samples than tell their spread, and none to keep of the class."""
    model, sets = fit(small_mlp(), *noisy.train, epochs=2), half_of(noisy, 3)
    x, y = sets["retain"]
    sets["retain"] = x[y != 3], y[y != 3]
    result = quiet(model, "sweep", nonmember=noisy.test, progress=False, batch_size=4, steps=1, **sets)
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert result.receipt["measured"]["sweeps"]


def attack(net: nn.Module, forget, unseen) -> float:
    """AUC of the loss attack."""
    losses = []
    for data in (forget, unseen):
        x, y = data.samples.inputs, data.labels()
        x = x if data.indices is None else x[data.indices]
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(net.eval()(x), y, reduction="none"))
    return (losses[0][:, None] < losses[1]).double().mean().item()


@pytest.mark.parametrize(("classes", "mostly"), [([3], 12), ([1, 2, 3, 4, 5, 6, 7, 8], None)])
def test_three_quarters_of_each_batch_are_of_the_same_classes(world, classes, mostly):
    """By chance alone where they are as many of the set; what was memorised is told by no more of them than chance would draw."""
    seen: list[tuple[list[int], float]] = []

    class Draw:
        name, scope, needs_forget, gradients, learns_noise = "draw", "samples", True, (), False

        def receipt(self):
            return {}

        def run(self, task):
            same = of_same_classes(task.forget, task.nonmember, 8)
            drawn = Drawn(task, task.nonmember, 16, 9, 7, None, same)
            counts = [int(torch.isin(task.nonmember.labels()[batch], torch.tensor(classes)).sum()) for batch in drawn.order]
            seen.append((counts, torch.isin(drawn.labels()[drawn.by_chance()], torch.tensor(classes)).double().mean().item()))
            return {}

    forget, retain = world.part(world.train, classes, True), world.part(world.train, classes, False)
    quiet(world.net("mlp"), Draw(), forget=forget, retain=retain, nonmember=world.test, progress=False)
    ((counts, share),) = seen
    assert set(counts) == {mostly} if mostly else len(set(counts)) > 1
    assert abs(share - torch.isin(world.test[1], torch.tensor(classes)).double().mean().item()) < 0.05


@pytest.mark.parametrize(("there", "named"), [(0, False), (7, False), (8, True)])
def test_samples_of_the_same_classes_must_be_there(world, there, named):
    x, y = world.test
    at = torch.cat([(y != 3).nonzero()[:, 0], (y == 3).nonzero()[:there, 0]])
    forget = source(world.part(world.train, [3], True), name="forget")
    found = of_same_classes(forget, source((x[at], y[at]), name="nonmember"), 8)
    assert (found is not None) is named
    assert not named or torch.equal(found, y[at] == 3)
