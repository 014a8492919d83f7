"""Weights drawn anew, as before any training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..._random import own_randomness


def draw_anew(modules: Iterable[tuple[str, nn.Module]], seed: int, *, frozen: bool = False) -> list[str]:
    """Initialises the modules' own parameters (not those of the modules inside) by their ``reset_parameters``.

    What that leaves as it is, or what belongs to a module without one (a class token, a weight that is parametrised), is drawn from a
    normal distribution with the mean and standard deviation that the tensor has.

    Args:
        modules: with names, as of ``named_modules()``.
        seed: of all draws.
        frozen: also parameters that don't require a gradient.

    Returns:
        The names of the parameters that were drawn by their own mean and deviation, for the receipt.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> before = layer.weight.detach().clone()
    >>> draw_anew([("fc", layer)], seed=1), bool((layer.weight != before).all())
    ([], True)
    """
    by_moments = []
    with own_randomness(seed), torch.no_grad():
        for name, module in modules:
            own = {key: p for key, p in module.named_parameters(recurse=False) if p.is_floating_point()}
            before = {key: p.detach().clone() for key, p in own.items()}
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                for p in own.values():
                    p.fill_(math.nan)  # what is NaN afterwards was not drawn
                reset()
            for key, p in own.items():
                if not (frozen or p.requires_grad):
                    p.copy_(before[key])
                elif reset is None or bool(p.isnan().any()):
                    p.copy_(_alike(before[key]))
                    by_moments.append(f"{name}.{key}" if name else key)
    return by_moments


def _alike(values: Tensor) -> Tensor:
    """Normal draws with the tensor's mean and standard deviation."""
    flat = values.to(torch.promote_types(values.dtype, torch.float32))
    return (torch.randn_like(flat) * flat.std(correction=0) + flat.mean()).to(values.dtype)
