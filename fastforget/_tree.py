"""A batch's inputs as people have them: one tensor, or tensors in dicts, lists, named tuples and the like.

torch has such a utility of its own, but it is private and knows neither the classes of Hugging Face nor graph batches. Here a *nest* is
built of tensors, mappings, tuples, lists and dataclasses, its tensors have the samples as rows, and it keeps its type whatever is done to
it. Anything else that has a ``.to()`` (a batch of graphs) is *opaque*: it can be moved and handed to the model, and read sample by sample,
but nobody knows which of its rows belong to which sample.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def describe(value: Any) -> str:
    """What came, in a few words, for errors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)[:6]}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: ({', '.join(type(v).__name__ for v in value[:4])})"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape}, {value.dtype}"
    return f"{type(value).__name__} {value!r}"[:120]


def map_tensors(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """The same nest with ``function`` of each tensor (and of its partners in the ``others``) in its place; what is no tensor stays.

    >>> import torch
    >>> map_tensors(lambda t: t + 1, {"ids": torch.zeros(1), "name": "a"})
    {'ids': tensor([1.]), 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return function(value, *others)
    if isinstance(value, Mapping):
        mapped = {key: map_tensors(function, part, *(other[key] for other in others)) for key, part in value.items()}
        return mapped if type(value) is dict else like(value, mapped)
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, *column) for column in zip(value, *others, strict=True)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        same = copy.copy(value)
        for field in dataclasses.fields(value):
            partners = (getattr(other, field.name) for other in others)
            object.__setattr__(same, field.name, map_tensors(function, getattr(value, field.name), *partners))
        return same
    return value


def like(value: Any, mapped: dict[Any, Any]) -> Any:
    """A mapping of the same class (its further attributes too) with these entries."""
    try:
        same = copy.copy(value)
        for key, part in mapped.items():
            same[key] = part
        return same
    except TypeError:
        return type(value)(mapped)


def move(value: Any, device: torch.device | str | None) -> Any:
    """``value`` with every tensor in it on ``device``; an opaque object by its own ``.to()``."""
    if device is None:
        return value
    if is_opaque(value):
        return value.to(device)
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), value)


def is_opaque(value: Any) -> bool:
    """Whether only ``value`` itself knows how its tensors are arranged."""
    known = isinstance(value, (Tensor, Mapping, tuple, list)) or dataclasses.is_dataclass(value)
    return not known and callable(getattr(value, "to", None))


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nest."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    yield from found


def rows(value: Any) -> int | None:
    """How many samples a nest holds: the rows that all its tensors have; None where they differ, or where there is none."""
    sizes = {len(tensor) if tensor.dim() else -1 for tensor in tensors(value)}
    return sizes.pop() if len(sizes) == 1 and -1 not in sizes else None


def index(value: Any, at: Any) -> Any:
    """The samples at these rows (a number, a slice or an index tensor) of every tensor.

    Raises:
        TypeError: the tensors don't have the samples as rows.
    """
    if isinstance(value, Tensor):
        return value[at]
    if rows(value) is None:
        raise TypeError(f"inputs are {describe(value)}: which rows belong to which sample can't be told")
    return map_tensors(lambda tensor: tensor[at.to(tensor.device) if isinstance(at, Tensor) else at], value)


def cat(values: list[Any]) -> Any:
    """Batches in one: every tensor joined with its partners by rows.

    Raises:
        TypeError: the tensors don't have the samples as rows, or the batches differ in kind.
        RuntimeError: the tensors' further sizes differ.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if any(rows(value) is None for value in values):
        raise TypeError(f"inputs are {describe(first)}: batches of them can't be joined")
    return map_tensors(lambda *parts: torch.cat(parts), first, *values[1:])


def repeat(value: Any, count: int) -> Any:
    """A batch of ``count`` times the same sample (a nest without rows)."""
    return map_tensors(lambda tensor: tensor.expand(count, *tensor.shape), value)


def shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    """The shape of one sample in each tensor of a nest."""
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors(value))


def contents(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(name, tensor or array or text) of everything in a nest or an opaque object, in an order that depends on the names alone."""
    yield from _contents(value, path, set())


def _contents(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, np.ndarray, str, bytes, int, float, bool)):
        yield path, value
    elif value is None or id(value) in seen or isinstance(value, type) or callable(value):
        return
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _contents(value[key], f"{path}{key}|", seen | {id(value)})
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _contents(part, path, seen | {id(value)})
    elif hasattr(value, "__dict__"):
        yield from _contents(vars(value), path, seen | {id(value)})
