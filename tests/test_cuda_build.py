"""The built CUDA library without a GPU: it loads, nothing spills, streaming kernels move 16 bytes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastforget._schema import SCHEMAS
from fastforget.backend import build_facts

ROOT = Path(__file__).parent.parent
LIB = ROOT / "fastforget" / "_lib"
# CUB's kernels are the toolkit's own and no business of ours.
OURS = re.compile(r"ff4cuda")


def entries(report: str) -> dict[tuple[str, str], str]:
    """ptxas -v's lines on each of our kernels, by (kernel, architecture)."""
    parts = re.split(r"Compiling entry function '(\S+)' for '(\S+)'", report)
    named = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {(kernel, arch): text for kernel, arch, text in named if OURS.search(kernel)}


@pytest.fixture(scope="module")
def report() -> str:
    """What ptxas said when the library was built; without a build, a compile of every source."""
    saved = LIB / "cuda_ptxas.txt"
    if saved.exists():
        return saved.read_text()
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed, and no report of a build is there")
    import torch

    flags = ["-O3", "-std=c++20", "-Xptxas=-v", "-DUSE_CUDA", "-DTORCH_STABLE_ONLY", f"-I{ROOT / 'csrc'}"]
    flags += [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-isystem",
        str(Path(torch.__file__).parent / "include"),
    ]
    flags += [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (75, 80, 90)]
    said = ""
    for source in sorted((ROOT / "csrc" / "cuda").rglob("*.cu")):
        run = subprocess.run(
            [nvcc, *flags, "-c", str(source), "-o", os.devnull], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        said += run.stderr + run.stdout
    return said


def test_no_kernel_spills_or_has_a_stack(report):
    found = entries(report)
    assert found
    for (kernel, arch), text in found.items():
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert frame is not None, f"{kernel} ({arch}): ptxas reported no stack frame"
        assert frame.groups() == ("0", "0", "0"), f"{kernel} ({arch}): {frame[0]}"


def test_every_family_has_kernels_for_every_architecture(report):
    found = entries(report)
    archs = {arch for _, arch in found}
    for name in (
        "normal_kernel",
        "perturb_kernel",
        "random_bits_kernel",
        "adam_kernel",
        "loss_kernel",
        "dampen_kernel",
        "importance_kernel",
        "shrink_kernel",
        "masked_sgd_kernel",
        "masked_adam_kernel",
        "pieces_kernel",
        "columns_kernel",
        "histogram_kernel",
        "mask_kernel",
        "scores_kernel",
    ):
        assert {arch for kernel, arch in found if name in kernel} == archs, name


def test_two_blocks_or_more_fit_on_a_multiprocessor(report):
    """Many warps hide the latency of memory: 256 threads of 128 registers leave room for two blocks."""
    for (kernel, arch), text in entries(report).items():
        registers = re.search(r"Used (\d+) registers", text)
        assert registers is not None and int(registers[1]) <= 128, (
            f"{kernel} ({arch}): {registers and registers[0]}"
        )


def library() -> Path:
    facts = build_facts()
    if "cuda" in facts.get("missing", {}):
        pytest.skip(f"the CUDA library was not built: {facts['missing']['cuda']}")
    path = LIB / "libfastforget_cuda.so"
    if not path.exists():
        pytest.skip("the CUDA library was not built here; `python setup.py build_native` does it")
    return path


def test_library_loads_and_registers_every_op():
    """In a fresh process that knows of fastforget nothing but the schemas; also where torch is CPU-only."""
    code = (
        "import sys, torch\n"
        "library = torch.library.Library('fastforget', 'DEF')\n"
        "schemas = eval(sys.argv[2])\n"
        "for name, text in schemas.items(): library.define(name + text)\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(*[name for name in schemas if not has(f'fastforget::{name}', 'CUDA')])\n"
    )
    texts = repr({name: signature for name, (signature, _) in SCHEMAS.items()})
    run = subprocess.run([sys.executable, "-c", code, str(library()), texts], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [], "these ops have no CUDA kernel"


def test_library_needs_no_cuda_library():
    """cudart is inside and the stream lookup is weak, so a CUDA build of torch is not required."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    path = str(library())
    dynamic = subprocess.run([readelf, "-d", path], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert needed and not [name for name in needed if "cuda" in name], needed
    symbols = subprocess.run(
        [readelf, "--dyn-syms", "-W", path], capture_output=True, text=True, check=True
    ).stdout
    undefined = [line.split() for line in symbols.splitlines() if " UND " in line]
    cuda = {words[-1]: words[4] for words in undefined if re.search("cuda", words[-1], re.IGNORECASE)}
    del cuda["aoti_torch_device_type_cuda"]  # a constant, in every torch
    assert cuda == {"aoti_torch_get_current_cuda_stream": "WEAK"}


@pytest.fixture(scope="module")
def listing() -> str:
    """The library's machine code for sm_90."""
    tool = shutil.which("cuobjdump")
    if tool is None:
        spec = importlib.util.find_spec("triton")
        inside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if spec else None
        if inside is None or not inside.exists():
            pytest.skip("cuobjdump is not installed (CUDA's binary tools, or the triton package)")
        tool = str(inside)
    return subprocess.run([tool, "-sass", "-arch", "sm_90", str(library())], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "kernel",
    [
        "normal_kernel",
        "perturb_kernel",
        "adam_kernel",
        "dampen_kernel",
        "importance_kernel",
        "shrink_kernel",
        "masked_sgd_kernel",
        "masked_adam_kernel",
    ],
)
def test_streaming_kernels_use_16_byte_accesses(listing, kernel):
    functions = [part for part in listing.split("Function : ")[1:] if kernel in part.split("\n", 1)[0]]
    assert functions
    for text in functions:
        name = text.split("\n", 1)[0]
        assert "STG.E.128" in text, f"{name}: no 16-byte store"
        fills = kernel == "normal_kernel" and "Lb0E" in name  # loads nothing
        assert "LDG.E.128" in text or fills, f"{name}: no 16-byte load"
        assert not re.search(r"\b(LDL|STL)\b", text), f"{name}: local memory"
