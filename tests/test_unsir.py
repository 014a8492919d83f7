"""UNSIR: the noise is the published procedure's, the class goes, the rest stays, and a failed run leaves no
trace.
"""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from digits_world import World, marked, quiet, right, same_trace, small_mlp, trace
from torch import nn

import fastforget as ff
from benchmarks.unsir_published import our_noise, published_noise
from fastforget import _weights
from fastforget.methods import UNSIR, NotForgottenWarning, unlearn
from fastforget.methods.task import Task
from fastforget.methods.unsir.noise import Place, learn_noise

IMAGE = Place(torch.empty(1, 8, 8))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


# The noise


@pytest.mark.parametrize("used", [None, 3])
def test_noise_is_the_published_procedures(world, used):
    """All classes in one batch and without weight gradients: each class's noise as the published per-class
    loop gives it.
    """
    model, classes = world.net("cnn"), [1, 4, 7]
    small = {"batch": 8, "steps": 6, "image": (1, 8, 8)}
    exact = published_noise(copy.deepcopy(model).double(), classes, dtype=torch.float64, **small)
    first = torch.arange(24) % 8 < (used or 8)
    published = published_noise(model, classes, **small)[first]
    ours = our_noise(model, classes, images_used=used, **small)
    limit = rms(published.double() - exact[first])
    assert rms(ours.double() - exact[first]) <= 2 * limit


def rms(error: torch.Tensor) -> float:
    """Not the largest: where a gradient is nearly zero, Adam turns its last bit into a step of any size."""
    return error.square().mean().sqrt().item()


def task_of(model: nn.Module) -> Task:
    return Task(model, lambda m, x: m(x), [3], 10, torch.device("cpu"), 0, False, None, None, None)


def test_noise_of_a_class_does_not_depend_on_the_others_start():
    zero = {"noise_steps": 1, "noise_lr": 0.0, "noise_batch": 4}
    both, one = (
        learn_noise(UNSIR("paper", **zero), task_of(small_mlp()), classes, IMAGE).images for classes in ([2, 5], [5])
    )
    assert torch.equal(both[4:], one)
    assert not torch.equal(both[:4], one)


def test_l2_mean_is_sum_over_pixels(world):
    settings = {"noise_batch": 4, "noise_steps": 5}
    a, b = (
        learn_noise(UNSIR("paper", **settings, **l2), task_of(world.net("mlp")), [1, 2], IMAGE).images
        for l2 in ({"l2": 0.5}, {"l2": 32.0, "l2_reduction": "mean"})
    )
    assert torch.equal(a, b)


def test_noise_raises_the_error_and_learned_images_lower_it(world):
    task = task_of(world.net("cnn"))
    noise = learn_noise(UNSIR("paper", noise_batch=8), task, [3], IMAGE)
    images = learn_noise(UNSIR("paper", noise_batch=8), task, [3], IMAGE, sign=-1)
    error = {row["phase"]: row["error"] for row in task.history}
    assert error["noise"] > 5 > 0.1 > error["images"]
    assert noise.labels.tolist() == images.labels.tolist() == [3] * 8


def test_noise_options_shape_the_result(world):
    model = world.net("cnn")
    notebook = UNSIR("notebook", noise_batch=8, noise_steps=2)
    task = task_of(model)
    noise = learn_noise(notebook, task, [3, 5], IMAGE)
    assert noise.images.shape == (6, 1, 8, 8) and noise.labels.tolist() == [0] * 6
    assert _weights.fingerprint(model) != _weights.fingerprint(world.net("cnn"))  # statistics drift, as published
    kept = UNSIR("notebook", noise_batch=8, noise_steps=2, noise_statistics="restore", noise_clamp=(-0.5, 0.5))
    model = world.net("cnn")
    clamped = learn_noise(kept, task_of(model), [3], IMAGE).images
    assert _weights.fingerprint(model) == _weights.fingerprint(world.net("cnn"))
    assert clamped.abs().max() <= 0.5
    assert all(p.requires_grad and p.grad is None for p in model.parameters()) and not model.training


# The result


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("classes", [(3,), (1, 4, 7)], ids=["one", "three"])
def test_default_forgets_and_keeps(world, kind, classes):
    wanted = list(classes)
    model = world.net(kind)
    result = unlearn(model, "unsir", retain=world.part(world.train, wanted, False), classes=wanted, progress=False)
    assert right(model, world.part(world.test, wanted, True)) > 0.9
    assert right(result.model, world.part(world.test, wanted, True)) <= 0.01
    kept = world.part(world.test, wanted, False)
    assert right(world.net(kind, classes), kept) - right(result.model, kept) <= 0.02
    assert result.forgot and "rehearsal" in result.why
    assert result.receipt["verdict"]["rests_on"] == "rehearsal"
    assert not set(result.receipt["chosen"]["rehearsed_classes"]) & set(wanted)


def test_forget_data_replaces_the_rehearsal(world):
    retain, forget = (world.part(world.train, [3], inside) for inside in (False, True))
    result = unlearn(world.net("mlp"), retain=retain, forget=forget, test=world.test, progress=False)
    assert result.forgot and result.receipt["classes"] == [3]
    assert result.receipt["chosen"]["rehearsed_classes"] == []
    assert result.receipt["verdict"]["forget_accuracy"]["3"] <= 0.01 >= result.receipt["verdict"]["test_accuracy"]["3"]


def test_nothing_done_is_said_loudly(world):
    model = world.net("mlp")
    with pytest.warns(NotForgottenWarning, match="did NOT verifiably forget"):
        result = unlearn(model, "none", retain=world.train, drop_forget=True, test=world.test, classes=[3])
    assert not result.forgot and "class 3: 9" in result.why
    assert result.receipt["weights_sha256"]["before"] == result.receipt["weights_sha256"]["after"]


def test_too_small_a_rate_is_said_loudly(world):
    with pytest.warns(NotForgottenWarning):
        result = unlearn(world.net("mlp"), UNSIR(last_rate=5e-4), retain=world.part(world.train, [3], False), classes=[3])
    assert not result.forgot and "no rate up to 0.0005" in result.why


def test_without_any_data_of_the_class_a_published_preset_is_not_believed(world):
    retain = world.part(world.train, [3], False)
    with pytest.warns(NotForgottenWarning, match="not shown"):
        result = unlearn(world.net("mlp"), "unsir", preset="paper", retain=retain, classes=[3])
    assert not result.forgot


def test_a_rate_that_is_not_found_is_said_before_the_run(world):
    """The first warning comes from the search, before the run itself; the last one is the verdict's."""
    with pytest.warns(NotForgottenWarning) as caught:
        unlearn(world.net("mlp"), UNSIR(last_rate=5e-4), retain=world.part(world.train, [3], False), classes=[3])
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and "UNSIR: no rate up to 0.0005 made the rehearsed classes" in texts[0]


@pytest.mark.parametrize(("rate", "warned"), [(0.05, True), (1e-5, False)], ids=["high", "gentle"])
def test_a_published_procedure_says_what_it_cost(world, rate, warned):
    """The measured loss decides, not the kind of the net."""
    options = {"preset": "paper", "noise_batch": 16, "copies": 2} | ({"impair_lr": rate, "repair_lr": rate} if rate else {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = unlearn(world.net("cnn"), retain=world.part(world.train, [3], False), classes=[3], progress=False, **options)
    said = [str(warning.message) for warning in caught if "preset='auto'" in str(warning.message)]
    kept = result.receipt["measured"]["retained"]
    assert bool(said) == warned == (kept["right_before"] - kept["right_after"] > 0.03)
    assert not said or f"preset='paper' left {kept['right_after']:.1%} of the retained samples right" in said[0]


# The budget


@pytest.mark.parametrize("classes", [[3], [1, 4, 7]], ids=["one", "three"])
def test_default_costs_at_most_twice_the_published_passes(world, classes):
    retain = world.part(world.train, classes, False)
    result, paper = (quiet(world.net("cnn"), preset=preset, retain=retain, classes=classes).cost for preset in ("auto", "paper"))
    noise, epochs = 256 * len(classes), 2 * len(retain[1])
    published = 60 * noise + epochs
    assert result.budget == 2 * published
    assert result.passes <= 2 * published and not result.stopped_by_budget
    assert paper.phases["noise"].trained == 40 * noise
    assert paper.phases["impair"].trained + paper.phases["repair"].trained == 20 * noise + epochs
    assert sum(phase.trained for phase in paper.phases.values()) == published  # what it adds are two looks at retained samples
    assert paper.phases["looks"].forward <= 2 * 512
    # no whole run is repeated: the search costs a fraction of the published epoch, noise excepted
    assert result.phases["trial"].trained <= 5 * 40 * 32


@pytest.mark.parametrize("budget", [1_000, 4_000, "2 epochs"])
@pytest.mark.parametrize("preset", ["auto", "paper", "notebook"])
def test_a_budget_is_kept_and_said(world, preset, budget):
    retain, forget = (world.part(world.train, [3], inside) for inside in (False, True))
    for extra in ({}, {"forget": forget}):
        result = quiet(world.net("cnn"), preset=preset, retain=retain, classes=[3], budget=budget, **extra)
        most = 2 * len(retain[1]) if budget == "2 epochs" else budget
        assert result.cost.passes <= most and result.receipt["cost"]["stopped_by_budget"]
        assert f"the budget of {most:,} sample passes ended the run" in result.why


def test_samples_keep_a_budget(world):
    forget, rest = [tuple(t[part] for t in world.train) for part in (slice(100), slice(100, None))]
    result = quiet(world.net("mlp"), preset="samples", forget=forget, retain=rest, test=world.test, budget=1_000)
    assert result.cost.phases["impair"].trained > 0 and result.cost.passes <= 1_000
    assert "the budget of 1,000 sample passes ended the run" in result.why
    free = quiet(world.net("mlp"), preset="samples", forget=forget, retain=rest, test=world.test)
    assert not free.cost.stopped_by_budget and "budget" not in free.why
    assert free.cost.phases["noise"].trained == 5 * 100 and free.cost.phases["impair"].trained == 64 + 64 + 36 + 64


def test_repair_is_held_by_the_original_s_answers(world):
    """With an anchor, retained samples under wrong labels don't mislead repair."""
    x, y = world.part(world.train, [3], False)
    wrong = x, torch.where(y == 9, 8, 9)
    options = {"preset": "paper", "classes": [3], "noise_steps": 2, "noise_batch": 8, "impair_lr": 1e-5, "repair_epochs": 4}
    kept = world.part(world.test, [3], False)
    anchored, labelled = (right(quiet(world.net("mlp"), retain=wrong, hold=hold, **options).model, kept) for hold in ("anchor", "labels"))
    assert anchored > 0.9 > 0.5 > labelled
    assert UNSIR().hold == "anchor" and {UNSIR(preset).hold for preset in ("paper", "notebook", "ssd", "supreme", "samples")} == {"labels"}
    with pytest.raises(ValueError, match="hold"):
        UNSIR(hold="nothing")


def test_running_statistics_of_noise_do_not_pass_for_forgetting(world):
    """Right after impair a batch norm's statistics are those of noise, by which no class is answered; on trial they are taken anew."""
    classes = [0, 2]
    result = quiet(world.net("cnn"), retain=world.part(world.train, classes, False), classes=classes)
    assert result.forgot and right(result.model, world.part(world.train, classes, True)) <= 0.01
    assert any(row["kept_after_impair"] < 0.01 and row.get("kept", 0) > 0.1 for row in result.receipt["measured"]["trials"])


def test_two_classes_leave_nothing_to_rehearse_on(world):
    retain = world.part(world.train, [0, 1], True)
    with pytest.warns(NotForgottenWarning, match="too few retained classes"):
        result = unlearn(world.net("mlp"), retain=world.part(retain, [1], False), classes=[1])
    assert result.receipt["chosen"]["rehearsed_classes"] == []


@pytest.mark.parametrize("preset", ["paper", "notebook", "ssd", "supreme"])
def test_presets_run_and_receipts_tell(world, preset):
    model = world.net("cnn")
    before = trace(model)
    small = {"noise_steps": 2, "noise_batch": 8, "copies": 2}
    result = quiet(model, "unsir", preset=preset, retain=world.part(world.train, [3], False), test=world.test, classes=[3], **small)
    assert same_trace(trace(model), before) and result.model is not model
    receipt = json.loads(json.dumps(result.receipt))
    assert receipt["options"]["preset"] == preset and receipt["options"]["noise_steps"] == 2
    assert set(receipt) >= {"method", "classes", "seed", "versions", "device", "weights_sha256", "verdict"}
    assert receipt["weights_sha256"]["after"] == _weights.fingerprint(result.model) != receipt["weights_sha256"]["before"]
    assert {row["phase"] for row in result.history} == {"noise", "impair 1", "repair 1"}


def test_noise_is_indexed_not_copied(world):
    """Each retained sample once, each noise image ``copies`` times, in one shuffled epoch."""
    seen = []

    def forward(model, inputs):
        if model.training:
            seen.append(inputs.detach().clone())
        return model(inputs)

    retain = world.part(world.train, [3], False)
    options = UNSIR("paper", noise_batch=2, noise_steps=1, copies=5, repair_epochs=0)
    quiet(world.net("mlp"), options, retain=retain, test=world.test, classes=[3], forward=forward)
    rows = torch.cat(seen).flatten(1)
    _, counts = torch.unique(rows, dim=0, return_counts=True)
    assert len(rows) == len(retain[0]) + 10
    assert sorted(counts.tolist())[-2:] == [5, 5]
    assert max(len(part) for part in seen) <= 256


def test_optimiser_factories_are_used(world):
    made = []

    def sgd(params, lr):
        made.append(lr)
        return torch.optim.SGD(params, lr=lr)

    options = UNSIR("paper", noise_steps=1, noise_batch=2, impair_optimizer=sgd, repair_optimizer=sgd, repair_lr=0.005)
    result = quiet(world.net("mlp"), options, retain=world.part(world.train, [3], False), classes=[3])
    assert made == [0.02, 0.005]
    assert result.receipt["options"]["impair_optimizer"].endswith("sgd")


# Bytes and traces


@pytest.mark.parametrize("options", [{"preset": "paper", "noise_steps": 2}, {"repair_epochs": 1}], ids=["paper", "auto"])
def test_same_seed_same_bytes(world, options):
    retain = world.part(world.train, [3], False)
    state = torch.get_rng_state()
    prints = []
    for seed, burn in ((5, 0), (5, 3), (6, 0)):
        torch.rand(burn)
        result = quiet(world.net("cnn"), "unsir", retain=retain, classes=[3], seed=seed, **options)
        prints.append(_weights.fingerprint(result.model))
    assert prints[0] == prints[1] != prints[2]
    torch.set_rng_state(state)
    quiet(world.net("cnn"), "unsir", retain=retain, classes=[3], **options)
    assert torch.equal(torch.get_rng_state(), state)


class Bomb:
    """Counts forward passes and goes off at one of them."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.left, self.error = at, error

    def __call__(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return model(inputs)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError("half-way"), KeyboardInterrupt()], ids=["exception", "interrupt"])
@pytest.mark.parametrize("at", [1, 3, 8, 60], ids=["probe", "noise", "impair", "later"])
def test_a_run_that_breaks_off_leaves_no_trace(world, inplace, error, at):
    model = marked(world.net("cnn"))
    before = trace(model)
    small = {"preset": "paper", "noise_steps": 5, "noise_batch": 4, "batch_size": 32}
    with pytest.raises(type(error)):
        unlearn(model, retain=world.part(world.train, [3], False), classes=[3], inplace=inplace, forward=Bomb(at, error), **small)
    assert same_trace(trace(model), before)


def test_a_loss_that_is_not_finite_leaves_no_trace(world):
    model = marked(world.net("cnn"))
    before = trace(model)
    with pytest.raises(FloatingPointError, match=r"impair 1: the loss became (nan|inf)"):
        unlearn(
            model, retain=world.part(world.train, [3], False), classes=[3], inplace=True,
            preset="paper", noise_steps=1, impair_lr=1e30, batch_size=32,
        )  # fmt: skip
    assert same_trace(trace(model), before)


def test_overwriting_is_all_or_nothing(world, monkeypatch):
    model, new = world.net("cnn"), world.net("cnn", (3,))
    before, calls, real = _weights.fingerprint(model), [], torch._foreach_copy_

    def torn(target, saved):
        calls.append(1)
        if len(calls) == 1:
            real(target[:2], saved[:2])
            raise KeyboardInterrupt
        real(target, saved)

    monkeypatch.setattr(torch, "_foreach_copy_", torn)
    with pytest.raises(KeyboardInterrupt):
        _weights.overwriting(model, new).give(None)
    assert _weights.fingerprint(model) == before


def test_inplace_gives_the_same_weights_and_keeps_flags(world):
    retain = world.part(world.train, [3], False)
    small = {"preset": "paper", "noise_steps": 2, "noise_batch": 8}
    copied = quiet(world.net("cnn"), retain=retain, classes=[3], **small)
    model = marked(world.net("cnn"))
    frozen = marked(world.net("cnn"))
    flags = trace(model)[1:3]
    result = quiet(model, retain=retain, classes=[3], inplace=True, **small)
    assert result.model is model and trace(model)[1:3] == flags
    # the frozen bias didn't move, everything else did as in a copy of the same model
    assert torch.equal(list(model.parameters())[1], list(frozen.parameters())[1])
    again = quiet(frozen, retain=retain, classes=[3], **small)
    assert _weights.fingerprint(again.model) == _weights.fingerprint(model) != _weights.fingerprint(copied.model)


def test_drop_forget_leaves_the_class_out(world):
    options = {"preset": "paper", "noise_steps": 1, "noise_batch": 2, "classes": [3], "seed": 4}
    whole = quiet(world.net("mlp"), retain=world.train, drop_forget=True, **options)
    clean = quiet(world.net("mlp"), retain=world.part(world.train, [3], False), **options)
    assert _weights.fingerprint(whole.model) == _weights.fingerprint(clean.model)


def test_exported():
    assert ff.unlearn is unlearn and ff.methods.UNSIR is UNSIR
