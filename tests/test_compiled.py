"""torch.compile around what people compile: optimiser steps in one graph, and models that were compiled before they are unlearned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from digits_world import World, right
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fastforget as ff
from fastforget import optim

MASK = torch.tensor([True, False, True, True, False])


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def trained(cls: type, steps: int, compiler: Callable[[Callable], Callable], **options: Any) -> tuple[list[Tensor], list[dict]]:
    """Weights and optimiser state after some steps of the same training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = cls(net.named_parameters(), mask={"0.weight": MASK}, **options)
    step = compiler(optimizer.step)
    for i in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 4) + i).square().sum().backward()
        if i == 1:
            net[2].bias.grad = None  # from here on the parameters' counts differ
        step()
    return [p.detach() for p in net.parameters()], [optimizer.state[p] for p in net.parameters()]


OPTIMIZERS = {
    "SGD": (optim.MaskedSGD, {"lr": 0.01}),
    "SGD with momentum": (optim.MaskedSGD, {"lr": 0.01, "momentum": 0.9}),
    "Adam": (optim.MaskedAdam, {"lr": 0.01}),
    "AdamW": (optim.MaskedAdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "AdamW, rate in a tensor": (optim.MaskedAdamW, {"lr": torch.tensor(0.01)}),
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_compiled_step_is_one_graph_and_the_same_step(name: str, backend: str) -> None:
    cls, options = OPTIMIZERS[name]
    calls = 0

    def compiler(step):
        compiled = torch.compile(step, backend=backend, fullgraph=True)  # a break would be an error

        def counted():
            nonlocal calls
            calls += 1
            return compiled()

        return counted

    weights, states = trained(cls, 5, compiler, **options)
    expected, expected_states = trained(cls, 5, lambda step: step, **options)
    assert calls == 5 and not counters["graph_break"]
    # one graph for each set of parameters that have a gradient, with and without state: not one for each step
    assert 1 <= counters["stats"]["unique_graphs"] <= 4
    assert all(map(torch.equal, weights, expected))
    for state, known in zip(states, expected_states, strict=True):
        assert set(state) == set(known) and all(torch.equal(state[key], known[key]) for key in known)


def test_no_graph_is_made_for_a_later_step() -> None:
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    net = nn.Linear(4, 3)
    optimizer = optim.MaskedAdam(net.parameters())
    step = torch.compile(optimizer.step, backend=backend)
    for _ in range(12):
        optimizer.zero_grad()
        net(torch.ones(2, 4)).sum().backward()
        step()
    assert len(graphs) == 2  # the first step makes the state
    assert optimizer.state[net.weight]["step"] == 12 and not counters["graph_break"]


def test_the_state_passes_to_torch_and_back() -> None:
    net = nn.Linear(4, 3)
    ours = optim.MaskedAdamW(net.parameters(), lr=0.01)
    net(torch.ones(2, 4)).sum().backward()
    torch.compile(ours.step, backend="eager")()
    theirs = torch.optim.AdamW(net.parameters(), lr=0.01)
    theirs.load_state_dict(ours.state_dict())
    theirs.step()
    assert {key: value.dtype for key, value in theirs.state[net.weight].items()} == {
        "step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float32,
    }  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    torch.compile(ours.step, backend="eager")()
    assert ours.state[net.weight]["step"] == 3


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_unlearned_and_audited_as_the_bare_one(world: World, backend: str) -> None:
    bare = world.net("mlp")
    model = torch.compile(bare, backend=backend)
    before = {name: value.clone() for name, value in bare.state_dict().items()}
    forget, retain = world.part(world.train, [3], True), world.part(world.train, [3], False)
    sets = {"forget": forget, "retain": retain, "test": world.test}
    result = ff.unlearn(model, "sweep", classes=[3], progress=False, **sets)
    assert result.forgot, result.why
    assert all(torch.equal(value, before[name]) for name, value in bare.state_dict().items())
    # the answers are the changed weights', not a graph's of before
    assert right(result.model, forget) <= 0.01 < 0.9 < right(model, forget)
    report = ff.audit({"original": model, "unlearned": result.model}, progress=False, **sets)
    assert report.rows[1]["accuracy"]["forget"] == right(result.model, forget)
    assert (
        report.settings["models"]["original"]["weights_sha256"]
        == ff.audit({"original": bare}, progress=False, **sets).settings["models"]["original"]["weights_sha256"]
    )
    ff.unlearn(model, "sweep", classes=[3], inplace=True, progress=False, **sets)
    assert right(model, forget) <= 0.01 and right(bare, forget) <= 0.01
