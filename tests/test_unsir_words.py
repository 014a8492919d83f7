"""UNSIR where no noise can be learned in the input's place: it stands in for a layer's output."""

from __future__ import annotations

import copy

import pytest
import torch
from digits_world import World, fit, quiet, right, small_mlp
from torch import nn

from benchmarks.experiment_data import BagNet
from fastforget._data import source
from fastforget.methods import UNSIR
from fastforget.methods.task import Task
from fastforget.methods.unsir.noise import Place, find_place

WORDS, CLASSES = 300, 6


class Texts:
    """Bags of 30 words; two in five are the class's own."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, CLASSES, (1_500,), generator=generator)
        own = 1 + 40 * labels[:, None] + torch.randint(0, 40, (1_500, 30), generator=generator)
        other = torch.randint(1, WORDS, (1_500, 30), generator=generator)
        words = torch.where(torch.rand(1_500, 30, generator=generator) < 0.4, own, other)
        self.train, self.test = (words[:1_000], labels[:1_000]), (words[1_000:], labels[1_000:])

    def part(self, data, classes, inside: bool):
        mask = torch.isin(data[1], torch.tensor(classes)) == inside
        return data[0][mask], data[1][mask]

    def net(self, without: tuple[int, ...] = ()) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return fit(BagNet(WORDS, CLASSES), *self.part(self.train, list(without), False), epochs=6)


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts()


@pytest.mark.parametrize("classes", [[2], [1, 4]])
def test_forgets_word_numbers_and_keeps_the_rest(texts, classes):
    model, kept = texts.net(), texts.part(texts.test, classes, False)
    assert right(model, texts.part(texts.test, classes, True)) > 0.9
    result = quiet(model, "unsir", classes=classes, retain=texts.part(texts.train, classes, False), noise_at="words")
    assert result.forgot, result.why
    for data in (texts.train, texts.test):
        assert right(result.model, texts.part(data, classes, True)) <= 0.01
    assert right(result.model, kept) >= right(texts.net(tuple(classes)), kept) - 0.02
    assert result.receipt["options"]["noise_at"] == "words"
    assert not any(m._forward_hooks for net in (model, result.model) for m in net.modules())


def test_samples_preset_takes_word_numbers(texts):
    forget, rest = [tuple(t[part] for t in texts.train) for part in (slice(40), slice(40, None))]
    result = quiet(texts.net(), "unsir", preset="samples", forget=forget, retain=rest, test=texts.test, noise_at="words")
    assert right(result.model, texts.test) > 0.9
    assert result.receipt["weights_sha256"]["before"] != result.receipt["weights_sha256"]["after"]


def test_at_the_first_layer_it_is_the_noise_of_the_input():
    """What stands in for the output of a layer that changes nothing gets the answers that it gets as an input."""
    model = nn.Sequential(nn.Identity(), *small_mlp().double())
    task = task_of(model)
    inputs, noise = torch.randn(5, 1, 8, 8).double(), torch.randn(3, 1, 8, 8).double()
    at = Place(inputs[0], "0", inputs[0], mean=0.25, deviation=2.0)
    given = Place(inputs[0])
    assert torch.equal(at.logits(task, noise, inputs), given.logits(task, noise * 2.0 + 0.25, inputs))
    assert torch.equal(at.logits(task, noise), given.logits(task, noise * 2.0 + 0.25))


def test_only_retained_samples_reach_the_layers_before(texts):
    """The stand-in's words get no gradient from the noise."""
    model = texts.net().train()
    words, labels = texts.part(texts.train, [2], False)
    at = find_place(task_of(model), "words", source((words, labels), name="retain"))
    noise = torch.randn(4, 64)
    model.zero_grad()
    at.logits(task_of(model), noise).square().sum().backward()
    assert not model.words.weight.grad.any() and model.layers[0].weight.grad.any()
    model.zero_grad()
    at.logits(task_of(model), noise, words[7:9]).square().sum().backward()
    touched = model.words.weight.grad.abs().sum(dim=1).nonzero()[:, 0]
    assert touched.tolist() == words[7:9].unique().tolist()


def test_units_are_the_layers(texts):
    words, labels = texts.part(texts.train, [2], False)
    model = texts.net()
    at = find_place(task_of(model), "words", source((words, labels), name="retain"))
    output = model.words(words[:256]).double()
    assert at.like.shape == (64,)
    assert (at.mean, at.deviation) == pytest.approx((output.mean().item(), output.std(correction=0).item()))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), small_mlp()

    def forward(self, x):
        return self.head(self.layer(self.layer(x.flatten(1))))


@pytest.mark.parametrize(
    ("model", "layer", "error", "text"),
    [
        (small_mlp(), "embedding", ValueError, "noise_at: got 'embedding'; accepted is a layer of the model: 0, 1, 2, 3"),
        (small_mlp(), "", ValueError, "noise_at: got ''"),
        (small_mlp(), 3, TypeError, "noise_at: got 3; accepted is the name of a layer"),
        (Twice(), "layer", ValueError, "noise_at: layer 'layer' ran 2 times"),
        (nn.Sequential(nn.Unflatten(0, (1, -1)), nn.Flatten(0, 1), *small_mlp()), "0", TypeError, "noise_at: layer '0' gives"),
        (nn.Sequential(nn.Threshold(1e9, 0.5), *small_mlp()), "0", ValueError, "noise_at: layer '0' gives the same"),
    ],
)  # fmt: skip
def test_what_cannot_serve_is_named(model, layer, error, text):
    world = World()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        quiet(model, "unsir", classes=[3], retain=world.part(world.train, [3], False), noise_at=layer)
    assert text in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_word_numbers_without_a_place_are_refused_with_the_way_out(texts):
    with pytest.raises(TypeError, match="noise_at='name of the layer'"):
        quiet(texts.net(), UNSIR(), classes=[2], retain=texts.part(texts.train, [2], False))


def task_of(model: nn.Module) -> Task:
    return Task(model, lambda m, x: m(x), [2], CLASSES, torch.device("cpu"), 0, False, None, None, None)
