"""The diagonal Fisher: every layer's formula against a plain loop over single samples in float64, and nets that only the loop can do."""

from __future__ import annotations

import copy
import re
import statistics
from typing import Any

import pytest
import torch
from fisher_nets import BY_LAYERS, ONE_BY_ONE, K, Plain, made
from pack_world import cnn, images
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget._data import source
from fastforget.methods.engine import calls, per_sample
from fastforget.methods.engine.fisher import fisher_diagonal
from fastforget.methods.task import Task


def loop(net: nn.Module, x: Any, y: Tensor, labels: str = "true") -> list[Tensor]:
    """As users write it: one sample, one backward pass, the square of ``p.grad``; for the model's labels one pass for each class."""
    net = copy.deepcopy(net).eval()
    params = [p for p in net.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in params]
    for i in range(len(y)):
        p_y = net(x[i : i + 1]).detach().softmax(1)[0]
        for label in range(p_y.numel()) if labels == "model" else [int(y[i])]:
            net.zero_grad()
            F.cross_entropy(net(x[i : i + 1]), torch.tensor([label])).backward()
            for t, p in zip(total, params, strict=True):
                if p.grad is not None:
                    t += (p_y[label] if labels == "model" else 1) * p.grad.to_dense() ** 2
    return [t / len(y) for t in total]


def close(found: list[Tensor], wanted: list[Tensor], relative: float = 1e-10) -> None:
    assert len(found) == len(wanted)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape and not a.requires_grad
        assert (a - b).abs().max() <= relative * b.abs().max(), i


@pytest.mark.parametrize("labels", ["true", "model"])
@pytest.mark.parametrize("name", BY_LAYERS)
def test_a_layers_formula_is_the_loop_over_samples(name, labels):
    model, x, y = made(*BY_LAYERS[name])
    found = fisher_diagonal(model, (x, y), labels=labels)
    assert (found.way, found.samples) == ("by layers", len(y))
    close(found.diagonal, loop(model, x, y, labels))


@pytest.mark.parametrize("labels", ["true", "model"])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_where_no_formula_holds_samples_are_run_one_by_one_and_why_is_said(name, labels):
    net, inputs, why = ONE_BY_ONE[name]
    model, x, y = made(net, inputs)
    found = fisher_diagonal(model, (x, y), labels=labels)
    assert found.way.startswith("sample by sample: ")
    assert re.search(why, found.way), found.way
    close(found.diagonal, loop(model, x, y, labels))


def test_batches_and_chunks_add_up(monkeypatch):
    model, x, y = made(*BY_LAYERS["batch norm"])
    wanted = loop(model, x, y)
    monkeypatch.setitem(per_sample.AT_ONCE, "cpu", 1)
    for size in (1, 2, 3, 5):
        found = fisher_diagonal(model, (x, y), batch_size=size)
        assert found.way == "by layers"
        close(found.diagonal, wanted)


def test_a_net_that_stops_being_known_goes_on_one_by_one():
    """Texts as long as their batch is large come first: the rows of a later batch are what gives it away."""
    model = Plain(lambda net, x: net.one(x.transpose(0, 1)).mean(0) if len(x) < 3 else net.one(x).mean(1)).double()
    torch.manual_seed(4)
    x, y = torch.randn(8, 5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    model.one.forward = model.one.forward  # an instance's own forward may be anything
    assert "has no formula" in fisher_diagonal(model, (x, y)).way
    del model.one.forward
    order = source((x, y), name="data", batch_size=3)
    kept = calls.Layers.try_two
    try:
        calls.Layers.try_two = lambda *_: None  # as if the first two samples had looked well
        found = fisher_diagonal(model, order)
    finally:
        calls.Layers.try_two = kept
    assert found.way.startswith("sample by sample: one (Linear) is given (5, 2, 4)")
    close(found.diagonal, loop(model, x, y))


def test_a_frozen_net_is_refused_and_bad_arguments_are_named():
    model, x, y = made(*BY_LAYERS["linear"])
    with pytest.raises(ValueError, match="labels: got 'mine'; accepted are 'true', 'model'"):
        fisher_diagonal(model, (x, y), labels="mine")
    for way in (model, Plain(lambda net, x: net.one.forward(x)).double()):
        with pytest.raises(ValueError, match="data: labels go from . to 3, but the model has 3 classes"):
            fisher_diagonal(way, (x, torch.arange(6) % 4))
    with pytest.raises(ValueError, match="model: its logits come without gradients"):
        fisher_diagonal(model, (x, y), forward=lambda net, x: net(x).detach())
    with pytest.raises(ValueError, match="model: no parameter requires grad"):
        fisher_diagonal(model.requires_grad_(False), (x, y))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_is(fails):
    model, x, y = made(*BY_LAYERS["batch norm"])
    model.train()
    model.body[1].eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def forward(net, inputs):
        logits = net(inputs)
        if fails:
            raise KeyboardInterrupt
        return logits

    with torch.no_grad():
        if fails:
            with pytest.raises(KeyboardInterrupt):
                fisher_diagonal(model, (x, y), forward=forward)
        else:
            fisher_diagonal(model, (x, y), forward=forward)
    assert all(not m._forward_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert bool((model.head.weight.grad == 1).all()) and model.body[0].weight.grad is None


def test_hooks_of_the_users_own_are_honoured():
    model, x, y = made(*BY_LAYERS["linear"])
    model[0].register_forward_hook(lambda layer, args, output: 3 * output)
    model[2].register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    found = fisher_diagonal(model, (x, y))
    assert found.way == "by layers"
    close(found.diagonal, loop(model, x, y))


def test_float32_is_as_near_to_float64_as_the_loop_is():
    """At most twice as far, over all weights: the median of five sets, as one sample may carry most of a set's error."""
    model, ratios = cnn(), []
    for seed in range(5):
        x, y = images(24, 2 + seed)
        truth = loop(model, x, y)
        found = fisher_diagonal(copy.deepcopy(model).float(), (x.float(), y), batch_size=16)
        assert all(t.dtype == torch.float32 for t in found.diagonal)
        ours, plain = (
            torch.cat([(a - b).flatten() for a, b in zip(got, truth, strict=True)]).norm().item()
            for got in (found.diagonal, loop(copy.deepcopy(model).float(), x.float(), y))
        )
        ratios.append(ours / plain)
    assert statistics.median(ratios) <= 2, ratios


def test_low_precision_weights_are_squared_in_float32():
    model, x, y = made(*BY_LAYERS["linear"])
    model = model.bfloat16()
    found = fisher_diagonal(model, (x.bfloat16(), y))
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in found.diagonal)


def task_of(model: nn.Module) -> Task:
    return Task(model, lambda net, x: net(x), [0], K, torch.device("cpu"), 0, False, retain=None, forget=None, test=None)


@pytest.mark.parametrize("way", ["by layers", "sample by sample"])
def test_a_tasks_passes_are_counted(way):
    cases = BY_LAYERS["linear"] if way == "by layers" else ONE_BY_ONE["own parameter"][:2]
    model, x, y = made(*cases)
    n = len(y)
    for labels, backward in (("true", 1), ("model", K)):
        task = task_of(model)
        found = fisher_diagonal(task, source((x, y), name="forget"), labels=labels)
        assert found.way.startswith(way)
        close(found.diagonal, loop(model, x, y, labels))
        phase = task.cost.phases["other"]
        tried = 2 if way == "by layers" else 0
        assert (phase.trained, phase.forward) == (n + tried, 2 * n * (backward - 1))


class Worded(nn.Module):
    """Inputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, K)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(x["a"] * x["b"])


def test_inputs_may_be_a_dict_and_a_loader_reads_them():
    torch.manual_seed(6)
    a, b, y = torch.randn(5, 4), torch.randn(5, 4), torch.randint(0, K, (5,))
    model = Worded()
    rows = [{"a": a[i], "b": b[i], "y": y[i]} for i in range(5)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, shuffle=True)
    found = fisher_diagonal(model, loader, unpack=lambda batch: ({"a": batch["a"], "b": batch["b"]}, batch["y"]))
    wanted = loop(nn.Sequential(copy.deepcopy(model.head)).double(), (a * b).double(), y)
    assert found.way == "by layers"
    close([t.double() for t in found.diagonal], wanted, 1e-5)
