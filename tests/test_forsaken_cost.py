"""Forsaken and Lightweight: what holds the model, what a run costs, and the budget that it keeps."""

from __future__ import annotations

import math

import pytest
import torch
from digits_world import World, quiet, right
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from fastforget.methods import Forsaken, Lightweight
from fastforget.methods.perturb import sequential

METHODS = ["forsaken", "lightweight"]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def given(world) -> dict:
    half = len(world.test[1]) // 2
    return {
        "classes": [3],
        "forget": world.part(world.train, [3], True),
        "retain": world.part(world.train, [3], False),
        "nonmember": tuple(t[:half] for t in world.test),
        "test": tuple(t[half:] for t in world.test),
        "progress": False,
        "precision": "float32",
    }


def drift(before: torch.nn.Module, after: torch.nn.Module, x: torch.Tensor, without: int) -> float:
    """KL(before || after) between the answers' distributions over the classes that stay."""
    stay = [c for c in range(10) if c != without]
    with torch.no_grad():
        p, q = (model.eval()(x)[:, stay].log_softmax(dim=1) for model in (before, after))
    return float(F.kl_div(q, p, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_anchor_keeps_the_answers_that_labels_let_go(world, given, method):
    model = world.net("mlp")
    x = world.part(world.test, [3], False)[0]
    by = {hold: quiet(model, method, hold=hold, **given) for hold in ("anchor", "labels")}
    assert all(result.forgot and right(result.model, given["forget"]) <= 0.01 for result in by.values())
    assert drift(model, by["anchor"].model, x, 3) < drift(model, by["labels"].model, x, 3)


@pytest.fixture
def samples(world, given) -> dict:
    """The 60 samples that the model knows best: the attack tells them from data never seen, so that there is something to forget."""
    with torch.no_grad():
        order = F.cross_entropy(world.net("mlp").eval()(world.train[0]), world.train[1], reduction="none").argsort()
    parts = {"forget": order[:60], "retain": order[60:]}
    return {**given, "classes": None, **{name: tuple(t[rows] for t in world.train) for name, rows in parts.items()}}


@pytest.mark.parametrize("method", METHODS)
def test_auto_is_the_anchor_for_classes_and_labels_for_samples(world, given, samples, method):
    for request, hold, other in ((given, "anchor", "labels"), (samples, "labels", "anchor")):
        options = ({}, {"hold": "auto"}, {"hold": hold}, {"hold": other})
        sums = [quiet(world.net("mlp"), method, steps=10, **request, **option).receipt["weights_sha256"]["after"] for option in options]
        assert len(set(sums[:3])) == 1 and sums[3] != sums[0]


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_hold_is_refused(world, given, method):
    with pytest.raises(ValueError, match="hold: got 'rope'"):
        quiet(world.net("mlp"), method, hold="rope", **given)


@pytest.mark.parametrize("whole_class", [True, False], ids=["class", "samples"])
@pytest.mark.parametrize("hold", ["anchor", "labels"])
@pytest.mark.parametrize("method", [Forsaken, Lightweight], ids=METHODS)
def test_the_passes_counted_are_those_that_the_model_saw(world, given, samples, monkeypatch, method, hold, whole_class):
    model, seen, run = world.net("mlp"), {True: 0, False: 0}, method.run

    shapes = [p.shape for p in model.parameters()]

    def count(module, inputs, output):
        if [p.shape for p in module.parameters()] == shapes:  # the net and copies of it, neither its layers nor a generator
            seen[torch.is_grad_enabled()] += len(output)

    def watched(self, task):
        hook = register_module_forward_hook(count)
        try:
            return run(self, task)
        finally:
            hook.remove()

    monkeypatch.setattr(method, "run", watched)
    result = quiet(model, method(hold=hold, steps=12), **(given if whole_class else samples))
    phases = [phase for name, phase in result.cost.phases.items() if name not in ("before", "verdict")]
    assert {True: sum(p.trained for p in phases), False: sum(p.forward for p in phases)} == seen
    assert seen[True] > 0 and seen[False] > 0
    assert result.cost.passes == sum(p.passes for p in phases)


@pytest.mark.parametrize("hold", ["anchor", "labels"])
@pytest.mark.parametrize("budget", [300, 1000, 2500, "1 epochs"])
@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_kept(world, given, method, budget, hold):
    result = quiet(world.net("mlp"), method, hold=hold, budget=budget, **given)
    most = len(given["retain"][1]) if isinstance(budget, str) else budget
    assert result.cost.passes <= most
    cost = result.receipt["cost"]
    assert cost["budget"] == most and cost["passes"] == result.cost.passes


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_ends_the_run_is_said(world, given, method):
    model = world.net("mlp")
    result = quiet(model, method, budget=400, **given)
    assert result.receipt["cost"]["stopped_by_budget"] and result.cost.passes <= 400
    whole = quiet(model, method, **given)
    assert not whole.receipt["cost"]["stopped_by_budget"] and whole.cost.passes > 400


# Looks


def test_parts_are_all_samples_once():
    generator = torch.Generator()

    class Drawn:
        @staticmethod
        def generator(purpose):
            return generator.manual_seed(purpose)

    cut = sequential.parts(Drawn, 1000, 700, 5, first=100)
    assert [len(part) for part in cut] == [100, 100, 200, 300]
    assert len(torch.cat(cut).unique()) == 700 and int(torch.cat(cut).max()) < 1000


def test_a_look_is_clear_outside_of_its_errors_alone():
    assert sequential.clear(0.60, 0.03, 0.5) and sequential.clear(0.40, 0.03, 0.5)
    assert not sequential.clear(0.57, 0.03, 0.5)
    mean, error = sequential.mean_of(torch.tensor([1.0, 0.0, 0.0, -1.0]))
    assert mean == 0.0 and error == pytest.approx(math.sqrt(3 / 5 / 4))
