"""What a user gets from `pip install`: wheel, sdist, editable installs, installs where something is missing.

Everything happens in copies of the checkout and in environments of its own. Such an environment sees torch
and the build tools through a .pth line; Python reads no further .pth files from a folder named so, hence an
editable install of this checkout, which works by a .pth file, cannot leak in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import page_types
import pytest
import setuptools
from built_once import built_once

ROOT = Path(__file__).resolve().parents[1]
SITE = sysconfig.get_path("purelib")
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "_lib", "*.so", ".*_cache"
)
HAS_TRITON = importlib.util.find_spec("triton") is not None
slow = pytest.mark.slow


def run(command: list[object], **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a command elsewhere than in the checkout; `changes` set or (None) remove environment variables."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTFORGET_", "TRITON_"))}
    env.update({k: v for k, v in changes.items() if v is not None})
    for gone in [k for k, v in changes.items() if v is None]:
        env.pop(gone, None)
    return subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def succeeds(command: list[object], **changes: str | None) -> str:
    done = run(command, **changes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def environment(folder: Path, sees: list[str]) -> Path:
    """An empty virtual environment without pip that also imports from `sees`; returns its Python."""
    succeeds([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    site = succeeds([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "sees.pth").write_text("\n".join([*sees, ""]))
    return python


def pip(python: Path, *arguments: object) -> list[object]:
    return [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments]


def wheel_command(python: Path, tree: Path, out: Path) -> list[object]:
    return pip(python, "wheel", "-v", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, tree)


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def top_level(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names if ".dist-info/" not in name}


def build_json(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("fastforget/_lib/build.json"))


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's sources as they are now, all of them."""

    def copy(folder: Path) -> None:
        shutil.copytree(ROOT, folder / "fastforget", ignore=NOT_SOURCE)

    return built_once(tmp_path_factory, "checkout", copy) / "fastforget"


@pytest.fixture(scope="session")
def tree(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as its sdist holds it, with the checkout's object files: only changed files compile. The wheel is built in it."""

    def unpack(folder: Path) -> None:
        make = "import os, sys, setuptools.build_meta as b; os.chdir(sys.argv[1]); b.build_sdist(sys.argv[2])"
        succeeds([sys.executable, "-c", make, checkout, folder])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        if (ROOT / "build" / "native").is_dir():
            shutil.copytree(ROOT / "build" / "native", unpacked / "build" / "native")

    (unpacked,) = (built_once(tmp_path_factory, "sdist", unpack) / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        python = environment(folder / "env", [SITE])
        succeeds(wheel_command(python, tree, folder), FASTFORGET_REQUIRE_NATIVE="1")

    return only_wheel(built_once(tmp_path_factory, "wheel", build))


@pytest.fixture
def fresh(tree: Path, wheel: Path, tmp_path: Path) -> Path:
    """A copy of the sdist's tree to damage."""
    assert wheel.exists()  # so nothing builds in the tree any more
    return Path(shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("build")))


def modules_below(folder: Path) -> list[str]:
    """Dotted names of the modules in a folder and in those below it."""
    return sorted(".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py"))


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
    layouts = {str(path.relative_to(checkout)) for path in checkout.glob("fastforget/**/*") if path.suffix in (".html", ".css")}
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
