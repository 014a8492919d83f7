"""The CUDA sources on an emulated device: every test of the ops that runs on all implementations, and CUDA's own rules.

g++ compiles csrc/cuda/*.cu, host code and kernels, against tests/cuda_emulator and runs them on CPU tensors. This checks indexing,
chunk tables, barriers, reductions, edge cases and the arithmetic's structure; it says nothing about speed, about the device's own exp
and log, or about a race that depends on timing.
"""

from __future__ import annotations

import importlib
import inspect
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastforget import backend, reference

sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))
from build import load

Ops = dict[str, Callable[..., None]]
FAMILIES = ("noise", "update", "mask", "membership")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Ops:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, so the CUDA sources can't be compiled for the emulated device")
    return load(tmp_path_factory.mktemp("emulated"), compiler)


@pytest.fixture(params=["1 multiprocessor", "3 multiprocessors"])
def implementation(request: pytest.FixtureRequest, emulated: Ops, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In this file the shared tests run on the emulated device."""
    monkeypatch.setenv("FASTFORGET_EMULATED_MULTIPROCESSORS", request.param[0])
    monkeypatch.setattr(backend, "forced", "native")
    monkeypatch.setattr(backend, "call_forced", lambda name, _device, args: emulated[name](*args))
    yield "emulated"


def _adopt() -> None:
    for family in FAMILIES:
        module = importlib.import_module(f"test_{family}")
        for name, item in vars(module).items():
            if name.startswith("test_") and inspect.isfunction(item) and "implementation" in inspect.signature(item).parameters:
                globals()[f"test_{family}_{name.removeprefix('test_')}"] = item


_adopt()
