"""The native parts of fastforget and how each is compiled: ninja rules of our own.

Not torch's cpp_extension: that one imports torch, refuses nvcc where torch is CPU-only, and ties what it
builds to one torch release. setup.py calls the three build_* functions; each returns the files it made and
the facts about them, or raises CannotBuild with what is missing and what to do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path("build", "native")
TORCH_TARGET = (2, 10)
TORCH_TARGET_HEX = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
STABLE_ABI = ["-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_HEX}"]
# Never -ffast-math: with gcc, merely loading such a library makes the whole process flush denormals, and
# isnan() fails.
CXX_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
# -ffp-contract=off: where gcc fuses a*b+c by itself differs between instruction sets; the kernels say it
# where they want it.
CXX_FLAGS += ["-ffp-contract=off", "-fopenmp-simd", "-Wall", "-Wextra", "-Icsrc"]
IN_OUT = ["-MD", "-MF", "$out.d", "-c", "$in", "-o", "$out"]
LINK_FLAGS = ["-shared"]

# A kernel file, which is every source of csrc/cpu without this suffix, is compiled once per instruction set, with
# -DFF_ISA=<name> -DFF_ISA_LEVEL=<n>; the others, which check arguments and cut the work, once.
ONCE = "_ops.cpp"
ISA_FLAGS = {
    "baseline": ["-DFF_ISA=baseline", "-DFF_ISA_LEVEL=2", "-march=x86-64-v2"],
    "avx2": ["-DFF_ISA=avx2", "-DFF_ISA_LEVEL=3", "-march=x86-64-v3"],
    # 512-bit everywhere, named because compilers differ in what they take for x86-64-v4. Measured on
    # Zen 5, the streaming loops too are 10 to 40 % faster so; on Zen 4, which halves such vectors, 256-bit
    # ones were by 10 to 20 %.
    "avx512": ["-DFF_ISA=avx512", "-DFF_ISA_LEVEL=4", "-march=x86-64-v4", "-mprefer-vector-width=512"],
}
# A kernel file that needs more says so in a comment, "// flags (<levels>): <flags>"; they come after the level's.
OWN_FLAGS = re.compile(r"^// flags \(([\w, ]+)\): (.+)$", re.MULTILINE)
# The PTX of the newest listed architecture serves every later GPU. PTX of the newest one nvcc knows would
# leave out those between (8.0;9.0;12.1+PTX cannot run on 10.0), so it is 9.0 that carries it.
DEFAULT_CUDA_ARCHS = "7.5;8.0;9.0+PTX"


# The files made, the one to load first, and what build.json says about them.
Made = tuple[list[Path], dict[str, Any]]


# What each part leaves in the package, as a glob.
PRODUCTS = {
    "cpu": "libfastforget_cpu.so",
    "cuda": "*cuda*",
    "host": f"_host{sysconfig.get_config_var('EXT_SUFFIX')}",
}


class CannotBuild(Exception):
    """A part that cannot be built here; the text says what is missing and what to do."""


def torch_place() -> tuple[Path, str]:
    """Torch's folder and version, without importing it: that takes seconds, and a build does not need it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise CannotBuild(
            "torch is not importable here. Install torch>=2.10 first, then "
            "`pip install --no-build-isolation .` (an isolated build cannot see your torch)"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < TORCH_TARGET:
        raise CannotBuild(f"torch {version} is too old: the native ops need torch>=2.10 (stable ABI)")
    return folder, version


def find_ninja() -> str:
    found = shutil.which("ninja") or shutil.which("ninja-build")
    if not found and (spec := importlib.util.find_spec("ninja")) and spec.origin:
        import ninja

        name = Path(ninja.BIN_DIR, "ninja")
        found = str(name) if name.exists() else shutil.which("ninja", path=sysconfig.get_path("scripts"))
    if not found:
        raise CannotBuild("ninja not found: `pip install ninja`")
    return found


def find_compiler() -> tuple[list[str], str]:
    """The C++ compiler as a command, and its version line."""
    command = shlex.split(os.environ.get("CXX") or "g++")
    if not shutil.which(command[0]):
        raise CannotBuild(f"C++ compiler `{command[0]}` not found: install g++ (11 or newer), or set CXX")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    return command, version.split("\n")[0].strip()


def find_nvcc() -> tuple[Path, Path, str]:
    """nvcc, the toolkit's folder and its release."""
    if os.environ.get("FASTFORGET_SKIP_CUDA") == "1":
        raise CannotBuild("left out because FASTFORGET_SKIP_CUDA=1")
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    nvcc = next((home / "bin" / "nvcc" for home in homes if (home / "bin" / "nvcc").is_file()), None)
    if nvcc is None and (on_path := shutil.which("nvcc")):
        nvcc = Path(on_path)
    if nvcc is None:
        raise CannotBuild("nvcc not found in CUDA_HOME, /usr/local/cuda or PATH: install the CUDA toolkit")
    # nvcc on PATH may be a wrapper script outside the toolkit: its own dry run says where the toolkit is.
    dry = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.MULTILINE)
    home = (nvcc.parent / top[1].strip()).resolve() if top else nvcc.resolve().parent.parent
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", told)
    if not release:
        raise CannotBuild(f"{nvcc} --version gave no release: {told.strip()[:200]!r}")
    return nvcc, home, release[1]


def nvcc_is_there() -> bool:
    with contextlib.suppress(CannotBuild):
        return bool(find_nvcc())
    return False


def cuda_archs() -> tuple[list[str], list[str]]:
    """nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST, and the names of what they make (sm_90, compute_90)."""
    flags, names = [], []
    for item in re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_CUDA_ARCHS):
        if not item:
            continue
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", item)
        if not match:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST: {item!r} is not understood; write e.g. '8.0;9.0+PTX'")
        number = match[1] + match[2]
        for kind in ["sm", "compute"] if match[3] else ["sm"]:
            flags.append(f"-gencode=arch=compute_{number},code={kind}_{number}")
            names.append(f"{kind}_{number}")
    return flags, names


def max_jobs() -> int:
    """MAX_JOBS, or as many as there are cores and 3 GB of memory for each."""
    if set_by_user := os.environ.get("MAX_JOBS"):
        return max(1, int(set_by_user))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(
        OSError, ValueError
    ):  # a container's limit; the file says "max" where there is none
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(cores, memory // (3 << 30)))


class NinjaFile:
    """The text of a build.ninja. Paths are relative to the repository root, where ninja runs."""

    def __init__(self) -> None:
        self.lines = ["ninja_required_version = 1.5", f"builddir = {BUILD}"]

    def rule(self, name: str, command: list[str], *, depfile: bool = False) -> None:
        self.lines += [f"rule {name}", f"  command = {' '.join(command)}", "  description = $what"]
        if depfile:
            self.lines += ["  depfile = $out.d", "  deps = gcc"]

    def edge(self, rule: str, out: Path, inputs: list[Path], what: str, flags: Sequence[str] = ()) -> Path:
        sources = " ".join(self.path(item) for item in inputs)
        self.lines += [f"build {self.path(out)}: {rule} {sources}", f"  what = {what}"]
        self.lines += [f"  flags = {self.words(list(flags))}"]
        return out

    @staticmethod
    def path(item: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(item))

    @staticmethod
    def words(items: list[str]) -> str:
        return shlex.join(items).replace("$", "$$")


def run_ninja(rules: NinjaFile, folder: Path, target: Path) -> Path:
    """Bring `target` up to date; its output is shown as it comes, and the first error becomes the reason."""
    script = folder / "build.ninja"
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / script).write_text("\n".join([*rules.lines, ""]))
    command = [find_ninja(), "-f", str(script), "-j", str(max_jobs()), str(target)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode:
        errors = [line for line in lines if re.search(r"\berror\b|\bundefined\b|^FAILED", line)]
        errors.sort(key=lambda line: line.startswith("FAILED"))
        detail = errors[0] if errors else (lines or ["ninja printed nothing"])[-1]
        raise CannotBuild(f"compiling failed: {detail[:300]} (whole output: `python setup.py build_native`)")
    return ROOT / target


def cached(command: list[str]) -> list[str]:
    ccache = shutil.which("ccache")
    return command if not ccache or "ccache" in Path(command[0]).name else [ccache, *command]


def cxx_rules(cxx: list[str]) -> NinjaFile:
    rules = NinjaFile()
    rules.rule("cxx", [shlex.join([*cached(cxx), *CXX_FLAGS]), "$flags", *IN_OUT], depfile=True)
    rules.rule("link", [shlex.join(cxx), "$in", "-o", "$out", "$flags"])
    return rules


def sources_in(folder: str, suffix: str) -> list[Path]:
    found = sorted(path.relative_to(ROOT) for path in ROOT.glob(f"csrc/{folder}/**/*{suffix}"))
    if not found:
        raise CannotBuild(f"csrc/{folder} holds no {suffix} files in this source tree")
    return found


def object_of(source: Path, folder: Path) -> Path:
    """csrc/cpu/mask/rows.cpp -> <folder>/mask/rows.o"""
    return folder.joinpath(*source.parts[2:]).with_suffix(".o")


def own_flags(source: Path, level: str) -> list[str]:
    found = OWN_FLAGS.findall((ROOT / source).read_text())
    return [flag for levels, flags in found if level in levels.split(", ") for flag in flags.split()]


def build_cpu() -> Made:
    torch, torch_version = torch_place()
    cxx, compiler = find_compiler()
    sources = sources_in("cpu", ".cpp")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    levels = ISA_FLAGS if x86 else {"baseline": ISA_FLAGS["baseline"][:2]}
    rules, objects = cxx_rules(cxx), []
    torch_flags = [*STABLE_ABI, "-isystem", str(torch / "include")]
    for source in sources:
        if source.name.endswith(ONCE):
            out = object_of(source, BUILD / "cpu" / "once")
            objects.append(rules.edge("cxx", out, [source], f"{source}", torch_flags))
            continue
        for level, flags in levels.items():
            out = object_of(source, BUILD / "cpu" / level)
            every = [*flags, *own_flags(source, level)]
            objects.append(rules.edge("cxx", out, [source], f"{source} ({level})", every))
    target = BUILD / "cpu" / "libfastforget_cpu.so"
    link = [*LINK_FLAGS, "-Wl,-z,defs", f"-L{torch / 'lib'}", "-ltorch_cpu", "-ldl"]
    rules.edge("link", target, objects, "link libfastforget_cpu.so", link)
    made = run_ninja(rules, BUILD / "cpu", target)
    facts: dict[str, Any] = {
        "levels": list(levels),
        "compiler": compiler,
        "flags": CXX_FLAGS + STABLE_ABI,
        "torch": torch_version,
    }
    return [made], facts


def build_cuda() -> Made:
    nvcc, home, release = find_nvcc()
    torch, torch_version = torch_place()
    cxx, compiler = find_compiler()
    gencode, archs = cuda_archs()
    flags = ["-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "-DUSE_CUDA"]
    flags += ["-Icsrc", *STABLE_ABI, *gencode]
    paths = ["-ccbin", cxx[-1], "-isystem", str(torch / "include")]
    rules = cxx_rules(cxx)
    # The log keeps ptxas' report of registers and spills; it is shown only when the compile fails.
    command = [shlex.join([*cached([str(nvcc)]), *flags, *paths]), *IN_OUT]
    rules.rule("nvcc", [*command, "> $out.log 2>&1 || { cat $out.log; exit 1; }"], depfile=True)
    objects = [
        rules.edge("nvcc", object_of(source, BUILD / "cuda"), [source], f"{source} ({' '.join(archs)})")
        for source in sources_in("cuda", ".cu")
    ]
    # -ltorch must stay although nothing in it is called: in a CUDA build of torch it brings libtorch_cuda,
    # the home of the (weak) current-stream symbol. cudart is static: its version or absence does not matter.
    link = [*LINK_FLAGS, "-Wl,-z,defs", "-Wl,--exclude-libs,ALL", f"-L{home / 'lib64'}", f"-L{torch / 'lib'}"]
    link += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed", "-lcudart_static"]
    link += ["-ldl", "-lrt", "-lpthread"]
    target = BUILD / "cuda" / "libfastforget_cuda.so"
    rules.edge("link", target, objects, "link libfastforget_cuda.so", link)
    made = run_ninja(rules, BUILD / "cuda", target)
    report = made.with_name("cuda_ptxas.txt")
    report.write_text("".join((ROOT / f"{item}.log").read_text() for item in objects))
    facts: dict[str, Any] = {
        "archs": archs,
        "nvcc": release,
        "compiler": compiler,
        "flags": flags,
        "torch": torch_version,
    }
    return [made, report], facts


def build_host() -> Made:
    cxx, compiler = find_compiler()
    if not importlib.util.find_spec("pybind11"):
        raise CannotBuild("pybind11 is not importable here: `pip install pybind11`")
    import pybind11

    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").is_file():
        raise CannotBuild(f"{python}/Python.h not found: install Python's headers (python3-dev)")
    flags = ["-isystem", pybind11.get_include(), "-isystem", python]
    folder = BUILD / f"host-{sys.implementation.cache_tag}"
    rules = cxx_rules(cxx)
    objects = [
        rules.edge("cxx", object_of(source, folder), [source], str(source), flags)
        for source in sources_in("host", ".cpp")
    ]
    target = folder / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    rules.edge("link", target, objects, f"link {target.name}", LINK_FLAGS)
    return [run_ninja(rules, folder, target)], {"compiler": compiler, "pybind11": pybind11.__version__}
