"""The CPU kernels' instruction set: the op library chooses it, once, and everything else asks the library."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastforget as ff

LEVELS = ["baseline", "avx2", "avx512"]
# the psABI's levels as Linux calls their features; the OS's part (osxsave) shows in that Linux lists avx at all
V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
MARCH = {"baseline": ["-march=x86-64-v2"], "avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}

native = pytest.mark.skipif(not ff.backend.native_cpu, reason="the compiled CPU ops are not loaded")


def in_a_process(expression: str, **environment: str) -> tuple[object, str]:
    code = f"import json, torch, fastforget as ff; print('RESULT', json.dumps({expression}))"
    env = {k: v for k, v in os.environ.items() if k != "FASTFORGET_CPU_ISA"}
    done = subprocess.run([sys.executable, "-c", code], env={**env, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.split("RESULT ", 1)[1]), done.stderr


@native
@pytest.mark.parametrize("cap", [None, "baseline", "avx2", "avx512", "no-such-level"])
def test_the_environment_caps_the_level(cap: str | None) -> None:
    given = {"FASTFORGET_CPU_ISA": cap} if cap else {}
    (cpu, level), errors = in_a_process("[ff.backend.cpu_level(), torch.ops.fastforget._cpu_isa(0)]", **given)
    assert level == {"baseline": 2, "avx2": 3, "avx512": 4}[cpu["in_force"]]
    accepted = cpu["accepted"]
    assert accepted == LEVELS[: len(accepted)] and accepted == ff.backend.build_facts()["cpu"]["levels"]
    if cap in accepted:
        assert cpu["in_force"] == min(cap, cpu["detected"], key=accepted.index)
    else:
        assert cpu["in_force"] == cpu["detected"]
    ignored = cap is not None and cap not in accepted
    assert cpu["ignored"] == (cap if ignored else None)
    assert (f"FASTFORGET_CPU_ISA={cap} ignored; accepted: {', '.join(accepted)}" in errors) == ignored


@native
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux lists the CPU's features")
def test_the_level_needs_every_feature_that_the_compiler_may_use() -> None:
    if len(ff.backend.cpu_level()["accepted"]) == 1:
        pytest.skip("this build has one level")
    told = runpy.run_path(str(Path(__file__).parents[1] / "csrc" / "ninja_rules.py"))["ISA_FLAGS"]
    assert {name: [flag for flag in flags if "-march" in flag] for name, flags in told.items()} == MARCH
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    wanted = "avx512" if flags >= V4 else "avx2" if flags >= V3 else "baseline"
    assert ff.backend.cpu_level()["detected"] == wanted


@native
def test_the_level_in_force_follows_the_switch() -> None:
    ask = "[torch.ops.fastforget._cpu_isa(2), ff.backend.cpu_level()['in_force'], ff.backend.cpu_level()['detected']]"
    (level, in_force, detected), _ = in_a_process(ask)
    assert (level, in_force, detected) == (2, "baseline", ff.backend.cpu_level()["detected"])


@native
def test_an_unknown_question_is_refused() -> None:
    import torch

    with pytest.raises(RuntimeError, match="fastforget._cpu_level: got 'speed'; accepted: in_force, detected, ignored, built"):
        torch.ops.fastforget._cpu_level("speed")


def test_without_the_library_there_is_no_level(monkeypatch) -> None:
    monkeypatch.setattr(ff.backend, "native_cpu", False)
    assert ff.backend.cpu_level() is None
