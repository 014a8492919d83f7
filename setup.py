"""Build and package fastforget.

Two native parts, each optional at install time (csrc/ninja_rules.py says how they are compiled):

    cpu    fastforget/_lib/libfastforget_cpu.so    tensor ops, LibTorch stable ABI
    cuda   fastforget/_lib/libfastforget_cuda.so   the same ops as CUDA kernels; needs nvcc

Neither holds a symbol of Python's, and torch's stable ABI reaches back to 2.10: one wheel serves every Python and every
torch that the package supports. What was built, and for each part left out the reason, goes to
fastforget/_lib/build.json.

A third part is for the checkout's tests alone: fastforget/_host.<abi>.so, a pybind11 module with golden values. It is
compiled for one Python, so it is built in place (editable installs too) and no wheel holds it.

    python setup.py build_native     builds in place, for work in the checkout

Environment: CXX, MAX_JOBS, CUDA_HOME and TORCH_CUDA_ARCH_LIST keep their usual meaning.
FASTFORGET_SKIP_CUDA=1 leaves CUDA out. FASTFORGET_REQUIRE_NATIVE=1 turns a missing part into an error (cuda
only if nvcc is there).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent
OPS = ("cpu", "cuda")
AGAIN = "pip install --no-build-isolation --no-deps --force-reinstall ."
TOOLS = "torch>=2.10, ninja, setuptools>=77 and g++ 11 or newer in this environment; nvcc for CUDA; pybind11 for the checkout's tests."
LOG_NAMES = {"cpu": "CPU ops", "cuda": "CUDA ops", "host": "_host"}

spec = importlib.util.spec_from_file_location("ninja_rules", ROOT / "csrc" / "ninja_rules.py")
assert spec and spec.loader
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


@contextlib.contextmanager
def one_build_at_a_time() -> Iterator[None]:
    folder = ROOT / native.BUILD
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def put(made: Path, place: Path) -> None:
    """Copy by rename: a process that has the old library mapped keeps it whole."""
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.copyfile(made, fresh)
    os.replace(fresh, place)


class build_native(Command):
    description = "build the native parts with ninja (in place unless run by `build`)"
    user_options: ClassVar[list] = [
        ("build-lib=", "d", "folder that receives the packages when not in place")
    ]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.inplace = True
        self.editable_mode = False
        self.made: list[str] = []

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        package = ROOT / "fastforget" if self.inplace else Path(self.build_lib or "") / "fastforget"
        lib = package / "_lib"
        lib.mkdir(parents=True, exist_ok=True)
        parts: dict[str, dict[str, Any]] = {}
        steps: dict[str, Callable[[], Any]] = {
            "cpu": native.build_cpu,
            "cuda": native.build_cuda,
        }
        if self.inplace:
            steps["host"] = native.build_host
        with one_build_at_a_time():
            for part, step in steps.items():
                folder = package if part == "host" else lib
                try:
                    files, facts = step()
                except native.CannotBuild as reason:
                    parts[part] = {"built": False, "reason": str(reason)}
                    # What lies there is from an older source or another torch.
                    for stale in folder.glob(native.PRODUCTS[part]):
                        stale.unlink()
                    continue
                for made in files:
                    put(made, folder / made.name)
                    self.made.append(str((folder / made.name).relative_to(package)))
                parts[part] = {"built": True, "file": files[0].name, **facts}
            missing = {part: parts[part]["reason"] for part in OPS if not parts[part]["built"]}
            system = {"python": platform.python_version(), "platform": native.sysconfig.get_platform()}
            about = {**system, "missing": missing, **parts}
            (lib / "build.json").write_text(json.dumps(about, indent=1) + "\n")
            self.made.append("_lib/build.json")
        self.report(parts)

    def report(self, parts: dict[str, dict[str, Any]]) -> None:
        print("fastforget native parts:")
        for part, facts in parts.items():
            made_for = " ".join(facts.get("levels") or facts.get("archs") or [])
            detail = made_for if facts["built"] else facts["reason"]
            print(f"  {LOG_NAMES[part]:9}{'built' if facts['built'] else 'NOT BUILT'}  {detail}")
        missing = [part for part in OPS if not parts[part]["built"]]
        if missing:
            print("fastforget works without them: the reference (pure PyTorch) serves those devices, many times slower.")
            print(f"To have them: mend what is named above, then {AGAIN}")
            print(f"A build takes {TOOLS}")
        sys.stdout.flush()
        self.distribution.nothing_native = len(missing) == len(OPS)
        required = [part for part in missing if part != "cuda" or native.nvcc_is_there()]
        if required and os.environ.get("FASTFORGET_REQUIRE_NATIVE") == "1":
            reasons = "; ".join(f"{part}: {parts[part]['reason']}" for part in required)
            raise ExecError(f"FASTFORGET_REQUIRE_NATIVE=1, but not everything was built. {reasons}")

    # What setuptools asks of a build step (setuptools.command.build.SubCommand), for editable installs.
    def get_source_files(self) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*"))

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib or "", "fastforget", name)) for name in self.made]

    def get_output_mapping(self) -> dict[str, str]:
        in_place = [f"fastforget/{name}" for name in self.made]
        return dict(zip(self.get_outputs(), in_place, strict=True)) if self.inplace else {}


class Build(build):
    sub_commands: ClassVar[list] = [*build.sub_commands, ("build_native", None)]

    def run(self) -> None:
        # Modules and libraries of an earlier build must not slip into this wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        self.get_finalized_command("build_native").inplace = False
        super().run()


class Wheel(bdist_wheel):
    """py3-none-<platform> with native parts, py3-none-any without."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")
            self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


class NativeDistribution(Distribution):
    nothing_native = False

    def has_ext_modules(self) -> bool:
        return not self.nothing_native


# `triton_kernels` as a top-level name belongs to another package, `benchmarks` to nobody: both go below ours.
ELSEWHERE = {"fastforget._triton": "triton_kernels", "fastforget._bench": "benchmarks"}
FAMILIES = {f"{package}.{file.parent.name}" for package, folder in ELSEWHERE.items() for file in ROOT.glob(f"{folder}/*/*.py")}

setup(
    packages=sorted({*find_packages(include=["fastforget", "fastforget.*"]), *ELSEWHERE, *FAMILIES}),
    package_dir=ELSEWHERE,
    distclass=NativeDistribution,
    cmdclass={"build": Build, "build_native": build_native, "bdist_wheel": Wheel},
)
