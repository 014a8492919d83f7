"""Compiles csrc/cuda for the emulated device and registers it for CPU tensors, in a namespace of its own."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch

from fastforget._schema import SCHEMAS

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAMESPACE = "fastforget_emulated"
LIBRARY = "libfastforget_emulated.so"
# Undefined behaviour aborts, such as a 16-byte access to a misaligned address. Floats may be divided by zero.
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-fno-sanitize=float-divide-by-zero,vptr"]


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def compile_library(compiler: str, folder: Path) -> None:
    """Compiles the shared library into ``folder``, a source on each core."""
    include = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", str(torch_folder() / "include")]
    flags = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas", *SANITIZE, *include]
    flags += ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-DFF_NAMESPACE={NAMESPACE}", "-DFF_DISPATCH_KEY=CPU"]
    if platform.machine() in ("x86_64", "AMD64") and "fma" in Path("/proc/cpuinfo").read_text():
        flags.append("-mfma")  # a GPU has the fused multiply-add
    sources = [*sorted((ROOT / "csrc" / "cuda").rglob("*.cu")), HERE / "stream.cpp"]
    objects = [folder / f"{source.parent.name}_{source.stem}.o" for source in sources]
    commands = [[compiler, *flags, "-x", "c++", "-c", str(source), "-o", str(out)] for source, out in zip(sources, objects, strict=True)]
    with ThreadPool() as pool:
        pool.map(partial(subprocess.run, check=True), commands, chunksize=1)
    library = folder / LIBRARY
    link = ["-shared", *SANITIZE, "-static-libubsan", f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
    subprocess.run([compiler, *map(str, objects), *link, "-o", str(library)], check=True)


_loaded: dict[str, Callable[..., None]] = {}


def load(folder: Path) -> dict[str, Callable[..., None]]:
    """Every op of the emulated device, by name, from the library in ``folder``; loaded once in a process."""
    if _loaded:
        return _loaded
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, (signature, _) in SCHEMAS.items():
        library.define(name + signature)
    torch.ops.load_library(str(folder / LIBRARY))
    load.keep = library  # type: ignore[attr-defined]  # the ops vanish with it
    _loaded.update({name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in SCHEMAS})
    return _loaded
