"""What holds for every standard method: data needs, budget, seeds, receipt, and a failed run that changes nothing."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import pack_world as w
import pytest
import torch
from torch import nn

import fastforget as ff
from fastforget.methods import pack

NAMES = list(pack.STANDARD)
SETS = ("forget", "retain", "nonmember")
SHORTER = {"sfron": {"steps": 20}}  # options of methods that take a thousand steps


def asked(name: str, kind: str = "cnn") -> tuple[nn.Module, dict]:
    """A net and the request that the method serves."""
    net = getattr(w, kind)()
    sets = w.class_request(net) if pack.STANDARD[name].scope == "classes" else w.request(net)
    return net, sets | SHORTER.get(name, {})


@pytest.mark.parametrize("name", NAMES)
def test_the_receipt_says_what_the_method_is(name):
    net, sets = asked(name)
    receipt = w.run(net, name, sets).receipt
    about, method = receipt["standard"], pack.STANDARD[name]
    assert receipt["method"] == name
    assert receipt["options"]["preset"] == "paper"
    assert about["trained_on"] == list(method.uses)
    assert about["batch_norm"] in ("statistics of the batch", "running statistics")
    assert "@" in about["source"] or "arXiv" in about["source"]
    assert not any(value is None for value in receipt["options"].values())
    assert receipt["cost"]["passes"] > 0
    json.dumps(receipt)


@pytest.mark.parametrize("name", NAMES)
def test_data_that_is_missing_is_named(name):
    net, sets = asked(name)
    method = pack.STANDARD[name]
    for missing in method.uses:
        given = {k: v for k, v in sets.items() if k != missing}
        if missing == "forget":
            given |= {"classes": [1], "drop_forget": True}
        with pytest.raises(ValueError, match=rf"^{missing}: not given"):
            w.run(net, name, given)
    rest = {k: v for k, v in sets.items() if k in method.uses or k not in SETS}
    if "forget" not in method.uses:
        rest |= {"classes": [1], "drop_forget": True}
    assert w.run(net, name, rest).receipt["method"] == name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes_and_the_model_stays(name):
    net, sets = asked(name)
    before = copy.deepcopy(net.state_dict())
    first, second = w.run(net, name, sets).model.state_dict(), w.run(net, name, sets).model.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize("budget", [1, 40, 150])
@pytest.mark.parametrize("name", NAMES)
def test_a_budget_is_kept_and_said(name, budget):
    net, sets = asked(name)
    whole = w.run(net, name, sets).cost.passes
    result = w.run(net, name, sets, budget=budget)
    assert result.cost.passes <= budget
    assert result.receipt["cost"]["stopped_by_budget"] == (whole > budget)
    assert (f"the budget of {budget} sample passes ended the run" in result.why) == (whole > budget)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_interrupted_changes_nothing(name):
    net, sets = asked(name)
    before, trains = copy.deepcopy(net.state_dict()), bool(pack.STANDARD[name]().gradients)

    def interrupted_at(last: int) -> int:
        """How many passes with gradients the run made (of a method that takes none: passes)."""
        calls = 0

        def forward(model, inputs):
            nonlocal calls
            calls += torch.is_grad_enabled() or not trains
            if 0 < last == calls:
                raise KeyboardInterrupt
            return model(inputs)

        w.run(net, name, sets, forward=forward, inplace=last > 0)
        return calls

    most = interrupted_at(0)
    for last in {1, most // 2 + 1, most}:
        with pytest.raises(KeyboardInterrupt):
            interrupted_at(last)
        assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
        assert not any(p.grad is not None or p._backward_hooks for p in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_precision_that_is_asked_for_is_used(name):
    net, sets = asked(name)
    net, seen = net.float(), set()
    sets = {k: (v[0].float(), v[1]) if k in SETS else v for k, v in sets.items()}

    def forward(model, inputs):
        if torch.is_grad_enabled():
            seen.add(torch.is_autocast_enabled("cpu"))
        return model(inputs)

    result = w.run(net, name, sets, forward=forward, precision="bfloat16")
    trained = sum(phase["trained"] for key, phase in result.receipt["cost"]["phases"].items() if key != "trial")
    assert (True in seen) == (trained > 0)
    assert result.receipt["standard"]["form"]["precision"] == "bfloat16"
    assert all(p.dtype == torch.float32 for p in result.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_presets_and_options(name):
    method = pack.STANDARD[name]
    assert {"paper", "code"} <= set(method.presets)
    with pytest.raises(ValueError, match="preset: got 'own'; accepted are 'paper'"):
        method(preset="own")
    for preset, values in method.presets.items():
        assert {option: getattr(method(preset=preset), option) for option in values} == dict(values)
        for option in method.whole:
            with pytest.raises(ValueError, match=f"{option}: got 0; accepted is an int >= 1"):
                method(preset=preset, **{option: 0})
        for option in method.shares:
            with pytest.raises(ValueError, match=f"{option}: got 1.5; accepted is a number from 0 to 1"):
                method(preset=preset, **{option: 1.5})
        for option in method.positive:
            with pytest.raises(ValueError, match=f"{option}: got 0.0; accepted is a finite number > 0"):
                method(preset=preset, **{option: 0.0})
        for option in method.numbers:
            with pytest.raises(ValueError, match=f"{option}: got nan; accepted is a finite number >= 0"):
                method(preset=preset, **{option: float("nan")})


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_float32_on_frozen_batch_norm_and_leaves_frozen_weights(name):
    net, sets = asked(name)
    net = net.float()
    sets = {k: (v[0].float(), v[1]) if k in SETS else v for k, v in sets.items()}
    net[0].weight.requires_grad_(False)
    for p in net[1].parameters():
        p.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    after = w.run(net, name, sets).model.state_dict()
    frozen = [key for key in before if key.startswith("1.") or key == "0.weight"]
    assert all(torch.equal(before[key], after[key]) for key in frozen)


@pytest.mark.parametrize("name", NAMES)
def test_the_history_counts_epochs(name):
    """Of each phase 1, 2, ...: every pass has its own number and a loss."""
    net, sets = asked(name)
    phases: dict[str, list[int]] = {}
    for row in w.run(net, name, sets).history:
        assert row["loss"] == row["loss"]
        phases.setdefault(row["phase"], []).append(row["epoch"])
    assert all(numbers == list(range(numbers[0], numbers[0] + len(numbers))) for numbers in phases.values())
    assert all(numbers[0] == 1 for numbers in phases.values())
    assert phases or name in ("ssd", "lfssd", "svd_projection")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_one_short_file_with_a_public_name(name):
    method = pack.STANDARD[name]
    assert len(Path(inspect.getfile(method)).read_text().splitlines()) < 120
    assert getattr(ff.methods, method.__name__) is method
    assert method.__name__ in ff.methods.__all__
    assert ">>>" in (method.__doc__ or "")
