"""The Triton kernels without a GPU: in Triton's interpreter on CPU tensors, and compiled ahead of time.

TRITON_INTERPRET decides what ``triton.jit`` makes, so it must be set before Triton is imported, and it would
spoil other tests in the process. Every part therefore runs in a process of its own: triton_elementwise.py,
triton_masks.py, triton_rows.py, triton_membership.py, triton_table.py and triton_compile.py, which are scripts and not collected.

The interpreter shows what the kernels compute, the compiler that they fit the machine (registers, spills,
wide accesses). Neither shows a GPU's speed; its approximations are emulated (triton_elementwise.like_a_gpu).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import op_table
import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).resolve().parent
INTERPRETED = [
    ("triton_elementwise.py", "noise"),
    ("triton_elementwise.py", "update"),
    ("triton_elementwise.py", "mask"),
    ("triton_masks.py", "mask lists"),
    ("triton_masks.py", "mask select"),
    ("triton_rows.py", "update"),
    ("triton_rows.py", "membership"),
    ("triton_membership.py", "lira"),
    ("triton_membership.py", "counts"),
]


def with_path(**environment: str) -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **environment}


def run(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments], env=with_path(**environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize(("script", "family"), INTERPRETED)
def test_interpreted(script, family):
    pytest.importorskip("triton")
    # a script that checked nothing would also end well
    assert f"{family}: " in run(script, family, TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def fault() -> Iterator[Callable[[str], str]]:
    """Asks one process for every op: to import torch and Triton takes longer than to check an op."""
    pytest.importorskip("triton")
    command, env = [sys.executable, str(HERE / "triton_table.py")], with_path(TRITON_INTERPRET="1")
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(op: str) -> str:
            print(op, file=process.stdin, flush=True)
            return str(json.loads(process.stdout.readline()))

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("op", op_table.TABLE)
def test_the_op_is_right(fault: Callable[[str], str], op: str) -> None:
    assert fault(op) == ""


@pytest.mark.parametrize("arch", ["80", "90"])
def test_compiles_without_spills(arch, tmp_path):
    pytest.importorskip("triton")
    out = run("triton_compile.py", arch, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert f"sm_{arch}: " in out
