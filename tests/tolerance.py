"""How close is close enough: one rule, no tolerance set by hand."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Case = TypeVar("Case")

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def drawn_once(make: Callable[..., Case]) -> Callable[..., Case]:
    """Caches what ``make`` draws for its arguments: the same for every implementation, and whichever test asks first."""
    seed = os.environ.get("FASTFORGET_TEST_SEED", "0")

    @functools.cache
    def cached(*arguments: Any) -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{seed} {make.__module__}.{make.__name__} {arguments}".encode()))
            return make(*arguments)

    return cached


def error(value: Tensor, exact: Tensor) -> float:
    """Largest absolute difference to the float64 value; infinities and NaN must stand in the same places."""
    value, exact = value.to(torch.float64), exact.to(torch.float64)
    assert value.shape == exact.shape
    assert torch.equal(torch.isnan(value), torch.isnan(exact)), "NaN in other places than the float64 value has it"
    infinite = torch.isinf(exact)
    assert torch.equal(value[infinite], exact[infinite]), "infinite in other places than the float64 value is"
    finite = torch.isfinite(exact)
    return (value[finite] - exact[finite]).abs().max().item() if finite.any() else 0.0


def rounding(exact: Tensor, dtype: torch.dtype) -> float:
    """What storing the exact value in ``dtype`` can cost: half a unit in the last place of the largest element."""
    finite = exact[torch.isfinite(exact)]
    if finite.numel() == 0:
        return 0.0
    return 0.5 * torch.finfo(dtype).eps * finite.abs().max().item() + torch.finfo(dtype).smallest_normal


def assert_two_times(
    ours: Tensor, plain: Tensor | list[Tensor], exact: Tensor | list[Tensor], what: str = ""
) -> None:
    """Our error is at most twice that of plain PyTorch in the same dtype (or the unavoidable rounding), both against float64.

    A handful of values would measure plain PyTorch's luck, not its accuracy. So ``plain`` and ``exact`` may be lists, of the same
    computation on several draws, or hold more rows than ``ours``: ours is compared with the first draw or rows, plain PyTorch with all.
    """
    plains, exacts = ([plain], [exact]) if isinstance(plain, Tensor) else (plain, exact)
    first = exacts[0][: len(ours)] if ours.dim() else exacts[0]
    allowed = max(2.0 * max(error(p, e) for p, e in zip(plains, exacts, strict=True)), rounding(first, ours.dtype))
    got = error(ours, first)
    assert got <= allowed, f"{what}: error {got:.3g}, allowed {allowed:.3g} (twice plain PyTorch's, or one rounding)"


def ulps(value: Tensor, exact: Tensor) -> Tensor:
    """Distance in float32 units in the last place of the exact value."""
    spacing = torch.ldexp(torch.ones_like(exact), (torch.frexp(exact.abs()).exponent - 24).to(torch.int32))
    return (value.to(torch.float64) - exact).abs() / spacing
