"""The wheel: what is in it, and that it works away from the checkout, beside another Python too."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import page_types
import pytest
from install_world import ROOT, SITE, build_json, environment, modules_below, names_in, pip, run, succeeds, top_level

HAS_TRITON = importlib.util.find_spec("triton") is not None
slow = pytest.mark.slow


@slow
def test_wheel_holds_all_and_only_fastforget(wheel: Path, checkout: Path) -> None:
    names = names_in(wheel)
    assert top_level(names) == {"fastforget"}
    assert re.search(r"-py3-none-linux_", wheel.name)
    assert "fastforget/_lib/libfastforget_cpu.so" in names
    assert {f"fastforget/auditing/schema/{name}.json" for name in ("figures", "report", "receipt", "unlearning")} <= set(names)
    assert not any("_host" in name for name in names), "it is compiled for one Python"
    for package, folder in {"_triton": "triton_kernels", "_bench": "benchmarks"}.items():
        modules = modules_below(checkout / folder)
        assert modules, folder
        assert sorted(modules) == sorted(
            found[1].replace("/", ".") for name in names if (found := re.fullmatch(rf"fastforget/{package}/(\w[\w/]*)\.py", name))
        )
    layouts = {str(path.relative_to(checkout)) for path in checkout.glob("fastforget/**/*") if path.suffix in (".html", ".css", ".js")}
    assert len(layouts) > 5 and layouts <= set(names)
    facts = build_json(wheel)
    assert ("fastforget/_lib/libfastforget_cuda.so" in names) == facts["cuda"]["built"]
    assert ("fastforget/_lib/cuda_ptxas.txt" in names) == facts["cuda"]["built"]
    assert str(ROOT) not in json.dumps(facts), "a path of the build machine"


OPS = {
    "noise": ["random_bits", "normal_", "add_normal_", "perturb_step_"],
    "update": ["error_max_loss", "error_max_step_"],
    "mask": ["dampen_"],
    "membership": ["membership_scores", "roc_stats", "rmia", "rmia_vote", "rmia_counts", "roc_bootstrap", "forget_quality"],
}
USE_IT = (
    f"HAS_TRITON, OPS = {HAS_TRITON}, {OPS}"
    + """
import importlib, json, pathlib, pkgutil, sys, torch
import fastforget as ff

failed = []
def onerror(name):
    failed.append(name)
skip = [] if HAS_TRITON else ["fastforget._triton."]
names = ["fastforget"] + [m.name for m in pkgutil.walk_packages(ff.__path__, "fastforget.", onerror)]
for folder in ("_triton", "_bench"):
    package = importlib.import_module("fastforget." + folder)
    for place in map(pathlib.Path, package.__path__):
        names += [".".join(["fastforget", folder, *f.relative_to(place).with_suffix("").parts]) for f in place.rglob("[!_]*.py")]
for name in names:
    if any(name.startswith(s) for s in skip) or name.endswith("__main__"):
        continue
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        getattr(module, public)
for family, functions in OPS.items():
    for public in functions:
        assert callable(getattr(getattr(ff.ops, family), public))

words = ff.ops.noise.random_bits(4, seed=0).tolist()
loss, dlogits = ff.ops.update.error_max_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
p = torch.tensor([1.0, 1.0])
count = ff.ops.mask.dampen_([p], [torch.tensor([4.0, 0.0])], [torch.tensor([1.0, 1.0])], alpha=2.0, lam=1.0)
scores = ff.ops.membership.membership_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "fastforget"]
print("RESULT", json.dumps({
    "failed": failed, "words": words, "loss": loss.tolist(), "p": p.tolist(), "count": int(count),
    "entropy": scores.entropy.tolist(), "serving": ff.backend.serving("normal_", "cpu"),
    "files": sorted({m.__file__ for m in ours if getattr(m, "__file__", None)}),
}))
"""
)


@slow
def test_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", [SITE])
    succeeds(pip(python, "install", "--no-index", "--no-deps", wheel))
    out = succeeds([python, "-I", "-c", USE_IT])
    result = json.loads(out.split("RESULT ", 1)[1])
    assert result["failed"] == []
    assert [w % 2**32 for w in result["words"]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert result["loss"] == pytest.approx([-0.6931472], rel=1e-6)
    assert (result["p"], result["count"]) == ([0.25, 1.0], 1)
    assert result["entropy"] == pytest.approx([0.6931472], rel=1e-6)
    assert result["serving"] == "native"
    outside = [file for file in result["files"] if not file.startswith(str(tmp_path / "env"))]
    assert outside == [], "the checkout leaked into the installed package"
    assert "normal_" in succeeds([python, "-I", "-m", "fastforget", "info"])
    assert "--op" in succeeds([python, "-I", "-m", "fastforget", "bench", "--help"])


@slow
def test_the_pages_satisfy_a_type_checker_beside_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", [SITE])
    succeeds(pip(python, "install", "--no-index", "--no-deps", wheel))
    files = page_types.write(tmp_path)
    succeeds(page_types.mypy(files, python))
    files[0].write_text("import fastforget as ff\nff.audit.nothing\n")
    refused = run(page_types.mypy(files[:1], python)).stdout
    assert '"Audit" has no attribute "nothing"' in refused, "the checker doesn't see the installed package"


def another_python() -> Path | None:
    """A Python of another minor version that the package supports, if this machine has one."""
    known = [shutil.which(f"python3.{minor}") for minor in range(10, 20)]
    known += sorted(str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    ask = "import sys; print(*sys.version_info[:2])"
    for python in known:
        done = run([python, "-c", ask]) if python else None
        version = tuple(map(int, done.stdout.split())) if done is not None and done.returncode == 0 else (0, 0)
        if version >= (3, 10) and version != sys.version_info[:2]:
            return Path(str(python))
    return None


LOAD = """
import ctypes, sys
for library in sys.argv[1:]:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
print("loaded", sys.version_info[:2])
"""


@slow
def test_the_same_wheel_serves_another_python(wheel: Path, tmp_path: Path) -> None:
    """It installs there, and its library loads there beside torch's C++ library, which no Python is compiled into.

    Not covered: a call of an op from that Python. It would need a torch built for it, hundreds of megabytes from the registry.
    """
    other = another_python()
    if other is None:
        pytest.skip("this machine has no second Python of 3.10 or newer")
    succeeds([other, "-m", "venv", "--without-pip", tmp_path / "env"])
    python = tmp_path / "env" / "bin" / "python"
    succeeds(pip(python, "install", "--no-index", "--no-deps", wheel))
    site = Path(succeeds([python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]).strip())
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    libraries = [Path(spec.origin).parent / "lib" / "libtorch_cpu.so", site / "fastforget" / "_lib" / "libfastforget_cpu.so"]
    assert "loaded" in succeeds([python, "-I", "-c", LOAD, *libraries])
    done = run([python, "-I", "-c", "import fastforget"])
    assert done.returncode != 0 and "No module named 'torch'" in done.stdout


@slow
def test_per_isa_objects_share_no_symbol_with_other_levels(wheel: Path, tree: Path) -> None:
    """A weak copy of an inline function, compiled for AVX-512, could be the one the linker keeps for all."""
    levels = build_json(wheel)["cpu"]["levels"]
    for level in levels:
        objects = list((tree / "build" / "native" / "cpu" / level).rglob("*.o"))
        assert objects, level
        for path in objects:
            weak = [line for line in succeeds(["nm", "-C", path]).splitlines() if re.search(r" [WVu] ", line)]
            assert weak == [], f"{level}: {path.name}"


@slow
def test_libraries_need_no_cuda_to_load(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if name.startswith("fastforget/_lib/lib")]
        archive.extractall(tmp_path, libraries)
    for name in libraries:
        needed = re.findall(r"NEEDED.*\[(.*)\]", succeeds(["readelf", "-d", tmp_path / name]))
        assert [item for item in needed if "cuda" in item or "python" in item] == [], name
