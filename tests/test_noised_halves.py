"""The loss attack on noised samples, on the other half, and what comes back from a few samples."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastforget.auditing.measure import halves as hv
from fastforget.auditing.measure import noised as nz


def trained(pair, seed: int = 0, steps: int = 300, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, classes))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(pair[0]), pair[1]).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def world():
    """Labels at random: all that a model can do is remember."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(240, 6, generator=g), torch.randint(0, 4, (240,), generator=g)
    forget, retain, unseen = ((x[i : i + 80], y[i : i + 80]) for i in (0, 80, 160))
    return forget, retain, unseen, trained((x[:160], y[:160])), trained(retain, 1)


class OnlyThere(nn.Module):
    """Answers by another model at the exact samples that it knows."""

    def __init__(self, inner: nn.Module, other: nn.Module, known: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.other, self.known = inner, other, known

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hit = (x[:, None] == self.known).all(2).any(1, keepdim=True)
        return torch.where(hit, self.other(x), self.inner(x))


def test_noised_attack_finds_what_a_detector_hides(world):
    forget, _, unseen, original, retrained = world
    hidden = OnlyThere(original, retrained, forget[0])
    found = {name: nz.noised_attack(m, forget, unseen).auc for name, m in (("o", original), ("h", hidden), ("r", retrained))}
    plain = float((hv.losses(hidden, hv.source(forget, name="f")).mean() - hv.losses(retrained, hv.source(forget, name="f")).mean()).abs())
    assert plain < 1e-6  # by its plain answers it can't be told from the retrained model
    assert found["o"] == found["h"] > 0.75 and abs(found["r"] - 0.5) < 0.1


def test_noise_is_the_same_for_any_batching(world):
    forget, _, unseen, original, _ = world
    loaded = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*p), batch_size=b) for p, b in ((forget, 7), (unseen, 33))]
    one, two = nz.noised_attack(original, forget, unseen), nz.noised_attack(original, *loaded)
    assert one.auc == pytest.approx(two.auc, abs=1e-6) and one.forget_loss == pytest.approx(two.forget_loss, rel=1e-5)
    assert nz.noised_attack(original, forget, unseen, seed=1).forget_loss != one.forget_loss


def test_noise_is_relative_to_the_inputs(world):
    forget, _, unseen, original, _ = world
    scaled = copy.deepcopy(original)
    with torch.no_grad():
        scaled[0].weight /= 50
    big = [(x * 50, y) for x, y in (forget, unseen)]
    one, two = nz.noised_attack(original, forget, unseen), nz.noised_attack(scaled, *big)
    assert two.deviation == pytest.approx(50 * one.deviation, rel=1e-5) and two.auc == pytest.approx(one.auc, abs=1e-3)


def test_nested_batches_get_noise_on_floats_only():
    batch = {"pixels": torch.zeros(3, 2), "mask": torch.ones(3, 2, dtype=torch.int64), "more": [torch.zeros(3, 2)]}
    noisy = nz.add_noise(batch, 1.0, seed=0, step=0, first=0)
    assert torch.equal(noisy["mask"], batch["mask"]) and bool((noisy["pixels"] != 0).all())
    assert not torch.equal(noisy["pixels"], noisy["more"][0]) and not bool(batch["pixels"].any())


def test_noised_refusals_and_reasons(world):
    forget, _, unseen, original, _ = world
    with pytest.raises(ValueError, match="scale, draws"):
        nz.noised_attack(original, forget, unseen, scale=0.0)
    tokens = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    ids, y = torch.randint(0, 5, (6, 2)), torch.arange(6) % 2
    found = nz.noised_attack(tokens, (ids, y), (ids, y))
    assert math.isnan(found.auc) and found.reason == nz.NO_FLOATS
    flat = torch.zeros(6, 6), torch.arange(6) % 4
    assert nz.noised_attack(original, flat, flat).reason == "the inputs are constant"


class Hundredfold(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 100 * x


def test_the_other_half_comes_back(world):
    forget, _, unseen, original, retrained = world
    before = copy.deepcopy(original.state_dict())
    found = hv.other_half(original, forget, unseen)
    assert found.auc > 0.8 and found.auc == sum(found.each) / 2
    assert abs(hv.other_half(retrained, forget, unseen).auc - 0.5) < 0.12
    assert all(torch.equal(before[k], v) for k, v in original.state_dict().items())
    assert all(p.grad is None for p in original.parameters())


def test_halves_refusals_and_reasons(world):
    forget, _, unseen, original, _ = world
    with pytest.raises(ValueError, match="steps, lr"):
        hv.other_half(original, forget, unseen, steps=0)
    assert "fewer than two" in hv.other_half(original, (forget[0][:1], forget[1][:1]), unseen).reason
    packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(original), {nn.Linear}, dtype=torch.qint8)
    assert "quantised" in hv.other_half(packed, forget, unseen).reason
    assert "no step from 1e+30" in hv.other_half(original, forget, unseen, lr=1e30).reason
    broken = copy.deepcopy(original)
    nn.init.constant_(broken[0].weight, math.nan)
    assert "lowers the loss" in hv.other_half(broken, forget, unseen).reason


def plain_steps(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A copy after as many steps of gradient descent at 0.05, whatever they do to the loss."""
    pupil = copy.deepcopy(model)
    for _ in range(hv.STEPS):
        F.cross_entropy(pupil(x), y).backward()
        with torch.no_grad():
            for p in pupil.parameters():
                p.sub_(0.05 * p.grad)
                p.grad = None
    return pupil


def test_a_net_that_a_step_would_blow_up_goes_down_by_a_shorter_one(world):
    """The same function with the first layer's weights a hundredth as large and its inputs 100 times: so are its gradients there, and steps
    at 0.05 raise the loss beyond all bounds."""
    forget, _, unseen, original, retrained = world
    taught, found = (forget[0][::2], forget[1][::2]), []
    for model in (original, retrained):
        steep = nn.Sequential(Hundredfold(), *copy.deepcopy(model))
        with torch.no_grad():
            steep[1].weight /= 100
        plain = plain_steps(steep, *taught)
        assert F.cross_entropy(plain(taught[0]), taught[1]) > 100
        found.append(hv.other_half(steep, forget, unseen))
    assert [one.reason for one in found] == [None, None]
    assert found[0].auc > 0.8 and abs(found[1].auc - 0.5) < 0.15


def test_a_step_that_goes_down_is_as_long_as_is_said(world):
    forget, _, unseen, original, _ = world
    taught = forget[0][::2], forget[1][::2]
    pupil = plain_steps(original, *taught)
    judged = hv.source((forget[0][1::2], forget[1][1::2]), name="judged")
    sides = hv.losses(pupil, judged), hv.losses(pupil, hv.source(unseen, name="unseen"))
    auc = (sides[0][:, None] < sides[1]).double().mean() + (sides[0][:, None] == sides[1]).double().mean() / 2
    assert hv.other_half(original, forget, unseen).each[0] == pytest.approx(float(auc), abs=1e-3)


def test_frozen_parameters_are_taught_too(world):
    forget, _, unseen, original, _ = world
    frozen = copy.deepcopy(original).requires_grad_(False)
    assert hv.other_half(frozen, forget, unseen) == hv.other_half(original, forget, unseen)
    assert not any(p.requires_grad for p in frozen.parameters())


def blobs(n: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4
    return torch.randn(n, 6, generator=g) + 2.5 * torch.eye(4, 6)[y], y


def test_a_suppressed_class_is_relearned_from_a_few():
    (x, y), test = blobs(400, 0), blobs(200, 1)
    gone = y == 2
    forget, retain = (x[gone], y[gone]), (x[~gone], y[~gone])
    dressed, retrained = trained((x, y)), trained(retain, 1)
    with torch.no_grad():
        dressed[2].bias[2] -= 6
    sets = {"forget": forget, "retain": retain, "test": test, "classes": [2]}
    mine, reason = hv.relearned(dressed, **sets, steps=5)
    theirs, _ = hv.relearned(retrained, **sets, steps=5)
    print(mine, theirs)
    assert reason is None and sorted(mine) == [1, 5, 10]
    assert mine[10] > theirs[10] + 0.3
    nowhere, reason = hv.relearned(dressed, forget, retain, (test[0][test[1] != 2], test[1][test[1] != 2]), classes=[2])
    assert math.isnan(nowhere[1]) and "no sample of the forgotten" in reason
    with pytest.raises(ValueError, match="classes, few, steps"):
        hv.relearned(dressed, **{**sets, "classes": []})


def test_neighbours():
    labels = torch.tensor([2, 2, 2, 2, 0, 1, 3, 3])
    assert hv.nearest_classes(torch.tensor([3, 3, 1, 2, 0, 1, 3, 3]), labels, [2]) == (3, 1)
    found = hv.neighbours(torch.tensor([3, 3, 1, 2, 0, 1, 3, 0]), labels, (3, 1))
    assert found.accuracy == pytest.approx(2 / 3) and found.reason is None
    assert "no sample" in hv.neighbours(labels, labels, ()).reason
