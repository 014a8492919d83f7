"""Write a file whole or not at all, read one that may be anything, and values as strict JSON."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from os import PathLike
from typing import IO, Any

Writer = Callable[[IO[bytes]], Any]  # writes into an open file
Content = str | bytes | Writer

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links say
LONGEST_NUMBER = 400  # digits: no number that is written here has more, and long ones take quadratic time


class BadFile(ValueError):
    """A file can't be used; the message begins with its name and says why."""


def size_of(path: str | PathLike[str]) -> int:
    """Bytes of a regular file.

    Raises:
        BadFile: it is missing, a folder, a pipe or a device, or can't be looked at.
    """
    try:
        about = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise BadFile(f"{os.fspath(path)}: {_reason(error)}") from error
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise BadFile(f"{os.fspath(path)}: it is {kind}; accepted is a regular file")
    return about.st_size


def read_whole(path: str | PathLike[str], most: int) -> bytes:
    """A regular file's bytes, at most ``most`` of them.

    Raises:
        BadFile: as :func:`size_of`, or it is larger, or can't be read.
    """
    size = size_of(path)
    if size > most:
        raise BadFile(f"{os.fspath(path)}: it has {size} bytes; accepted are at most {most}")
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise BadFile(f"{os.fspath(path)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def strict_json(text: str | bytes) -> Any:
    """JSON with one meaning only: each name once in an object, finite numbers, nested as deep as can be read.

    Raises:
        ValueError: anything else; the message says what.

    >>> strict_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the name 'a' stands twice in one object
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite, parse_int=_short_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return whole


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not strict JSON")


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:20]} is beyond the range of numbers")
    return number


def _short_integer(word: str) -> int:
    if len(word) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(word)} digits")
    return int(word)


def write_whole(path: str | PathLike[str], content: Content) -> None:
    """Puts ``content`` at ``path`` so that a reader sees the old file or the new one, never a part. What is too large to be held twice is
    written by a function, into the open file.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one step.
    Whatever goes wrong before that, a full disk say, leaves the folder as it was. A path that names a device
    or a pipe (``/dev/stdout``) is written directly.

    Raises:
        OSError: the folder does not exist or can't be written, or the disk is full; the message names the
            path.
    """
    data, target = _encoded(content), _followed(path)
    with named(path):
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(21, "it is a folder")
            _write(os.open(target, os.O_WRONLY), data)
            return
        with _temporary(target, data) as temporary:
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, target)


def write_once(path: str | PathLike[str], content: str | bytes) -> bool:
    """As :func:`write_whole`, but a file that is there already stays: of several writers the first one's content counts for all.

    Where a file system has no hard links, the last one's does.

    Returns:
        Whether it was this one's.

    Raises:
        OSError: as :func:`write_whole`.
    """
    target = _followed(path)
    with named(path), _temporary(target, _encoded(content)) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.replace(temporary, target)
    return True


def _encoded(content: Content) -> bytes | Writer:
    # half of a surrogate pair (from the name of a file, say) has no bytes in UTF-8: its escape is also what JSON has for it
    return content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content


def _followed(path: str | PathLike[str]) -> str:
    """A link keeps pointing: its target is replaced, not the link."""
    return os.path.realpath(path)


@contextlib.contextmanager
def _temporary(target: str, data: bytes | Writer) -> Iterator[str]:
    """A file beside the target that holds the data on disk, and is gone afterwards."""
    temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{secrets.token_hex(6)}")
    try:
        _write(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), data, sync=True)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@contextlib.contextmanager
def named(path: str | PathLike[str]) -> Iterator[None]:
    """Errors of the system say which file could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(
            error.errno,
            f"could not write {os.fspath(path)}: {reason}. No partial file was left; free some space or choose another path",
        ) from error


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _write(descriptor: int, data: bytes | Writer, *, sync: bool = False) -> None:
    # Closing can report a full disk too (network file systems), so it belongs inside the caller's try.
    with open(descriptor, "wb") as file:
        data(file) if callable(data) else file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def jsonable(value: Any) -> Any:
    """``value`` as plain JSON values; a figure that is undefined (NaN) or infinite is None.

    >>> jsonable({1: (0.5, math.nan)})
    {'1': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_json(path: str | PathLike[str], value: Any) -> None:
    """``value`` as strict JSON (no NaN), whole or not at all."""
    write_whole(path, json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
