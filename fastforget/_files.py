"""Write a file whole or not at all, and values as strict JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from os import PathLike
from typing import Any


def write_whole(path: str | PathLike[str], content: str | bytes) -> None:
    """Puts ``content`` at ``path`` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name in one step.
    Whatever goes wrong before that, a full disk say, leaves the folder as it was. A path that names a device
    or a pipe (``/dev/stdout``) is written directly.

    Raises:
        OSError: the folder does not exist or can't be written, or the disk is full; the message names the
            path.
    """
    data = content.encode() if isinstance(content, str) else content
    # A link keeps pointing: its target is replaced, not the link.
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{secrets.token_hex(6)}")
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(21, "it is a folder")
            _write(os.open(target, os.O_WRONLY), data)
            return
        try:
            _write(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), data, sync=True)
            if mode is not None:
                os.chmod(temporary, stat.S_IMODE(mode))
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
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


def _write(descriptor: int, data: bytes, *, sync: bool = False) -> None:
    # Closing can report a full disk too (network file systems), so it belongs inside the caller's try.
    with open(descriptor, "wb") as file:
        file.write(data)
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
