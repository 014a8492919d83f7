"""Whether the native CPU ops are there, and whether they must be."""

from __future__ import annotations

import os

import torch

import fastforget as ff

REQUIRED = os.environ.get("FASTFORGET_REQUIRE_NATIVE", "0") not in ("", "0")


def native_missing(level: int = 0) -> str | None:
    reason = ff.backend.why_not("native", "normal_", "cpu")
    if reason is not None:
        return reason
    if not level:
        return None
    before = torch.ops.fastforget._cpu_isa(0)
    reached = torch.ops.fastforget._cpu_isa(level)
    torch.ops.fastforget._cpu_isa(before)
    return None if reached == level else f"this CPU has no level {level}"
