"""What the tests of unlearning share: 8x8 digits, small nets trained on them, and a model's state as a value."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from fastforget import _weights
from fastforget.methods import NotForgottenWarning, unlearn


def small_cnn() -> nn.Module:
    """With batch norm and dropout: what train mode changes must come back."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(512, 10),
    )  # fmt: skip


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def fit(model: nn.Module, x, y, epochs: int = 12) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def right(model: nn.Module, data) -> float:
    with torch.no_grad():
        return model(data[0]).argmax(1).eq(data[1]).double().mean().item()


class World:
    """8x8 digits in two halves, train and test, and nets trained on the first with everything and without
    the class.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images.astype(np.float32)).reshape(-1, 1, 8, 8) / 8 - 1
        y = torch.from_numpy(labels).long()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        self.train, self.test = [(x[part], y[part]) for part in (order[400:], order[:400])]
        self._nets: dict = {}

    def part(self, data, classes, inside: bool):
        mask = torch.isin(data[1], torch.tensor(classes)) == inside
        return data[0][mask], data[1][mask]

    def net(self, kind: str, without: tuple[int, ...] = ()) -> nn.Module:
        if (kind, without) not in self._nets:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = small_cnn() if kind == "cnn" else small_mlp()
                self._nets[kind, without] = fit(model, *self.part(self.train, list(without), False))
        return copy.deepcopy(self._nets[kind, without])


def quiet(model, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotForgottenWarning)
        return unlearn(model, *args, **kwargs)


def trace(model: nn.Module):
    """All that a failed run must leave as it was."""
    return (
        _weights.fingerprint(model),
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def same_trace(a, b) -> bool:
    grads = all((g is None) == (h is None) and (g is None or torch.equal(g, h)) for g, h in zip(a[3], b[3], strict=True))
    return a[:3] == b[:3] and grads


def marked(model: nn.Module) -> nn.Module:
    """A model with a mixed state, so that "as before" means something."""
    model.train()
    model[0].eval()
    list(model.parameters())[1].requires_grad_(False)
    next(iter(model.parameters())).grad = torch.ones_like(next(iter(model.parameters())))
    return model
