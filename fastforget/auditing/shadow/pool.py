"""The samples that shadow models share: read once, known by their digests, and handed out by position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import _data, _tree
from ..._hashes import sample_hashes
from ..._labels import classes_alone
from ..._random import own_randomness
from ..names import FOR_SEQUENCES
from .design import digests

LABELS = classes_alone("ff.audit.shadows", FOR_SEQUENCES["shadows"])


class _Nest:
    """Inputs of several tensors, by position."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getitem__(self, at: Tensor) -> Any:
        return _tree.index(self.value, at)

    def to(self, device: torch.device) -> _Nest:
        return _Nest(_tree.move(self.value, device))


class _Collated:
    """Inputs whose rows are not the samples (graphs): the samples themselves, made a batch of when asked for."""

    def __init__(self, samples: list[Any], loaded: _data.Loaded, device: torch.device | None = None) -> None:
        self.samples, self.loaded, self.device = samples, loaded, device

    def __getitem__(self, at: Tensor) -> Any:
        batch = self.loaded.collate([self.samples[i] for i in at.tolist()])
        return _tree.move(self.loaded.inputs_and_labels(batch)[0], self.device)

    def to(self, device: torch.device) -> _Collated:
        return _Collated(self.samples, self.loaded, device)


class Pool:
    """A set read once: inputs and labels in memory, and the samples' digests.

    Attributes:
        inputs: ``inputs[positions]`` are those of a batch: a tensor, or what stands for one where batches are anything else. Texts are
            padded to the longest of the pool, by the user's own function.
        labels: int64[N].
        digests: uint8[N, 16], the same however the samples are batched.
    """

    def __init__(self, data: Any, name: str, unpack: _data.Unpack | None, seed: int) -> None:
        self.source = held = _data.source(data, name=name, unpack=unpack, reading=LABELS)
        self.name, self.batch_size = name, held.batch_size
        self.inputs: Any
        with own_randomness(seed):  # a data set may augment at random
            if isinstance(held.samples, _data.Loaded) and held.samples.collated:
                self._collate(held, held.samples)
            else:
                batches = [(x, y, digests(sample_hashes(x, y))) for x, y in held.batches()]
                inputs, labels, prints = zip(*batches, strict=True)
                if _tree.rows(inputs[0]) is None:
                    raise TypeError(
                        f"{name}: inputs are {_tree.describe(inputs[0])}; accepted are tensors with the samples as rows, also in dicts and "
                        "lists. Pass unpack=lambda batch: (inputs, labels)"
                    )
                self.inputs, self.labels, self.digests = _tree.cat(list(inputs)), torch.cat(labels), torch.cat(prints)
                if not isinstance(self.inputs, Tensor):
                    self.inputs = _Nest(self.inputs)
        self.sha256 = hashlib.sha256(self.digests.numpy().tobytes()).hexdigest()

    def _collate(self, held: _data.Source, loaded: _data.Loaded) -> None:
        """All samples in one batch, where such a batch has them as rows."""
        samples = list(held.raw())
        hashes, labels = [], []
        for sample in samples:
            inputs, label = loaded.inputs_and_labels(loaded.collate([sample]))
            hashes += sample_hashes(inputs, label)
            labels.append(label)
        self.digests, self.labels = digests(hashes), torch.cat(labels)
        whole, _ = loaded.inputs_and_labels(loaded.collate(samples))
        if isinstance(whole, Tensor):
            self.inputs = whole
        else:
            self.inputs = _Nest(whole) if _tree.rows(whole) == len(samples) else _Collated(samples, loaded)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> None:
        self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)

    def pair(self, chosen: Tensor) -> tuple[Any, Tensor]:
        """Inputs and labels of the samples in a bool[N]."""
        at = chosen.nonzero()[:, 0].to(self.labels.device)
        return self.inputs[at], self.labels[at]

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """All samples in order."""
        if isinstance(self.inputs, Tensor):
            yield from zip(self.inputs.split(size), self.labels.split(size), strict=True)
            return
        for at in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.inputs[at], self.labels[at]

    def first(self, count: int) -> tuple[Any, Tensor]:
        """The first few samples."""
        at = torch.arange(min(count, len(self)), device=self.labels.device)
        return self.inputs[at], self.labels[at]
