"""Randomness that leaves the caller's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Augmentation, dropout, initial weights and the like draw from ``seed``; the caller's random state stays as it was, also on GPUs in
    use.

    >>> before = torch.get_rng_state()
    >>> with own_randomness(7):
    ...     first = torch.rand(2)
    >>> with own_randomness(7):
    ...     torch.equal(torch.rand(2), first)
    True
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    on_gpus = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpus else []):
        torch.default_generator.manual_seed(seed)
        if on_gpus:
            torch.cuda.manual_seed_all(seed)
        yield
