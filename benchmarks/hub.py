"""The ops as a kernel repository for Hugging Face's ``kernels``: Triton kernels, public functions and reference, nothing compiled.

    python -m fastforget._bench.hub --out FOLDER

writes ``build.toml`` and ``torch-ext/`` (what kernel-builder builds from), and ``build/torch-cpu`` and ``build/torch-cuda`` (what
``kernels.get_kernel`` loads). All imports are relative, and each variant registers its ops under a name of its own, which ends in a hash of
its sources: several versions live in one process, also beside an installed fastforget. ``docs/gpu.md`` says how to use it.

The layout follows the kernel requirements in the documentation of Hugging Face's kernels 0.17.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import fastforget
from fastforget import _triton
from fastforget._command import Parser, unusable

NAME, MODULE = "fastforget-kernels", "fastforget_kernels"
BACKENDS = ("cpu", "cuda")
VERSION = 0  # by the hub's convention: the interface may still change
FLOORS = ("ops", "reference")
SINGLE = ("backend.py", "_schema.py", "_apart.py", "_dtensors.py")
OWN_NAMESPACE = 'NAMESPACE = "fastforget"\n'
GIVEN_NAMESPACE = 'NAMESPACE = add_op_namespace_prefix("").partition("::")[0]\n'
FROM = "from .reference import noise, update\n"

INIT = '''"""Fused ops for machine unlearning: noise, updates, masks, membership scores. Triton on CUDA tensors, plain PyTorch elsewhere."""

from .backend import BackendError, backends, use_backend
from .ops import mask, membership, noise, update

__all__ = ["BackendError", "backends", "mask", "membership", "noise", "update", "use_backend"]
'''
OPS = '''"""The name under which this build registers its ops: no other build has it."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """The op's full name."""
    return f"{id}::{{op_name}}"
'''
# For versions of `kernels` that look for the package one folder deeper: the same module, not a second copy with the same ops.
INNER = '''"""The package of the folder above, for older versions of kernels."""

import importlib.util
import sys
from pathlib import Path

if "{id}" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("{id}", Path(__file__).resolve().parent.parent / "__init__.py")
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["{id}"] = _module
    _spec.loader.exec_module(_module)
_module = sys.modules["{id}"]
__all__ = list(_module.__all__)
globals().update({{name: getattr(_module, name) for name in __all__}})
'''
FLAKE = """{
  description = "Flake for fastforget's Triton kernels";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""
MISSING = {
    "cpu": "a kernel repository holds no compiled code: install fastforget for the CPU kernels",
    "cuda": "a kernel repository holds no compiled code: Triton serves",
}
CARD = f"""---
library_name: kernels
license: mit
---

# {NAME}

Noise that is a pure function of seed and index, masked and dampened updates, exact global top-k masks, and membership-inference scores:
fastforget's ops as Triton kernels, with plain PyTorch where a tensor isn't on a GPU.

```python
from kernels import get_local_kernel
ops = get_local_kernel("this folder")
ops.noise.normal_(x, seed=0)
```
"""


def sources() -> dict[str, str]:
    """The package's files by their paths in it, without what tells one build from another."""
    root = Path(fastforget.__file__).parent
    found = {path.relative_to(root).as_posix(): path for floor in FLOORS for path in sorted((root / floor).rglob("*.py"))}
    found |= {name: root / name for name in SINGLE}
    kernels = [(Path(place), path) for place in _triton.__path__ for path in sorted(Path(place).rglob("*.py"))]
    found |= {f"_triton/{path.relative_to(place).as_posix()}": path for place, path in kernels if path.name != "__init__.py"}
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    schema = texts["_schema.py"]
    if schema.count(OWN_NAMESPACE) != 1 or schema.count(FROM) != 1:
        raise ValueError("_schema.py: the line that names the ops' namespace is not the one this script knows")
    texts["_schema.py"] = schema.replace(OWN_NAMESPACE, GIVEN_NAMESPACE).replace(FROM, f"from ._ops import add_op_namespace_prefix\n{FROM}")
    folders = {parent.as_posix() for name in texts for parent in Path(name).parents if parent.name}
    texts |= {f"{folder}/__init__.py": "" for folder in folders if f"{folder}/__init__.py" not in texts}
    texts |= {"__init__.py": INIT, "_lib/build.json": json.dumps({"missing": MISSING}, indent=1) + "\n"}
    for name, text in texts.items():
        _check_imports(name, text)
    return dict(sorted(texts.items()))


def _check_imports(name: str, text: str) -> None:
    """Only the standard library, torch, triton (which torch brings) and the package itself, by relative imports."""
    if not name.endswith(".py"):
        return
    for node in ast.walk(ast.parse(text)):
        absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        absolute += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for module in (module.partition(".")[0] for module in absolute):
            if module not in ("torch", "triton", *sys.stdlib_module_names):
                raise ValueError(f"{name}: it imports {module}; accepted in a kernel repository are torch, triton and the standard library")


def identity(texts: dict[str, str], backend: str) -> str:
    """A module's name that no other build of other sources has."""
    digest = hashlib.sha1("".join(f"{name}\0{text}\0" for name, text in texts.items()).encode()).hexdigest()
    return f"_{MODULE}_{backend}_{digest[:10]}"


def write(out: Path) -> list[Path]:
    """The repository in a folder that is new or empty, whole or not at all.

    Returns:
        the folders of the build variants.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: a source imports what a kernel repository can't.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: the folder holds something; accepted is a new or an empty one")
    texts = sources()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        whole = Path(temporary, "repository")
        backends = ", ".join(f'"{backend}"' for backend in BACKENDS)
        general = f'[general]\nedition = 5\nname = "{NAME}"\nversion = {VERSION}\nlicense = "mit"\nbackends = [{backends}]\n'
        general += "\n[torch-noarch]\n"
        _put(whole, {"build.toml": general, "flake.nix": FLAKE, "README.md": CARD})
        _put(whole / "torch-ext" / MODULE, texts)
        for backend in BACKENDS:
            _put_variant(whole / "build" / f"torch-{backend}", texts, backend)
        if out.exists():
            out.rmdir()
        shutil.move(whole, out)
    return [out / "build" / f"torch-{backend}" for backend in BACKENDS]


def _put_variant(folder: Path, texts: dict[str, str], backend: str) -> None:
    name = identity(texts, backend)
    files = {**texts, "_ops.py": OPS.format(id=name), f"{MODULE}/__init__.py": INNER.format(id=name)}
    digests = {path: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for path, text in sorted(files.items())}
    metadata = {
        "id": name,
        "name": NAME,
        "version": VERSION,
        "license": "mit",
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    _put(folder, {**files, "metadata.json": json.dumps(metadata, indent=2) + "\n"})


def _put(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m fastforget._bench.hub", description="Write the ops as a kernel repository for Hugging Face's kernels.")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new or an empty folder")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    out = parser().parse_args(argv).out
    try:
        variants = write(out)
    except (OSError, ValueError) as error:
        return unusable("_bench.hub", error)
    print(f"{out}: build.toml, torch-ext/{MODULE}, {', '.join(f'build/{variant.name}' for variant in variants)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
