"""Arrays in .npy and .npz files: what they claim to hold is checked against the file and the memory before any of it is read."""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ._files import BadFile, size_of

KINDS = "fiub"
ACCEPTED = "accepted are float16 to float64, integers and bool"
_LARGEST = 1 << 62  # bytes


class BadArray(ValueError):
    """A file that can't be used; the message names it and says what to do."""


class Header(NamedTuple):
    """What an array's header says, and where its numbers begin in the stream it was read from."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def regular_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file; BadArray where it is none."""
    try:
        return size_of(path)
    except BadFile as error:
        raise BadArray(str(error)) from error


def header(place: Path, file: IO[bytes], length: int) -> Header:
    """The header of an array that takes ``length`` bytes of a stream, from where it stands.

    Raises:
        BadArray: none, or Python objects, no numbers, sizes that can't be, or more than ``length`` bytes.
    """
    begin = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # a header is a Python literal that numpy evaluates: anything may come out of it
        raise BadArray(f"{place} can't be read: {first_line(error)}. Copy or write it again") from error
    found = Header(tuple(int(n) for n in shape), dtype, fortran, file.tell())
    if dtype.hasobject:
        raise BadArray(f"{place} holds Python objects; accepted are numbers. Write it again as float32, int64 or bool")
    if dtype.kind not in KINDS or dtype.itemsize > 8 or dtype.subdtype is not None:
        raise BadArray(f"{place} holds {dtype}; {ACCEPTED}")
    if min((*found.shape, 0)) < 0 or found.bytes > _LARGEST or any(isinstance(n, bool) for n in shape):
        raise BadArray(f"{place} claims the shape {_short(shape)}, which no array has. Copy or write it again")
    there = length - (found.start - begin)
    if there < found.bytes:
        raise BadArray(
            f"{place} is cut off: shape {_short(found.shape)}, {dtype}, takes {found.bytes} bytes and {max(there, 0)} are there. "
            "Copy or write it again"
        )
    return found


def _short(shape: tuple[int, ...]) -> str:
    text = str(tuple(shape))
    return text if len(text) < 100 else f"{text[:90]}…"


def first_line(error: BaseException) -> str:
    """The beginning of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def zip_entries(place: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz by name, without ".npy".

    Raises:
        BadArray: no zip archive, an entry that stands twice, is encrypted, or claims bytes that the file doesn't have.
    """
    size = regular_size(place)
    try:
        with zipfile.ZipFile(place) as archive:
            listed = archive.infolist()
    except Exception as error:
        raise BadArray(f"{place} can't be read: {first_line(error)}. Copy or write it again") from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in listed:
        name = entry.filename.removesuffix(".npy")
        if name in entries:
            raise BadArray(f"{place} holds {name} twice; accepted is one array of a name. Write it again")
        if entry.flag_bits & 1:
            raise BadArray(f"{place}: {name} is encrypted; accepted is an archive that numpy wrote")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArray(f"{place}: {name} is packed in a way that numpy doesn't write; accepted are np.savez and np.savez_compressed")
        entries[name] = entry
    # stored bytes can't overlap, and deflate packs at most 1,032 bytes into one
    if sum(entry.file_size for entry in listed if entry.compress_type == zipfile.ZIP_STORED) > size or any(
        entry.compress_size > size or entry.file_size > 1100 * (entry.compress_size + 1) for entry in listed
    ):
        raise BadArray(f"{place}: its arrays claim more bytes than the file of {size} bytes can hold. Copy or write it again")
    return entries


def stored_at(place: Path, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where an entry's bytes begin and end, which are stored as they are."""
    size = regular_size(place)
    with open(place, "rb") as file:
        file.seek(entry.header_offset)
        head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise BadArray(f"{place} can't be read: {entry.filename} is not where its table says. Copy or write it again")
    begin = entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return begin, min(begin + entry.file_size, size)


def entry_header(place: Path, entry: zipfile.ZipInfo) -> Header:
    """The header of a compressed entry, by unpacking no more than that."""
    try:
        with zipfile.ZipFile(place) as archive, archive.open(entry) as stream:
            beginning = stream.read(min(entry.file_size, 1 << 17))
    except Exception as error:
        raise BadArray(f"{place} can't be read: {first_line(error)}. Copy or write it again") from error
    return header(place, io.BytesIO(beginning), entry.file_size)


def unpacked(place: Path, entry: zipfile.ZipInfo) -> np.ndarray:
    """A compressed entry's array, in memory as a whole.

    Raises:
        BadArray: more than half of the memory that is free, or damaged.
    """
    free = free_memory()
    if entry.file_size > free // 2:
        raise BadArray(
            f"{place}: {entry.filename} unpacks to {entry.file_size} bytes, more than half of the {free} that are free. Write it by "
            "np.savez, which is read by pieces"
        )
    try:
        with zipfile.ZipFile(place) as archive, archive.open(entry) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise BadArray(f"{place} can't be read: {first_line(error)}. Copy or write it again") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def free_memory() -> int:
    """Bytes that can be taken now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_npz(place: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """These arrays of an .npz in memory; the errors of :func:`zip_entries`, :func:`header` and :func:`unpacked`."""
    entries = zip_entries(place)
    headers = {name: entry_header(place, entries[name]) for name in names}
    free = free_memory()
    if (total := sum(one.bytes for one in headers.values())) > free // 2:
        raise BadArray(f"{place} holds {total} bytes, more than half of the {free} that are free")
    return {name: unpacked(place, entries[name]) for name in names}


def describe(arrays: Any) -> str:
    """The names of arrays for a message."""
    return ", ".join(list(arrays)[:8]) or "nothing"
