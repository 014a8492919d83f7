"""Malformed files, by name: weights, receipts, ids and sets of samples."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from zoo_arrays import LOGITS, NPZ, PLAIN, SIXTEEN, claiming, entry, saved, tensors, zipped


def torch_saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm",)


def itself() -> dict[str, Any]:
    state: dict[str, Any] = {"w": torch.zeros(2)}
    state["inner"] = [state]
    return state


def doubled() -> dict[str, Any]:
    """Lists that hold one another twice: 2**60 entries to whoever walks them."""
    value: Any = [torch.zeros(1)]
    for _ in range(60):
        value = [value, value]
    return {"w": torch.zeros(2), "more": value}


def deep() -> dict[str, Any]:
    value: Any = torch.zeros(1)
    for _ in range(200):
        value = {"a": value}
    return {"a": value}


def repacked(content: bytes, kind: int, name: str = "", more: bytes | None = None) -> bytes:
    """A file of torch.save's with its entries packed, or one of them replaced or doubled."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", kind) as new:
        for about in old.infolist():
            held = old.read(about)
            new.writestr(about.filename, more if name and about.filename.endswith(name) and more is not None else held)
    return stream.getvalue()


STATE = {"w": torch.zeros(4, 4)}
SAVED, LEGACY = torch_saved(STATE), torch_saved(STATE, _use_new_zipfile_serialization=False)
PT: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello",
    "over several disks": lambda: SAVED.replace(b"PK\x06\x07", b"PK\x06\x07\1", 1),
    "cut off": lambda: SAVED[:300],
    "cut off late": lambda: SAVED[:-20],
    "old format, cut off": lambda: LEGACY[:-20],
    "old format, cut off early": lambda: LEGACY[:30],
    "old format, damaged": lambda: LEGACY[:200] + b"\xff" * 20 + LEGACY[220:],
    "pickled zip, damaged": lambda: repacked(SAVED, zipfile.ZIP_STORED, "data.pkl", b"\x80\x02}q\x00."),
    "pickled zip, nonsense": lambda: repacked(SAVED, zipfile.ZIP_STORED, "data.pkl", b"\x80\x02\xff\xff"),
    "a whole model": lambda: torch_saved(torch.nn.Linear(2, 2)),
    "a list": lambda: torch_saved([torch.zeros(2)]),
    "a tensor": lambda: torch_saved(torch.zeros(2)),
    "numbers": lambda: torch_saved({"epoch": 3}),
    "an empty dict": lambda: torch_saved({}),
    "names that are numbers": lambda: torch_saved({0: torch.zeros(2)}),
    "code": lambda: torch_saved(Evil()),
    "plain pickle": lambda: pickle.dumps({"w": [1, 2]}),
    "pickle of code": lambda: pickle.dumps(Evil()),
    "itself inside": lambda: torch_saved(itself()),
    "lists without end": lambda: torch_saved(doubled()),
    "too deep": lambda: torch_saved(deep()),
    "spread out by its strides": lambda: torch_saved({"w": torch.zeros(1).expand(10**6, 10**6)}),
    "on no device": lambda: torch_saved({"w": torch.empty(10**9, device="meta")}),
    "packed": lambda: repacked(torch_saved({"w": torch.zeros(2**22)}), zipfile.ZIP_DEFLATED),
    "claims 4 GB": lambda: claiming(SAVED, b"archive", 2**32 - 2),
    "several": lambda: torch_saved({"a": STATE, "b": STATE}),
    "numpy archive": lambda: PLAIN,
    "safetensors by name": lambda: tensors({"logits": entry()}, SIXTEEN),
}

JSON: dict[str, bytes] = {
    "empty": b"",
    "spaces": b"   \n",
    "cut off": b'{"format": "fastforget receipt 1", "rows": [',
    "a list": b"[]",
    "a text": b'"fastforget receipt 1"',
    "null": b"null",
    "another format": b'{"format": "other"}',
    "no format": b"{}",
    "format is a number": b'{"format": 1}',
    "a later format": b'{"format": "fastforget receipt 2"}',
    "a format with escapes": b'{"format": "fastforget receipt \\u001b[2J\\u202e"}',
    "nested deep": b"[" * 200_000 + b"]" * 200_000,
    "objects nested deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "one name twice": b'{"format": "fastforget receipt 1", "format": "fastforget receipt 1"}',
    "one name twice, below": b'{"format": "fastforget receipt 1", "verdict": {"status": "FAIL", "status": "PASS"}}',
    "NaN": b'{"format": "fastforget receipt 1", "a": NaN}',
    "infinity": b'{"format": "fastforget receipt 1", "a": -Infinity}',
    "beyond a float": b'{"format": "fastforget receipt 1", "a": 1e999}',
    "huge integer": b'{"format": "fastforget receipt 1", "a": 1' + b"0" * 10_000 + b"}",
    "not UTF-8": b'{"format": "fastforget receipt 1\xff"}',
    "UTF-16": '{"format": "fastforget receipt 1"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"format": "fastforget receipt 1"}',
    "control character": b'{"format": "fastforget receipt 1", "a": "\x01"}',
    "two values": b"{} {}",
    "comment": b'{"format": "fastforget receipt 1"} // no',
    "single quotes": b"{'format': 'fastforget receipt 1'}",
    "pickle": pickle.dumps({"format": "fastforget receipt 1"}),
}
IDS: dict[str, bytes] = {"not UTF-8": b"1\n\xff\xfe\n", "latin": "Zoë\n".encode("latin1"), "UTF-16": "1\n2\n".encode("utf-16")}


def samples(inputs: Any, labels: Any, **more: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, inputs=inputs, labels=labels, **more)
    return stream.getvalue()


SAMPLES: dict[str, bytes] = {
    **NPZ,
    "only inputs": zipped(("inputs.npy", saved(LOGITS))),
    "as many labels less one": samples(LOGITS, np.zeros(39, np.int64)),
    "no samples": samples(LOGITS[:0], np.zeros(0, np.int64)),
    "labels of two columns": samples(LOGITS, np.zeros((40, 2), np.int64)),
    "labels of NaN": samples(LOGITS, np.full(40, np.nan)),
    "labels of halves": samples(LOGITS, np.full(40, 0.5)),
    "labels of texts": samples(LOGITS, np.full(40, "cat")),
    "inputs of objects": samples(np.array([None] * 40, object), np.zeros(40, np.int64)),
    "one number": samples(np.float32(1), np.int64(1)),
}
del SAMPLES["packed, damaged"]  # with other names it is only that
