"""A journal's folder: one sub-folder a request, put in place whole; the chain of hashes through them; and the lock for who writes.

    0001/  original.safetensors   the weights before the first request (here alone)
           request.json           what was asked, the receipt before it, and the weights' hashes before and after
           forget.safetensors     the hash of each sample to forget, where there was a forget set
           weights.safetensors    the weights after the request
           receipt.json           what was done and measured, and the sha256 of each file beside it
    0002/  ...
    lock                          who writes

A request is written as ``.pending`` and takes its number in one step, so a folder with a number is a request that was done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .. import _safetensors
from .._files import BadFile, jsonable, read_whole, strict_json, write_json, write_whole
from .._identity import digest
from ..auditing.proof.receipt import own_hash

FORMAT = "fastforget journal 1"
REQUEST, RECEIPT, ORIGINAL, WEIGHTS, FORGET = (
    "request.json", "receipt.json", "original.safetensors", "weights.safetensors", "forget.safetensors",
)  # fmt: skip
PENDING, LOCK = ".pending", "lock"
DIGESTS = "sha256"  # the tensor in forget.safetensors: uint8[N, 16], the first half of each hash, sorted
LONGEST_JSON = 100_000_000  # bytes


class Busy(RuntimeError):
    """Another process writes to the journal."""


class Done(NamedTuple):
    """A request that was done: its two files, and where they lie."""

    request: dict[str, Any]
    receipt: dict[str, Any]
    folder: Path

    @property
    def id(self) -> str:
        return str(self.request["id"])

    @property
    def forgot(self) -> bool:
        return bool(self.receipt["unlearning"]["verdict"]["forgot"])


class Store:
    """The folder at ``path``, which may not be there yet."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> list[Done]:
        """Every request that was done, in order, with its place in the chain checked; large files aren't read.

        Raises:
            BadFile: something that is no part of a journal, or a file that doesn't fit the others; the message begins with its name.
        """
        done: list[Done] = []
        for number, folder in enumerate(self._folders(), 1):
            if folder.name != _name(number):
                raise BadFile(f"{self.path / _name(number)}: it is missing, and {folder.name} is there")
            done.append(_read(folder, number, done[-1] if done else None))
        return done

    def _folders(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self.path), key=lambda name: (len(name), name))
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise BadFile(f"{self.path}: it is a file; accepted is a folder, or a path where none is yet") from error
        strange = [name for name in names if name not in (PENDING, LOCK) and not re.fullmatch(r"\d{4,}", name)]
        if strange:
            raise BadFile(f"{self.path / strange[0]}: it is no part of a journal; accepted is a journal's folder, an empty or a new one")
        return [self.path / name for name in names if name not in (PENDING, LOCK)]

    def tensors(self, done: Done, name: str) -> dict[str, Tensor]:
        """One of a request's safetensors files, checked against its receipt."""
        path = done.folder / name
        _check_file(path, done.receipt["files"][name])
        try:
            return _safetensors.load(path)[0]
        except _safetensors.NotSafetensors as error:
            raise BadFile(str(error)) from error

    def verify(self) -> list[Done]:
        """As :meth:`read`, with every file's hash, and weights whose content is what the requests say."""
        done = self.read()
        for one in done:
            for name in one.receipt["files"]:
                if not name.endswith(".safetensors"):
                    continue
                tensors = self.tensors(one, name)
                stated = one.request["weights_sha256"].get({ORIGINAL: "before", WEIGHTS: "after"}.get(name, ""))
                if stated is not None and digest(tensors) != stated:
                    raise BadFile(f"{one.folder / name}: its weights aren't those that {REQUEST} names ({stated[:12]}…)")
        return done

    def commit(self, number: int, request: dict[str, Any], receipt: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> Done:
        """Writes a request and puts it in place in one step; whatever goes wrong before that leaves the journal as it was."""
        pending, place = self.path / PENDING, self.path / _name(number)
        self.clean()
        try:
            os.mkdir(pending)
            files = {}
            for name, content in {REQUEST: _text(request), **{name: _safetensors.encode(t) for name, t in tensors.items()}}.items():
                write_whole(pending / name, content)
                files[name] = hashlib.sha256(content).hexdigest()
            written = json.loads(_text({**receipt, "files": files}))
            write_json(pending / RECEIPT, {**written, "sha256": own_hash(written)})
            _sync(pending)
            os.rename(pending, place)
        except BaseException:
            self.clean()
            raise
        _sync(self.path)
        return Done(json.loads(_text(request)), {**written, "sha256": own_hash(written)}, place)

    def clean(self) -> None:
        """Removes what a killed process left half-written. Only for who has the lock."""
        shutil.rmtree(self.path / PENDING, ignore_errors=True)

    @property
    def half_written(self) -> bool:
        return (self.path / PENDING).exists()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The journal is this process's alone in the block. The system takes the lock from a process that dies, however it dies.

        Raises:
            Busy: another process, or another thread, has it.
            OSError: the system has no such locks (Windows).
        """
        try:
            import fcntl
        except ImportError as error:
            raise OSError(f"{self.path}: a journal needs the file locks of Linux or macOS, which this system doesn't have") from error
        os.makedirs(self.path, exist_ok=True)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(descriptor, 200).decode("utf-8", "replace").strip()
                raise Busy(f"{self.path}: {holder or 'another process'} is writing to this journal; try again when it has ended") from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            try:
                yield
            finally:
                os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked meanwhile, such as a loader's workers
        finally:
            os.close(descriptor)


def _name(number: int) -> str:
    return f"{number:04d}"


def _text(value: Any) -> bytes:
    return (json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _sync(folder: Path) -> None:
    """The names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(folder: Path, number: int, before: Done | None) -> Done:
    """One request's two files, checked against each other and against the request before it."""
    request_file, receipt_file = folder / REQUEST, folder / RECEIPT
    raw, receipt = read_whole(request_file, LONGEST_JSON), _json(receipt_file)
    try:
        if receipt["format"] != FORMAT:
            raise BadFile(f"{receipt_file}: its format is {receipt['format']!r}; accepted is {FORMAT!r}")
        if own_hash(receipt) != receipt["sha256"]:
            raise BadFile(f"{receipt_file}: it was changed: it isn't what its own hash says")
        names = {*receipt["files"], RECEIPT}
        if names != set(os.listdir(folder)):
            odd = sorted(names ^ set(os.listdir(folder)))[0]
            raise BadFile(f"{folder / odd}: " + ("it is missing" if odd in names else f"it isn't among the files that {RECEIPT} names"))
        if hashlib.sha256(raw).hexdigest() != receipt["files"][REQUEST]:
            raise BadFile(f"{request_file}: it was changed: it isn't what {RECEIPT} says")
        done = Done(_json(request_file), receipt, folder)
        if done.request["number"] != number or (done.request["id"], number) != (receipt["id"], receipt["number"]):
            raise BadFile(f"{request_file}: its id and number aren't those of its folder and {RECEIPT}")
        if done.request["previous"] != (before and before.receipt["sha256"]):
            raise BadFile(f"{request_file}: the receipt before it isn't the one that it names: that one, or this, was changed")
        hashes = done.request["weights_sha256"]
        if before is not None and hashes["before"] != before.request["weights_sha256"]["after"]:
            raise BadFile(f"{request_file}: it doesn't start from the weights that the request before it left")
        if hashes != receipt["unlearning"]["weights_sha256"]:
            raise BadFile(f"{receipt_file}: its weights aren't those that {REQUEST} names")
    except (KeyError, TypeError, AttributeError) as error:
        raise BadFile(f"{receipt_file}: an entry that a journal's files have is missing or of another kind ({error})") from error
    return done


def _json(path: Path) -> Any:
    try:
        return strict_json(read_whole(path, LONGEST_JSON))
    except BadFile:
        raise
    except ValueError as error:
        raise BadFile(f"{path}: {error}") from error


def _check_file(path: Path, stated: str) -> None:
    whole = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    if whole.hexdigest() != stated:
        raise BadFile(f"{path}: it was changed: it isn't what {RECEIPT} says")
