"""Which implementation serves an op: loading, choosing, explaining.

The dispatcher picks by the tensors' device. ``use_backend`` (in its context) and ``FASTFORGET_BACKEND`` (in the process) force one;
``forced`` is the one in force here. ``backends()`` says, for every op and device, which can serve and why another can't.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import json
import os
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import _schema

NAMES = ("reference", "native", "triton")
_LIB = Path(__file__).parent / "_lib"
_load_errors: dict[str, str] = {}
_missing_ops: set[tuple[str, str]] = set()  # (op, part): neither compiled nor served by Triton

native_cpu = False  # whether the compiled ops for CPU tensors are loaded


class BackendError(RuntimeError):
    """The backend that was asked for can't serve this op on this device."""


def check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend: got {name!r}; accepted are {', '.join(map(repr, NAMES))}")


_everywhere = os.environ.get("FASTFORGET_BACKEND") or None
if _everywhere is not None:
    check_name(_everywhere)
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("fastforget backend", default=_everywhere)
_blocks: contextvars.ContextVar[tuple[list[str], ...]] = contextvars.ContextVar("fastforget backend's open blocks", default=())
in_force = _forced.get  # what fastforget.backend.forced is; a call spares the look-up of a module's attribute that isn't there
# The same for code that is being traced: torch.compile can't read a context variable, but guards what it reads of a thread.
_traced = threading.local()


def forced_in_trace() -> str | None:
    """:func:`in_force`, for torch.compile: it compiles again where another thread, or another block, has forced another one."""
    return getattr(_traced, "forced", _everywhere)


def __getattr__(name: str) -> Any:
    if name == "forced":
        return in_force()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_facts() -> dict[str, Any]:
    """What the installation built, with which tools, and why a part is missing (``{}`` in a bare checkout)."""
    try:
        return json.loads((_LIB / "build.json").read_text())
    except (OSError, ValueError):
        return {}


def library(part: str) -> Path:
    """Where the compiled ops of a part (``"cpu"`` or ``"cuda"``) are."""
    return _LIB / f"libfastforget_{part}.so"


def _load(part: str) -> None:
    path = library(part)
    if not path.exists():
        _load_errors[part] = build_facts().get("missing", {}).get(part, "not built here")
        return
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        _load_errors[part] = f"{path.name} did not load: {' '.join(str(error).split())}"


def mending(part: str) -> str:
    """What brings a missing native part back: the tools that its build takes, and the command."""
    tools = "torch>=2.10, ninja, setuptools>=77 and g++ (11 or newer)" + (", and nvcc" if part == "cuda" else "")
    source = Path(__file__).resolve().parent.parent
    where, command = "in fastforget's source folder: ", "pip install --no-build-isolation --no-deps --force-reinstall ."
    if (source / "setup.py").is_file():
        where, command = "", f"cd {shlex.quote(str(source))} && {shlex.quote(sys.executable)} setup.py build_native"
    return f"install what is missing of {tools}, then run {where}{command}"


_said: set[str] = set()


def _without_native(name: str, part: str, reason: str) -> Callable[..., None]:
    """The reference's op; the first call of any op says, once for a part, that it is not the fast one, and what mends that."""

    def call(*args: Any) -> None:
        if part not in _said:
            _said.add(part)
            warnings.warn(
                f"fastforget: there are no compiled kernels for {part.upper()} tensors ({reason}), so plain PyTorch serves, many times "
                f"slower. `python -m fastforget info` shows what serves. To have them, {mending(part)}",
                stacklevel=2,
            )
        _schema.SCHEMAS[name][1](*args)

    return call


def cpu_level() -> dict[str, Any] | None:
    """The CPU kernels' instruction set, as the library that chose it says: what the CPU has, what is in force, the names that
    ``FASTFORGET_CPU_ISA`` accepts, and a name there that was ignored. ``None`` where the library is not loaded."""
    if not native_cpu:
        return None
    ask = getattr(torch.ops, _schema.NAMESPACE)._cpu_level
    return {
        "detected": ask("detected"),
        "in_force": ask("in_force"),
        "accepted": ask("built").split(),
        "ignored": ask("ignored") or None,
    }


def _triton_missing() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def _triton_op(name: str) -> Callable[..., None]:
    """Op ``name`` of the Triton backend; Triton itself is imported at the first call."""

    def call(*args: Any) -> None:
        module = importlib.import_module(f"._triton.{_schema.MODULE_OF[name]}", __package__)
        getattr(module, name)(*args)

    return call


def _set_up() -> None:
    global native_cpu
    _load("cpu")
    _load("cuda")
    native_cpu = "cpu" not in _load_errors
    if "cuda" in _load_errors and _triton_missing() is None:
        for name in _schema.SCHEMAS:
            _schema.register(name, _triton_op(name), "CUDA")
    for part in ("cpu", "cuda"):
        for name in _schema.SCHEMAS:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{_schema.NAMESPACE}::{name}", part.upper()):
                reason = _load_errors.get(part, f"{library(part).name} is of another version: it has no {name}")
                _schema.register(name, _without_native(name, part, reason), part.upper())
                _missing_ops.add((name, part))


def why_not(backend: str, name: str, device: str) -> str | None:
    """Why ``backend`` can't serve op ``name`` on tensors of ``device`` type; ``None`` if it can."""
    if backend == "reference":
        return None
    if backend == "native":
        if device not in ("cpu", "cuda"):
            return f"no native kernels for {device} tensors"
        if device in _load_errors:
            return _load_errors[device]
        return f"the {device.upper()} library has no {name}" if (name, device) in _missing_ops else None
    if backend == "triton":
        missing = _triton_missing()
        if missing:
            return missing
        if device == "cuda" or (device == "cpu" and _interpreting()):
            return None
        if device == "cpu":
            return "needs CUDA tensors (or TRITON_INTERPRET=1 to interpret on the CPU)"
        return f"no Triton kernels for {device} tensors"
    raise ValueError(f"backend: {backend!r} is not known; accepted are {', '.join(NAMES)}")


def backends() -> dict[str, dict[str, dict[str, str]]]:
    """For every op and device type, each backend's ``"ok"`` or the reason why it can't serve.

    Returns:
        ``{op: {device: {backend: "ok" | reason}}}``

    >>> import fastforget as ff
    >>> ff.backends()["normal_"]["cpu"]["reference"]
    'ok'
    """
    return {
        name: {device: {b: why_not(b, name, device) or "ok" for b in NAMES} for device in ("cpu", "cuda")}
        for name in _schema.SCHEMAS
    }


def serving(name: str, device: str) -> str:
    """The backend that serves op ``name`` on ``device`` tensors when none is forced."""
    order = ("native", "triton", "reference") if device == "cuda" else ("native", "reference")
    return next(b for b in order if why_not(b, name, device) is None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces one backend for all ops inside the block: for this thread or task, and for no other that runs meanwhile.

    A thread that is started inside the block begins without it. (An asyncio task keeps what was in force where it was made; code compiled
    by torch.compile goes by the thread alone.)

    Args:
        name: ``"reference"`` (plain PyTorch), ``"native"`` (C++ on CPU tensors, CUDA C++ on CUDA tensors) or ``"triton"``.

    Raises:
        ValueError: the name is none of these.
        BackendError: raised by an op inside the block when the backend can't serve its tensors; it lists every backend and why not.

    >>> import torch, fastforget as ff
    >>> with ff.use_backend("reference"):
    ...     x = ff.ops.noise.normal_(torch.empty(2), seed=0)
    """
    check_name(name)
    if torch.compiler.is_compiling():
        before = forced_in_trace()
        _traced.forced = name
        try:
            yield
        finally:
            _traced.forced = before
        return
    block = [name]  # itself, whatever others hold the same name
    _blocks.set((*_blocks.get(), block))
    _force_innermost()
    try:
        yield
    finally:
        # Not "as it was before": a generator that holds a block ends it when it likes, beside blocks that were opened later.
        _blocks.set(tuple(one for one in _blocks.get() if one is not block))
        _force_innermost()


def _force_innermost() -> None:
    blocks = _blocks.get()
    name = blocks[-1][0] if blocks else _everywhere
    _forced.set(name)
    _traced.forced = name


def call_forced(name: str, device: str, args: tuple[Any, ...]) -> None:
    """Runs op ``name`` on the forced backend or raises one error that says what could serve."""
    backend = forced_in_trace() if torch.compiler.is_compiling() else in_force()
    assert backend is not None
    if why_not(backend, name, device) is not None:
        lines = [f"  {b}: {why_not(b, name, device) or 'ok'}" for b in NAMES]
        raise BackendError(
            f"backend {backend!r} was asked for but can't serve {name} on {device} tensors:\n"
            + "\n".join(lines)
            + "\nChoose one that is ok, or see `python -m fastforget info`."
        )
    if backend != "native" and not torch.compiler.is_compiling():
        _schema.refuse_shared(name, args)
    if backend == "reference":
        _schema.SCHEMAS[name][1](*args)
    elif backend == "triton":
        _triton_op(name)(*args)
    else:
        _schema.overload(name)(*args)


_set_up()
