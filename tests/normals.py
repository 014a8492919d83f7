"""The noise's normals twice more: in extended precision, and as anyone would write them in plain PyTorch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastforget.reference.noise import philox_words


def _words(count: int, seed: int, stream: int, step: int, start: int) -> Tensor:
    blocks = torch.arange(start // 4, (start + count + 3) // 4)
    return philox_words(blocks, seed=seed, stream=stream, step=step)


def exact_normals(count: int, *, seed: int, stream: int = 0, step: int = 0, start: int = 0) -> Tensor:
    """float64[count]: the definition evaluated in extended precision and rounded once."""
    words = _words(count, seed, stream, step, start).numpy()
    u = np.maximum(words[:, 0::2].astype(np.float32), 0.5).astype(np.longdouble) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    angle = words[:, 1::2].astype(np.longdouble) * (8 * np.arctan(np.longdouble(1)) / 2**32)
    z = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(-1)
    return torch.from_numpy(z.astype(np.float64))[start % 4 : start % 4 + count]


def plain_normals(count: int, dtype: torch.dtype, *, seed: int, stream: int = 0, step: int = 0, start: int = 0) -> Tensor:
    """dtype[count], float32 or float64: Box-Muller in plain PyTorch, every operation rounded to ``dtype``."""
    words = _words(count, seed, stream, step, start)
    u = words[:, 0::2].to(torch.float32).clamp_min(0.5).to(dtype) * 2.0**-32
    radius, angle = (-2 * u.log()).sqrt(), words[:, 1::2].to(dtype) * (2 * math.pi / 2**32)
    z = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten()
    return z[start % 4 : start % 4 + count]
