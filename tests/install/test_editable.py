"""Editable installs of every kind, and a bare checkout: each finds its kernels and benchmarks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from install_world import SITE, environment, modules_below, pip, succeeds

slow = pytest.mark.slow


WHERE = """
import importlib.util, json, sys
import fastforget, fastforget._triton, fastforget._bench
found = {name: importlib.util.find_spec(f"fastforget.{name}").origin for name in NAMES}
print("RESULT", json.dumps({"package": fastforget.__file__, "found": found}))
"""


@slow
@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable_install_finds_kernels_and_benchmarks(
    mode: str, wheel: Path, tree: Path, checkout: Path, tmp_path: Path
) -> None:
    assert wheel.exists()  # so the tree has all its objects
    editable = Path(shutil.copytree(tree, tmp_path / "tree"))
    python = environment(tmp_path / "env", [SITE])
    setting = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    command = pip(
        python, "install", "--no-index", "--no-deps", "--no-build-isolation", *setting, "-e", editable
    )
    succeeds(command, FASTFORGET_REQUIRE_NATIVE="1")
    out = succeeds([python, "-I", "-c", where(checkout)])
    result = json.loads(out.split("RESULT ", 1)[1])
    assert result["package"].startswith(str(editable))
    assert all(origin and origin.startswith(str(editable)) for origin in result["found"].values()), result
    serving = "import fastforget as ff, fastforget._host; print(ff.backend.serving('normal_', 'cpu'))"
    assert succeeds([python, "-I", "-c", serving]).strip() == "native"


def where(checkout: Path) -> str:
    names = [f"_triton.{name}" for name in modules_below(checkout / "triton_kernels")]
    names += [f"_bench.{name}" for name in modules_below(checkout / "benchmarks")]
    return WHERE.replace("NAMES", repr(names))


def test_bare_checkout_finds_kernels_and_benchmarks(checkout: Path) -> None:
    path = f"import sys; sys.path.insert(0, {str(checkout)!r})\n"
    out = succeeds([sys.executable, "-I", "-c", path + where(checkout)])
    found = json.loads(out.split("RESULT ", 1)[1])["found"]
    folders = [checkout / "triton_kernels", checkout / "benchmarks"]
    assert {next(f for f in folders if f in Path(origin).parents) for origin in found.values()} == set(folders)
