"""Loaders: samplers, workers, sets that augment at random."""

from __future__ import annotations

import os
import random
import tempfile

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import fastforget as ff
from fastforget._data import source

from . import case, refusal
from .blobs import X, Y, plain, same, sets, unlearned, weights

DATA = TensorDataset(torch.arange(100.0)[:, None].expand(100, 8).contiguous(), torch.arange(100) % 3)


class Draws(Sampler):
    """A sampler of somebody's own."""

    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        return iter(self.draw())

    def __len__(self):
        return 100


def read(**how):
    """How many different samples, and how many in all."""
    held = source(DataLoader(DATA, **how), name="retain")
    rows = torch.cat([x[:, 0] for x, _ in held.batches()])
    return f"{len(rows.unique())} of {len(rows)}"


ONCE = {
    "weighted, with replacement": {"sampler": WeightedRandomSampler(torch.rand(100) + 0.1, 100)},
    "weighted, fewer": {"sampler": WeightedRandomSampler(torch.ones(100), 30)},
    "random, with replacement": {"sampler": RandomSampler(DATA, replacement=True, num_samples=40)},
    "random, fewer": {"sampler": RandomSampler(DATA, num_samples=40)},
    "drop_last": {"batch_size": 32, "drop_last": True},
    "batch sampler, drop_last": {"batch_sampler": BatchSampler(SequentialSampler(DATA), 32, drop_last=True)},
    "batch sampler, weighted": {"batch_sampler": BatchSampler(WeightedRandomSampler(torch.ones(100), 100), 32, drop_last=True)},
    "own, shuffles": {"sampler": Draws(lambda: torch.randperm(100).tolist())},
}
for _name, _how in ONCE.items():
    case(f"sampler: {_name}", "100 of 100")(lambda how=_how: read(**how))

SPLITS = {
    "subset": ({"sampler": SubsetRandomSampler([3, 5])}, "2 of 2"),
    "own, half": ({"sampler": Draws(lambda: range(50))}, "50 of 50"),
    "distributed": ({"sampler": DistributedSampler(DATA, num_replicas=3, rank=0, shuffle=False)}, "34 of 34"),
}
for _name, (_how, _expected) in SPLITS.items():
    case(f"sampler: {_name}", _expected)(lambda how=_how: read(**how))

REFUSED = {
    "own, with replacement": ({"sampler": Draws(lambda: torch.randint(100, (100,)).tolist())}, ("of the 100 samples", "more than once")),
    "own, other ones each time": ({"sampler": Draws(lambda: torch.randperm(100)[:60].tolist())}, ("60 of the 100", "each time")),
    "weights of zero": ({"sampler": WeightedRandomSampler([1.0] * 5 + [0.0] * 95, 100)}, ("5 of the 100",)),
    "subset, twice": ({"sampler": SubsetRandomSampler([1, 1, 2])}, ("2 of the 100",)),
}
for _name, (_how, _words) in REFUSED.items():
    case(f"sampler: {_name}", "refused")(lambda how=_how, words=_words: refusal(lambda: read(**how), "retain", "Subset", *words))


# Workers


class Images(Dataset):
    def __init__(self, x, y, noise=0.0):
        self.x, self.y, self.noise = x, y, noise

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + self.noise * torch.randn(8) + self.noise * random.random(), int(self.y[i])


class Started:
    """Writes a line for each worker that starts."""

    def __init__(self):
        self.path = os.path.join(tempfile.mkdtemp(), "started")
        self()

    def __call__(self, worker=None):
        with open(self.path, "a") as file:
            file.write("" if worker is None else f"{worker}\n")

    def count(self):
        with open(self.path) as file:
            return len(file.readlines())


for _method, _options in (("unsir", {}), ("forsaken", {"steps": 20}), ("lightweight", {"steps": 20})):

    @case(f"workers: {_method}, one start a set", 6)
    def _(method=_method, options=_options):
        started = Started()
        how = {"batch_size": 64, "num_workers": 2, "worker_init_fn": started, "persistent_workers": True}
        unlearned(plain(), method, sets(lambda x, y: DataLoader(Images(x, y), **how)), **options)
        return started.count()


@case("workers: the same bytes as without", True)
def _():
    results = [
        unlearned(plain(), "forsaken", sets(lambda x, y, n=n: DataLoader(Images(x, y), batch_size=64, num_workers=n)), steps=10)
        for n in (0, 2)
    ]
    return same(*(weights(result.model) for result in results))


@case("workers: passes within a pass augment as in loaders of their own", True)
def _():
    """A pass that is stopped half-way for another gives what one alone gives; each begins as a fresh loader would."""
    loader = DataLoader(Images(X[:50], Y[:50], noise=1.0), batch_size=8, num_workers=2)
    fresh = DataLoader(loader.dataset, batch_size=8, num_workers=2, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([x for x, _ in fresh])
    held = source(loader, name="retain")
    outer, rows = held.batches(), []
    for _ in range(2):
        rows.append(next(outer)[0])
    inner = torch.cat([x for x, _ in held.batches()])
    rows += [x for x, _ in outer]
    return torch.equal(torch.cat(rows), alone) and torch.equal(inner, alone)


@case("workers: an error in one ends the pass, and the next one works", "Caught 50")
def _():
    class Breaks(Images):
        def __getitem__(self, i):
            if i == 30 and not os.path.exists(flag):
                open(flag, "w").close()
                raise ValueError("a bad file")
            return super().__getitem__(i)

    flag = os.path.join(tempfile.mkdtemp(), "broke")
    held = source(DataLoader(Breaks(X[:50], Y[:50]), batch_size=8, num_workers=2), name="retain")
    try:
        list(held.batches())
    except ValueError as error:
        return f"{str(error).split()[0]} {sum(len(y) for _, y in held.batches())}"


# Sets that augment at random


@case("random transforms: the shadow models' audit says so", "refused")
def _():
    pool = Images(X[:100], Y[:100], noise=0.1)
    held = ff.audit.shadows(lambda seed: nn.Linear(8, 3), pool, n=2, epochs=1, progress=False)
    return refusal(lambda: held.locate(DataLoader(pool, num_workers=1)), "augments at random", "queries=")


@case("large lazy set: labels, hash and batches hold no more than a batch", True)
def _():
    import tracemalloc

    class Lazy(Dataset):
        def __len__(self):
            return 2000

        def __getitem__(self, i):
            return torch.full((8000,), float(i)), i % 3

    alive = []

    class Counted(Lazy):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            alive.append(_weak(x))
            return x, y

    import weakref as _w

    _weak = _w.ref
    tracemalloc.start()
    held, most = source(DataLoader(Counted(), batch_size=50), name="test"), 0
    for _ in held.batches():
        most = max(most, sum(ref() is not None for ref in alive))
    tracemalloc.stop()
    return most <= 100
