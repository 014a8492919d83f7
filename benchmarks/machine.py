"""Which machine, which software, how busy: the facts without which a time means nothing."""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import os
import platform
from pathlib import Path
from typing import Any

import torch

import fastforget
from fastforget import backend


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def cpu_model() -> str:
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = facts.get("model name") or platform.processor() or platform.machine()
    if facts.get("cpu family"):
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def caches() -> dict[str, str]:
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = _first_line(str(folder / "level")), _first_line(str(folder / "type"))
        found[f"L{level} {kind.lower()}"] = _first_line(str(folder / "size"))
    return found


def load() -> list[float]:
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def facts() -> dict[str, Any]:
    build = backend.build_facts()
    cpu_part = build.get("cpu", {})
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "huge_pages": _first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "fastforget": fastforget.__version__,
        "compiler": cpu_part.get("compiler", "unknown"),
        "levels": cpu_part.get("levels", []),
        "load_before": load(),
    }


def slug(name: str) -> str:
    """A processor's name as part of a file name."""
    kept = "".join(c.lower() if c.isalnum() else "-" for c in name)
    return "-".join(part for part in kept.split("-") if part)


def resident(line: str) -> float:
    """MB; VmRSS: what this process holds, VmHWM: the most it has held since :func:`forget_peak`. NaN where the system doesn't say."""
    try:
        shown = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(line))
    except OSError:
        return math.nan
    return int(shown.split()[1]) / 1024


def forget_peak() -> None:
    """The process's peak starts from what it holds now, on Linux."""
    gc.collect()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
