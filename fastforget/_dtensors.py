"""DTensors without importing them: whether a value is one, and which part of the whole this rank holds.

``torch.distributed.tensor`` is imported by whoever makes a DTensor, never here before one is seen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

_modules = sys.modules


def found(*values: Any) -> bool:
    """Whether any is a DTensor, or a list with one. Costs a look into a dict where nobody uses them."""
    module = _modules.get("torch.distributed.tensor")
    if module is None:
        return False
    kind = module.DTensor
    return any(isinstance(v, kind) or (isinstance(v, (list, tuple)) and any(isinstance(x, kind) for x in v)) for v in values)


def is_sharded(x: Any) -> bool:
    module = _modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_part(where: str, x: Any) -> Tensor:
    """A DTensor's part on this rank, the same memory; of a plain tensor all.

    Raises:
        ValueError: partial sums, or a placement of which this can't tell where a part lies.
    """
    if not is_sharded(x):
        return x
    from torch.distributed.tensor import Replicate, Shard

    for placement in x.placements:
        kind = type(placement)
        if not (kind is Shard or kind is Replicate):  # is: what tracing understands
            raise ValueError(
                f"{where}: a DTensor placed as {placement}; accepted are Shard(dim) and Replicate() in each mesh dimension. "
                "Call x.redistribute(placements=[...]) first"
            )
    return waited(x.to_local())


def waited(part: Any) -> Tensor:
    """A result of a collective may still be on its way."""
    return part.wait() if type(part).__name__ == "AsyncCollectiveTensor" else part


@dataclass(frozen=True)
class Box:
    """Where a part lies: in each dimension of the whole, where it begins and how far it goes."""

    whole: tuple[int, ...]
    begin: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, x: Any) -> Box:
        if not is_sharded(x):
            return cls(tuple(x.shape), (0,) * x.dim(), tuple(x.shape))
        begin, size = [0] * x.dim(), list(x.shape)
        here = x.device_mesh.get_coordinate()
        for dim, placement in enumerate(x.placements):
            if here is None:  # another group's mesh: nothing of it is here
                return cls(tuple(x.shape), tuple(begin), (0,) * x.dim())
            if placement.is_shard():  # cut as torch.chunk cuts: the first ones are full, the last may be short or empty
                along, ranks = placement.dim, x.device_mesh.size(dim)
                step = -(-size[along] // ranks)
                first = min(step * here[dim], size[along])
                begin[along] += first
                size[along] = min(step, size[along] - first)
        return cls(tuple(x.shape), tuple(begin), tuple(size))

    @property
    def width(self) -> int:
        """Elements of the whole in one index of its first dimension."""
        return prod(self.whole[1:])

    @property
    def one_run(self) -> bool:
        """Whether the part's elements stand beside each other in the whole, row by row."""
        return self.size[1:] == self.whole[1:] or prod(self.size) == 0

    def cut(self, whole: Tensor, dims: slice = slice(None)) -> Tensor:
        """The part of a plain tensor of the whole's shape (or, ``dims``, of its first dimensions); a view."""
        return whole[tuple(slice(b, b + n) for b, n in zip(self.begin[dims], self.size[dims], strict=True))]


def replicated(value: Any) -> Tensor:
    """All of it, as a plain tensor."""
    return waited(value.full_tensor()) if is_sharded(value) else value
