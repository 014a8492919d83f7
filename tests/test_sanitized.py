"""The CPU library under AddressSanitizer and UndefinedBehaviorSanitizer: the parity tests at every level, and 5,000 random calls.

The library is built a second time, with instrumented code, in a copy of the sources; Python itself is not instrumented, so the
sanitizer's runtime is preloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from built_once import built_once

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "_lib", "*.so", ".*_cache")
FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]
PARITY = ["test_noise.py", "test_noise_perturb.py", "test_update.py", "test_distill.py", "test_gradient_products.py", "mask", "membership"]
PARITY += ["test_calls.py", "test_dispatch.py"]
# The reference runs nothing of the library; torch.compile starts compilers of its own, which the preloaded runtime would disturb
LEFT_OUT = "not reference and not compile and not opcheck and not fullgraph and not thread"

pytestmark = pytest.mark.slow


def runtimes() -> str:
    """The sanitizers' shared runtimes, to be preloaded."""
    gxx = shutil.which("g++")
    if gxx is None:
        pytest.skip("g++ is not installed")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run([gxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip(f"g++ has no {name}")
        found.append(path)
    return ":".join(found)


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    # leaks: Python and torch keep things for the life of the process
    options = {"ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return {**kept, **options, "LD_PRELOAD": runtimes(), **more}


def test_the_sanitizers_would_be_heard(tmp_path):
    """A library that writes past its buffer, built with the same flags and loaded the same way, ends the process."""
    source, library = tmp_path / "bad.cpp", tmp_path / "bad.so"
    source.write_text('extern "C" void past(float* p, long n) { for (long i = 0; i <= n; ++i) p[i] = 1.0f; }\n')
    subprocess.run(["g++", "-O3", "-shared", "-fPIC", *FLAGS, str(source), "-o", str(library)], check=True)
    call = "import ctypes, torch; x = torch.empty(1000); "
    call += f"ctypes.CDLL({str(library)!r}).past(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(int(__import__('sys').argv[1])))"
    done = {n: subprocess.run([sys.executable, "-c", call, n], env=environment(), capture_output=True, text=True) for n in ("999", "1000")}
    assert done["999"].returncode == 0, done["999"].stderr[-2000:]
    assert done["1000"].returncode != 0 and "heap-buffer-overflow" in done["1000"].stderr


@pytest.fixture(scope="session")
def instrumented(tmp_path_factory):
    """A checkout whose library is instrumented."""

    def build(tree: Path) -> None:
        shutil.copytree(ROOT, tree, ignore=NOT_SOURCE, dirs_exist_ok=True)
        settings = {**os.environ, "CXX": " ".join(["g++", *FLAGS]), "FASTFORGET_SKIP_CUDA": "1"}
        made = subprocess.run([sys.executable, "setup.py", "-q", "build_native"], cwd=tree, env=settings, capture_output=True, text=True)
        library = tree / "fastforget" / "_lib" / "libfastforget_cpu.so"
        assert made.returncode == 0 and library.exists(), made.stdout[-3000:] + made.stderr[-3000:]
        assert b"__asan_report_store" in library.read_bytes(), "the library isn't instrumented"

    return built_once(tmp_path_factory, "instrumented", build)


@pytest.mark.parametrize("name", PARITY)
def test_parity_tests_under_the_sanitizers(instrumented, name):
    file = f"tests/{name}"
    assert (instrumented / file).exists()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "not slow", "-k", LEFT_OUT, file]
    done = subprocess.run(command, cwd=instrumented, env=environment(FASTFORGET_REQUIRE_NATIVE="1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_random_calls_under_the_sanitizers(instrumented, tmp_path):
    """5,000 of them, other ones with another FASTFORGET_TEST_SEED; a failure prints the command that makes its call alone."""
    in_hand = tmp_path / "call"
    more = {"FASTFORGET_CALL_FILE": str(in_hand), "PYTHONPATH": f"{instrumented}{os.pathsep}{instrumented / 'tests'}"}
    command = [sys.executable, "-W", "ignore", "tests/random_calls.py", "--count", "5000"]
    done = subprocess.run(command, cwd=instrumented, env=environment(**more), capture_output=True, text=True)
    replay = in_hand.read_text() if in_hand.exists() else "none was made"
    assert done.returncode == 0, f"replay: {replay}\n" + done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.startswith("5000 calls: ")
