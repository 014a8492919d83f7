"""The safetensors file format, read and written with torch alone.

A file is the header's length (8 bytes, little-endian), a JSON header ``{name: {"dtype", "shape", "data_offsets"}}`` with an optional
``"__metadata__"`` of strings, and the tensors' bytes one after another. Nothing in it is executed, which is why state that others may have
written is kept in it and not in a pickle.
"""

from __future__ import annotations

import json
import math
import os
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._files import BadFile, size_of, strict_json, write_once, write_whole

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # the format's own bound
_ALIGNMENT = 8


class Entry(NamedTuple):
    """Where a tensor lies: its dtype, shape, and first byte counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NotSafetensors(ValueError):
    """The file is cut off, or isn't a safetensors file; the message says how."""


def encode(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The file's bytes: same tensors, same metadata, same bytes.

    Raises:
        TypeError: a dtype that the format has no name for.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    parts, at = [], 0
    # wide types first, so that every tensor is aligned to its own size
    for name in sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n)):
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name}: got {tensor.dtype}; accepted are {', '.join(map(str, NAMES))}")
        data = _bytes(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def save(path: str | PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes the file, whole or not at all."""
    write_whole(path, encode(tensors, metadata))


def save_once(path: str | PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """The same, but a file that is there already stays."""
    write_once(path, encode(tensors, metadata))


def entries(path: str | PathLike[str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a file holds, from its header alone, checked against the file's length.

    Raises:
        NotSafetensors: not such a file, cut off, or with tensors that overlap or leave the file.
        OSError: it can't be read.
    """
    os.stat(path)  # where there is no file, the error is OSError
    try:
        size = size_of(path)
    except BadFile as error:
        raise NotSafetensors(str(error)) from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > LONGEST_HEADER or 8 + length > size:
            raise NotSafetensors(f"{path} is not a safetensors file, or cut off in its header ({size} bytes)")
        raw = file.read(length)
    try:
        header = strict_json(raw)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _entry(name, about, 8 + length) for name, about in header.items()}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("__metadata__ holds something else than texts")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotSafetensors(f"{path} is not a safetensors file: its header can't be understood ({error})") from error
    end = 8 + length
    # at the same place the empty ones come first
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
        if entry.start < end:
            raise NotSafetensors(f"{path} is not a safetensors file: {name} overlaps what stands before it")
        end = entry.start + entry.bytes
        if end > size:
            raise NotSafetensors(f"{path} is cut off: {name} ends at byte {end}, the file at {size}. Copy or write it again")
    return tensors, metadata


def _entry(name: str, about: dict[str, Any], base: int) -> Entry:
    start, end = (_whole(n) for n in about["data_offsets"])
    if about["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of dtype {about['dtype']!r}; accepted are {', '.join(DTYPES)}")
    entry = Entry(DTYPES[about["dtype"]], tuple(_whole(n) for n in about["shape"]), base + start)
    if min((*entry.shape, 0)) < 0 or end - start != entry.bytes:
        raise ValueError(f"{name}: {end - start} bytes for shape {list(entry.shape)}, {entry.dtype}")
    return entry


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{number!r} where a size must stand")
    return number


def load(path: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, on the CPU, and its metadata; errors as :func:`entries`.

    >>> import os, tempfile, torch
    >>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
    >>> save(path, {"a": torch.arange(3)}, {"made": "here"})
    >>> tensors, metadata = load(path)
    >>> tensors["a"].tolist(), metadata
    ([0, 1, 2], {'made': 'here'})
    """
    by_name, metadata = entries(path)
    tensors = {}
    for name, entry in by_name.items():
        try:
            tensor = torch.empty(entry.shape if entry.bytes == 0 else (0,), dtype=entry.dtype)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise NotSafetensors(f"{path} is not a safetensors file: {name} has the shape {list(entry.shape)}") from error
        if entry.bytes:
            raw = np.fromfile(path, np.uint8, count=entry.bytes, offset=entry.start)
            tensor = torch.from_numpy(raw).view(entry.dtype).reshape(entry.shape)
        tensors[name] = tensor
    return tensors, metadata
