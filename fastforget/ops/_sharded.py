"""DTensor parameters in the ops: each rank works on its own part of every tensor, and the results are the bits of one process.

An op's public function asks :func:`found` once its fast path has refused the call, and then calls itself with the local parts. Three
kinds of op need more than that: noise the part's place in the whole (:func:`in_stream`), counts a sum over the ranks
(:meth:`Parts.total`), and the largest magnitudes of all a common threshold (``mask/select.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._dtensors import Box, found, is_sharded, local_part, replicated
from . import _arguments as arg

__all__ = ["Parts", "alike", "found", "in_stream", "is_sharded", "local_part", "replicated"]

CHUNK = 1 << 20  # elements of a whole tensor's rows that noise is made for at once, where a part isn't one run of them


class Parts:
    """The parts on this rank of an op's tensors, one or a list, of which some are DTensors; plain ones are the same on every rank.

    Args:
        changed: whether the op writes into them.
    """

    def __init__(self, name: str, x: Any, *, changed: bool = True) -> None:
        self.name = name
        self.given: list[Any] = [x] if isinstance(x, Tensor) else list(x) if isinstance(x, (list, tuple)) else arg.listed(name, x)
        for i, t in enumerate(self.given):
            arg.floating(self._where(name, i), t)
        self.local = [local_part(self._where(name, i), t) if is_sharded(t) else t for i, t in enumerate(self.given)]
        self.box = [Box.of(t) for t in self.given]
        if changed and torch.is_grad_enabled() and any(t.requires_grad for t in self.given):
            arg.writable(name, self.local)  # refuses them in words
        self._changed = [t for t in self.given if is_sharded(t)] if changed else []

    def _where(self, name: str, i: int) -> str:
        return name if len(self.given) == 1 else f"{name}[{i}]"

    def like(self, name: str, values: Any, *, changed: bool = False) -> list[Tensor]:
        """The parts of partners: one tensor for each, of the same whole shape. What is only read may be placed otherwise, or be a plain
        tensor of the whole's shape."""
        listed = [values] if isinstance(values, Tensor) else values
        if not isinstance(listed, (list, tuple)) or len(listed) != len(self.given):
            return arg.same_list(name, values, self.name, self.given)  # refuses it in words
        return [self._partner(self._where(name, i), value, i, changed) for i, value in enumerate(listed)]

    def _partner(self, where: str, value: Any, i: int, changed: bool) -> Tensor:
        x, of = self.given[i], self._where(self.name, i)
        if not isinstance(value, Tensor) or value.shape != x.shape:
            arg.same(where, value, of, x)
        if not is_sharded(value):
            if is_sharded(x) and changed:
                raise ValueError(f"{where}: a plain tensor, but {of} is a DTensor; accepted is one placed alike, zeros_like({of})")
            return self.box[i].cut(value) if is_sharded(x) else value
        if not is_sharded(x):
            raise ValueError(f"{where}: a DTensor, but {of} is a plain tensor; pass {where}.full_tensor(), or {of} as a DTensor")
        if value.device_mesh != x.device_mesh:
            raise ValueError(f"{where}: on {value.device_mesh}, but {of} on {x.device_mesh}; accepted is one mesh for both")
        if value.placements != x.placements:
            if changed:
                raise ValueError(f"{where}: placed as {value.placements}, but {of} as {x.placements}; what is changed must be placed alike")
            value = value.detach().redistribute(placements=x.placements)
        if changed:
            self._changed.append(value)
        return local_part(where, value)

    def only(self, i: int) -> Parts:
        """Tensor ``i`` alone, to read a partner by."""
        return Parts(self._where(self.name, i), self.given[i], changed=False)

    def rows(self, i: int, value: Tensor) -> Tensor:
        """Of a vector with one element for each row of tensor ``i`` those of its part; the vector a DTensor or plain."""
        return self.box[i].cut(replicated(value), slice(0, 1)) if is_sharded(self.given[i]) else value

    def done(self) -> None:
        """Tells autograd that the DTensors around the changed parts have changed too."""
        if self._changed and not torch.compiler.is_compiling():
            arg.increment_version(self._changed)

    def mesh(self) -> Any:
        """The mesh that all DTensors are on."""
        meshes = [(i, t.device_mesh) for i, t in enumerate(self.given) if is_sharded(t)]
        for i, mesh in meshes:
            if mesh != meshes[0][1]:
                raise ValueError(
                    f"{self.name}: {self.name}[{meshes[0][0]}] is on {meshes[0][1]}, but {self.name}[{i}] on {mesh}; accepted is one mesh "
                    "a call for what is counted over all ranks. Call once for each mesh"
                )
        return meshes[0][1]

    def counted(self) -> tuple[list[int], list[int]]:
        """Which tensors' parts count on this rank, and which are counted by another one that holds the same part."""
        from torch.distributed.tensor import Replicate

        here = self.mesh().get_coordinate()
        both: tuple[list[int], list[int]] = ([], [])
        for i, t in enumerate(self.given):
            placements = t.placements if is_sharded(t) else [Replicate()] * len(here or ())
            first = here is not None and all(at == 0 for at, p in zip(here, placements, strict=True) if isinstance(p, Replicate))
            both[0 if first else 1].append(i)
        return both

    def total(self, value: Tensor) -> Tensor:
        """The sum over the mesh's ranks, in place; the same bits on each."""
        import torch.distributed as dist

        mesh = self.mesh()
        if mesh.get_coordinate() is not None:
            for dim in range(mesh.ndim):
                dist.all_reduce(value, group=mesh.get_group(dim))
        return value


def alike(part: Tensor, x: Any, whole: Sequence[int], placements: Sequence[Any]) -> Any:
    """A DTensor of shape ``whole`` on ``x``'s mesh, of which ``part`` is this rank's."""
    from torch.distributed.tensor import DTensor

    strides = [prod(whole[d + 1 :]) for d in range(len(whole))]
    return DTensor.from_local(part, x.device_mesh, placements, run_check=False, shape=torch.Size(whole), stride=tuple(strides))


def in_stream(call: Callable[..., Any], parts: Parts, partners: Sequence[Any], *, stream: int, start: int | Sequence[int]) -> None:
    """Noise for parts: ``call(xs, *partners, stream=, start=)``, with each element's place in the whole tensor.

    A part that is one run of the whole's elements has one start. Of others whole rows are made, a few at a time, with zeros for what other
    ranks hold: what is computed for an element doesn't depend on its neighbours.

    Args:
        partners: what goes with each tensor: a number for all, or a list of numbers or local parts, one a tensor.
    """
    count = len(parts.given)
    first = [start] * count if isinstance(start, int) else list(start)
    if len(first) != count or not all(type(one) is int for one in first):
        call(parts.local, *partners, stream=stream, start=start)  # refuses it in words
    apart = [i for i, box in enumerate(parts.box) if not box.one_run]

    def without(values: Any) -> Any:
        if not isinstance(values, list):
            return values
        return [v.new_empty(0) if i in apart and isinstance(v, Tensor) else v for i, v in enumerate(values)]

    begins = [s + box.begin[0] * box.width if box.begin else s for s, box in zip(first, parts.box, strict=True)]
    call(without(parts.local), *map(without, partners), stream=stream, start=begins)
    for i in apart:
        box, local = parts.box[i], parts.local[i]
        inner = (slice(None), *(slice(b, b + n) for b, n in zip(box.begin[1:], box.size[1:], strict=True)))
        rows = max(1, CHUNK // box.width)
        for at in range(0, box.size[0], rows):
            some = slice(at, min(at + rows, box.size[0]))

            def spread(values: Any, i: int = i, some: slice = some, inner: Any = inner, box: Box = box) -> Any:
                if not isinstance(values, list):
                    return values
                if not isinstance(values[i], Tensor):
                    return [values[i]]
                wide = values[i].new_zeros((some.stop - some.start, *box.whole[1:]))
                wide[inner] = values[i][some]
                return [wide]

            (wide,) = spread(parts.local)
            call([wide], *map(spread, partners), stream=stream + i, start=begins[i] + at * box.width)
            local[some] = wide[inner]
    parts.done()
