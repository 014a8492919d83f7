"""Counter-based normal noise, in plain PyTorch.

A value depends on nothing but (seed, stream, step, global element index): Philox4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC'11) with the 64-bit seed as key and (index / 4, stream, step) as counter, then Box-Muller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_CHUNK = 1 << 20  # elements at a time: bounds the int64 and float64 temporaries


def philox_words(block: Tensor, *, seed: int, stream: int, step: int) -> Tensor:
    """Philox4x32-10 words of each counter block.

    Args:
        block: int64[n], the 64-bit block index (global element index divided by four).
        seed: 64-bit key.
        stream: third counter word (32 bits).
        step: fourth counter word (32 bits).

    Returns:
        int64[n, 4], each value in [0, 2**32).
    """
    c0, c1 = block & _MASK32, (block >> 32) & _MASK32
    c2, c3 = torch.full_like(block, stream & _MASK32), torch.full_like(block, step & _MASK32)
    key0, key1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(10):
        # int64 products wrap, which leaves all 64 bits of the unsigned product right
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        high0, high1 = (product0 >> 32) & _MASK32, (product1 >> 32) & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, product1 & _MASK32, high0 ^ c3 ^ key1, product0 & _MASK32
        key0, key1 = (key0 + 0x9E3779B9) & _MASK32, (key1 + 0xBB67AE85) & _MASK32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _words(first: int, count: int, seed: int, stream: int, step: int, device: torch.device) -> tuple[Tensor, int]:
    """Words of the whole blocks that cover ``[first, first + count)``, and the offset of ``first`` in them."""
    begin, end = first // 4, (first + count + 3) // 4
    blocks = torch.arange(begin, end, dtype=torch.int64, device=device)
    return philox_words(blocks, seed=seed, stream=stream, step=step), first - 4 * begin


def standard_normals(
    count: int, *, seed: int, stream: int = 0, step: int = 0, start: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """The float64 values that define the noise: float64[count]."""
    words, offset = _words(start, count, seed, stream, step, torch.device(device))
    # the uniform is the 32-bit word rounded to float32: every dtype then starts from the same number
    uniform = words[:, 0::2].to(torch.float32).clamp_min(0.5).to(torch.float64) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(uniform))
    angle = words[:, 1::2].to(torch.float64) * (2.0 * math.pi * 2.0**-32)
    normals = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normals.flatten()[offset : offset + count]


def random_bits(out: Tensor, seed: int, stream: int, step: int, start: int) -> None:
    for begin in range(0, out.numel(), _CHUNK):
        part = out[begin : begin + _CHUNK]
        words, offset = _words(start + begin, part.numel(), seed, stream, step, out.device)
        words = words.flatten()[offset : offset + part.numel()]
        part.copy_(torch.where(words >= 2**31, words - 2**32, words))


def _pick(values: Sequence, index: int):
    return values[0] if len(values) == 1 else values[index]


def _each_chunk(xs: Sequence[Tensor], seed: int, stream: int, step: int, start: Sequence[int]):
    """Yields (index of the tensor, a span of its elements, the float64 normals of that span)."""
    for index, x in enumerate(xs):
        for begin in range(0, x.numel(), _CHUNK):
            span = slice(begin, min(begin + _CHUNK, x.numel()))
            first = _pick(start, index) + begin
            z = standard_normals(
                span.stop - begin, seed=seed, stream=stream + index, step=step, start=first, device=x.device
            )
            yield index, span, z


def _part(xs: Sequence[Tensor], index: int, span: slice) -> Tensor:
    return xs[index].view(-1)[span]


def _store(part: Tensor, value: Tensor) -> None:
    """Rounds float64 to the storage dtype, through float32 for the 16-bit dtypes as the kernels do."""
    part.copy_(value if part.dtype in (torch.float32, torch.float64) else value.to(torch.float32))


def normal_(
    xs: Sequence[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    stream: int,
    step: int,
    start: Sequence[int],
) -> None:
    for index, span, z in _each_chunk(xs, seed, stream, step, start):
        _store(_part(xs, index, span), _pick(mean, index) + _pick(std, index) * z)


def add_normal_(
    xs: Sequence[Tensor], std: Sequence[float], seed: int, stream: int, step: int, start: Sequence[int]
) -> None:
    for index, span, z in _each_chunk(xs, seed, stream, step, start):
        part = _part(xs, index, span)
        _store(part, part.to(torch.float64) + _pick(std, index) * z)


def perturb_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    lr: float,
    std: Sequence[float],
    std_elements: Sequence[Tensor],
    seed: int,
    stream: int,
    step: int,
    start: Sequence[int],
) -> None:
    # grads may be empty: no gradient term. Where std_elements is not empty, it takes the place of std.
    for index, span, z in _each_chunk(params, seed, stream, step, start):
        part = _part(params, index, span)
        value = part.to(torch.float64)
        if grads:
            value = value - lr * _part(grads, index, span).to(torch.float64)
        scale = _part(std_elements, index, span).to(torch.float64) if std_elements else _pick(std, index)
        _store(part, value + scale * z)
