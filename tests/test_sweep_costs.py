"""What a sweep costs: how many passes it takes where a model has memorised, and what becomes of one that costs too much."""

from __future__ import annotations

import pytest
import torch
from digits_world import World, quiet, right
from torch.utils.data import DataLoader, TensorDataset, default_collate

from fastforget.methods.engine.drawn import Drawn
from fastforget.methods.sweep import looks, options, rate
from fastforget.methods.sweep import run as sweep_run


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def some_samples(world: World) -> dict:
    """A request for the first hundred training samples, whatever their class."""
    (x, y), half = world.train, len(world.test[1]) // 2
    sets = {"forget": (x[:100], y[:100]), "retain": (x[100:], y[100:])}
    return {**sets, "nonmember": tuple(t[:half] for t in world.test), "test": tuple(t[half:] for t in world.test)}


def test_a_sweep_for_samples_that_costs_too_much_is_undone_and_why_says_so(world, monkeypatch):
    monkeypatch.setattr(looks, "LOST", -2.0)  # any cost, and none, is too much
    result = quiet(world.net("mlp"), "sweep", progress=False, **some_samples(world))
    assert result.receipt["weights_sha256"]["before"] == result.receipt["weights_sha256"]["after"]
    ((look,),) = (result.receipt["measured"]["sweeps"],)
    assert look["undone"] and "part" not in look
    held = len(world.test[1]) // 2 // 3
    assert f"sweep 1 was undone, as it left {100 * look['right']:.1f} % of {held} unseen samples right, " in result.why
    # three quarters, a half and a quarter of the way were tried: the budget has room for that
    assert not result.cost.stopped_by_budget and "budget" not in result.why
    asked = result.receipt["cost"]["phases"]["looks"]["forward"]
    assert asked == 5 * (100 + held)  # of the original, of the whole, and of three parts


def test_a_part_of_a_sweep_that_costs_too_much_is_kept(world, monkeypatch):
    costly = iter((False, True, True, True, False))  # of the original, of the whole, three quarters, a half, a quarter
    monkeypatch.setattr(looks.Looks, "_costly", lambda self: next(costly))
    model = world.net("mlp")
    result = quiet(model, "sweep", progress=False, **some_samples(world))
    assert result.receipt["measured"]["sweeps"][0]["part"] == 0.25
    assert "25.0 % of the way of sweep 1 was kept, as it left" in result.why
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


def whole_classes(world: World, classes: tuple[int, ...] = (3,)) -> dict:
    """A request for classes, with unseen data of all of them."""
    return {
        "classes": list(classes),
        "forget": world.part(world.train, classes, True),
        "retain": world.part(world.train, classes, False),
        "nonmember": tuple(t[: len(t) // 2] for t in world.test),
    }


def test_a_sweep_for_a_class_that_costs_too_much_stays_and_why_says_so(world, monkeypatch):
    """Where no part of the way costs less, the class goes all the same: that was asked for."""
    monkeypatch.setattr(looks, "LOST", -2.0)
    result = quiet(world.net("mlp"), "sweep", progress=False, **whole_classes(world))
    (look,) = result.receipt["measured"]["sweeps"]
    assert look["costly"] and not look["undone"] and look["known"] == 0 and "part" not in look
    others = int((world.test[1][: len(world.test[1]) // 2] != 3).sum())
    asked = min(looks.OTHERS, others)
    assert f"sweep 1 was costly, as it left {100 * look['right']:.1f} % of {asked} unseen samples right, " in result.why
    assert right(result.model, world.part(world.train, [3], True)) <= 0.01


@pytest.mark.parametrize(("there", "kept"), [(True, 0.5), (False, None)])
def test_a_part_of_the_way_is_kept_for_a_class_where_it_is_gone(world, monkeypatch, there, kept):
    """Three quarters of the way cost too much; half of it does not, but the class may still be known there."""
    costly, take = iter((True, True, False)), looks.Looks.take
    monkeypatch.setattr(looks.Looks, "_costly", lambda self: next(costly))
    looked = []

    def at_half(self):
        looked.append(take(self))
        return looked[-1] | ({"gone": there} if len(looked) == 3 else {})

    monkeypatch.setattr(looks.Looks, "take", at_half)
    result = quiet(world.net("mlp"), "sweep", progress=False, **whole_classes(world))
    (look,) = result.receipt["measured"]["sweeps"]
    assert len(looked) == 3 and look.get("part") == kept
    assert ("50.0 % of the way of sweep 1 was kept" in result.why) == there


def test_what_a_sweep_costs_is_told_by_the_samples_on_which_both_differ():
    """100 samples, of which 10 are lost and 5 won: 5 less one, and one standard error, the root of 15, is 0.13 more than chance. Of 10 lost
    and 8 won chance explains the 2. Two accuracies of different samples, of 90 % and 85 %, would lie within a standard error of 4.6."""
    seen = looks.Looks.__new__(looks.Looks)
    seen.right = torch.arange(100) < 90
    for won, wanted in ((5, True), (8, False)):
        seen._now = (torch.arange(100) >= 10) & (torch.arange(100) < 90 + won)
        assert seen._costly() is wanted


@pytest.mark.parametrize(("memory", "epochs"), [(0.0, 2), (0.05, 3), (0.2, 4)])
def test_a_net_that_has_memorised_gets_more_passes(world, monkeypatch, memory, epochs):
    monkeypatch.setattr(sweep_run, "memorised", lambda kept, unseen: memory)
    sets = whole_classes(world)
    result = quiet(world.net("mlp"), "sweep", progress=False, **sets)
    budget = epochs * len(sets["retain"][1])
    assert result.receipt["cost"]["budget"] == budget
    assert 0.8 * budget < result.cost.passes <= budget


@pytest.mark.parametrize("given", [{"budget": 2_000}, {"nonmember": None}])
def test_passes_are_not_more_than_was_given_or_than_can_be_told(world, monkeypatch, given):
    """A budget is kept; and without unseen data nobody can tell what was memorised."""
    monkeypatch.setattr(sweep_run, "memorised", lambda kept, unseen: 1.0)
    sets = whole_classes(world) | given
    result = quiet(world.net("mlp"), "sweep", progress=False, **sets)
    budget = given.get("budget", 2 * len(sets["retain"][1]))
    assert result.receipt["cost"]["budget"] == budget and result.cost.passes <= budget


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("most", [(2, 9), (9, 2), (3, 3)])
def test_a_second_draw_takes_over_what_the_teacher_has_answered(world, most, one_by_one):
    """Its answers are those of a fresh draw, and only new samples are asked: none where there are none, which a loader can't read."""
    drawn: list[Drawn] = []
    asked: list[int] = []

    class Both:
        name, scope, needs_forget, gradients, learns_noise = "both", "classes", True, (), False

        def receipt(self):
            return {}

        def run(self, task):
            first = Drawn(task, task.retain, 16, most[0], 7)
            before = task.cost.phases["teacher"].forward
            drawn.append(Drawn(task, task.retain, 16, most[1], 7, first))
            asked.append(task.cost.phases["teacher"].forward - before)
            drawn.append(Drawn(task, task.retain, 16, most[1], 7))
            return {}

    def collate(samples):
        assert samples
        return default_collate(samples)

    sets = whole_classes(world)
    del sets["nonmember"]
    if one_by_one:
        sets["retain"] = DataLoader(TensorDataset(*sets["retain"]), batch_size=64, collate_fn=collate)
    quiet(world.net("mlp"), Both(), progress=False, **sets)
    second, fresh = drawn
    assert asked == [16 * max(0, most[1] - most[0])]
    assert torch.equal(second.used, fresh.used) and torch.allclose(second.logits, fresh.logits, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(second.order, fresh.order, strict=True))


def test_where_many_samples_go_each_is_shown_eight_times():
    """28 passes a sample: of a batch of 32 + 32 + 48, two sevenths are samples that go, and 28 * 2 / 7 is 8."""
    assert options.own_budget(10_000, 500, 1.0) == 15_000
    assert options.own_budget(10_000, 1_000, 1.0) == 28_000
    assert options.own_budget(2_000, 1_000, 1.0) == 8_000  # no more than four epochs
    assert [options.forget_size(32, of_classes) for of_classes in (True, False)] == [16, 32]


@pytest.mark.parametrize(("kind", "batch", "times"), [("classes", 16, 4.0), ("classes", 32, 2.0), ("samples", 16, 4.0)])
def test_the_rate_grows_with_what_was_memorised(world, monkeypatch, kind, batch, times):
    """By the root of how many more nats the answers may change in the first step: 1 + 15, and 1 + 3 where the anchor weighs no more."""
    sets, rates = whole_classes(world) if kind == "classes" else some_samples(world), []
    monkeypatch.setattr(rate, "STEADY", 8e-6)  # where answers change by the square of the rate
    for memory in (0.0, 1.0):
        monkeypatch.setattr(sweep_run, "memorised", lambda kept, unseen, memory=memory: memory)
        # the quantile term would be another one for classes, and with it the direction of the first step
        result = quiet(world.net("mlp"), "sweep", budget=1_500, batch_size=batch, alike=1.0, progress=False, **sets)
        rates.append(result.receipt["chosen"]["rate"])
    assert rates[1] / rates[0] == pytest.approx(times, rel=0.2)


@pytest.mark.parametrize(
    ("batch", "classes", "times"), [(32, (3,), 1.0), (32, (3, 5), 2.0), (16, (3,), 4.0), (8, (3, 5), 4.0), (16, (), 1.0)]
)
def test_the_anchor_weighs_more_where_the_model_has_memorised(world, monkeypatch, batch, classes, times):
    """Up to twice as much for several classes, up to four times in batches below the largest, and for samples never."""
    sets = whole_classes(world, classes) if classes else some_samples(world)
    for strength in (0.0, 0.5, 1.0):
        monkeypatch.setattr(sweep_run, "memorised", lambda kept, unseen, strength=strength: strength * rate.MEMORY)
        result = quiet(world.net("mlp"), "sweep", batch_size=batch, progress=False, **sets)
        assert result.receipt["chosen"]["held"] == pytest.approx(8.0 * (1 + (times - 1) * strength))


@pytest.mark.parametrize(("batch", "weight"), [(32, 10.0), (16, 5.0), (8, 2.5), (64, 10.0)])
def test_fewer_samples_in_a_step_weigh_less_where_samples_go(world, batch, weight):
    result = quiet(world.net("mlp"), "sweep", progress=False, batch_size=batch, **some_samples(world))
    assert result.receipt["chosen"]["alike"] == weight
