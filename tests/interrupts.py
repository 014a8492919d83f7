"""Interrupts at chosen lines of the package, for tests that nothing is left half done."""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

import torch

import fastforget as ff


class Interrupt:
    """Raises a KeyboardInterrupt at the n-th line that is run in the package, or where it enters and leaves contexts."""

    FILES = (contextlib.__file__, torch.random.__file__, torch.autograd.grad_mode.__file__, random.__file__)
    PACKAGE = str(Path(ff.__file__).parent)

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame, event, _):
        name = frame.f_code.co_filename
        return self.line if name.startswith(self.PACKAGE) or name in self.FILES else None

    def line(self, frame, event, _):
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self.line


def interrupted(call, at: int) -> tuple[bool, int]:
    """Whether the call was cut short by an interrupt at this line, and how many lines were run."""
    interrupt = Interrupt(at)
    sys.settrace(interrupt)
    try:
        call()
        return False, interrupt.lines
    except KeyboardInterrupt:
        return True, interrupt.lines
    finally:
        sys.settrace(None)


def lines_to_try(total: int, head: int, tail: int, others: int) -> list[int]:
    drawn = random.Random(0).sample(range(1, total + 1), others)
    return sorted({*range(1, head), *drawn, *range(total - tail, total + 1)})
