"""Samples as hashes: what tells two samples apart, wherever they are stored and however they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _tree
from ._data import Source


def set_hashes(source: Source) -> Iterator[bytes]:
    """:func:`sample_hashes` of every sample of a set, in its order; the same for any batching and padding."""
    for inputs, labels in source.apart():
        yield from sample_hashes(inputs, labels)


def sample_hashes(inputs: Any, labels: Tensor) -> list[bytes]:
    """sha256 of each sample of a batch: its label, then dtype, shape and bytes of its input.

    Raises:
        TypeError: the inputs' parts don't have the samples as rows, and there are several.
    """
    parts = list(_arrays(inputs, len(labels)))
    hashes = []
    for i, label in enumerate(labels.tolist()):
        one = hashlib.sha256(f"{label}|".encode())
        for head, rows in parts:
            one.update(head)
            one.update(rows[i])
        hashes.append(one.digest())
    return hashes


def _arrays(inputs: Any, count: int) -> Iterable[tuple[bytes, Any]]:
    """(dtype and shape of one sample, one buffer a sample) for each tensor in a batch's inputs."""
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "biuf":
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    if isinstance(inputs, Tensor) and inputs.dim() and len(inputs) == count:
        flat = inputs.detach().cpu().contiguous()
        yield f"{tuple(flat.shape[1:])}|{flat.dtype}|".encode(), _bytes(flat, count)
    elif isinstance(inputs, Mapping):
        for key in sorted(inputs):
            yield from ((f"{key}|".encode() + head, rows) for head, rows in _arrays(inputs[key], count))
    elif isinstance(inputs, (tuple, list)) and not all(isinstance(part, (str, bytes, int, float)) for part in inputs):
        for part in inputs:
            yield from _arrays(part, count)
    elif isinstance(inputs, (tuple, list)) and len(inputs) == count:
        yield b"text|", [str(one).encode() for one in inputs]
    elif inputs is not None:
        yield from _whole(inputs, count)


def _whole(inputs: Any, count: int) -> Iterable[tuple[bytes, Any]]:
    """Everything in the inputs of a single sample, however it is arranged: a graph's nodes and edges, say."""
    if count != 1:
        raise TypeError(f"inputs are {_tree.describe(inputs)}: which part belongs to which of {count} samples can't be told")
    parts = list(_tree.contents(inputs))
    if not parts:
        raise TypeError(f"inputs are {_tree.describe(inputs)}, in which no tensors were found")
    for name, value in parts:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous()
            yield f"{name}whole {tuple(flat.shape)}|{flat.dtype}|".encode(), _bytes(flat.reshape(1, -1), 1)
        else:
            yield f"{name}text|".encode(), [str(value).encode()]


def _bytes(flat: Tensor, count: int) -> Any:
    return flat.reshape(count, -1).view(torch.uint8).numpy() if flat.numel() else np.empty((count, 0), np.uint8)
