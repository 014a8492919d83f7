"""Calls of the CPU ops that don't go through torch's dispatcher.

Torch takes 1.2 to 2.8 us for a call of 16 elements, to box the arguments and to find one function by their device.
``csrc/host/direct.cpp`` asks the tensors itself, through the C interface that torch offers other libraries (DLPack's exchange
interface); a call is then half as long or less (the table of calls in benchmarks/README.md). It's the same op. Whatever torch might
want to see goes the dispatcher's way as before: modes, a profiler, autograd, subclasses of tensor, other devices.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from . import backend

# what torch.autograd.graph.increment_version calls with a list of tensors
increment_version = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)


def _offered() -> tuple[dict[str, Callable[..., Any]], str | None]:
    """The ops by name, or none and the reason."""
    if not backend.native_cpu:
        return {}, "the compiled CPU ops are not loaded"
    try:
        host = importlib.import_module("fastforget._host")
        watching = (
            torch._C._len_torch_dispatch_stack,
            torch._C._is_torch_function_mode_enabled,
            torch._C._autograd._profiler_enabled,
        )
        found = host.direct_ops(
            str(backend.library("cpu")),
            torch.Tensor.__dlpack_c_exchange_api__,
            torch.Tensor,
            torch.nn.Parameter,
            torch._C.TensorBase.__dict__["requires_grad"],
            torch.is_grad_enabled,
            torch.Tensor.is_neg,
            increment_version,
            watching,
        )
    except ImportError as error:
        return {}, str(error)
    except (AttributeError, KeyError) as error:
        return {}, f"torch {torch.__version__} has no such interface: {error}"
    return found, None


def _refused(*_: Any) -> None:
    """In the place of an op that can't be called directly."""


OPS, WHY_NOT = _offered()


def op(name: str) -> Callable[..., Any]:
    """The op ``name`` for plain CPU tensors.

    It takes the op's arguments (``_schema.py``) without those that it fills, which it returns: a tensor, a tuple of them, or True where
    there is nothing to return; "membership_scores into" takes those too. A list of one may be given as the thing itself. None says
    that the call was refused and that nothing has changed. The tensors' versions are told to autograd.
    """
    return OPS.get(name, _refused)
