"""Malformed files, by name: image files of the demonstration."""

from __future__ import annotations

import gzip
import os
import pickle
import zlib
from typing import Any

import numpy as np
from zoo_arrays import damaged
from zoo_states import Evil


def idx(shape: tuple[int, ...], values: bytes, magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + values


IMAGES, NAMES = idx((20, 4, 4), bytes(320)), idx((20,), bytes(i % 10 for i in range(20)))
IDX: dict[str, bytes] = {
    "empty": b"",
    "wrong magic": b"\1" + IMAGES[1:],
    "header cut off": IMAGES[:9],
    "cut off": IMAGES[:-1],
    "too long": IMAGES + b"\0",
    "huge": idx((2**32 - 1, 2**32 - 1, 2**32 - 1), bytes(320)),
    "255 sizes": b"\0\0\x08\xff" + bytes(1020),
    "no images": idx((0, 4, 4), b""),
    "not square": idx((20, 2, 8), bytes(320)),
    "fewer than labels": idx((10, 4, 4), bytes(160)),
    "floats": idx((20, 4, 4), bytes(320), b"\0\0\x0d"),
    "gzip, cut off": gzip.compress(IMAGES)[:-9],
    "gzip, wrong sum": damaged(gzip.compress(IMAGES), -6),
    "gzip, damaged": damaged(gzip.compress(os.urandom(4000)), 20),
    "gzip, of nothing": gzip.compress(b""),
    "gzip bomb": gzip.compress(bytes(300 << 20), 1),
}
TABLES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello,world\n",
    "ragged": b"1,2,3\n1,2\n",
    "too few columns": b"1,2,3\n",
    "not UTF-8": b"\xff\xfe,1\n",
    "NaN": b",".join([b"nan"] * 65) + b"\n",
    "negative": b",".join([b"-1"] * 65) + b"\n",
    "halves": b",".join([b"0.5"] * 65) + b"\n",
    "other digits": b",".join([b"1"] * 65) + b"\n",
    "gzip, cut off": gzip.compress(b"1,2\n" * 100)[:-9],
    "gzip of nothing": gzip.compress(b""),
    "deflated": zlib.compress(b"1,2,3"),
}


def batch(images: Any, labels: Any) -> bytes:
    return pickle.dumps({b"data": images, b"labels": labels}, protocol=2)


ROWS = np.zeros((10, 3072), np.uint8)
CIFAR: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "cut off": batch(ROWS, list(range(10)))[:-50],
    "code": pickle.dumps(Evil()),
    "a list": pickle.dumps([1, 2]),
    "no labels": pickle.dumps({b"data": ROWS}),
    "labels beyond 9": batch(ROWS, [10] * 10),
    "negative labels": batch(ROWS, [-1] * 10),
    "huge labels": batch(ROWS, [10**30] * 10),
    "texts": batch("hello", "world"),
    "too few labels": batch(ROWS, [1]),
    "labels of two columns": batch(ROWS, np.zeros((10, 2), np.uint8)),
    "other sizes": batch(np.zeros((10, 3000), np.uint8), list(range(10))),
    "claims a length": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x",
    "protocol 200": b"\x80\xc8.",
    "remembers too much": b"\x80\x02}r" + (2**28).to_bytes(4, "little") + b".",
    "nested deep": b"(" * 100_000 + b".",
}
