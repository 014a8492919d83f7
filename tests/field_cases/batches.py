"""Batches that aren't one tensor."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastforget as ff
from fastforget import _overlap as overlap
from fastforget._data import source
from fastforget.auditing.proof.hashes import of_samples

from . import case, refusal
from .blobs import EVERYTHING, TRAIN, Y, audited, plain, runs, sets, trained, unlearned

Views = namedtuple("Views", "left right")


class Graph:
    """A batch of graphs: attributes, and a ``.to()``; its rows are nodes, two for each sample."""

    def __init__(self, x):
        self.nodes = x.repeat_interleave(2, dim=0)

    def to(self, device, non_blocking=False):
        moved = Graph.__new__(Graph)
        moved.nodes = self.nodes.to(device)
        return moved


class Encoding(UserDict):
    """Keys that are attributes too."""

    def __getattr__(self, name):
        return self.data[name]


class Output(OrderedDict):
    @property
    def logits(self):
        return self["logits"]


KINDS: dict[str, Any] = {
    "dict": (lambda x: {"a": x}, lambda m, v: m(v["a"])),
    "named tuple": (lambda x: Views(x, x), lambda m, v: m(v.left)),
    "list of two": (lambda x: [x, x], lambda m, v: m(v[1])),
    "nested": (lambda x: {"pair": (x, {"deep": x})}, lambda m, v: m(v["pair"][1]["deep"])),
    "keys and attributes": (lambda x: Encoding({"x": x}), lambda m, v: m(v.x)),
    "graph with .to()": (Graph, lambda m, v: m(v.nodes[::2])),
}


def loader_of(make):
    def collate(samples):
        return make(torch.stack([x for x, _ in samples])), torch.tensor([y for _, y in samples])

    return lambda x, y: DataLoader([(a, int(b)) for a, b in zip(x, y, strict=True)], batch_size=64, collate_fn=collate)


def _batches(kind):
    make, forward = KINDS[kind]

    @case(f"batches: {kind}", EVERYTHING)
    def _():
        return runs(plain(), sets(loader_of(make)), forward=forward)

    @case(f"batches: {kind}, figures as of one tensor", True)
    def _():
        accuracy = [audited(plain(), given, **how).rows[0]["accuracy"] for given, how in (
            (sets(), {}), (sets(loader_of(make)), {"forward": forward}))]  # fmt: skip
        return accuracy[0] == accuracy[1]

    @case(f"batches: {kind}, shadow models find the samples", 100)
    def _():
        part = sets(loader_of(make))
        held = ff.audit.shadows(lambda seed: nn.Linear(8, 3), part["test"], n=2, epochs=1, forward=forward, progress=False)
        return len(held.locate(sets(loader_of(make))["test"]).unique()) // 3


for _kind in KINDS:
    _batches(_kind)


# Texts, padded to the longest of each batch

_g = torch.Generator().manual_seed(1)
TEXTS = [(torch.randint(1, 20, (int(torch.randint(3, 40, (), generator=_g)),), generator=_g) + 20 * (i % 3), i % 3) for i in range(600)]


def padded(samples):
    ids = nn.utils.rnn.pad_sequence([text for text, _ in samples], batch_first=True)
    return {"ids": ids, "mask": (ids > 0).long(), "labels": torch.tensor([label for _, label in samples])}


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(80, 16, padding_idx=0), nn.Linear(16, 3)

    def forward(self, ids, mask):
        return Output(loss=None, logits=self.head((self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)))


def whole(batch):
    return {"ids": batch["ids"], "mask": batch["mask"]}, batch["labels"]


def texts(size=32):
    kept = {name: [TEXTS[i] for i in part.nonzero()[:, 0]] for name, part in zip(("forget", "retain", "test"), (
        TRAIN & (Y == 0), TRAIN & (Y != 0), ~TRAIN), strict=True)}  # fmt: skip
    return {name: DataLoader(part, batch_size=size, collate_fn=padded) for name, part in kept.items()}


def bag():
    together = padded([TEXTS[i] for i in TRAIN.nonzero()[:, 0]])
    return trained(Bag(), (together["ids"], together["mask"]), forward=lambda m, v: m(*v).logits)


WITH_MASK = {"unpack": whole, "forward": lambda m, v: m(**v)}


@case("texts padded by batch, ids and mask", EVERYTHING)
def _():
    return runs(bag(), texts(), **WITH_MASK)


@case("texts padded by batch, one hash for any batching", 1)
def _():
    return len({of_samples(source(texts(size)["forget"], name="forget", unpack=whole)) for size in (1, 3, 32)})


@case("texts padded by batch, shared samples are counted", 100)
def _():
    forget, other = (source(texts(size)["forget"], name=name, unpack=whole) for size, name in ((32, "forget"), (7, "retain")))
    return overlap.compare(forget, other).count


@case("texts padded by batch, UNSIR at the embedding", "True True")
def _():
    options = {"noise_at": "embed", "noise_steps": 5}
    results = [unlearned(bag(), "unsir", texts(), **options, **WITH_MASK), unlearned(
        bag(), "unsir", texts(), classes=None, preset="samples", check_overlap=False, **options, **WITH_MASK)]  # fmt: skip
    return " ".join(str(all(bool(p.isfinite().all()) for p in result.model.parameters())) for result in results)


@case("texts padded by batch, UNSIR with noise in the words' place", "refused")
def _():
    return refusal(lambda: unlearned(bag(), "unsir", texts(), **WITH_MASK), "retain", "noise_at")


@case("texts padded by batch, shadow models find the samples", 300)
def _():
    held = ff.audit.shadows(lambda seed: Bag(), texts()["test"], n=2, epochs=1, progress=False, **WITH_MASK)
    return len(held.locate(texts(5)["test"], unpack=whole).unique())
