"""``python -m fastforget info``: what is here, what serves each op, and a reason for every "no"."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import torch

from . import backend
from ._command import Parser
from ._text import visible
from ._version import __version__

VARIABLES = {
    "FASTFORGET_BACKEND": "forces one backend for every op",
    "FASTFORGET_CPU_ISA": "caps the CPU kernels' instruction set: baseline, avx2 or avx512",
    "TRITON_INTERPRET": "1 runs the Triton kernels on the CPU, for tests",
    "FASTFORGET_REQUIRE_NATIVE": "1 makes a missing native part an error at install time",
}
PARTS = {"cpu": "CPU ops", "cuda": "CUDA ops"}


def facts() -> dict[str, Any]:
    """Everything that ``info`` shows, as JSON values."""
    built = backend.build_facts()
    return {
        "fastforget": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
        },
        "gpu": _gpu(),
        "capability": torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None,
        "cpu": backend.cpu_level(),
        "libraries": {part: _library(part, built) for part in PARTS},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "forced": backend.forced,
        "backends": backend.backends(),
        "serving": {op: {device: backend.serving(op, device) for device in ("cpu", "cuda")} for op in backend.backends()},
    }


def _gpu() -> str:
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device is available to torch"
    major, minor = torch.cuda.get_device_capability(0)
    return f"{torch.cuda.get_device_name(0)} (sm_{major}{minor}), {torch.cuda.device_count()} visible"


def covers(built_for: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether kernels for these architectures run on a GPU: compiled ones within a major version, PTX on every later GPU.

    >>> [covers(["sm_80", "sm_90", "compute_90"], capability) for capability in ((7, 5), (8, 6), (12, 0))]
    [False, True, True]
    """
    for name in built_for:
        kind, major, minor, only = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name).groups()  # type: ignore[union-attr]
        least = int(major), int(minor)
        if capability == least or (not only and capability > least and (kind == "compute" or capability[0] == least[0])):
            return True
    return False


def _library(part: str, built: dict[str, Any]) -> dict[str, Any]:
    """Whether a native part is loaded, why not, and what it was built for."""
    about = built.get(part, {})
    reason = backend._load_errors.get(part)
    detail = about.get("levels") or about.get("archs") or []
    return {"loaded": reason is None, "reason": reason, "built_for": list(detail)}


def text(found: dict[str, Any]) -> str:
    """The facts for a terminal; every distinct reason is written once, under the table."""
    cpu, lines = found["cpu"], []
    lines.append(f"fastforget {found['fastforget']}, Python {found['python']}, {found['platform']}")
    about = found["torch"]
    lines.append(f"torch      {about['version']}, CUDA {about['cuda'] or 'none'}, {about['threads']} threads")
    lines.append(f"GPU        {found['gpu']}")
    if cpu is None:
        lines.append("CPU level  none: the CPU ops are not loaded")
    else:
        ignored = f"; FASTFORGET_CPU_ISA={cpu['ignored']} is not known and ignored" if cpu.get("ignored") else ""
        lines.append(f"CPU level  {cpu['in_force']} in force, {cpu['detected']} detected{ignored}")
    for part, name in PARTS.items():
        library = found["libraries"][part]
        detail = f" ({' '.join(library['built_for'])})" if library["built_for"] else ""
        lines.append(f"{name:<11}" + (f"loaded{detail}" if library["loaded"] else f"no: {library['reason']}"))
        if not library["loaded"]:
            lines.append(" " * 11 + f"to have them, {backend.mending(part)}")
        elif part == "cuda" and found["capability"] and not covers(library["built_for"], found["capability"]):
            wanted = "{}.{}".format(*found["capability"])
            advice = f"build again with TORCH_CUDA_ARCH_LIST={wanted}, or use the backend triton"
            lines.append(" " * 11 + f"none of them runs on this GPU: {advice}")
    lines += ["", *_table(found)]
    if not torch.cuda.is_available():
        lines.append("  No GPU here: the cuda rows say what would serve CUDA tensors.")
    lines += ["", "environment"]
    for name, meaning in VARIABLES.items():
        lines.append(f"  {name}={found['environment'].get(name, '')}".ljust(34) + f"# {meaning}")
    if found["forced"]:
        lines.append(f"  every op is forced to the backend {found['forced']!r}")
    return "\n".join(lines)


def _table(found: dict[str, Any]) -> list[str]:
    reasons: dict[str, int] = {}
    rows = [("op", "device", *backend.NAMES, "serves")]
    for op, devices in found["backends"].items():
        for device, said in devices.items():
            cells = [
                answer if answer == "ok" else f"no ({reasons.setdefault(answer, len(reasons) + 1)})"
                for answer in (said[name] for name in backend.NAMES)
            ]
            rows.append((op, device, *cells, found["serving"][op][device]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = (textwrap.fill(f"({i}) {reason}", 110, initial_indent="  ", subsequent_indent="      ") for reason, i in reasons.items())
    return [*lines, *notes]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    p = Parser(prog="python -m fastforget info", description=__doc__)
    p.add_argument("--json", action="store_true", help="print the facts as JSON")
    args = p.parse_args(argv)
    found = facts()
    sys.stdout.write((json.dumps(found, indent=1) if args.json else visible(text(found), keep="\n")) + "\n")
    return 0
