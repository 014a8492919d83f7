"""Compiles the Triton kernels ahead of time for one architecture, without a GPU.

For test_triton_interpreter.py. Every variant must pass Triton and ptxas and spill no register, and the
streaming kernels must read and write 16 bytes at a time where the tensors are aligned. A kernel that is not
named here is built as the table of ops calls it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import op_table
import torch
import triton
import triton.language as tl
from fastforget._triton.common import TL_DTYPE
from fastforget._triton.mask import elementwise as mask
from fastforget._triton.mask import optim as mask_optim
from fastforget._triton.mask import rows as mask_rows
from fastforget._triton.mask import select as mask_select
from fastforget._triton.membership import lira as scores
from fastforget._triton.membership import lira_moments as lira
from fastforget._triton.membership import rmia, roc
from fastforget._triton.membership import scores as membership
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastforget import backend
from fastforget._triton import distill, noise, rows, update

POINTERS = {tl.float32: "*fp32", tl.bfloat16: "*bf16", tl.float16: "*fp16", tl.float64: "*fp64"}
INTEGERS = {torch.int8: "*i8", torch.uint8: "*i8", torch.bool: "*i8", torch.int32: "*i32", torch.int64: "*i64"}
BUILT: set[str] = set()  # the kernels that were built, by name
WIDE = re.compile(r"(ld|st)\.global(?:\.\w+)*\.v(?:4\.b32|2\.b64|4\.u32|2\.u64|4\.f32|2\.f64)")


def working(dtype: tl.dtype) -> tl.dtype:
    return tl.float64 if dtype == tl.float64 else tl.float32


def build(arch: int, kernel, types: dict, constants: dict, warps: int, aligned: tuple[str, ...] = ()):
    """The PTX, after the assembler has reported no spill."""
    BUILT.add(kernel.fn.__name__)
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else types[n] for n in names},
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(built.asm["ptx"])
        command = [
            assembler,
            "-v",
            f"-arch=sm_{arch}{'a' if arch == 90 else ''}",
            ptx,
            "-o",
            ptx.with_suffix(".o"),
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = (int(re.search(rf"(\d+) bytes spill {kind}", report)[1]) for kind in ("stores", "loads"))
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    shown = {n: str(v) for n, v in constants.items()}
    print(
        f"{kernel.fn.__name__} sm_{arch} {shown}: {registers} registers, {built.metadata.shared} bytes shared"
    )
    assert stores == loads == 0, f"{kernel.fn.__name__} {shown} spills {stores} + {loads} bytes on sm_{arch}"
    return built.asm["ptx"]


def wide(ptx: str) -> set[str]:
    return set(WIDE.findall(ptx))


def elementwise(arch: int) -> int:
    count = 0
    words = {"table": "*i64", "tensors": "i32", "steps": "i32", "count": "*i64"}
    longs = dict.fromkeys(("n", "first", "seed", "stream", "step", "mean", "std", "lr", "alpha", "lam"), "i64")
    for dtype in TL_DTYPE.values():
        kind = POINTERS[dtype]
        types = {**words, **longs, "x": kind, "param": kind, "forget": kind, "retain": kind}
        for aligned in (True, False):
            common = {"DTYPE": dtype, "COMPUTE": working(dtype), "ALIGNED": aligned}
            constants = {**common, "ADD": True, "CHUNK": noise.CHUNK}
            ptx = build(arch, noise.noise_list_kernel, types, constants, noise.NUM_WARPS, ("table",))
            assert wide(ptx) == ({"ld", "st"} if aligned else set())
            # what isn't aligned differs in its masks alone, so the one with every term stands for all
            for grad, elements in ((True, False), (False, True), (True, True)) if aligned else ((True, True),):
                constants = {**common, "GRAD": grad, "ELEMENTS": elements, "CHUNK": noise.CHUNK}
                ptx = build(arch, noise.perturb_list_kernel, types, constants, noise.NUM_WARPS, ("table",))
                assert wide(ptx) == ({"ld", "st"} if aligned else set())
                count += 1
            constants = {**common, "CHUNK": mask.CHUNK}
            ptx = build(arch, mask.dampen_list_kernel, types, constants, mask.NUM_WARPS, ("table",))
            assert wide(ptx) == ({"ld", "st"} if aligned else set())
            count += 2
    types, single = {**longs, "x": "*fp32", "out": "*i32"}, {"DTYPE": tl.float32, "COMPUTE": tl.float32}
    single |= {"ADD": False, "ALIGNED": True, "CHUNK": noise.CHUNK}
    assert "st" in wide(build(arch, noise.noise_one_kernel, types, single, noise.NUM_WARPS, ("x",)))
    assert "st" in wide(
        build(
            arch, noise.bits_kernel, types, {"ALIGNED": True, "CHUNK": noise.CHUNK}, noise.NUM_WARPS, ("out",)
        )
    )
    del single["ADD"]
    types = {**longs, "param": "*fp32", "grad": "*fp32", "elements": "*fp32"}
    constants = {**single, "GRAD": True, "ELEMENTS": True}
    aligned = ("param", "grad", "elements")
    assert wide(build(arch, noise.perturb_one_kernel, types, constants, noise.NUM_WARPS, aligned)) == {"ld", "st"}
    types = {**longs, **words, "param": "*fp32", "forget": "*fp32", "retain": "*fp32"}
    single["CHUNK"] = mask.CHUNK
    build(arch, mask.dampen_one_kernel, types, single, mask.NUM_WARPS, ("param", "forget", "retain"))
    return count + 4


def row_wise(arch: int) -> int:
    count = 0
    sizes = {
        tl.float32: (2, 10, 32, 100, 1000, 8192, 50_000),
        tl.bfloat16: (10, 128, 50_000),
        tl.float64: (10, 1000),
    }
    for dtype, widths in sizes.items():
        compute = working(dtype)
        types = {"logits": POINTERS[dtype], "dlogits": POINTERS[dtype], "loss": POINTERS[compute]}
        types |= {"scores": POINTERS[compute], "labels": "*i64", "correct": "*i8", "temperature": "i64"}
        types |= dict.fromkeys(("B", "N", "K", "stride"), "i32")
        for classes in widths:
            by_thread, tiling = rows.row_tiling(classes, compute, read_only=True)
            warps = tiling.pop("num_warps")
            constants = {"COMPUTE": compute, "SCALED": classes == 100, "BY_THREAD": by_thread, **tiling}
            aligned = ("logits", "labels", "scores", "correct", *(("K",) if classes % 16 == 0 else ()))
            ptx = build(arch, membership.membership_scores_kernel, types, constants, warps, aligned)
            # only the rare branch's vote crosses threads, no sum or maximum does
            assert not by_thread or ptx.count("shfl") <= 5, "the compiler no longer gives each thread a row"
            _, tiling = rows.row_tiling(classes, compute, read_only=False)
            warps = tiling.pop("num_warps")
            aligned = ("logits", "labels", "loss", "dlogits", *(("K",) if classes % 16 == 0 else ()))
            build(arch, update.error_max_loss_kernel, types, {"COMPUTE": compute, **tiling}, warps, aligned)
            tiling = rows.pair_tiling(classes, compute)
            warps = tiling.pop("num_warps")
            aligned = ("logits", "teacher", "drop", "loss", "dlogits", *(("K",) if classes % 16 == 0 else ()))
            for form in (distill.NOTHING, distill.ONE_A_ROW, distill.CLASSES):
                own = {"teacher": POINTERS[dtype], "drop": "*i64" if form == distill.ONE_A_ROW else "*i8"}
                build(arch, distill.distill_loss_kernel, {**types, **own}, {"COMPUTE": compute, "DROP": form, **tiling}, warps, aligned)
            count += 5
    return count


def reductions(arch: int) -> int:
    count = 0
    scalars = ("l2", "take1", "beta2", "take2", "step_size", "root_bc2", "eps", "low", "high")
    for dtype in TL_DTYPE.values():
        tensors = ("x", "grad", "exp_avg", "exp_avg_sq")
        types = {**dict.fromkeys(tensors, POINTERS[dtype]), "partials": "*fp64", "n": "i32"}
        types |= dict.fromkeys(scalars, "i64")
        constants = {"COMPUTE": working(dtype), "CHUNK": update.CHUNK}
        aligned = (*tensors, "partials", "n")
        ptx = build(arch, update.error_max_step_kernel, types, constants, update.NUM_WARPS, aligned)
        assert wide(ptx) == {"ld", "st"}
        count += 1
    sizes = dict.fromkeys(("n1", "n0", "steps1", "steps0", "programs1", "programs", "F", "count"), "i32")
    for pointer in ("*fp32", "*fp64"):
        types = {
            **sizes,
            "member": pointer,
            "nonmember": pointer,
            "partials": "*i64",
            "budgets": "*i64",
            "out": "*fp64",
        }
        block = {"BLOCK": roc.SEARCH_BLOCK}
        build(
            arch, roc.roc_search_kernel, types, block, roc.SEARCH_WARPS, ("member", "nonmember")
        )
        # sizes of 1 reach a kernel as constants
        ones = {"n1": 1, "steps1": 1, "programs1": 1}
        build(arch, roc.roc_search_kernel, types, {**block, **ones}, roc.SEARCH_WARPS)
        constants = {"BLOCK": roc.FINAL_BLOCK, "BUDGETS": 2}
        build(arch, roc.roc_final_kernel, types, constants, 8)
        build(arch, roc.roc_final_kernel, types, {**constants, **ones, "F": 1}, 8)
        types = {"partials": "*fp64", "total": pointer, "count": "i32"}
        build(arch, update.sum_partials_kernel, types, {"WIDTH": update.SUM_WIDTH}, 4)
        count += 5
    return count


def mask_lists(arch: int) -> int:
    """The mask family's kernels on lists, which find everything in a table."""
    words = {"table": "*i64", "tensors": "i32", "steps": "i32"}
    count = 0
    for name, dtype in TL_DTYPE.items():
        compute = working(dtype)
        group = mask_optim.group_size(name)
        flags = {"DTYPE": dtype, "COMPUTE": compute}
        for aligned in (True, False):
            both = {"ld", "st"} if aligned else set()
            sgd = dict.fromkeys(("lr", "momentum", "rest", "decay"), "i64")
            constants = {**flags, "MOMENTUM": True, "NESTEROV": False, "MAXIMIZE": False, "FIRST": False}
            constants |= {"ALIGNED": aligned, "CHUNK": mask_optim.CHUNK, "GROUP": group}
            ptx = build(arch, mask_optim.masked_sgd_kernel, {**words, **sgd}, constants, mask_optim.NUM_WARPS, ("table",))
            assert wide(ptx) == both
            adam = dict.fromkeys(("rate", "take1", "beta2", "take2", "root", "eps", "decay"), "i64")
            constants = {**flags, "DECOUPLED": False, "MAXIMIZE": False}
            constants |= {"ALIGNED": aligned, "CHUNK": mask_optim.CHUNK, "GROUP": group}
            ptx = build(arch, mask_optim.masked_adam_kernel, {**words, **adam}, constants, mask_optim.NUM_WARPS, ("table",))
            assert wide(ptx) == both
            constants = {**flags, "INTO": compute, "SQUARED": True, "ALIGNED": aligned, "CHUNK": mask.importance_chunk(aligned)}
            ptx = build(arch, mask.importance_kernel, {**words, "scale": "i64"}, constants, mask.NUM_WARPS, ("table",))
            assert wide(ptx) == both
            types = {**words, "partials": "*fp64", "nonzero": "*i64"}
            constants = {**flags, "ALIGNED": aligned, "CHUNK": mask.CHUNK}
            ptx = build(arch, mask.shrink_kernel, types, constants, mask.NUM_WARPS, ("table",))
            assert wide(ptx) == both
            tile = {"TILE": mask_rows.tile_size(name, group if aligned else 1), "PIECE": mask_rows.PIECE, "GROUP": group if aligned else 1}
            for one_run in (True, False):
                ptx = build(arch, mask_rows.pieces_kernel, words, {**flags, "ONE_RUN": one_run, **tile}, mask_rows.NUM_WARPS, ("table",))
                assert ("ld" in wide(ptx)) == aligned
            tile = {"LINES": mask_rows.lines_at_once(name), "COLUMNS": mask_rows.COLUMNS, "SPLIT": mask_rows.SPLIT}
            ptx = build(arch, mask_rows.columns_kernel, words, {**flags, "ALIGNED": aligned, **tile}, 8, ("table",))
            assert ("ld" in wide(ptx)) == aligned
            count += 7
        tile = {"ROWS": mask_rows.SHORT_ROWS, "WIDTH": mask_rows.SHORT}
        build(arch, mask_rows.short_rows_kernel, words, {**flags, **tile}, mask_rows.NUM_WARPS, ("table",))
        count += 1
    tile = {"COMPUTE": tl.float32, "ROWS": mask_rows.FINAL_ROWS, "WIDTH": mask_rows.FINAL_WIDTH}
    build(arch, mask_rows.last_sums_kernel, words, tile, mask_rows.NUM_WARPS, ("table",))
    return count + 1 + selection(arch)


def selection(arch: int) -> int:
    tables = {"table": "*i64", "tensors": "i32", "steps": "i32"}
    words = dict.fromkeys(("state", "histogram", "ties"), "*i64")
    warps, chunk = mask_select.NUM_WARPS, {"CHUNK": mask_select.CHUNK}
    pairs = [(tl.float32, tl.float32, (20, 11)), (tl.bfloat16, tl.float32, (9, 11)), (tl.float64, tl.float64, (52, 11))]
    for dtype, compute, (shift, bits) in pairs:
        flags = {"DTYPE": dtype, "COMPUTE": compute, "ALIGNED": True, **chunk}
        for first in (True, False):
            digit = {"SHIFT": shift, "BITS": bits, "FIRST": first}
            constants = {**flags, "COUNTED": mask_select.COUNTED, **digit}
            ptx = build(arch, mask_select.histogram_kernel, {**tables, **words}, constants, warps, ("table",))
            assert "ld" in wide(ptx)
            types = {**words, "threshold": POINTERS[compute], "k": "i64"}
            build(arch, mask_select.digit_kernel, types, {"COMPUTE": compute, "LAST": not first, **digit}, warps)
        assert "ld" in wide(build(arch, mask_select.ties_kernel, {**tables, **words}, flags, warps, ("table",)))
        for packed in (True, False):
            ptx = build(arch, mask_select.mask_kernel, {**tables, **words}, {**flags, "PACKED": packed}, warps, ("table",))
            assert "ld" in wide(ptx)
    build(arch, mask_select.scan_kernel, {**words, "chunks": "i32"}, {"WIDTH": mask_select.SCAN}, warps)
    return len(pairs) * 7 + 1


def lira_and_counts(arch: int) -> int:
    count = 0
    names = ("M", "samples", "queries", "rows", "models", "variance_step", "variance_side", "n", "zs", "steps", "gamma_count")
    sizes = dict.fromkeys((*names, "gamma_step", "part_size", "size"), "i32")
    longs = dict.fromkeys(("floor", "least", "gamma", "seed", "step", "n0", "n1", "rates", "width"), "i64")
    words = dict.fromkeys(("count", "zeros", "numbers", "gammas", "counts", "below", "not_above", "accepted", "sums", "budgets"), "*i64")
    common = {**sizes, **longs, **words, "member": "*i8", "kept": "*fp64"}
    for dtype, integer, key in ((tl.float32, tl.int32, "*i32"), (tl.float64, tl.int64, "*i64")):
        floats = ("scores", "center", "variance", "target", "out", "ratio_x", "ratio_z")
        types = {**common, **dict.fromkeys(floats, POINTERS[dtype]), "limits": key}
        block = {"DTYPE": dtype, "BLOCK": lira.BLOCK}
        for median in (True, False):
            for keep in (True, False):
                constants = {**block, "MEDIAN": median, "KEEP": keep, "INT": integer, "ROWS": lira.ROWS}
                build(arch, lira.columns_kernel, types, constants, lira.WARPS, ("scores", "member"))
            constants = {"DTYPE": dtype, "BLOCK": scores.BLOCK, "ROWS": scores.SCORE_ROWS}
            constants |= {"MEDIAN": median, "GLOBAL": False, "MODE": 0}
            build(arch, scores.loo_kernel, types, constants, scores.WARPS, ("scores", "member"))
        for mode in (0, 1, 2):
            constants = {"DTYPE": dtype, "BLOCK": scores.BLOCK, "ROWS": scores.SCORE_ROWS, "MODE": mode}
            build(arch, scores.ratio_kernel, types, constants, scores.WARPS)
        moments = {**types, "mean": "*fp64", "m2": "*fp64"}
        build(arch, scores.update_kernel, moments, {"BLOCK": scores.BLOCK}, scores.WARPS)
        block = {"DTYPE": dtype, "STRICT": False}
        build(arch, rmia.rmia_counts_kernel, types, {**block, "BLOCK": rmia.BLOCK}, rmia.WARPS)
        build(arch, rmia.vote_limits_kernel, types, {**block, "INT": integer, "BLOCK": rmia.BLOCK}, rmia.WARPS)
        for divides in (False, True):
            x, z = (rmia.DIVIDE_X, rmia.DIVIDE_Z) if divides else (rmia.VOTE_X, rmia.VOTE_Z)
            constants = {**block, "INT": integer, "X": x, "Z": z, "DIVIDES": divides}
            build(arch, rmia.vote_kernel, types, constants, rmia.VOTE_WARPS, ("ratio_x", "ratio_z", "limits"))
        count += 14
    types = {**common, **longs, "upto": "*i32", "size": "i64"}
    build(arch, roc.count_draws_kernel, {**types, "counts": "*i32"}, {"DRAWS": roc.DRAWS}, roc.WARPS)
    build(arch, roc.accepted_kernel, types, {"BLOCK": roc.BLOCK}, roc.WARPS)
    build(arch, roc.member_draws_kernel, types, {"DRAWS": roc.DRAWS}, roc.WARPS)
    build(arch, roc.quotients_kernel, {**types, "out": "*fp64"}, {"BLOCK": roc.BLOCK}, roc.WARPS)
    return count + 4


def called_by_the_table(arch: int) -> int:
    """Kernels that nothing above has built, for each form in which the table of ops launches them.

    One with a constant ALIGNED streams, so it is built with both values.
    """
    forms: dict[str, tuple[Any, ...]] = {}
    done = set(BUILT)

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, num_warps: int = 4, **named: Any) -> None:
        if kernel.fn.__name__ in done:
            return
        values = {**dict(zip(kernel.arg_names, args, strict=False)), **named}
        constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        types, aligned = {}, []
        for p in kernel.params:
            value = values[p.name]
            if isinstance(value, torch.Tensor):
                types[p.name] = POINTERS[TL_DTYPE[value.dtype]] if value.dtype in TL_DTYPE else INTEGERS[value.dtype]
                aligned += [p.name] if value.data_ptr() % 16 == 0 else []
            elif not p.is_constexpr:
                types[p.name] = p.annotation_type or "i32"
        forms[f"{kernel.fn.__name__} {types} {constants}"] = kernel, types, constants, num_warps, tuple(aligned)
        if "ALIGNED" in constants:
            constants = {**constants, "ALIGNED": not constants["ALIGNED"]}
            forms.setdefault(f"{kernel.fn.__name__} {types} {constants}", (kernel, types, constants, num_warps, ()))

    launch, JITFunction.run = JITFunction.run, record
    try:
        for op in op_table.TABLE:
            for dtype in TL_DTYPE:
                backend._triton_op(op)(*op_table.raw(op, dtype))
    finally:
        JITFunction.run = launch
    for kernel, types, constants, warps, aligned in forms.values():
        ptx = build(arch, kernel, types, constants, warps, aligned)
        assert not constants.get("ALIGNED") or wide(ptx), f"{kernel.fn.__name__} reads and writes less than 16 bytes at a time"
    return len(forms)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arch = int(sys.argv[1])
    parts = elementwise, row_wise, reductions, mask_lists, lira_and_counts, called_by_the_table
    print(f"sm_{arch}: {sum(part(arch) for part in parts)} kernels compiled, none spills")
