"""Mean magnitude and sum of squares of each neuron or channel in Triton: every element is read once.

A tensor is [outer, rows, inner]. Long rows are cut into pieces, one a program; a block of short weight rows
is one program; and where a row is scattered in runs too short for coalesced reads, a program owns columns of
the flat memory. Partial sums are float64 in places that depend on the shape alone, and a last kernel adds
them in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import TL_DTYPE, compute_dtype, find_tensor, on_device, work_table
from .optim import group_size, row_of

PIECE = 16384  # elements of a row a program takes
SHORT, SHORT_ROWS = 64, 32  # rows of at most so many elements share a program
COLUMNS, LINES, SPLIT = 128, 32, 256  # a tile of columns, and the lines that a program takes in steps
FINAL_ROWS, FINAL_WIDTH = 8, 64
NUM_WARPS = 4


@triton.jit
def _magnitude(x):
    """Scaled, so that adding a few can't overflow float32; sums in float64 take it back."""
    return tl.abs(x) * 0.0625


@triton.jit
def _finish(magnitude, square, count, mean_abs, sum_sq, at, inside, COMPUTE: tl.constexpr):
    mean = magnitude * 16.0 / count.to(tl.float64)  # 0 / 0 where a row is empty
    tl.store(mean_abs.to(tl.pointer_type(COMPUTE)) + at, mean.to(COMPUTE), mask=inside)
    tl.store(sum_sq.to(tl.pointer_type(COMPUTE)) + at, square.to(COMPUTE), mask=inside)


@triton.jit(do_not_specialize=["tensors", "steps"])
def pieces_kernel(
    table, tensors, steps,
    DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ONE_RUN: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    local = program - tl.load(column)
    x = tl.load(column + tensors).to(tl.pointer_type(DTYPE))
    rows = tl.load(column + 6 * tensors)
    inner = tl.load(column + 7 * tensors)
    count = tl.load(column + 8 * tensors)
    reciprocal = tl.load(column + 9 * tensors)
    parts = tl.load(column + 10 * tensors)
    row = local // parts
    at = (local - row * parts) * PIECE
    end = at + PIECE
    end = tl.where(end < count, end, count)
    x += row * inner
    if GROUP > 1:
        x = tl.multiple_of(x, 16)
    lane = tl.arange(0, TILE // GROUP) * GROUP
    within = tl.arange(0, GROUP)[None, :]
    magnitude = tl.zeros([TILE // GROUP], tl.float64)
    square = tl.zeros([TILE // GROUP], tl.float64)
    while at < end:
        if ONE_RUN:
            offset = at + lane
            if GROUP > 1:
                offset = tl.multiple_of(offset, GROUP)
        else:
            run = row_of(at, lane, inner, reciprocal, TILE)
            offset = at + lane + run * (rows - 1) * inner
            if GROUP > 1:
                offset = tl.multiple_of(offset, GROUP)
        inside = tl.broadcast_to((at + lane < end)[:, None], [TILE // GROUP, GROUP])
        value = tl.load(x + offset[:, None] + within, mask=inside, other=0.0).to(COMPUTE)
        magnitude += tl.sum(_magnitude(value), 1).to(tl.float64)
        square += tl.sum(value * value, 1).to(tl.float64)
        at += TILE
    total = tl.sum(magnitude, 0)
    squares = tl.sum(square, 0)
    if parts == 1:
        _finish(total, squares, count, tl.load(column + 2 * tensors), tl.load(column + 3 * tensors), row, row >= 0, COMPUTE)
    else:
        tl.store(tl.load(column + 4 * tensors).to(tl.pointer_type(tl.float64)) + local, total)
        tl.store(tl.load(column + 5 * tensors).to(tl.pointer_type(tl.float64)) + local, squares)


@triton.jit(do_not_specialize=["tensors", "steps"])
def short_rows_kernel(
    table, tensors, steps, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    row = (program - tl.load(column)) * ROWS + tl.arange(0, ROWS)
    x = tl.load(column + tensors).to(tl.pointer_type(DTYPE))
    rows = tl.load(column + 6 * tensors)
    inner = tl.load(column + 7 * tensors)
    at = tl.arange(0, WIDTH)[None, :]
    value = tl.load(x + row[:, None] * inner + at, mask=(row < rows)[:, None] & (at < inner), other=0.0).to(COMPUTE)
    magnitude = tl.sum(_magnitude(value).to(tl.float64), 1)
    square = tl.sum((value * value).to(tl.float64), 1)
    mean_abs, sum_sq = tl.load(column + 2 * tensors), tl.load(column + 3 * tensors)
    _finish(magnitude, square, inner, mean_abs, sum_sq, row, row < rows, COMPUTE)


@triton.jit(do_not_specialize=["tensors", "steps"])
def columns_kernel(
    table, tensors, steps, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    local = program - tl.load(column)
    x = tl.load(column + tensors).to(tl.pointer_type(DTYPE))
    width = tl.multiple_of(tl.load(column + 6 * tensors), 16)  # as the launcher made it
    size = tl.load(column + 7 * tensors)
    tiles = tl.load(column + 8 * tensors)
    split = local // tiles
    at = (local - split * tiles) * COLUMNS + tl.arange(0, COLUMNS)
    line = split * SPLIT
    step = tl.arange(0, LINES)[:, None]
    magnitude = tl.zeros([LINES, COLUMNS], COMPUTE)
    square = tl.zeros([LINES, COLUMNS], COMPUTE)
    if ALIGNED:
        x = tl.multiple_of(x, 16)
    # 8 terms a place (float64: 16): float32 is enough until they meet
    end = line + SPLIT
    while line < end:  # unrolled, the doubles would spill
        inside = tl.broadcast_to((at < width)[None, :], [LINES, COLUMNS])
        offset = (line + step) * width + at[None, :]
        if (line + LINES) * width <= size:
            value = tl.load(x + offset, mask=inside, other=0.0).to(COMPUTE)
        else:
            value = tl.load(x + offset, mask=inside & (offset < size), other=0.0).to(COMPUTE)
        magnitude += _magnitude(value)
        square = tl.fma(value, value, square)
        line += LINES
    to = split * width + at
    partial = tl.load(column + 4 * tensors).to(tl.pointer_type(tl.float64))
    tl.store(partial + to, tl.sum(magnitude.to(tl.float64), 0), mask=at < width)
    partial = tl.load(column + 5 * tensors).to(tl.pointer_type(tl.float64))
    tl.store(partial + to, tl.sum(square.to(tl.float64), 0), mask=at < width)


@triton.jit(do_not_specialize=["tensors", "steps"])
def last_sums_kernel(table, tensors, steps, COMPUTE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Row r's partial sum number q lies at (q // run) * stride + r * run + q % run."""
    program = tl.program_id(0).to(tl.int64)
    column = table + find_tensor(table, tensors, steps, program)
    row = (program - tl.load(column)) * ROWS + tl.arange(0, ROWS)
    count = tl.load(column + tensors)  # elements a row
    magnitudes = tl.load(column + 4 * tensors).to(tl.pointer_type(tl.float64))
    squares = tl.load(column + 5 * tensors).to(tl.pointer_type(tl.float64))
    rows = tl.load(column + 6 * tensors)
    parts = tl.load(column + 7 * tensors)
    run = tl.load(column + 8 * tensors)
    stride = tl.load(column + 9 * tensors)
    magnitude = tl.zeros([ROWS, WIDTH], tl.float64)
    square = tl.zeros([ROWS, WIDTH], tl.float64)
    begin = count * 0
    while begin < parts:
        part = begin + tl.arange(0, WIDTH)
        line = part // run
        offset = (line * stride + (part - line * run))[None, :] + row[:, None] * run
        inside = (row < rows)[:, None] & (part < parts)[None, :]
        magnitude += tl.load(magnitudes + offset, mask=inside, other=0.0)
        square += tl.load(squares + offset, mask=inside, other=0.0)
        begin += WIDTH
    mean_abs, sum_sq = tl.load(column + 2 * tensors), tl.load(column + 3 * tensors)
    _finish(tl.sum(magnitude, 1), tl.sum(square, 1), count, mean_abs, sum_sq, row, row < rows, COMPUTE)


def _plan(x: Tensor, dim: int) -> tuple[str, tuple, tuple[int, ...], int, tuple[int, ...], int]:
    """Which kernel, its variant, its columns behind the addresses, its programs, where its partial sums lie
    (parts, run, stride) and how many there are."""
    outer, rows, inner = math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :])
    group, aligned = group_size(x.dtype), x.data_ptr() & 15 == 0
    width = rows * inner
    scattered = inner * x.itemsize < 64 or (inner % group != 0 and outer >= 64)
    if outer > 1 and 0 < inner < PIECE and scattered:
        fold = 16 // math.gcd(width, 16)
        fold *= max(1, COLUMNS // (fold * width))
        lines = -(-outer // fold)
        tiles, splits = -(-fold * width // COLUMNS), -(-lines // SPLIT)
        layout = splits * fold * inner, inner, width
        return "columns", (aligned,), (fold * width, outer * width, tiles), tiles * splits, layout, splits * fold * width
    if outer == 1 and inner <= SHORT:
        return "short", (), (rows, inner, 0), -(-rows // SHORT_ROWS), (), 0
    count = outer * inner
    parts = max(1, -(-count // PIECE))
    variant = outer == 1, group if aligned and inner % group == 0 and inner else 1
    reciprocal = -(-(1 << 32) // inner) if inner else 0
    partials = rows * parts if parts > 1 else 0
    return "pieces", variant, (rows, inner, count, reciprocal, parts), rows * parts, (parts, parts, 0), partials


def neuron_stats(xs: Sequence[Tensor], dim: int, mean_abs: Sequence[Tensor], sum_sq: Sequence[Tensor]) -> None:
    todo = [(x, m, s, *_plan(x, dim)) for x, m, s in zip(xs, mean_abs, sum_sq, strict=True) if x.shape[dim] > 0]
    if not todo:
        return
    device = todo[0][0].device
    with on_device(todo[0][0]):
        needed = sum(entry[-1] for entry in todo)
        memory = torch.empty(max(1, 2 * needed), dtype=torch.float64, device=device)
        groups: dict[tuple, list[tuple[int, ...]]] = {}
        last: dict[torch.dtype, list[tuple[int, ...]]] = {}
        place = memory.data_ptr()
        for x, m, s, kind, variant, columns, programs, layout, partials in todo:
            addresses = x.data_ptr(), m.data_ptr(), s.data_ptr(), place, place + 8 * needed
            groups.setdefault((kind, x.dtype, *variant), []).append((*addresses, *columns, programs))
            if partials:
                rows = x.shape[dim]
                entry = (x.numel() // rows, *addresses[1:], rows, *layout, -(-rows // FINAL_ROWS))
                last.setdefault(m.dtype, []).append(entry)
            place += 8 * partials
        for (kind, dtype, *variant), entries in groups.items():
            columns = list(zip(*entries, strict=True))
            table, programs, steps = work_table(columns[:-1], columns[-1], device)
            common = {"DTYPE": TL_DTYPE[dtype], "COMPUTE": compute_dtype(dtype), "num_warps": NUM_WARPS}
            arguments = table, len(entries), steps
            if kind == "columns":
                columns_kernel[(programs,)](
                    *arguments, ALIGNED=variant[0], LINES=lines_at_once(dtype), COLUMNS=COLUMNS, SPLIT=SPLIT, **{**common, "num_warps": 8}
                )
            elif kind == "short":
                short_rows_kernel[(programs,)](*arguments, ROWS=SHORT_ROWS, WIDTH=SHORT, **common)
            else:
                pieces_kernel[(programs,)](
                    *arguments, ONE_RUN=variant[0], GROUP=variant[1], TILE=tile_size(dtype, variant[1]), PIECE=PIECE, **common
                )
        for wide, entries in last.items():
            columns = list(zip(*entries, strict=True))
            table, programs, steps = work_table(columns[:-1], columns[-1], device)
            last_sums_kernel[(programs,)](
                table, len(entries), steps, COMPUTE=TL_DTYPE[wide], ROWS=FINAL_ROWS, WIDTH=FINAL_WIDTH, num_warps=NUM_WARPS
            )


def lines_at_once(dtype: torch.dtype) -> int:
    """Doubles and their sums would not fit the registers."""
    return LINES // 2 if dtype == torch.float64 else LINES


def tile_size(dtype: torch.dtype, group: int) -> int:
    """Four 16-byte loads of each thread in flight; of single elements as many take too many addresses."""
    return (4 if group > 1 else 2) * group_size(dtype) * 32 * NUM_WARPS
