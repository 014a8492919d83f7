"""What the Triton kernels of every family share: scalars, storage rounding, pointer tables, launch context.

Lists of tensors go to the device as one pointer table, so that a list costs one launch for each storage
dtype and not one for each tensor. Host work, measured on a server core without a GPU: 0.65 us a tensor to
collect addresses and sizes and to look the table up (105 us for the 161 tensors of a ResNet-50); when the
same list comes again (a training loop) that is all before the launch. A new list also pays 50 us to build
the table and one small copy from pinned memory, which doesn't wait for the device.
"""

from __future__ import annotations

import contextlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

TL_DTYPE = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}

_MAX_TABLES = 64
_tables: OrderedDict[tuple, Tensor] = OrderedDict()
_captured: list[Tensor] = []


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """float64 is computed in float64; everything narrower in float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def float_bits(value: float) -> int:
    """A double's bits. Triton passes Python floats as float32, which would round the scalars of a float64
    call."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def pick(values: Sequence, index: int):
    """A scalar of tensor ``index`` of a list, for which one value or one a tensor was given."""
    return values[0] if len(values) == 1 else values[index]


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, so make the tensor's own device current."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()


def device_table(values: Sequence[int], device: torch.device) -> Tensor:
    """``values`` as int64 on ``device``, kept for the next call with the same values.

    A table holds nothing but the values it is found by, so a kept one can't be out of date. It belongs to
    one stream, because its copy is ordered on that stream alone. One used while a CUDA graph is captured
    lives on, since the graph reads it again.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=torch.int64, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream
    key = (device.index, stream, tuple(values))
    table = _tables.get(key)
    if table is None:
        staged = torch.tensor(values, dtype=torch.int64).pin_memory()
        table = staged.to(device, non_blocking=True)
        _tables[key] = table
        if len(_tables) > _MAX_TABLES:
            _tables.popitem(last=False)
        if torch.cuda.is_current_stream_capturing():
            _captured.append(staged)
    else:
        _tables.move_to_end(key)
    if torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    return table


def work_table(columns: Sequence[Sequence[int]], chunks: Sequence[int], device: torch.device) -> tuple[Tensor, int, int]:
    """Table for a list: row 0 is each tensor's first chunk, then one row for each column.

    Returns:
        the table (int64, row after row), the number of programs, and the steps of ``find_tensor``.
    """
    first, total = [], 0
    for count in chunks:
        first.append(total)
        total += count
    flat = list(first)
    for column in columns:
        flat.extend(column)
    return device_table(flat, device), total, max(len(first) - 1, 0).bit_length()


@triton.jit
def find_tensor(table, tensors, steps, program):
    """Index of the tensor that this program's chunk belongs to: the last one whose first chunk isn't beyond
    it.

    The table is a few hundred entries that stay in L1, so eight dependent loads cost less than a table with
    an entry for each chunk would (14 MB for 7e9 elements).
    """
    low = program * 0
    high = low + tensors
    # `while` in every kernel: the interpreter's `range` takes no run-time bound under numpy 2.4 and later
    step = 0
    while step < steps:
        middle = (low + high) // 2
        below = tl.load(table + middle) <= program
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
        step += 1
    return low


@triton.jit
def scalar(bits, DTYPE: tl.constexpr):
    """The double whose bits came as an integer (see float_bits), in the compute type."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(DTYPE)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Rounds to the storage type, to nearest even. One conversion instruction, except in Triton's
    interpreter: that one cuts bfloat16 off, so there the rounding is done on the bits."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        # adding could carry a NaN's payload over into its sign
        rounded = tl.where(x == x, rounded, 0x7FC00000)
        return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def lerp(start, end, weight):
    """The weighted mean of Adam's first moment in torch.lerp's form, from the nearer end: from the old value
    alone, a weight of 1 (beta1 = 0) would lose an end that is small beside it."""
    near = weight < 0.5
    return tl.fma(end - start, tl.where(near, weight, weight - 1.0), tl.where(near, start, end))


@triton.jit
def divide(a, b):
    """a / b rounded to nearest: Triton's own float32 division may be 2 ulp off."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def square_root(x):
    """sqrt rounded to nearest, for the same reason."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)
