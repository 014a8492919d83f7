"""A progress bar on stderr, without a dependency. Quiet where nobody watches: no terminal, or ``progress=False``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Generic, TextIO, TypeVar

from ._text import visible

T = TypeVar("T")
_WIDTH = 24
_EVERY = 0.1  # seconds between redraws


class Progress(Generic[T]):
    """A bar that can be iterated, or moved by hand with :meth:`step`. Made by :func:`progress`."""

    def __init__(self, items: Iterable[T], total: int | None, label: str, stream: TextIO | None) -> None:
        self.items, self.total, self.label, self.stream = items, total, label, stream
        self.done, self.note = 0, ""
        self.began = time.monotonic()
        self._drawn = 0.0
        self._draw()

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.step()

    def __enter__(self) -> Progress[T]:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def step(self, n: int = 1, note: str = "") -> None:
        """Moves the bar by ``n``; ``note`` stands behind it."""
        self.done += n
        self.note = note or self.note
        if self.stream and time.monotonic() - self._drawn >= _EVERY:
            self._draw()

    def _draw(self) -> None:
        if not self.stream:
            return
        self._drawn = time.monotonic()
        filled = _WIDTH if not self.total else min(_WIDTH, _WIDTH * self.done // self.total)
        counted = f"{self.done}/{self.total}" if self.total else str(self.done)
        seconds = self._drawn - self.began
        bar = "#" * filled + "." * (_WIDTH - filled)
        self.stream.write(f"\r\x1b[K{self.label} [{bar}] {counted} {seconds:.1f} s {visible(self.note)}".rstrip())
        self.stream.flush()

    def close(self) -> None:
        """Draws the last state and ends the line (once)."""
        if self.stream:
            self._draw()
            self.stream.write("\n")
            self.stream.flush()
            self.stream = None


def progress(work: Iterable[T] | int, label: str, enabled: bool = True) -> Progress[T]:
    """A bar over ``work``: something to iterate, or a number of steps to be counted by ``.step()`` in a ``with`` block.

    >>> from fastforget._progress import progress
    >>> sum(progress([1, 2, 3], "adding", enabled=False))
    6
    """
    shown = enabled and getattr(sys.stderr, "isatty", lambda: False)()
    if isinstance(work, int):
        return Progress(range(work), work, label, sys.stderr if shown else None)  # type: ignore[arg-type]
    total = len(work) if isinstance(work, Sized) else None
    return Progress(work, total, label, sys.stderr if shown else None)
