"""The mask family on CUDA tensors, native and Triton, against the definitions; skipped where there is no CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mask_cases import (
    ADAM,
    MASK_FORMS,
    SGD,
    STAT_SHAPES,
    adam_arguments,
    check_importances,
    check_saliency,
    check_shrink,
    check_stats,
    check_steps,
    draw_mask,
    saliency_lists,
    sgd_arguments,
    wide_dtype,
)
from test_gpu import DEVICE, offset_by, on_gpu, put  # noqa: F401  (on_gpu is a fixture)
from tolerance import FLOATS

from fastforget import _schema, backend
from fastforget.reference.mask import optim as mask_optim

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]
SHAPES = [(5,), (3, 7), (), (4, 3, 3, 3), (0, 4), (2, 4099), (1, 1), (700, 16), (9, 1024), (512, 4608)]
SIZES = [0, 1, 7, 4096, 4097, 1_000_003]


def op(which: str, name: str) -> Callable[..., None]:
    """The raw op of the backend under test."""
    if which == "native":
        return _schema.overload(name)
    return backend._triton_op(name)


def shifted(x: torch.Tensor) -> torch.Tensor:
    return offset_by(1, x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", [*MASK_FORMS, "factors"])
@pytest.mark.parametrize("options", SGD, ids=str)
@pytest.mark.parametrize("place", [put, shifted])
def test_masked_sgd(on_gpu: str, dtype: torch.dtype, form: str, options: dict, place: Any) -> None:  # noqa: F811
    check_steps(op(on_gpu, "masked_sgd_"), mask_optim.masked_sgd_, SHAPES, dtype, form, sgd_arguments, options, place)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", MASK_FORMS)
@pytest.mark.parametrize("options", ADAM, ids=str)
@pytest.mark.parametrize("place", [put, shifted])
def test_masked_adam(on_gpu: str, dtype: torch.dtype, form: str, options: dict, place: Any) -> None:  # noqa: F811
    check_steps(op(on_gpu, "masked_adam_"), mask_optim.masked_adam_, SHAPES, dtype, form, adam_arguments, options, place)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("place", [put, shifted])
def test_accumulate_importance(on_gpu: str, dtype: torch.dtype, wide: bool, power: int, place: Any) -> None:  # noqa: F811
    grads = [torch.randn(n, dtype=torch.float64).to(dtype) for n in SIZES]
    importances = [torch.rand(n, dtype=torch.float64).to(wide_dtype(dtype) if wide else dtype) for n in SIZES]
    check_importances(op(on_gpu, "accumulate_importance_"), importances, grads, power, place)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("place", [put, shifted])
def test_soft_threshold(on_gpu: str, dtype: torch.dtype, each: bool, place: Any) -> None:  # noqa: F811
    xs = [torch.randn(n, dtype=torch.float64).to(dtype) for n in SIZES]
    check_shrink(op(on_gpu, "soft_threshold_"), xs, [0.25 * (i + 1) for i in range(len(SIZES))] if each else [0.5], place)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("dim", "shapes"), [*STAT_SHAPES, (0, [(512, 4608), (100_000, 16)]), (1, [(128, 64, 32, 32), (4096, 100)])])
@pytest.mark.parametrize("place", [put, shifted])
def test_neuron_stats(on_gpu: str, dtype: torch.dtype, dim: int, shapes: Sequence[Sequence[int]], place: Any) -> None:  # noqa: F811
    check_stats(op(on_gpu, "neuron_stats"), dim, shapes, dtype, place)


@pytest.mark.parametrize("dtypes", [FLOATS[:1], FLOATS[1:2], FLOATS[2:3], FLOATS[3:], FLOATS[:3], FLOATS[1:3], FLOATS], ids=str)
@pytest.mark.parametrize("packed", [(False,), (True, True, False)], ids=str)
@pytest.mark.parametrize("place", [put, shifted])
def test_saliency_mask(on_gpu: str, dtypes: Sequence[torch.dtype], packed: tuple[bool, ...], place: Any) -> None:  # noqa: F811
    for xs in saliency_lists(dtypes):
        total = sum(x.numel() for x in xs)
        for k in (0, 1, total // 3, total // 2 + 1, total):
            check_saliency(op(on_gpu, "saliency_mask"), xs, k, packed, place)


@pytest.mark.parametrize("ties", [False, True])
def test_saliency_mask_of_many_elements(on_gpu: str, ties: bool) -> None:  # noqa: F811
    x = torch.randn(5_000_011)
    check_saliency(op(on_gpu, "saliency_mask"), [x.mul(3).round() if ties else x, torch.zeros(77_777)], 2_000_000, (True, False), put)


def test_ops_can_be_captured_and_repeat_their_bits(on_gpu: str) -> None:  # noqa: F811
    shape = (300, 1003)
    made = {name: torch.randn(shape) for name in ("p", "g", "m", "v", "x")}
    made["v"].abs_()
    mask = put(draw_mask("rows", shape))

    def once(b: dict[str, torch.Tensor]) -> None:
        op(on_gpu, "masked_sgd_")([b["p"]], [b["g"]], [mask], [b["m"]], *sgd_arguments(SGD[1]))
        op(on_gpu, "masked_adam_")([b["p"]], [b["g"]], [mask], [b["m"]], [b["v"]], *adam_arguments(ADAM[1]))
        op(on_gpu, "accumulate_importance_")([b["v"]], [b["g"]], 2, 0.5)
        op(on_gpu, "soft_threshold_")([b["x"]], [0.1], b["l1"], b["nnz"])
        op(on_gpu, "neuron_stats")([b["p"]], 0, [b["mean"]], [b["total"]])
        op(on_gpu, "saliency_mask")([b["x"]], 70_000, [b["mask"]], b["limit"])

    def buffers() -> dict[str, torch.Tensor]:
        b = {k: t.to(DEVICE, copy=True) for k, t in made.items()}
        b |= {"l1": torch.zeros((), dtype=torch.float64, device=DEVICE), "nnz": torch.zeros((), dtype=torch.int64, device=DEVICE)}
        b |= {k: torch.zeros(n, device=DEVICE) for k, n in (("mean", 300), ("total", 300))}
        return b | {"mask": torch.zeros(shape, dtype=torch.bool, device=DEVICE), "limit": torch.zeros((), device=DEVICE)}

    expected, again, captured = buffers(), buffers(), buffers()
    once(expected)
    once(again)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once(captured)
    for k, v in buffers().items():
        captured[k].copy_(v)
    graph.replay()
    torch.cuda.synchronize()
    for k in expected:
        assert torch.equal(expected[k], again[k]) and torch.equal(expected[k], captured[k]), k
