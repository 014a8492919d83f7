"""Arrays from files of any framework (npy, npz, safetensors), read by rows so that none need fit in memory."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ... import _safetensors as safetensors_io

SUFFIXES = (".npy", ".npz", ".safetensors")


class BadArray(ValueError):
    """A file that can't be used; the message names it and says what to do."""


class Rows:
    """An array in a file, by its first dimension. Made by :func:`open_rows`.

    Attributes:
        path, shape: the file, and the sizes of the array.
        dtype: numpy's, or torch.bfloat16.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: np.dtype | torch.dtype, start: int, held: np.ndarray | None = None
    ) -> None:
        self.path, self.shape, self.dtype, self._start, self._held = path, shape, dtype, start, held
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
        if self._held is not None:
            return torch.from_numpy(np.array(self._held[low:high]))
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
    first is decompressed into memory, the second mapped.

    Raises:
        BadArray: missing, of another kind, cut off, Python objects in it, or no array of that name.
    """
    place = Path(path)
    if place.suffix not in SUFFIXES:
        raise BadArray(f"{place}: its name ends in {place.suffix or 'nothing'!r}; accepted are {', '.join(SUFFIXES)}")
    if not place.is_file():
        raise BadArray(f"{place} is not there")
    try:
        if place.suffix == ".safetensors":
            return _safetensors(place, key)
        if place.suffix == ".npz":
            return _npz(place, key)
        with open(place, "rb") as file:
            return _npy(place, file, 0, os.path.getsize(place))
    except BadArray:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadArray(f"{place} can't be read: {error}. Copy or write it again") from error


def _chosen_name(place: Path, names: list[str], key: str) -> str:
    if key in names:
        return key
    if len(names) != 1:
        raise BadArray(f"{place} holds {', '.join(names) or 'nothing'}; accepted is one array, or one called {key!r}")
    return names[0]


def _safetensors(place: Path, key: str) -> Rows:
    entries, _ = safetensors_io.entries(place)
    entry = entries[_chosen_name(place, list(entries), key)]
    if entry.dtype == torch.bfloat16:
        return Rows(place, entry.shape, entry.dtype, entry.start)
    return Rows(place, entry.shape, torch.empty(0, dtype=entry.dtype).numpy().dtype, entry.start)


def _npz(place: Path, key: str) -> Rows:
    with zipfile.ZipFile(place) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        about = archive.getinfo(names[_chosen_name(place, list(names), key)])
        if about.compress_type == zipfile.ZIP_STORED:
            with open(place, "rb") as file:
                file.seek(about.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                begin = about.header_offset + 30 + name + extra
                file.seek(begin)
                return _npy(place, file, begin, begin + about.file_size)
        with archive.open(about) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    return Rows(place, array.shape, _native(place, array.dtype), 0, array.astype(array.dtype.newbyteorder("="), copy=False))


def _npy(place: Path, file: IO[bytes], begin: int, end: int) -> Rows:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    needed, there = math.prod(shape) * dtype.itemsize, end - file.tell()
    if dtype.hasobject:
        raise BadArray(f"{place} holds Python objects; accepted are numbers. Write it again as float32, int64 or bool")
    if there < needed:
        raise BadArray(
            f"{place} is cut off: shape {shape}, {dtype}, takes {needed} bytes and {there} are there. Copy or write it again"
        )
    if fortran and len(shape) > 1:
        mapped = np.memmap(place, dtype, "r", file.tell(), shape, "F")
        return Rows(place, shape, _native(place, dtype), 0, mapped)
    return Rows(place, shape, _native(place, dtype), file.tell())


def _native(place: Path, dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise BadArray(f"{place} holds {dtype}; accepted are float16 to float64, integers and bool")
    return dtype


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
    if values.dtype != torch.bool and not bool(((values == 0) | (values == 1)).all()):
        raise BadArray(f"{rows.path}: numbers other than 0 and 1; accepted are bool, or 0 and 1: {what}")
    return values.bool()


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
