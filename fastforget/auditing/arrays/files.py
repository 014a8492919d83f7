"""Arrays from files of any framework (npy, npz, safetensors), read by rows so that none need fit in memory."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import _safetensors as safetensors_io
from ..._arrays import BadArray, Header, describe, entry_header, header, regular_size, stored_at, unpacked, zip_entries

__all__ = ["SUFFIXES", "BadArray", "Rows", "class_ids", "files_of", "flags", "open_rows"]

SUFFIXES = (".npy", ".npz", ".safetensors")


class Rows:
    """An array in a file, by its first dimension. Made by :func:`open_rows`.

    Attributes:
        path, shape: the file, and the sizes of the array.
        dtype: numpy's, or torch.bfloat16.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype | torch.dtype,
        start: int,
        whole: Callable[[], np.ndarray] | None = None,
    ) -> None:
        self.path, self.shape, self.dtype, self._start, self._whole = path, shape, dtype, start, whole
        self._held: np.ndarray | None = None
        if not shape:
            raise BadArray(f"{path} holds a single number; accepted is an array with one row a sample")

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def floating(self) -> bool:
        return self.dtype.is_floating_point if isinstance(self.dtype, torch.dtype) else self.dtype.kind == "f"

    def read(self, low: int = 0, high: int | None = None) -> Tensor:
        """Rows low to high - 1, a tensor of their own."""
        high = len(self) if high is None else min(high, len(self))
        if self._whole is not None:
            if self._held is None:
                self._held = self._whole()
            rows = np.array(self._held[low:high])
            return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))
        wanted = (high - low) * self.row_bytes
        raw = np.fromfile(self.path, np.uint8, count=wanted, offset=self._start + low * self.row_bytes)
        if len(raw) != wanted:
            raise BadArray(f"{self.path} is cut off: rows {low} to {high - 1} can't be read. Copy or write it again")
        shape = (high - low, *self.shape[1:])
        if isinstance(self.dtype, torch.dtype):
            return torch.from_numpy(raw).view(self.dtype).reshape(shape)
        return torch.from_numpy(raw.view(self.dtype).astype(self.dtype.newbyteorder("="), copy=False).reshape(shape))


def open_rows(path: str | os.PathLike[str], key: str) -> Rows:
    """The array of a file: of several in an npz or safetensors file, the one called ``key``.

    Only the header is read, and checked against the file's length. A compressed npz or an array in Fortran order can't be read by rows; the
    first is unpacked into memory when it is read, the second mapped.

    Raises:
        BadArray: missing, of another kind, cut off, Python objects in it, or no array of that name.
    """
    place = Path(path)
    if place.suffix not in SUFFIXES:
        raise BadArray(f"{place}: its name ends in {place.suffix or 'nothing'!r}; accepted are {', '.join(SUFFIXES)}")
    if not os.path.exists(place):
        raise BadArray(f"{place} is not there")
    size = regular_size(place)
    try:
        if place.suffix == ".safetensors":
            return _safetensors(place, key)
        if place.suffix == ".npz":
            return _npz(place, key)
        return _npy(place, 0, size)
    except BadArray:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise BadArray(f"{place} can't be read: {error}. Copy or write it again") from error


def _chosen_name(place: Path, names: list[str], key: str) -> str:
    if key in names:
        return key
    if len(names) != 1:
        raise BadArray(f"{place} holds {describe(names)}; accepted is one array, or one called {key!r}")
    return names[0]


def _safetensors(place: Path, key: str) -> Rows:
    entries, _ = safetensors_io.entries(place)
    entry = entries[_chosen_name(place, list(entries), key)]
    if entry.dtype == torch.bfloat16:
        return Rows(place, entry.shape, entry.dtype, entry.start)
    return Rows(place, entry.shape, torch.empty(0, dtype=entry.dtype).numpy().dtype, entry.start)


def _npz(place: Path, key: str) -> Rows:
    entries = zip_entries(place)
    entry = entries[_chosen_name(place, list(entries), key)]
    if entry.compress_type == zipfile.ZIP_STORED:
        return _npy(place, *stored_at(place, entry))
    about = entry_header(place, entry)
    return Rows(place, about.shape, about.dtype, 0, lambda: unpacked(place, entry))


def _npy(place: Path, begin: int, end: int) -> Rows:
    with open(place, "rb") as file:
        file.seek(begin)
        about = header(place, file, end - begin)
    if about.fortran and len(about.shape) > 1:
        return Rows(place, about.shape, about.dtype, 0, lambda: _mapped(place, about))
    return Rows(place, about.shape, about.dtype, about.start)


def _mapped(place: Path, about: Header) -> np.ndarray:
    return np.memmap(place, about.dtype, "r", about.start, about.shape, "F")


def files_of(folder: str | os.PathLike[str]) -> list[Path]:
    """The array files of a folder, by name.

    Raises:
        BadArray: not a folder.
    """
    place = Path(folder)
    if not place.is_dir():
        raise BadArray(f"{place} is not a folder; accepted is one with a file for each shadow model")
    return sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))


def flags(rows: Rows, shape: tuple[int, ...], what: str) -> Tensor:
    """bool of this shape, from bool or from numbers 0 and 1.

    Raises:
        BadArray: another shape, or other numbers.
    """
    if rows.shape != shape:
        raise BadArray(f"{rows.path}: shape {list(rows.shape)}; accepted is {list(shape)}: {what}")
    values = rows.read()
    if values.dtype == torch.bool:
        return values.view(torch.uint8) != 0  # a file may hold any byte for true
    wide = values.double()
    if not bool(((wide == 0) | (wide == 1)).all()):
        raise BadArray(f"{rows.path}: numbers other than 0 and 1; accepted are bool, or 0 and 1: {what}")
    return wide.bool()


def class_ids(rows: Rows, n: int, beside: str) -> Tensor:
    """int64[n].

    Raises:
        BadArray: another length, another shape, or not integers.
    """
    if len(rows.shape) != 1 or rows.floating or rows.dtype == np.bool_:
        raise BadArray(f"{rows.path}: {rows.dtype} of shape {list(rows.shape)}; accepted are integer class ids [{n}], one a sample")
    if len(rows) != n:
        raise BadArray(f"{rows.path}: {len(rows)} labels for {n} samples of {beside}; both must be of the same samples in the same order")
    return rows.read().to(torch.int64)
