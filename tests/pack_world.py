"""A small problem in float64 for the standard methods, plain loops' data in the engine's order, and softmax regression by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget._random import own_randomness
from fastforget.methods.engine.passes import EPOCHS
from fastforget.methods.task import derived_seed

CLASSES, SEED = 3, 5
W0 = torch.tensor([[0.4, -0.2, 0.1], [-0.3, 0.5, 0.2], [0.1, 0.1, -0.6]], dtype=torch.float64)  # softmax regression by hand
Data = tuple[Tensor, Tensor]


def data(n: int, seed: int) -> Data:
    """``n`` samples of six numbers in three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    centres = 2 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return centres[labels] + torch.randn(n, 6, generator=generator, dtype=torch.float64), labels


def images(n: int, seed: int) -> Data:
    """``n`` images of 3x6x6 in three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    centres = torch.randn(CLASSES, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return centres[labels] + torch.randn(n, 3, 6, 6, generator=generator, dtype=torch.float64), labels


def mlp() -> nn.Module:
    """A net with batch norm, trained a little."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    return trained(net, data(90, 1))


def cnn() -> nn.Module:
    """A net with convolutions and batch norm, trained a little."""
    torch.manual_seed(2)
    body = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten()]
    return trained(nn.Sequential(*body, nn.Linear(64, CLASSES)).double(), images(90, 1))


def trained(net: nn.Module, sets: Data) -> nn.Module:
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(sets[0]), sets[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def request(net: nn.Module) -> dict[str, Any]:
    """Single samples to forget, from those it was trained on; unseen ones; the rest is kept."""
    x, y = (images if isinstance(net[0], nn.Conv2d) else data)(90, 1)
    unseen = (images if isinstance(net[0], nn.Conv2d) else data)(30, 2)
    return {"forget": (x[:20], y[:20]), "retain": (x[20:], y[20:]), "nonmember": unseen, "check_overlap": False}


def class_request(net: nn.Module) -> dict[str, Any]:
    """The same data, with class 1 to forget."""
    sets = request(net)
    x, y = (torch.cat(parts) for parts in zip(sets["forget"], sets["retain"], strict=True))
    return sets | {"classes": [1], "forget": (x[y == 1], y[y == 1]), "retain": (x[y != 1], y[y != 1])}


class Read(torch.utils.data.Dataset):
    """The same samples, read one by one: as a data set that may augment them."""

    def __init__(self, sets: Data) -> None:
        self.sets = sets

    def __len__(self) -> int:
        return len(self.sets[1])

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return self.sets[0][at], int(self.sets[1][at])


def run(net: nn.Module, method: str, sets: dict[str, Any], **options: Any) -> ff.UnlearnResult:
    """Our engine's run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ff.unlearn(net, method, seed=SEED, progress=False, **sets, **options)


def generator(purpose: int) -> torch.Generator:
    """The one that a method draws from for this purpose."""
    return torch.Generator().manual_seed(derived_seed(SEED, purpose))


def epochs(sets: Data, size: int, number: int, purpose: int = EPOCHS) -> Iterator[tuple[int, list[Data]]]:
    """The epochs of ``Passes``, and their batches: the last one takes over a single sample."""
    for epoch in range(number):
        order = torch.randperm(len(sets[1]), generator=generator(purpose + 1_000 * epoch))
        yield epoch, [(sets[0][rows], sets[1][rows]) for rows in cut(order, size)]


def cycled(sets: Data, size: int, purpose: int) -> Iterator[Data]:
    """The batches of ``Cycled``."""
    drawn = generator(purpose)
    while True:
        for rows in cut(torch.randperm(len(sets[1]), generator=drawn), size):
            yield sets[0][rows], sets[1][rows]


def cut(order: Tensor, size: int) -> list[Tensor]:
    """Batches of ``size``, none of a single sample."""
    parts = list(order.split(min(size, len(order))))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts = [*parts[:-2], torch.cat(parts[-2:])]
    return parts


def agree(ours: nn.Module, plain: nn.Module, start: nn.Module) -> None:
    """Both went the same way, to rounding; and there was a way to go."""
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert max(float((a - s).detach().abs().max()) for a, s in zip(plain.parameters(), start.parameters(), strict=True)) > 1e-6


def plain_copy(net: nn.Module) -> nn.Module:
    """A copy in train mode, for a plain loop."""
    return copy.deepcopy(net).train()


def drawn(net: nn.Module, purpose: int) -> nn.Module:
    """A copy with the weights of every layer drawn anew."""
    fresh = copy.deepcopy(net)
    with own_randomness(derived_seed(SEED, purpose)):
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return fresh


def drawn_layers(net: nn.Sequential, purpose: int, layers: list[int]) -> nn.Module:
    """The net, with these layers' weights drawn anew."""
    with own_randomness(derived_seed(SEED, purpose)):
        for layer in layers:
            net[layer].reset_parameters()
    return net


def softmax_regression(weight: Tensor) -> nn.Module:
    """logits = W x."""
    net = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    with torch.no_grad():
        net.weight.copy_(weight)
    return net


def gradient(weight: Tensor, sets: Data, labels: Tensor | None = None) -> Tensor:
    """d mean CE / dW of softmax regression: mean over samples of (p - e_y) x^T."""
    x, y = sets[0], sets[1] if labels is None else labels
    p = (x @ weight.T).softmax(1)
    return (p - torch.eye(len(weight), dtype=p.dtype)[y]).T @ x / len(x)
