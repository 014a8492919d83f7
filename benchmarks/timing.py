"""How times are taken: one process, every variant in turn, thread time, medians over placements; nothing
unjudged is timed."""

from __future__ import annotations

import ctypes
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import ANCHOR, Call, Case, Options, Place, Work, WrongResult

LEVELS = {"baseline": 2, "avx2": 3, "avx512": 4}
# glibc's allocator adapts: at first blocks of 128 KiB and more come as fresh pages each time and go back at
# once; once larger
# ones have been freed, up to 32 MiB are kept and reused. A plain form's temporaries make it several times
# slower in the
# first state, so each state is set, not met by accident.
ALLOCATORS = {
    "settled": (32 << 20, 64 << 20),
    "fresh": (128 << 10, 128 << 10),
}  # (mmap threshold, trim threshold)
BLOCK = 2e-3  # seconds that one timed block lasts at least
LONG = 0.1  # seconds of a call before which no untimed one runs: what it finds in the caches doesn't matter to it


@dataclass
class Sample:
    """Seconds a call of one variant: one figure a block, with the placement it was taken in."""

    seconds: list[float] = field(default_factory=list)
    placements: list[int] = field(default_factory=list)
    repeats: int = 1
    untimed: int = 1  # calls before each block

    def summary(self) -> dict[str, Any]:
        by_place = [
            statistics.median(s for s, p in zip(self.seconds, self.placements, strict=True) if p == place)
            for place in sorted(set(self.placements))
        ]
        return {
            "median": statistics.median(self.seconds),
            "min": min(self.seconds),
            "max": max(self.seconds),
            "placement_medians": by_place,
            "blocks": len(self.seconds),
            "repeats": self.repeats,
        }


def native() -> bool:
    return hasattr(torch.ops.fastforget, "_cpu_isa")


def available_isas() -> tuple[str, ...]:
    """The instruction sets this machine has, best first; 'reference' where there is no native library."""
    if not native():
        return ("reference",)
    before = torch.ops.fastforget._cpu_isa(0)
    found = tuple(name for name, level in reversed(LEVELS.items()) if torch.ops.fastforget._cpu_isa(level) == level)
    torch.ops.fastforget._cpu_isa(before)
    return found


def set_isa(name: str) -> None:
    if name in LEVELS:
        reached = torch.ops.fastforget._cpu_isa(LEVELS[name])
        if reached != LEVELS[name]:
            raise RuntimeError(f"isa: asked for {name}, level {reached} is in force")


def set_allocator(state: str) -> bool:
    """Fixes glibc's thresholds; False where the C library has none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mmap, trim = ALLOCATORS[state]
    return bool(mallopt(-3, mmap) and mallopt(-1, trim))  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


@contextmanager
def quiet(threads: int) -> Iterator[None]:
    """No garbage collection, a fixed thread count, the instruction set as before afterwards."""
    before_threads, before_gc = torch.get_num_threads(), gc.isenabled()
    before_isa = torch.ops.fastforget._cpu_isa(0) if native() else 0
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before_threads)
        if native():
            torch.ops.fastforget._cpu_isa(before_isa)
        if before_gc:
            gc.enable()


def expand(work: Work, isas: tuple[str, ...]) -> dict[str, Call]:
    """Variants that run native code once an instruction set: ours@avx512, ours@avx2, limit@avx512, ...; the
    anchor first."""
    per_isa = {"ours", "packed", "op", "public", "limit"}
    names = sorted(work.run, key=lambda n: (n != ANCHOR, n != "ours"))
    table: dict[str, Call] = {}
    for name in names:
        for isa in isas if name in per_isa else ("",):
            table[f"{name}@{isa}" if isa else name] = work.run[name]
    return table


def judge(work: Work, table: dict[str, Call], only_ours: bool = False) -> list[str]:
    """Judges in place: a wrong rival leaves ``table`` and is named in the result.

    Raises:
        WrongResult: ours is wrong, or the anchor that it is measured by.
    """
    dropped = []
    for key in list(table):
        name, _, isa = key.partition("@")
        if name in work.unjudged or (only_ours and name not in ("ours", ANCHOR)):
            continue
        if isa:
            set_isa(isa)
        work.reset()
        try:
            work.judge(key, table[key]())
        except WrongResult as wrong:
            if name in ("ours", ANCHOR):
                raise
            dropped.append(str(wrong))
            del table[key]
    return dropped


def _block(call: Call, repeats: int, clock: Callable[[], float]) -> float:
    span = range(repeats)
    begin = clock()
    for _ in span:
        call()
    return (clock() - begin) / repeats


def measure(case: Case, options: Options, dropped: list[str] | None = None) -> dict[str, Sample]:
    """Judges, then times every variant of ``case``; keys are variant or variant@isa.

    Rivals with a wrong result get no time and are named in ``dropped``.

    Raises:
        WrongResult: ours is wrong, or the plain form that it is measured by; nothing of the case is timed
        then.
    """
    away: set[str] = set()
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    samples: dict[str, Sample] = {}
    rounds = max(2, math.ceil(options.rounds / options.placements))
    for index in range(options.placements):
        work = case.prepare(Place(index))
        table = expand(work, options.isas)
        try:
            before = set(table)
            found = judge(work, table, only_ours=index > 0)
            away |= before - set(table)
        except WrongResult as wrong:
            raise WrongResult(f"{case.op} {case.label}, placement {index}: {wrong}") from None
        if dropped is not None:
            dropped += [f"{case.op} {case.label}: {line}" for line in found]
        table = {key: call for key, call in table.items() if key not in away}
        work.reset()
        for turn in range(-1, rounds):  # turn -1 warms up and chooses the repeats
            order = list(table)
            if turn >= 0:
                # what ran before leaves its data in the caches: nobody always runs after the same one
                random.Random(turn * options.placements + index).shuffle(order)
            for key in order:
                call = table[key]
                isa = key.partition("@")[2]
                if isa:
                    set_isa(isa)
                sample = samples.setdefault(key, Sample())
                if turn < 0:
                    call()
                    if index == 0:
                        once = min(_block(call, 1, clock) for _ in range(3))
                        few = max(1, min(1000, math.ceil(0.1 * BLOCK / max(once, 1e-7))))
                        sample.repeats = max(1, math.ceil(BLOCK / max(_block(call, few, clock), 1e-8)))
                        sample.untimed = sample.repeats // 4 + 1 if once < LONG else 0
                    continue
                # The caches fill with this variant's data, and the allocator has what it asks for: one pass isn't enough where the
                # variant before left much.
                for _ in range(sample.untimed):
                    call()
                sample.seconds.append(_block(call, sample.repeats, clock))
                sample.placements.append(index)
    return samples


# ---- memory ----------------------------------------------------------------------------------------------


def _status(key: str) -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def extra_memory(call: Call) -> int | None:
    """Bytes by which the process's resident set rises at most above its start during one call; None where
    the system can't tell.

    Linux resets the high-water mark on request. Freed heap is handed back first, or a call could reuse it
    unseen. Resolution: a page, in practice some 100 KiB of bookkeeping.
    """
    try:
        for _ in range(2):
            call()
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def memory(case: Case, options: Options) -> dict[str, int | None]:
    work = case.prepare(Place(0))
    table = expand(work, options.isas[:1])
    found = {key.partition("@")[0]: extra_memory(call) for key, call in table.items()}
    return {name: size for name, size in found.items() if name != "limit"}
