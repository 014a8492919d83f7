"""ff.audit.shadows: who is trained on what and from which seed, many models at once, and recipes of one's own."""

from __future__ import annotations

import pytest
import torch
from shadows_world import POOL, POPULATION, RECIPE, make_model, tensors_equal, train
from torch import nn

import fastforget as ff
from fastforget.auditing.shadow import design as shadow_design
from fastforget.ops import membership

N = len(POOL[1])


# ------------------------------------------------------------------ the design


@pytest.mark.parametrize(("n", "samples"), [(2, 2), (6, 41), (7, 40), (64, 100)])
def test_every_sample_is_in_half_of_the_models(n, samples):
    member = shadow_design.membership(n, samples, seed=3)
    assert member.shape == (n, samples)
    inside = member.sum(0)
    assert bool(((inside == n // 2) | (inside == (n + 1) // 2)).all())
    assert set(member.sum(1).tolist()) <= {samples // 2, (samples + 1) // 2}
    assert torch.equal(shadow_design.membership(n + 2, samples, seed=3)[:n], member)
    if samples > 10:
        assert not torch.equal(shadow_design.membership(n, samples, seed=4), member)


def test_seeds_are_recorded_and_differ():
    held = train(population=POPULATION, keep_scores=True)
    assert held.seeds.tolist() == [shadow_design.model_seed(0, i) for i in range(8)]
    assert len(set(held.seeds.tolist())) == 8 and int(held.seeds.max()) < 2**31
    assert held.index.tolist() == list(range(8)) and held.n_models == 8
    assert torch.equal(held.member, shadow_design.membership(8, N, 0))


def test_the_callers_random_state_and_threads_stay():
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    train(2)
    assert torch.equal(torch.randn(3), expected)


def test_same_seed_same_bytes_other_seed_other():
    assert tensors_equal(train(4, seed=2), train(4, seed=2))
    assert not torch.equal(train(4, seed=2).lira.state_dict()["mean"], train(4, seed=3).lira.state_dict()["mean"])


# ------------------------------------------------------------------ many at once


def test_a_stack_trains_the_same_models():
    """Up to rounding: same initial weights, same batches, same schedule. 8 models in stacks of 3, 3 and 2."""
    pool = (POOL[0][:39], POOL[1][:39])  # halves of 19 and 20: batches of unlike sizes in one stack
    single, stacked = train(8, pool=pool, stack=False), train(8, pool=pool, stack=3)
    assert single.settings["stack"] == 1 and stacked.settings["stack"] == 3
    assert torch.equal(single.member, stacked.member)
    for name, value in single.lira.state_dict().items():
        torch.testing.assert_close(stacked.lira.state_dict()[name], value, rtol=1e-4, atol=1e-4)
    assert not torch.equal(single.lira.state_dict()["mean"], membership.Lira(39).state_dict()["mean"])


def test_small_nets_are_stacked_by_default_and_large_ones_not():
    assert train(16, epochs=1, stack="auto").settings["stack"] == 16
    assert train(4, epochs=1, stack="auto").settings["stack"] == 1  # too few to pay
    wide = ff.audit.shadows(lambda s: nn.Sequential(nn.Linear(6, 4000), nn.Linear(4000, 4)), POOL, 16, epochs=1, progress=False)
    assert wide.settings["stack"] == 1


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(self.norm(x))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > 0 else 2 * y


@pytest.mark.parametrize(("net", "reason"), [(Norm, "BatchNorm1d keeps running statistics"), (Branch, "can't map over this network")])
def test_what_cannot_be_stacked_is_trained_one_by_one(net, reason):
    held = ff.audit.shadows(lambda s: net(), POOL, 16, **{**RECIPE, "epochs": 1, "stack": "auto"})
    assert held.settings["stack"] == 1 and held.n_models == 16
    with pytest.raises(ValueError, match=f'stack: got 2, but .*{reason}.*stack="auto"'):
        ff.audit.shadows(lambda s: net(), POOL, 2, **{**RECIPE, "stack": 2})


def test_dropout_in_a_stack_is_drawn_from_the_seed():
    def make(seed):
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 4))

    one, two = (ff.audit.shadows(make, POOL, 4, **{**RECIPE, "stack": 2}) for _ in range(2))
    assert one.settings["stack"] == 2 and tensors_equal(one, two)


# ------------------------------------------------------------------ the caller's own


def test_own_recipe_and_forward():
    seen = []

    def recipe(model, data, seed):
        seen.append((len(data[0]), seed))
        nn.init.constant_(model.bias, 1.0)

    held = ff.audit.shadows(lambda s: nn.Linear(6, 4), POOL, 2, train=recipe, forward=lambda m, x: 3 * m(x), progress=False)
    assert seen == [(20, s) for s in held.seeds.tolist()]
    assert "recipe" in held.settings["train"] and held.settings["epochs"] is None and held.settings["stack"] == 1


class Wrapped(nn.Module):
    """With an attribute of the name that ff.unlearn's result has."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return -self.model(x)


def test_what_unlearning_may_return():
    def wrapped(model, forget, retain, seed):
        return Wrapped(model)

    class Result(ff.UnlearnResult):
        def __init__(self, model) -> None:
            self.model = model

    def plain(model, forget, retain, seed):
        return model

    same, result, turned = (train(4, unlearn=u).unlearned.state_dict()["mean"] for u in (plain, lambda m, *_: Result(m), wrapped))
    assert torch.equal(same, result) and not torch.allclose(same, turned)


def test_an_augmenting_pool_is_read_from_the_seed():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i):
            return POOL[0][i] + torch.randn(6), POOL[1][i]

    torch.manual_seed(3)
    one = ff.audit.shadows(make_model, Noisy(), 2, **RECIPE)
    after = torch.randn(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.randn(2))
    assert tensors_equal(one, ff.audit.shadows(make_model, Noisy(), 2, **RECIPE))
