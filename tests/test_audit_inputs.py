"""ff.audit: what it refuses, and that it says why."""

from __future__ import annotations

import math

import pytest
import torch
from audit_world import World
from torch import nn

import fastforget as ff


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_bad_inputs_name_themselves(world: World) -> None:
    x, y = world.forget
    good = {"unlearned": world.original}
    with pytest.raises(ValueError, match=r"forget set.*label 7.*'original' has 4 classes"):
        world.audit(**good, forget=(x, torch.full_like(y, 7)))
    with pytest.raises(ValueError, match="retain"):
        world.audit(**good, retain=(x[:0], y[:0]))
    with pytest.raises(TypeError, match="forget"):
        world.audit(**good, forget=(x, y.float()))
    with pytest.raises(ValueError, match="attacks"):
        world.audit(**good, attacks=("losss",))
    with pytest.raises(TypeError, match="models"):
        ff.audit([world.original], forget=world.forget, retain=world.retain, test=world.test)
    with pytest.raises(TypeError, match=r"models\['original'\]"):
        ff.audit(
            {"original": world.original.state_dict()},
            forget=world.forget,
            retain=world.retain,
            test=world.test,
        )

    with pytest.raises(ValueError, match=r"models: got 'retrained 0', 'retrained 1', which are .* none named 'retrained'"):
        models = {"original": world.original, "retrained 0": world.retrained, "retrained 1": world.retrained}
        ff.audit(models, forget=world.forget, retain=world.retain, test=world.test)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_logits_are_refused_by_model_and_sample(world: World, bad: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = world.original(x).clone()
            z[4, 0] = bad
            return z

    with pytest.raises(ValueError, match=r"model 'unlearned', forget set: 1 of 100 .* index 4"):
        world.audit(unlearned=Broken())


def test_wrong_outputs_say_what_to_do(world: World) -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor):
            return world.original(x), x

    with pytest.raises(TypeError, match="forward=lambda"):
        world.audit(unlearned=Pair())
    report = world.audit(unlearned=Pair(), forward=lambda model, x: out[0] if isinstance(out := model(x), tuple) else out)
    assert report.row("unlearned")["accuracy"] == report.row("original")["accuracy"]
    with pytest.raises(ValueError, match=r"\[batch, classes\]"):
        world.audit(unlearned=nn.Flatten(0))
