"""Installs where something is missing: they succeed, and say what, and what mends it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import setuptools
from install_world import SITE, build_json, environment, names_in, only_wheel, run, succeeds, top_level, wheel_command

slow = pytest.mark.slow


def without_torch(folder: Path) -> Path:
    """An environment with setuptools and nothing else: what an isolated build sees."""
    tools = folder / "tools"
    tools.mkdir(parents=True)
    site = Path(setuptools.__file__).parents[1]
    for part in [site / "setuptools", site / "_distutils_hack", *site.glob("setuptools-*.dist-info")]:
        (tools / part.name).symlink_to(part)
    return environment(folder / "env", [str(tools)])


def scrubbed_path(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


@slow
@pytest.mark.parametrize("lacking", ["torch", "compiler"])
def test_install_without_a_tool_succeeds_and_says_so(lacking: str, fresh: Path, tmp_path: Path) -> None:
    changes: dict[str, str | None] = {"CXX": None}
    if lacking == "torch":
        python = without_torch(tmp_path)
        message = (
            "torch is not importable here. Install torch>=2.10 first, then `pip install --no-build-isolation"
        )
    else:
        python = environment(tmp_path / "env", [SITE])
        changes["PATH"] = scrubbed_path(tmp_path / "bin")
        message = "C++ compiler `g++` not found: install g++"
    out = succeeds(wheel_command(python, fresh, tmp_path), **changes)
    assert message in out
    assert "fastforget works without them" in out
    wheel = only_wheel(tmp_path)
    names = names_in(wheel)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert top_level(names) == {"fastforget"}
    assert not [name for name in names if name.endswith(".so")]
    facts = build_json(wheel)
    assert message in facts["missing"]["cpu"]
    assert set(facts["missing"]) == {"cpu", "cuda"}

    required = run(wheel_command(python, fresh, tmp_path / "none"), **changes, FASTFORGET_REQUIRE_NATIVE="1")
    assert required.returncode != 0
    assert "FASTFORGET_REQUIRE_NATIVE=1, but not everything was built" in required.stdout
    assert message in required.stdout


@slow
def test_source_that_does_not_compile_leaves_that_part_out(wheel: Path, tree: Path, tmp_path: Path) -> None:
    assert wheel.exists()  # so the tree has all its objects
    broken = Path(shutil.copytree(tree, tmp_path / "tree"))
    with open(broken / "csrc" / "cpu" / "levels_ops.cpp", "a") as source:
        source.write("\nthis is not C++;\n")
    python = environment(tmp_path / "env", [SITE])
    out = succeeds(wheel_command(python, broken, tmp_path), FASTFORGET_SKIP_CUDA="1")
    assert re.search(r"CPU ops +NOT BUILT +compiling failed: csrc/cpu/levels_ops\.cpp:\d+:\d+: error:", out)
    names = names_in(only_wheel(tmp_path))
    assert "fastforget/_lib/libfastforget_cpu.so" not in names
    missing = build_json(only_wheel(tmp_path))["missing"]
    assert "csrc/cpu/levels_ops.cpp" in missing["cpu"]
    assert missing["cuda"] == "left out because FASTFORGET_SKIP_CUDA=1"
    command = wheel_command(python, broken, tmp_path / "none")
    assert run(command, FASTFORGET_SKIP_CUDA="1", FASTFORGET_REQUIRE_NATIVE="1").returncode != 0


FIRST_USE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, fastforget as ff
    x = torch.zeros(4)
    with ff.use_backend("reference"):
        ff.ops.noise.normal_(x, seed=0)
    print("BEFORE", len(caught))
    for _ in range(3):
        ff.ops.noise.normal_(x, seed=0)
        ff.ops.mask.dampen_([x], [x + 1], [x], alpha=2.0, lam=1.0)
    print("WARNINGS", len(caught), caught[0].message)
    print("SERVING", ff.backend.serving("normal_", "cpu"), ff.backends()["normal_"]["cpu"]["native"])
"""


def test_a_missing_native_part_is_said_at_first_use_once_with_what_mends_it(checkout: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(checkout, tmp_path / "source"))
    path = f"import sys; sys.path.insert(0, {str(bare)!r})\n"
    out = succeeds([sys.executable, "-I", "-c", path + FIRST_USE])
    assert "BEFORE 0" in out and "WARNINGS 1 fastforget: there are no compiled kernels for CPU tensors (not built here)" in out
    assert "torch>=2.10, ninja, setuptools>=77 and g++ (11 or newer), then run cd " in out and f"{bare} && " in out
    assert "setup.py build_native" in out and "SERVING reference not built here" in out
    (bare / "fastforget" / "_lib").mkdir()
    (bare / "fastforget" / "_lib" / "build.json").write_text(json.dumps({"missing": {"cpu": "ninja not found: `pip install ninja`"}}))
    (bare / "setup.py").unlink()  # as it lies in site-packages
    out = succeeds([sys.executable, "-I", "-c", path + FIRST_USE])
    assert "(ninja not found: `pip install ninja`), so plain PyTorch serves, many times slower" in out
    assert "source folder: pip install --no-build-isolation --no-deps --force-reinstall ." in out
    info = succeeds([sys.executable, "-I", "-c", path + "from fastforget.__main__ import main; main(['info'])"])
    assert "CPU ops    no: ninja not found" in info and "to have them, install what is missing of torch>=2.10, ninja" in info
    (bare / "fastforget" / "_lib" / "libfastforget_cpu.so").write_bytes(b"no library")
    out = succeeds([sys.executable, "-I", "-c", path + FIRST_USE])
    assert "WARNINGS 1 " in out and "(libfastforget_cpu.so did not load: " in out


def test_without_torch_it_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    alone = [sys.executable, "-S"]  # without site-packages there is no torch
    done = run([*alone, "-m", "fastforget", "info"], PYTHONPATH=str(checkout))
    assert done.returncode == 2 and done.stdout.count("\n") == 1, done.stdout
    for text in ("fastforget needs PyTorch 2.10 or newer", "No module named 'torch'", "pip install torch", "pip install ninja"):
        assert text in done.stdout
    done = run([*alone, "-c", "import fastforget"], PYTHONPATH=str(checkout))
    assert done.returncode == 1 and "\nImportError: fastforget needs PyTorch 2.10 or newer" in done.stdout
    (tmp_path / "torch.py").write_text("__version__ = '2.4.1+cpu'\n")
    done = run([*alone, "-c", "import fastforget"], PYTHONPATH=os.pathsep.join((str(checkout), str(tmp_path))))
    assert done.returncode == 1 and "found 2.4.1+cpu. Upgrade it: pip install --upgrade torch" in done.stdout


def test_the_install_names_what_a_build_takes(checkout: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkout, tmp_path / "source"))
    out = succeeds([sys.executable, source / "setup.py", "-q", "build_native"], CXX="no-such-compiler", FASTFORGET_SKIP_CUDA="1")
    assert re.search(r"CPU ops +NOT BUILT +C\+\+ compiler `no-such-compiler` not found", out)
    assert "A build takes torch>=2.10, ninja, setuptools>=77 and g++ 11 or newer" in out
    assert "pip install --no-build-isolation --no-deps --force-reinstall ." in out
