"""Malformed files, by name: arrays of numpy and of safetensors, and what may lie where a file is expected."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path], None]


def raw(content: bytes | str) -> Make:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content) and None  # type: ignore[func-returns-value]


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path)


def missing(path: Path) -> None:
    pass


EVERYWHERE: dict[str, Make] = {"folder": folder, "fifo": fifo, "dangling link": dangling, "link to itself": loop, "missing": missing}


def npy(header: bytes | str, data: bytes = b"", version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    text = header.encode("latin1") if isinstance(header, str) else header
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + version + size + text + data


def shaped(shape: str, descr: str = "'<f4'", data: bytes = b"\0" * 800, order: str = "False") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", data)


def saved(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


LOGITS = np.zeros((40, 5), np.float32)
NPY: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x93",
    "wrong magic": b"NUMPY\x93" + saved(LOGITS)[6:],
    "unknown version": npy("{}", version=b"\x09\x09"),
    "magic alone": b"\x93NUMPY\x01\x00",
    "truncated header": saved(LOGITS)[:40],
    "truncated data": saved(LOGITS)[:-5],
    "no data": saved(LOGITS)[:128],
    "header length too long": npy("{}", length=60000),
    "header of 4 GB": npy("{}", version=b"\x02\x00", length=2**32 - 1),
    "header is no literal": npy("__import__('os').abort()\n"),
    "header is a list": npy("[1, 2]\n"),
    "header without shape": npy("{'descr': '<f4', 'fortran_order': False}\n"),
    "header nested deep": npy("(" * 5000 + ")" * 5000),
    "header of parentheses": npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + "}\n"),
    "header not latin": npy(b"\xff\xfe\x00\n"),
    "huge shape": shaped("(1000000000000, 5)"),
    "shape beyond 64 bits": shaped("(10**30, 5)"),
    "shape of 30 digits": shaped("(100000000000000000000000000000, 5)"),
    "negative size": shaped("(-40, 5)"),
    "two negative sizes": shaped("(-40, -5)"),
    "shape of floats": shaped("(40.0, 5)"),
    "shape of texts": shaped("('40', 5)"),
    "shape of truths": shaped("(True, 5)"),
    "no dimension": shaped("()"),
    "no rows": shaped("(0, 5)"),
    "no columns": shaped("(40, 0)"),
    "one class": saved(np.zeros((40, 1), np.float32)),
    "four dimensions": saved(np.zeros((4, 5, 2, 5), np.float32)),
    "objects": saved(np.array([[1, None]] * 20, object), allow_pickle=True),
    "objects claimed": shaped("(40, 5)", "'|O'"),
    "texts": saved(np.full((40, 5), "a")),
    "bytes": saved(np.full((40, 5), b"a")),
    "dates": saved(np.zeros((40, 5), "datetime64[s]")),
    "complex": saved(np.zeros((40, 5), np.complex64)),
    "structured": saved(np.zeros(40, [("a", "<f4"), ("b", "<f4")])),
    "array within": shaped("(40,)", "('<f4', (5,))"),
    "array of a billion within": shaped("(40,)", "('<f4', (1000000000,))"),
    "long double": saved(np.zeros((40, 5), np.longdouble)),
    "unknown dtype": shaped("(40, 5)", "'<f3'"),
    "void": shaped("(40, 5)", "'|V4'"),
    "integers": saved(np.zeros((40, 5), np.int64)),
    "pickle": pickle.dumps(LOGITS),
    "text": b"0.1 0.2\n0.3 0.4\n",
    "fortran, huge": shaped("(1000000000000, 5)", order="True"),
    "order is a number": shaped("(40, 5)", order="7"),
}
LABELS: dict[str, bytes] = {
    "floating": saved(np.zeros(40)),
    "NaN": saved(np.full(40, np.nan)),
    "out of range": saved(np.full(40, 5)),
    "negative": saved(np.full(40, -1)),
    "beyond int64": saved(np.full(40, 2**64 - 1, np.uint64)),
    "truths": saved(np.zeros(40, bool)),
    "too few": saved(np.zeros(39, np.int64)),
    "two columns": saved(np.zeros((40, 2), np.int64)),
    "one number": saved(np.int64(3)),
    "other endianness, out of range": saved(np.arange(40).astype(">i8")),
    "huge": shaped("(1000000000000,)", "'<i8'"),
}
MEMBERS: dict[str, bytes] = {
    "two": saved(np.full(40, 2)),
    "NaN": saved(np.full(40, np.nan)),
    "all": saved(np.ones(40)),
    "none": saved(np.zeros(40, bool)),
    "minus one": saved(np.full(40, -1)),
    "beyond int64": saved(np.full(40, 2**64 - 1, np.uint64)),
    "truths of 255, all": shaped("(40,)", "'|b1'", b"\xff" * 40),
    "too many": saved(np.zeros(41)),
}


def zipped(*entries: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def claiming(content: bytes, name: bytes, size: int) -> bytes:
    """The central table of a stored archive claims another size for an entry."""
    at = content.rindex(b"PK\x01\x02")
    assert name in content[at:]
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]


def deflated(header: bytes, zeros: int) -> bytes:
    """An entry that unpacks to a header and so many zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("logits.npy", "w", force_zip64=True) as entry:
        entry.write(header)
        block = bytes(1 << 20)
        for _ in range(zeros >> 20):
            entry.write(block)
    return stream.getvalue()


PLAIN = zipped(("logits.npy", saved(LOGITS)))
PACKED = zipped(("logits.npy", saved(LOGITS + np.arange(5, dtype=np.float32))), kind=zipfile.ZIP_DEFLATED)


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


NPZ: dict[str, bytes] = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + b"\0" * 50,
    "table cut off": PLAIN[:-30],
    "only the table": PLAIN[-80:],
    "empty archive": zipped(),
    "other names": zipped(("a.npy", saved(LOGITS)), ("b.npy", saved(LOGITS))),
    "one name twice": zipped(("logits.npy", saved(LOGITS)), ("logits", saved(LOGITS))),
    "text inside": zipped(("logits.npy", b"hello")),
    "objects inside": zipped(("logits.npy", saved(np.array([None] * 40, object), allow_pickle=True))),
    "entry cut off": zipped(("logits.npy", saved(LOGITS)[:-100])),
    "claims 4 GB": claiming(PLAIN, b"logits.npy", 2**32 - 2),
    "claims nothing": claiming(PLAIN, b"logits.npy", 0),
    "local header gone": damaged(PLAIN, 2),
    "packed, damaged": damaged(PACKED, len(PACKED) // 2 - 40),
    "packed, claims 4 GB": claiming(PACKED, b"logits.npy", 2**32 - 2),
    "packed, huge shape": zipped(("logits.npy", shaped("(1000000000000, 5)")), kind=zipfile.ZIP_DEFLATED),
    "packed, negative": zipped(("logits.npy", shaped("(-40, -5)")), kind=zipfile.ZIP_DEFLATED),
    "packed by bzip2": zipped(("logits.npy", saved(LOGITS)), kind=zipfile.ZIP_BZIP2),
    "packed by lzma": zipped(("logits.npy", saved(LOGITS)), kind=zipfile.ZIP_LZMA),
    "names from elsewhere": zipped(("../../etc/\x1b[2Jlogits", saved(LOGITS)), ("b", b"")),
}


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SIXTEEN = bytes(16)
SAFETENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "only a length": (8).to_bytes(8, "little"),
    "length of 2**63": tensors(b"{}", length=2**63),
    "length past the end": tensors(b"{}", length=1000),
    "no JSON": tensors(b"hello!!!"),
    "not UTF-8": tensors(b'{"\xff": 1}'),
    "a list": tensors([1, 2]),
    "a number": tensors(3),
    "nested deep": tensors("[" * 100_000 + "]" * 100_000),
    "an entry that is a list": tensors({"logits": [1]}),
    "no offsets": tensors({"logits": {"dtype": "F32", "shape": [2, 2]}}, SIXTEEN),
    "three offsets": tensors({"logits": entry(offsets=[0, 8, 16])}, SIXTEEN),
    "offsets turned": tensors({"logits": entry(offsets=[16, 0])}, SIXTEEN),
    "negative offsets": tensors({"logits": entry(offsets=[-16, 0])}, SIXTEEN),
    "floating offsets": tensors({"logits": entry(offsets=[0.0, 16.0])}, SIXTEEN),
    "truth for an offset": tensors({"logits": entry(offsets=[False, 16])}, SIXTEEN),
    "negative shape": tensors({"logits": entry(shape=[-2, -2])}, SIXTEEN),
    "shape of texts": tensors({"logits": entry(shape=["2", "2"])}, SIXTEEN),
    "infinite size": tensors('{"logits": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 16]}}', SIXTEEN),
    "shape and bytes differ": tensors({"logits": entry(shape=[2, 3])}, SIXTEEN),
    "huge claim": tensors({"logits": entry(shape=[10**12, 5], offsets=[0, 20 * 10**12])}, SIXTEEN),
    "size of 400 digits": tensors({"logits": entry(shape=[10**399], offsets=[0, 4 * 10**399])}, SIXTEEN),
    "size of 5000 digits": tensors('{"logits": {"dtype": "F32", "shape": [1' + "0" * 5000 + '], "data_offsets": [0, 16]}}', SIXTEEN),
    "cut off": tensors({"logits": entry()}, SIXTEEN[:-1]),
    "overlapping": tensors({"logits": entry(), "b": entry(offsets=[8, 24])}, bytes(24)),
    "before the data": tensors({"logits": entry(offsets=[-8, 8])}, SIXTEEN),
    "one name twice": tensors(b'{"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "w": {}}', SIXTEEN),
    "unknown dtype": tensors({"logits": entry("F8_E4M3", [4, 4])}, SIXTEEN),
    "dtype is a number": tensors({"logits": entry(3)}, SIXTEEN),  # type: ignore[arg-type]
    "metadata of numbers": tensors({"__metadata__": {"a": 1}, "logits": entry()}, SIXTEEN),
    "metadata is a list": tensors({"__metadata__": [1], "logits": entry()}, SIXTEEN),
    "NaN": tensors('{"logits": NaN}'),
    "nothing inside": tensors({}),
}
