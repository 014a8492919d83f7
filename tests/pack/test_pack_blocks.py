"""What the standard methods are built of: sets shuffled into one, a teacher's answers, weights drawn anew."""

from __future__ import annotations

import copy

import pack_world as w
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from fastforget._data import source
from fastforget.methods.engine.fresh import draw_anew
from fastforget.methods.engine.joint import in_memory, joined

CPU = torch.device("cpu")
ORDER = [torch.tensor([6, 0, 3, 8]), torch.tensor([1, 2]), torch.tensor([7, 8])]


def three(kind):
    """Three sets of 3, 4 and 2 numbered samples, each a pair or a data set."""
    whole = torch.arange(9.0), torch.arange(9)
    parts = [tuple(t[at] for t in whole) for at in (slice(0, 3), slice(3, 7), slice(7, 9))]
    read = {"pairs": (0, 0, 0), "data sets": (1, 1, 1), "both": (1, 0, 1)}[kind]
    return [source(w.Read(part) if one else part, name=f"set {k}") for k, (part, one) in enumerate(zip(parts, read, strict=True))]


@pytest.mark.parametrize("kind", ["pairs", "data sets", "both"])
def test_sets_joined_are_read_in_the_order_that_is_asked_for(kind):
    both = joined(CPU, *three(kind))
    assert len(both) == 9
    assert both.labels().tolist() == list(range(9))
    for rows, (inputs, labels) in zip(ORDER, both.at(ORDER), strict=True):
        assert inputs.tolist() == rows.tolist()
        assert labels.tolist() == rows.tolist()
    again = joined(CPU, both.subset([8, 0, 4]), three(kind)[1])
    assert next(iter(again.at([torch.tensor([0, 6, 2, 1])])))[1].tolist() == [8, 6, 4, 0]
    assert in_memory(both) == (kind == "pairs")


def test_sets_of_one_function_are_batched_by_it():
    """A mixed batch is padded together."""

    def padded(samples):
        return nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True), torch.tensor([y for _, y in samples])

    texts = [(torch.ones(n), n % 2) for n in (1, 4, 2)]
    sets = [source(torch.utils.data.DataLoader(part, collate_fn=padded), name="texts") for part in (texts[:2], texts[2:])]
    inputs, _ = next(iter(joined(CPU, *sets).at([torch.tensor([2, 0])])))
    assert inputs.tolist() == [[1, 1], [1, 0]]


def test_inputs_that_do_not_fit_are_named():
    sets = (
        source((torch.zeros(2, 3), torch.zeros(2, dtype=int)), name="forget"),
        source((torch.zeros(2, 4), torch.ones(2, dtype=int)), name="retain"),
    )
    with pytest.raises(TypeError, match="^forget and retain: the method shuffles these sets into one, but their batches can't be joined"):
        next(iter(joined(CPU, *sets).at([torch.tensor([0, 3])])))


class Token(nn.Module):
    """A layer with a weight of its own and no way to draw it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(3 + 0.5 * torch.randn(2000))


class Half(Token):
    """One whose rule draws one of its two weights."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.ones(3))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.other)


def test_what_a_layers_rule_leaves_out_is_drawn_too():
    net = Half()
    before = net.token.detach().clone()
    assert draw_anew(net.named_modules(), 3) == ["token"]
    assert net.other.tolist() == [0.0] * 3
    assert bool((net.token.isfinite() & (net.token != before)).all())


def test_weights_are_drawn_anew_by_each_layers_own_rule():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4))
    with torch.no_grad():
        net[1].weight.fill_(7.0)
        net[1].running_mean.fill_(7.0)
    net[2].bias.requires_grad_(False)
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    state = torch.get_rng_state()
    assert draw_anew(first.named_modules(), 3) == draw_anew(second.named_modules(), 3) == []
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not (first[0].weight == net[0].weight).any()
    assert first[0].weight.abs().max() <= 1 / 18**0.5  # kaiming uniform with a = sqrt(5): at most one over the root of the fan-in
    assert first[1].weight.tolist() == [1.0] * 4
    assert first[1].running_mean.tolist() == [0.0] * 4
    assert torch.equal(first[2].bias, net[2].bias)
    draw_anew(first.named_modules(), 3, frozen=True)
    assert not (first[2].bias == net[2].bias).any()


def test_what_no_rule_draws_is_drawn_by_its_own_moments():
    net = nn.Sequential(Token(), weight_norm(nn.Linear(3, 2)))
    before = copy.deepcopy(net.state_dict())
    names = draw_anew(net.named_modules(), 3)
    assert names == ["0.token", "1.parametrizations.weight.original0", "1.parametrizations.weight.original1"]
    assert all(not (before[name] == value).any() for name, value in net.state_dict().items())
    token = net[0].token.detach()
    assert abs(float(token.mean()) - 3) < 0.1
    assert abs(float(token.std()) - 0.5) < 0.1
