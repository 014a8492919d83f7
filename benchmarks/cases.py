"""What a benchmark row is made of: a case, its buffers in one placement, and the judgement of every
variant's result.

A case is one op at one size. ``prepare`` lays its buffers out once and returns the variants that will
compete: ``ours`` (the public function), ``eager`` (plain PyTorch as users write it), further plain forms,
``published`` (the published procedure, restated) and ``limit`` (touches the same bytes once and computes
next to nothing). All variants work on the same buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]
LIMITS = (
    "read",
    "rw",
    "2r1w",
    "3r1w",
    "4r3w",
)  # the native limit kernels' kinds, in the order of their numbers
ANCHOR = "eager"  # the plain form whose own rounding error sets the tolerance for everybody else


class WrongResult(AssertionError):
    """A variant computes something else; it gets no time."""


class Place:
    """Hands out buffers. Placement 0 is the allocator's; later ones shift each buffer by another multiple
    of 64 bytes, because the page offsets of the streams relative to each other alone can change a streaming
    kernel's time by half."""

    def __init__(self, index: int = 0, device: str = "cpu") -> None:
        self.index, self.device = index, torch.device(device)
        self._layout = torch.Generator().manual_seed(1000 + index)
        self._values = torch.Generator(self.device).manual_seed(7)  # the values are the same in every placement

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = torch.Size(shape).numel()
        if self.index == 0:
            return torch.empty(shape, dtype=dtype, device=self.device)
        per_line = 64 // dtype.itemsize
        shift = int(torch.randint(0, 64, (), generator=self._layout)) * per_line
        slab = torch.empty(count + 64 * per_line, dtype=dtype, device=self.device)
        return slab[shift : shift + count].view(shape)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.empty(*shape, dtype=dtype).zero_()

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return self.empty(*shape, dtype=dtype).normal_(0.0, scale, generator=self._values)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.empty(*shape, dtype=dtype).uniform_(0.0, 1.0, generator=self._values)

    def integers(self, high: int, *shape: int) -> Tensor:
        return self.empty(*shape, dtype=torch.int64).random_(0, high, generator=self._values)


@dataclass
class Work:
    """The competitors in one placement.

    ``judge(name, result)`` raises :class:`WrongResult`; the harness calls ``reset()`` and the variant
    first. The anchor is judged first.
    """

    run: dict[str, Call]
    judge: Callable[[str, Any], None]
    reset: Call = lambda: None
    unjudged: frozenset[str] = frozenset({"limit"})


@dataclass(frozen=True)
class Case:
    op: str
    label: str  # with the op, the key of targets.TARGETS
    shape: str
    dtype: str
    elements: int
    prepare: Callable[[Place], Work]
    unit: str = "element"
    bytes_touched: int = 0  # each byte that must move, once
    family: str = ""
    large: bool = False  # left out of --quick
    published: str = ""  # what the published variant restates


def error(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest absolute error against float64, and the scale of the truth; infinities and NaN must stand
    where the truth has them."""
    got, want = result.detach().to(torch.float64), truth.to(torch.float64)
    finite = torch.isfinite(want)
    same = torch.where(finite, torch.isfinite(got), (got == want) | (torch.isnan(got) & torch.isnan(want)))
    if not bool(same.all()):
        raise WrongResult(f"{int((~same).sum())} of {same.numel()} values are not finite, or finite where they must not be")
    zero = torch.zeros((), dtype=torch.float64, device=want.device)
    distance = torch.where(finite, got - want, zero).abs()
    scale = torch.where(finite, want, zero).abs()
    return (float(distance.max()), float(scale.max())) if distance.numel() else (0.0, 0.0)


class Judge:
    """The two-times rule: an error against float64 of at most twice that of plain PyTorch in the same dtype.

    The anchor itself must have half of its dtype's digits right. ``read(name, result)`` lists the tensors
    to judge.
    """

    def __init__(self, truth: Sequence[Tensor], read: Callable[[str, Any], Sequence[Tensor]], exact: bool = False) -> None:
        self.truth, self.read, self.exact = truth, read, exact
        self.allowed: list[float] | None = None

    def __call__(self, name: str, result: Any) -> None:
        values = list(self.read(name, result))
        if len(values) != len(self.truth):
            raise WrongResult(f"{name}: {len(values)} results where {len(self.truth)} are due")
        measured = []
        for i, (value, truth) in enumerate(zip(values, self.truth, strict=True)):
            if value.shape != truth.shape:
                raise WrongResult(f"{name}: result {i} has shape {tuple(value.shape)}, due is {tuple(truth.shape)}")
            if self.exact:
                if not torch.equal(value, truth):
                    raise WrongResult(f"{name}: result {i} is not bit-exact")
                continue
            try:
                measured.append(error(value, truth))
            except WrongResult as wrong:
                raise WrongResult(f"{name}: result {i}: {wrong}") from None
        if self.exact:
            return
        digits = [torch.finfo(v.dtype).eps if v.dtype.is_floating_point else 0.0 for v in values]
        if self.allowed is None:
            if name != ANCHOR:
                raise WrongResult(f"{name}: judged before {ANCHOR!r}, which sets the tolerance")
            limits = [scale * eps**0.5 for (_, scale), eps in zip(measured, digits, strict=True)]
            self.allowed = [2.0 * e + scale * eps for (e, scale), eps in zip(measured, digits, strict=True)]
        else:
            limits = self.allowed
        for i, ((e, _), limit) in enumerate(zip(measured, limits, strict=True)):
            if not e <= limit:
                raise WrongResult(f"{name}: result {i} is off by {e:.3g}, allowed is {limit:.3g}")


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` of a plain form, once a process; each shape still compiles on its own."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    return torch.compile(function, dynamic=False)


@functools.cache
def has_limit() -> bool:
    return hasattr(torch.ops.fastforget, "_limit")


def limit(tensors: Sequence[Tensor], kind: str) -> dict[str, Call]:
    """The native kernel that touches the same bytes once: read, rw, 2r1w, 3r1w or 4r3w; nothing where it
    can't run."""
    if not has_limit() or tensors[0].device.type != "cpu":
        return {}
    # it moves float32, whatever the storage means
    even = [t.view(-1)[: t.numel() * t.itemsize // 4 * 4 // t.itemsize] for t in tensors]
    flat = [t.view(torch.float32) for t in even]
    op, number = torch.ops.fastforget._limit.default, LIMITS.index(kind)
    return {"limit": lambda: op(flat, number)}


@dataclass
class Options:
    """What the command line chose."""

    isas: tuple[str, ...] = ()
    threads: int = 1
    quick: bool = False
    compiled: bool = False
    ops: tuple[str, ...] = ()
    rounds: int = 15
    placements: int = 5
    allocator: str = "settled"
    sized: bool = False
    device: str = "cpu"
