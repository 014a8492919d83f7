"""Shared fixtures: which implementation runs, and outputs that start as NaN.

A test that asks for ``implementation`` runs on each of ``NATIVE``, or of the ``IMPLEMENTATIONS`` that its module names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side have a core each, and so have the processes that their tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import ranks
import torch
from built_once import built_once
from native_parts import REQUIRED, native_missing

import fastforget as ff

# every test draws its own inputs; another seed draws others
SEED = int(os.environ.get("FASTFORGET_TEST_SEED", "0"))
LEVELS = {"baseline": 2, "avx2": 3, "avx512": 4}
NATIVE = ("reference", *LEVELS)
EMULATED = "emulated"  # the CUDA sources, on tests/cuda_emulator


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        names = getattr(metafunc.module, "IMPLEMENTATIONS", NATIVE)
        values = [pytest.param(name, marks=pytest.mark.slow) if name == EMULATED else name for name in names]
        metafunc.parametrize("implementation", values, indirect=True)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> ranks.Worlds:
    """What ranks had in the end, by module, function and number of ranks; each is run once."""
    return ranks.worlds(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., None]]:
    """The CUDA sources' ops by name, compiled for the emulated device."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed, so the CUDA sources can't be compiled for the emulated device")
    sys.path.insert(0, str(Path(__file__).parent / "cuda_emulator"))
    from emulated_device import compile_library, load

    return load(built_once(tmp_path_factory, "emulated", partial(compile_library, compiler)))


@pytest.fixture
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the test runs on: the reference, the native kernels of a CPU level, or the CUDA sources on the emulated device.

    Baseline by ``use_backend("native")``, the higher levels by torch's own choice, as users call: a public function may then leave
    the checks to the op.
    """
    if request.param == EMULATED:
        ops = request.getfixturevalue("emulated")
        monkeypatch.setattr(ff.backend, "call_forced", lambda name, _device, args: ops[name](*args))
        with ff.use_backend("native"):
            yield EMULATED
        return
    if request.param == "reference":
        with ff.use_backend("reference"):
            yield "reference"
        return
    level = LEVELS[request.param]
    reason = native_missing(level)
    if reason is not None:
        if REQUIRED and "this CPU has no" not in reason:
            pytest.fail(f"FASTFORGET_REQUIRE_NATIVE=1, but: {reason}")
        pytest.skip(reason)
    before = torch.ops.fastforget._cpu_isa(0)
    torch.ops.fastforget._cpu_isa(level)
    try:
        with ff.use_backend("native") if request.param == "baseline" else contextlib.nullcontext():
            yield request.param
    finally:
        torch.ops.fastforget._cpu_isa(before)


def pytest_report_header() -> str:
    return f"FASTFORGET_TEST_SEED={SEED}"


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(f"{SEED} {request.node.nodeid}".encode()))


@pytest.fixture(autouse=True)
def poisoned_outputs(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty hands out NaN (True, the largest integer), so an output that a kernel forgot to write fails its test."""
    if request.node.get_closest_marker("unpoisoned"):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
