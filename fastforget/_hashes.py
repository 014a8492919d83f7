"""Samples as hashes: what tells two samples apart, wherever they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def sample_hashes(inputs: Any, labels: Tensor) -> list[bytes]:
    """sha256 of each sample of a batch: its label, then dtype, shape and bytes of its input."""
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
    if isinstance(inputs, Tensor):
        flat = inputs.detach().cpu().contiguous()
        raw = flat.reshape(count, -1).view(torch.uint8).numpy() if flat.numel() else np.empty((count, 0), np.uint8)
        yield f"{tuple(flat.shape[1:])}|{flat.dtype}|".encode(), raw
    elif isinstance(inputs, Mapping):
        for key in sorted(inputs):
            yield from ((f"{key}|".encode() + head, rows) for head, rows in _arrays(inputs[key], count))
    elif isinstance(inputs, (tuple, list)) and all(isinstance(part, (Tensor, Mapping)) for part in inputs):
        for part in inputs:
            yield from _arrays(part, count)
    else:
        yield b"text|", [str(one).encode() for one in inputs]
