"""How the native parts are compiled: what the build reads from the environment."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("MAX_JOBS", "TORCH_CUDA_ARCH_LIST", "CXX", "FASTFORGET_SKIP_CUDA"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("ninja_rules", ROOT / "csrc" / "ninja_rules.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (None, ["sm_75", "sm_80", "sm_90", "compute_90"]),
        ("8.6", ["sm_86"]),
        ("9.0a 10.0+PTX", ["sm_90a", "sm_100", "compute_100"]),
        ("8.0;;12.0", ["sm_80", "sm_120"]),
    ],
)
def test_arch_list(
    listed: str | None, names: list[str], rules: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    if listed:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    flags, made = rules.cuda_archs()
    assert made == names
    assert [flag.rsplit("=", 1)[1] for flag in flags] == names


def test_arch_list_not_understood(rules: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(rules.CannotBuild, match=r"TORCH_CUDA_ARCH_LIST: 'Hopper'"):
        rules.cuda_archs()


def test_jobs(rules: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    assert 1 <= rules.max_jobs() <= cores
    monkeypatch.setenv("MAX_JOBS", "7")
    assert rules.max_jobs() == 7


def test_compiler_of_the_user(rules: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(rules.CannotBuild, match="`no-such-compiler` not found"):
        rules.find_compiler()
