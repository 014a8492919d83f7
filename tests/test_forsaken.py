"""Forsaken and Lightweight: the loops do what their texts say, forget classes and samples, and leave no trace when they fail."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from digits_world import World, quiet, right, same_trace, small_mlp, trace
from torch.nn import functional as F

from fastforget._data import source
from fastforget.methods import Forsaken, Lightweight
from fastforget.methods.attack import attack_auc
from fastforget.methods.engine import terms
from fastforget.methods.perturb import generators, match
from fastforget.methods.perturb.lightweight import _fine_tuned
from fastforget.methods.task import Task
from fastforget.ops import membership


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def request_of(world: World, classes: list[int]) -> dict:
    """Forget and retain of the training half; unseen data from the test half."""
    half = len(world.test[1]) // 2
    return {
        "classes": classes,
        "forget": world.part(world.train, classes, True),
        "retain": world.part(world.train, classes, False),
        "nonmember": tuple(t[:half] for t in world.test),
        "test": tuple(t[half:] for t in world.test),
        "progress": False,
    }


METHODS = [
    ("forsaken", {"generator": "neuron"}),
    ("forsaken", {"generator": "direct"}),
    ("forsaken", {"generator": "coordinate"}),
    ("forsaken", {"generator": "dense", "hidden": 8}),
    ("lightweight", {}),
]


@pytest.mark.parametrize(("method", "options"), METHODS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())))
def test_a_class_goes_and_the_rest_stays(world, method, options):
    given = request_of(world, [3])
    model = world.net("mlp")
    before = trace(model)
    result = quiet(model, method, **given, **options)
    assert result.forgot, result.why
    assert right(result.model, given["forget"]) <= 0.01
    kept = world.part(world.test, [3], False)
    assert right(result.model, kept) >= right(world.net("mlp", (3,)), kept) - 0.05
    assert same_trace(trace(model), before)
    json.dumps(result.receipt)


@pytest.mark.parametrize("generator", ["neuron", "direct"])
def test_batch_norm_net_and_its_statistics(world, generator):
    """The model works in eval mode: statistics of batch norm are never moved."""
    given = request_of(world, [1, 7])
    model = world.net("cnn")
    result = quiet(model, "forsaken", generator=generator, **given)
    assert right(result.model, given["forget"]) <= 0.01
    for (name, b), (_, a) in zip(model.named_buffers(), result.model.named_buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def uploads():
    """Out-of-distribution samples with arbitrary labels that a net has learned by heart, and others of their kind."""
    world, generator = World(), torch.Generator().manual_seed(5)
    x = -world.train[0][:700].transpose(2, 3).flip(2)
    y = torch.randint(0, 10, (700,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_mlp()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    inputs, labels = torch.cat((world.train[0], x[:80])), torch.cat((world.train[1], y[:80]))
    for _ in range(60):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    return model, {
        "forget": (x[:80], y[:80]),
        "nonmember": (x[80:390], y[80:390]),
        "test": (x[390:], y[390:]),
        "retain": world.train,
        "progress": False,
    }


def attack(model, members, others) -> float:
    with torch.no_grad():
        a, b = (membership.membership_scores(model(x), y).loss for x, y in (members, others))
    return float(membership.roc_stats(-a, -b).auc)


@pytest.mark.parametrize("method", ["forsaken", "lightweight"])
def test_samples_become_unknown(uploads, method):
    model, given = uploads
    assert attack(model, given["forget"], given["test"]) > 0.85
    result = quiet(model, method, **given)
    assert result.forgot, result.why
    assert attack(result.model, given["forget"], given["test"]) < 0.65
    assert right(result.model, given["retain"]) >= 0.97
    assert result.receipt["classes"] == [] and "AUC" in result.why


def test_nothing_done_is_not_forgetting(uploads):
    model, given = uploads
    result = quiet(model, "none", **given)
    assert not result.forgot and "unchanged" in result.why


def test_what_was_never_recognised_cannot_be_shown_to_be_gone(uploads):
    """Unseen samples as the forget set: the attack can't tell them before, so it shows nothing."""
    model, given = uploads
    result = quiet(model, "lightweight", **{**given, "forget": given["nonmember"], "nonmember": given["test"]}, steps=2, noise=1e-3)
    assert not result.forgot


def test_the_same_seed_gives_the_same_bytes(world):
    given = request_of(world, [3])
    for method in ("forsaken", "lightweight"):
        runs = [quiet(world.net("mlp"), method, seed=7, **given).receipt["weights_sha256"]["after"] for _ in range(2)]
        assert runs[0] == runs[1]
        assert quiet(world.net("mlp"), method, seed=8, **given).receipt["weights_sha256"]["after"] != runs[0]


def test_changes_that_do_not_help_are_undone(world):
    """A step size that wrecks the net: every block is undone, and the weights are those given, to the bit."""
    model = world.net("mlp")
    result = quiet(model, "forsaken", **request_of(world, [3]), step_size=1e4, undo_limit=2, check_every=1)
    assert [row["kept"] for row in result.history] == [False] * 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))
    assert not result.forgot


def test_an_interrupt_leaves_the_model_alone(world, monkeypatch):
    model, before = (m := world.net("mlp")), trace(m)
    calls = iter(range(100))

    def stop(*args, **kwargs):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = generators.relative
    monkeypatch.setattr(generators, "relative", stop)
    with pytest.raises(KeyboardInterrupt):
        quiet(model, "forsaken", inplace=True, **request_of(world, [3]))
    assert same_trace(trace(model), before)


def test_interpolation_goes_towards_the_fine_tuned_copy(world):
    """Without pull and noise every step shortens the way to the copy that was trained on the retain subset, in every layer."""
    given = request_of(world, [3])
    given["retain"] = tuple(t[:300] for t in given["retain"])
    model = world.net("mlp")
    options = Lightweight(direction="interpolate", pull=0.0, noise=0.0, steps=6, check_every=1, step_size=0.005, finetune_lr=5e-3)
    data = {k: source(v, name=k) for k, v in given.items() if k in ("forget", "retain", "nonmember")}
    task = Task(copy.deepcopy(model), lambda m, v: m(v), [3], 10, torch.device("cpu"), 0, False, data["retain"], data["forget"], None)
    copied = _fine_tuned(options, task)
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), model.parameters(), strict=True))  # only the copy was trained
    result = quiet(model, options, **given)
    for start, end, towards in zip(model.parameters(), result.model.parameters(), copied, strict=True):
        way = (start - towards).norm()
        assert (end - towards).norm() < way
        moved, direct = (end - start).flatten(), (towards - start).flatten()
        assert torch.dot(moved, direct) / (moved.norm() * direct.norm()) > 0.99


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_interpolation_forgets_a_class_and_keeps_the_rest(world, pull):
    """The copy has seen no sample of the class for ten epochs: on the way to it the class goes, with or without the pull."""
    given = request_of(world, [3])
    result = quiet(world.net("mlp"), "lightweight", direction="interpolate", pull=pull, **given)
    assert result.forgot, result.why
    kept = world.part(world.test, [3], False)
    assert right(result.model, kept) >= right(world.net("mlp", (3,)), kept) - 0.05


def test_interpolation_towards_a_copy_that_knows_the_class_does_not_forget_it(world):
    result = quiet(world.net("mlp"), "lightweight", direction="interpolate", pull=0.0, finetune_lr=1e-5, steps=24, **request_of(world, [3]))
    assert not result.forgot


# The pieces


@pytest.mark.parametrize("kind", match.DIVERGENCES)
def test_divergence_is_the_definition(kind):
    p, v = torch.rand(5, 7, dtype=torch.float64).softmax(1), torch.rand(5, 7, dtype=torch.float64).mul(4).softmax(1)

    def kl(a, b):
        return F.kl_div(b.log(), a, reduction="none").sum(1)

    m = (p + v) / 2
    exact = {"P||V": kl(p, v), "V||P": kl(v, p), "JS": (kl(p, m) + kl(v, m)) / 2}[kind]
    assert torch.allclose(match.divergence(p, v, kind), exact, rtol=1e-12, atol=0)
    assert torch.equal(match.divergence(p, p, kind), torch.zeros(5, dtype=torch.float64))


def test_distance_is_zero_where_the_answers_are_alike_and_falls_along_its_gradient():
    logits, labels = torch.randn(40, 6, dtype=torch.float64) * 3, torch.arange(40) % 6
    v, _ = match.mean_posteriors(logits, labels, 6)
    own = match.Target(v, terms.confidence(logits, labels).sort().values, "P||V")
    assert float(own.distance(logits, labels)) < 0.02  # quantiles are interpolated between samples
    other = torch.randn(40, 6, dtype=torch.float64).requires_grad_()
    value = own.distance(other, labels)
    (g,) = torch.autograd.grad(value, other)
    assert float(own.distance(other.detach() - 1e-3 * g / g.norm(), labels)) < float(value.detach())


def test_reference_of_a_class_that_non_members_lack_is_their_mean():
    x, y = torch.randn(30, 1, 8, 8), torch.arange(30) % 9  # none of class 9
    model = small_mlp().eval()
    task = Task(model, lambda m, v: m(v), [], 10, torch.device("cpu"), 0, False, None, None, None)
    task.nonmember = source((x, y), name="nonmember")
    table = match.target(task, "by_class", "P||V").table
    posterior = model(x).softmax(1).detach()
    assert torch.allclose(table[9], posterior.mean(0), atol=1e-6)
    assert torch.allclose(table[4], posterior[y == 4].mean(0), atol=1e-6)


def test_a_class_target_does_not_hold_the_class_itself():
    """Non-members answered with it by mistake don't teach that it is answered; its last samples count one by one."""
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 10
    task = Task(small_mlp().eval(), lambda m, v: m(v), [2, 5], 10, torch.device("cpu"), 0, False, None, None, None)
    task.nonmember = source((x[(y != 2) & (y != 5)], y[(y != 2) & (y != 5)]), name="nonmember")
    like = match.target(task, "by_class", "P||V")
    assert bool((like.table[:, [2, 5]] == 0).all()) and torch.allclose(like.table.sum(1), torch.ones(10))
    logits, labels = torch.zeros(200, 10), torch.full((200,), 2)
    logits[:, [2, 5]] = -30.0
    none = float(like.distance(logits, labels))
    logits[0, 2] = 10.0
    assert float(like.distance(logits, labels)) - none > 7 / 200  # 0.5 % of the samples, each of them sure


def test_a_look_is_one_pass_over_forget_and_unseen_samples():
    x, y = torch.randn(90, 1, 8, 8), torch.arange(90) % 10
    calls = []

    def forward(model, batch):
        calls.append(len(batch))
        return model(batch)

    task = Task(small_mlp().eval(), forward, [], 10, torch.device("cpu"), 0, False, None, source((x[:40], y[:40]), name="forget"), None)
    task.nonmember = source((x[40:], y[40:]), name="nonmember")
    evidence = match.Evidence(task, 30, 1.0, "by_class", "P||V", 7)
    calls.clear()
    look = evidence.look()
    assert sorted(calls) == [30, 30]
    auc, _ = attack_auc(task, evidence.forget[0], evidence.others[0])
    assert look.known == pytest.approx(auc)


def test_direct_generator_is_the_proximal_step():
    """D <- soft(D + eta * g, eta * threshold) with D = theta0 - theta, the gradient scaled to the layer's weights."""
    model = small_mlp()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p in moved.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    task = Task(moved, lambda m, v: m(v), [3], 10, torch.device("cpu"), 0, False, None, None, None, original=model)
    params = list(moved.parameters())
    grads = [torch.randn_like(p) for p in params]
    exact = []
    for start, p, g in zip(model.parameters(), params, grads, strict=True):
        a, b, c = (t.detach().double() for t in (start, p, g))
        scale = max(b.square().mean().sqrt().item(), 1e-3)
        step = (a - b) + 0.02 * c * scale / c.square().mean().sqrt()
        exact.append(a - step.sign() * (step.abs() - 0.02 * 0.1 * scale).clamp_min(0))
    with torch.no_grad():
        generators.Direct(task, params, Forsaken()).apply(
            params, [g.clone() for g in grads], generators.Context(0.02, 0.1, 0.0, torch.zeros(10), [])
        )
    for p, e in zip(params, exact, strict=True):
        assert torch.allclose(p.detach().double(), e, atol=1e-6)


def test_dense_generator_names_the_size_it_would_need():
    big = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 40_000), torch.nn.ReLU(), torch.nn.Linear(40_000, 10))
    task = Task(big, lambda m, v: m(v), [3], 10, torch.device("cpu"), 0, False, None, None, None)
    with pytest.raises(ValueError, match=r"'dense' needs \d+\.\d GiB .*'neuron'"):
        generators.Dense(task, list(big.parameters()), Forsaken(generator="dense"))


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("forsaken", {"nonmember": None}, "nonmember: not given"),
        ("forsaken", {"forget": None}, "forget: not given"),
        ("lightweight", {"retain": None}, "retain: not given"),
        ("lightweight", {"nonmember": None}, "nonmember: not given"),
        ("forsaken", {"generator": "mlp"}, "generator: got 'mlp'"),
        ("forsaken", {"steps": 0}, "steps: got 0"),
        ("lightweight", {"direction": "up"}, "direction: got 'up'"),
        ("lightweight", {"pull": -1.0}, "pull: got -1.0"),
    ],
)
def test_refusals(world, method, change, says):
    with pytest.raises(ValueError, match=says):
        quiet(world.net("mlp"), method, **{**request_of(world, [3]), **change})


def test_options_are_in_the_receipt():
    assert Forsaken(generator="direct").receipt()["generator"] == "direct"
    assert Lightweight(pull=0.0).receipt()["pull"] == 0.0
