"""The command line: what it prints, what it imports, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import fastforget as ff
from fastforget import _info
from fastforget.__main__ import main


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTFORGET_", "TRITON_"))}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={**env, **environment}, check=False)


def test_help_and_version() -> None:
    for arguments in (["--help"], ["-h"], ["demo", "--help"], ["info", "--help"], ["--version"]):
        done = run_python("-m", "fastforget", *arguments)
        assert done.returncode == 0 and "fastforget" in done.stdout, done.stderr


def test_usage_errors_end_with_2(capsys) -> None:
    assert main([]) == 2
    assert main(["forget"]) == 2
    assert "unknown command 'forget'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["info", "--jsn"])
    assert error.value.code == 2


def test_help_imports_no_command() -> None:
    code = """
import runpy, sys
sys.argv = ["fastforget", "--help"]
try:
    runpy.run_module("fastforget", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code
heavy = ("triton", "mlxtend", "sklearn", "fastforget.demo.run", "fastforget._bench.bench", "fastforget._info")
print([name for name in heavy if name in sys.modules])
"""
    done = run_python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_import_starts_nothing() -> None:
    """torch first, so that only what is ours counts; then the audit and the command line too."""
    code = """
import os, sys, threading, torch
tasks = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
before = tasks(), threading.active_count()
import fastforget, fastforget.auditing, fastforget.__main__
print("triton" in sys.modules, (tasks(), threading.active_count()) == before, torch.cuda.is_initialized())
"""
    done = run_python("-c", code)
    assert done.stdout.split() == ["False", "True", "False"], done.stdout + done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_import_opens_no_cuda_context() -> None:
    """A child can use CUDA after a fork only if the parent never opened a context; is_initialized() alone
    can't tell."""
    code = """
import os, fastforget, fastforget.auditing
child = os.fork()
if child == 0:
    import torch
    try:
        ok = float(torch.ones(4, device="cuda").sum()) == 4
    except Exception as error:
        print(error)
        ok = False
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run_python("-c", code)
    assert done.stdout.split()[-1] == "0", done.stdout + done.stderr


def test_info_shows_every_op_and_reason(capsys) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    for op, devices in ff.backends().items():
        for device, said in devices.items():
            (line,) = [row.split() for row in shown.splitlines() if row.split()[:2] == [op, device]]
            answers = " ".join(line[2:]).replace("no (", "no(").split()
            assert [a == "ok" for a in answers[:3]] == [said[b] == "ok" for b in ff.backend.NAMES]
            assert line[-1] == ff.backend.serving(op, device)
            for reason in said.values():
                assert reason == "ok" or " ".join(reason.split()) in flat
    assert torch.__version__ in shown and ff.__version__ in shown


def test_info_as_json(capsys) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fastforget"] == ff.__version__ and found["torch"]["version"] == torch.__version__
    assert found["backends"] == ff.backends()
    for part in ("cpu", "cuda"):
        library = found["libraries"][part]
        assert library["loaded"] == (library["reason"] is None)


def test_info_says_what_the_environment_forces() -> None:
    done = run_python("-m", "fastforget", "info", FASTFORGET_BACKEND="reference", FASTFORGET_CPU_ISA="avx2")
    assert done.returncode == 0, done.stderr
    assert "FASTFORGET_BACKEND=reference" in done.stdout and "FASTFORGET_CPU_ISA=avx2" in done.stdout
    assert "every op is forced to the backend 'reference'" in done.stdout


def test_info_without_native_parts(monkeypatch) -> None:
    monkeypatch.setitem(ff.backend._load_errors, "cpu", "no compiler was found")
    monkeypatch.setattr(ff.backend, "native_cpu", False)
    found = _info.facts()
    shown = _info.text(found)
    assert "CPU ops    no: no compiler was found" in shown and "CPU level  none: the CPU ops are not loaded" in shown
    assert {row["cpu"] for row in found["serving"].values()} == {"reference"}


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 6), True), ((12, 1), True), (None, True)])
def test_info_says_where_no_kernel_runs_on_the_gpu(capability: tuple[int, int] | None, runs: bool) -> None:
    found = _info.facts() | {"capability": capability}
    found["libraries"]["cuda"] = {"loaded": True, "reason": None, "built_for": ["sm_80", "sm_90", "compute_90"]}
    said = "none of them runs on this GPU: build again with TORCH_CUDA_ARCH_LIST=7.5, or use the backend triton"
    assert (said in _info.text(found)) != runs


def test_compiled_kernels_run_within_a_major_version_and_ptx_later() -> None:
    assert _info.covers(["sm_90a"], (9, 0)) and not _info.covers(["sm_90a"], (9, 1)) and not _info.covers(["compute_90a"], (10, 0))
    assert _info.covers(["sm_75", "sm_80"], (7, 5)) and not _info.covers(["sm_86"], (8, 0)) and not _info.covers(["sm_80"], (9, 0))
    assert _info.covers(["compute_90"], (9, 0)) and _info.covers(["sm_120"], (12, 1)) and not _info.covers([], (8, 0))


def test_bench_is_handed_its_arguments(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", "--help"])
    assert error.value.code == 0 and "bench" in capsys.readouterr().out
