"""The sweep on adapters: a frozen base, low-rank weights beside it, a head; no data that the model never saw."""

from __future__ import annotations

import pytest
import torch
from digits_world import World, fit, quiet, right
from torch import Tensor, nn

from fastforget.methods.sweep.rate import few_trained


class Adapted(nn.Module):
    """W x + B A x of rank four, W frozen."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(4, base.in_features, generator=torch.Generator().manual_seed(1)) * base.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def adapted(world: World, without: list[int]) -> nn.Module:
    """A net trained on the digits (or without some of them), then adapters and its head."""
    data = world.part(world.train, without, False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        fit(net, *data, epochs=2)
        net[1], net[3] = Adapted(net[1]), Adapted(net[3])
        return fit(net.train(), *data, epochs=4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adapters_forget_a_class_and_keep_the_others_in_two_epochs(seed):
    world = World()
    model = adapted(world, [])
    sets = {"forget": world.part(world.train, [2], True), "retain": world.part(world.train, [2], False), "test": world.test}
    result = quiet(model, "sweep", classes=[2], progress=False, seed=seed, **sets)
    assert result.forgot, result.why
    assert result.cost.passes <= 2 * len(sets["retain"][1])
    kept = world.part(world.test, [2], False)
    assert right(result.model, kept) >= right(adapted(world, [2]), kept) - 0.01
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 4
    assert all(torch.equal(model.state_dict()[name], result.model.state_dict()[name]) for name in frozen)


def test_what_counts_as_few():
    net = nn.Sequential(nn.Linear(9, 1, bias=False), nn.Linear(1, 11, bias=False))
    assert not few_trained(net)
    net[1].requires_grad_(False)
    assert few_trained(net)
    net[1].requires_grad_(True), net[0].requires_grad_(False)
    assert not few_trained(net)
