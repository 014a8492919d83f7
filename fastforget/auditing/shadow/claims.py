"""Claims on work in a folder that several processes share: who does what, and what to take over from those who are gone.

Nothing but the folder connects the processes: no clocks are compared, and no file is locked. A claim is a file that only one process can
make; it holds its owner's name. An owner gives signs of life by counting in a file of its own, which others watch by their own clocks. A
claim whose owner is gone is never removed, which two could do at once: it is followed by one with the next number, which again only one
process can make.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..._files import named

BEAT = 2.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one, after which an owner counts as dead
SLOW = 10  # a claim is also taken over once it has been watched for so many times as long as the own work took, and for SILENCE
_CLAIM = re.compile(r"shadows-claim-(\d+)\.(\d+)")
_BEAT = "shadows-beat-"


class Claims:
    """One process's claims. A context: what it holds when it ends, however it ends, is free at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._sign = folder / (_BEAT + self.owner)
        self.longest = 0.0  # seconds that a claimed piece of work took here
        self.waits_for = ""  # who holds what is missing
        self._said = json.dumps({"owner": self.owner, "process": _process(os.getpid())})
        self._owners: dict[str, dict[str, Any]] = {}  # what claims say
        self._watched: dict[str, tuple[Any, float]] = {}  # what was seen last, and since when
        self._since: dict[str, float] = {}  # when a claim was seen first
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="fastforget-claims", daemon=True)

    def __enter__(self) -> Claims:
        try:
            with named(self._sign):
                self._count(0)  # before the first claim: an owner without such a file is gone
        except BaseException:
            self._gone()
            raise
        self._beats.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._beats.join()
        self._gone()

    def _gone(self) -> None:
        with contextlib.suppress(OSError):
            self._sign.unlink()

    def _beat(self) -> None:
        count = 1
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a disk that is full now may have space later
                self._count(count)
            count += 1

    def _count(self, count: int) -> None:
        # in place and of one length: a file that was opened again shows its new content also where folders are cached for a while
        descriptor = os.open(self._sign, os.O_WRONLY | os.O_CREAT, 0o666)
        with open(descriptor, "wb") as file:
            file.write(b"%012d\n" % count)

    def take(self, wanted: Iterable[int]) -> int | None:
        """Claims the first piece of work that nobody is at, and returns its number; ``None`` where there is none."""
        latest: dict[int, int] = {}
        for name in os.listdir(self.folder):
            if found := _CLAIM.fullmatch(name):
                number, turn = int(found[1]), int(found[2])
                latest[number] = max(latest.get(number, 0), turn)
        self.waits_for, slow = "", []
        for number in wanted:
            turn = latest.get(number, -1)
            if turn >= 0:
                name = _name(number, turn)
                owner = self._owner(name)
                if owner.get("owner") == self.owner:
                    return number
                if not self._abandoned(name, owner):
                    self.waits_for = self.waits_for or owner.get("owner", "another process")
                    if self._is_slow(name):
                        slow.append((number, turn))
                    continue
            if self._claim(_name(number, turn + 1)):
                return number
        return next((number for number, turn in slow if self._claim(_name(number, turn + 1))), None)

    def _claim(self, name: str) -> bool:
        path = self.folder / name
        with named(path):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            try:
                with open(descriptor, "w") as file:
                    file.write(self._said)
            except BaseException:  # a claim without a name would keep others waiting
                path.unlink(missing_ok=True)
                raise
        return True

    def _owner(self, name: str) -> dict[str, Any]:
        """What a claim says; nothing while it is being written, or where its owner died before it was."""
        if name not in self._owners:
            with contextlib.suppress(OSError, ValueError):
                said = json.loads((self.folder / name).read_text())
                if isinstance(said, dict) and isinstance(said.get("owner"), str):
                    self._owners[name] = said
        return self._owners.get(name, {})

    def _abandoned(self, name: str, owner: dict[str, Any]) -> bool:
        beat = None
        if owner:
            try:
                beat = (self.folder / (_BEAT + owner["owner"])).read_bytes()
            except FileNotFoundError:
                return True
            except OSError:
                pass  # a server that doesn't answer is silence too
        if _is_dead(owner.get("process")):
            return True
        now, who = time.monotonic(), owner.get("owner", name)
        if who not in self._watched or self._watched[who][0] != beat:
            self._watched[who] = (beat, now)
        return now - self._watched[who][1] > SILENCE

    def _is_slow(self, name: str) -> bool:
        """Whether it pays to do again what another process is still at; the results are equal, and one is kept."""
        now = time.monotonic()
        waited = now - self._since.setdefault(name, now)
        return self.longest > 0 and waited > max(SILENCE, SLOW * self.longest)


def tidy(folder: Path) -> None:
    """Removes all claims and signs of life: the work is done."""
    for path in folder.iterdir():
        if _CLAIM.fullmatch(path.name) or path.name.startswith(_BEAT):
            path.unlink(missing_ok=True)


def others_at_work(folder: Path) -> bool:
    """Whether another process has left a sign of life."""
    return any(path.name.startswith(_BEAT) for path in folder.iterdir())


def _name(number: int, turn: int) -> str:
    return f"shadows-claim-{number:05d}.{turn}"


def _process(pid: int) -> list[Any] | None:
    """A process so that it can be told from all others: the boot of its machine, its pid namespace, pid, and start. Linux only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid"), pid, _stat(pid)[1]]
    except (OSError, IndexError):
        return None


def _stat(pid: int) -> tuple[str, str]:
    """A process's state and the moment of its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _is_dead(process: Any) -> bool:
    """Whether this machine knows that a process is no more; of processes of other machines it knows nothing."""
    here = _process(os.getpid())
    if here is None or not isinstance(process, list) or process[:2] != here[:2]:
        return False
    try:
        os.kill(process[2], 0)
        state, started = _stat(process[2])
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return state in "ZX" or started != process[3]
