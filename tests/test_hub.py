"""The ops as a kernel repository: its files, and that it runs in a neutral folder without fastforget, with the same results."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import op_table
import pytest
import torch

from fastforget import _schema
from fastforget._bench import hub

VARIANTS = ("torch-cpu", "torch-cuda")
EQUAL = {"rtol": 0.0, "atol": 0.0}
NEAR = {"rtol": 2e-5, "atol": 2e-6}  # Triton against the reference, both in float32


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "kernels"
    assert hub.main(["--out", str(folder)]) == 0
    return folder


def identity(variant: Path) -> str:
    return json.loads((variant / "metadata.json").read_text())["id"]


# ------------------------------------------------------------------ the files


def test_the_layout_is_that_of_a_kernel_repository(repository: Path) -> None:
    text = (repository / "build.toml").read_text()
    assert '[general]\nedition = 5\nname = "fastforget-kernels"\n' in text and 'backends = ["cpu", "cuda"]\n\n[torch-noarch]\n' in text
    assert sorted(path.name for path in (repository / "build").iterdir()) == list(VARIANTS)
    sources = {str(path.relative_to(repository / "torch-ext" / hub.MODULE)) for path in (repository / "torch-ext").rglob("*.*")}
    assert "_ops.py" not in sources, "the builder writes it"
    for name in VARIANTS:
        variant = repository / "build" / name
        files = {str(path.relative_to(variant)) for path in variant.rglob("*.*")}
        assert files == sources | {"_ops.py", "metadata.json", f"{hub.MODULE}/__init__.py"}
    kernels = {f"_triton/{path.relative_to('triton_kernels')}" for path in map(Path, _kernel_files())}
    assert kernels <= sources and len(kernels) > 10


def _kernel_files() -> list[str]:
    root = Path(__file__).resolve().parents[1]
    return [str(path.relative_to(root)) for path in (root / "triton_kernels").rglob("*.py")]


def test_metadata_says_what_is_there(repository: Path) -> None:
    for name in VARIANTS:
        variant = repository / "build" / name
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["id"].isidentifier() and metadata["name"] == "fastforget-kernels" and metadata["license"] == "mit"
        assert metadata["backend"] == {"type": name.removeprefix("torch-")} and isinstance(metadata["version"], int)
        files = {path.relative_to(variant).as_posix(): path for path in variant.rglob("*.*") if path.name != "metadata.json"}
        digests = {place: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for place, path in files.items()}
        assert metadata["digest"] == {"algorithm": "sha256", "files": digests}


def test_every_build_has_a_name_of_its_own(repository: Path) -> None:
    names = [identity(repository / "build" / name) for name in VARIANTS]
    assert len(set(names)) == 2 and all(re.fullmatch(r"_fastforget_kernels_(cpu|cuda)_[0-9a-f]{10}", name) for name in names)
    texts = hub.sources()
    assert hub.identity(texts, "cpu") == names[0]
    assert hub.identity(texts | {"ops/noise.py": texts["ops/noise.py"] + "\n"}, "cpu") != names[0]


def test_imports_are_relative_or_of_what_is_allowed(repository: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in repository.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            absolute += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.split(".")[0] for name in absolute} <= allowed, path
    with pytest.raises(ValueError, match=r"ops/x\.py: it imports numpy; accepted in a kernel repository are torch, triton"):
        hub._check_imports("ops/x.py", "import numpy as np")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("kept")
    assert hub.main(["--out", str(tmp_path)]) == 2
    assert "the folder holds something" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["mine"]


# ------------------------------------------------------------------ without fastforget

ALONE = """
import importlib.util, json, sys, warnings
import torch
sys.modules["fastforget"] = None  # as if it were not installed
variant, name, given, out, forced = sys.argv[1:]
def load(file, name):
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
kernels = load(variant + "/__init__.py", name)
calls = torch.load(given)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for op, args in calls.items():
        if forced:
            with kernels.use_backend(forced):
                kernels.backend.call_forced(op, "cpu", args)
        else:
            getattr(getattr(torch.ops, name), op).default(*args)
torch.save(calls, out)
inner = load(variant + "/fastforget_kernels/__init__.py", "older")
x = kernels.noise.random_bits(4, seed=0)
print("RESULT", json.dumps({
    "words": [w % 2**32 for w in x.tolist()], "same": inner.noise is kernels.noise, "all": sorted(kernels.__all__),
    "warned": [str(w.message) for w in caught if "fastforget" in str(w.message)], "ops": hasattr(torch.ops.fastforget, "normal_"),
}))
"""


def run_alone(variant: Path, folder: Path, forced: str = "", **environment: str) -> tuple[dict, dict, dict]:
    """Every op of the table in another process: what it printed, its results, and those of the reference."""
    torch.manual_seed(5)
    calls = {op: row.raw(torch.float32) for op, row in op_table.TABLE.items()}
    torch.save(calls, folder / "given.pt")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FASTFORGET_", "TRITON_"))}
    command = [sys.executable, "-I", "-c", ALONE, str(variant), identity(variant), str(folder / "given.pt"), str(folder / "out.pt"), forced]
    done = subprocess.run(command, cwd=folder, env=env | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for op, args in calls.items():
        _schema.SCHEMAS[op][1](*args)
    return json.loads(done.stdout.split("RESULT ", 1)[1]), torch.load(folder / "out.pt"), calls


def assert_same(results: dict, wanted: dict, tolerance: dict[str, float]) -> None:
    assert set(results) == set(wanted) == set(_schema.SCHEMAS)
    for op in results:
        torch.testing.assert_close(results[op], wanted[op], equal_nan=True, msg=lambda text, op=op: f"{op}: {text}", **tolerance)


def test_it_runs_without_fastforget_with_the_same_results(repository: Path, tmp_path: Path) -> None:
    said, results, wanted = run_alone(repository / "build" / "torch-cpu", tmp_path)
    assert_same(results, wanted, EQUAL)
    assert said["words"] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Philox's known answer
    assert said["all"] == ["BackendError", "backends", "mask", "membership", "noise", "update", "use_backend"]
    assert said["same"] and not said["ops"]
    (warning,) = said["warned"]
    assert "a kernel repository holds no compiled code: install fastforget for the CPU kernels" in warning


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_its_triton_kernels_run_in_the_interpreter(repository: Path, tmp_path: Path) -> None:
    _, results, wanted = run_alone(repository / "build" / "torch-cuda", tmp_path, "triton", TRITON_INTERPRET="1")
    assert_same(results, wanted, NEAR)


def loaded(variant: Path) -> ModuleType:
    """A build, imported once in a process, as ``kernels`` imports it."""
    name = identity(variant)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_it_lives_beside_fastforget_and_beside_its_other_build(repository: Path) -> None:
    import fastforget as ff

    modules = [loaded(repository / "build" / name) for name in VARIANTS]
    with modules[0].use_backend("reference"), modules[1].use_backend("reference"), ff.use_backend("reference"):
        drawn = [one.noise.normal_(torch.empty(7), seed=3) for one in (*modules, ff.ops)]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[2])
    assert modules[0].backend is not modules[1].backend and ff.backend.forced is None
