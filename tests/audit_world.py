"""A small world to audit: four blobs, a model, and two models retrained without one of them."""

from __future__ import annotations

import torch
from torch import nn

import fastforget as ff

CLASSES, FEATURES = 4, 6
FORGOTTEN = 2


def blobs(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(99)
    centres = 1.2 * torch.randn(CLASSES, FEATURES, generator=g)
    g.manual_seed(seed)
    y = torch.arange(n) % CLASSES
    return centres[y] + torch.randn(n, FEATURES, generator=g), y


def fit(data: tuple[torch.Tensor, torch.Tensor], seed: int, width: int = 64, steps: int = 120) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(data[0]), data[1]).backward()
        optimiser.step()
    return net


class World:
    """A model, two retrained without a class (from different seeds), and the three sets."""

    def __init__(self) -> None:
        (x, y), self.test = blobs(400, 1), blobs(400, 2)
        gone = y == FORGOTTEN
        self.forget, self.retain = (x[gone], y[gone]), (x[~gone], y[~gone])
        self.original = fit((x, y), 0)
        self.retrained = fit(self.retain, 0)
        self.retrained_again = fit(self.retain, 1)

    def audit(self, *, unlearned: nn.Module | None = None, reference: bool = True, **options):
        models = {"original": self.original}
        if unlearned is not None:
            models["unlearned"] = unlearned
        if reference:
            models["retrained"] = self.retrained
        sets = {"forget": self.forget, "retain": self.retain, "test": self.test}
        return ff.audit(models, **{**sets, **options})
