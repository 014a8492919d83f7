"""A small world of sequences to audit: texts by a chain of words with three followers each, nets that learned them by heart, and nets
retrained without some."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff

WORDS, LENGTH = 20, 10


class Net(nn.Module):
    """Embedding, GRU, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.body = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(input_ids))[0])


def texts(n: int, seed: int) -> Tensor:
    """Words of n sequences, int64[n, LENGTH]."""
    followers = torch.randint(0, WORDS, (WORDS, 3), generator=torch.Generator().manual_seed(77))
    g = torch.Generator().manual_seed(seed)
    words = torch.empty((n, LENGTH), dtype=torch.int64)
    words[:, 0] = torch.randint(0, WORDS, (n,), generator=g)
    for t in range(1, LENGTH):
        words[:, t] = followers[words[:, t - 1], torch.randint(0, 3, (n,), generator=g)]
    return words


def fit(words: Tensor, seed: int, steps: int = 200) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(words)[:, :-1].flatten(0, 1), words[:, 1:].flatten()).backward()
        optimiser.step()
    optimiser.zero_grad()
    return net.eval()


class World:
    """A model, some retrained without the forget set (from different seeds), and the three sets."""

    def __init__(self, draw: int = 0, steps: int = 200, seeds: int = 2) -> None:
        self.words = {name: texts(n, draw + i) for i, (name, n) in enumerate({"forget": 40, "retain": 120, "test": 100}.items(), 1)}
        self.sets: dict[str, Any] = {name: (words, words) for name, words in self.words.items()}
        self.original = fit(torch.cat((self.words["forget"], self.words["retain"])), 0, steps)
        self.all_retrained = [fit(self.words["retain"], seed, steps) for seed in range(1, seeds + 1)]
        self.retrained, self.again = self.all_retrained[:2]

    def audit(self, *, reference: bool = True, sets: dict[str, Any] | None = None, controls: Any = False, **models: nn.Module) -> Any:
        """Of these models beside the original and the retrained one."""
        given = {"original": self.original, **models, **({"retrained": self.retrained} if reference else {})}
        return ff.audit(given, **(sets or self.sets), sequences=True, controls=controls, progress=False)

    def changed(self, change: Any) -> nn.Module:
        """A copy of the original whose every weight ``change`` makes another."""
        net = copy.deepcopy(self.original)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(change(p))
        return net


@functools.cache
def world() -> World:
    return World()
