"""The mask family's CUDA sources on the emulated device (see test_cuda_emulated.py) against the reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from mask_cases import (
    ADAM,
    MASK_FORMS,
    SGD,
    STAT_SHAPES,
    Guarded,
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
from tolerance import FLOATS
from torch import Tensor

from fastforget.reference.mask import elementwise as reference
from fastforget.reference.mask import optim as mask_optim

pytestmark = pytest.mark.slow
Ops = dict[str, Callable[..., None]]
SHAPES = [(5,), (3, 7), (), (4, 3, 3, 3), (0, 4), (2, 4099), (1, 1), (700, 16), (9, 1024)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", [*MASK_FORMS, "factors"])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_masked_sgd(emulated: Ops, dtype: torch.dtype, form: str, options: dict) -> None:
    check_steps(emulated["masked_sgd_"], mask_optim.masked_sgd_, SHAPES, dtype, form, sgd_arguments, options)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", MASK_FORMS)
@pytest.mark.parametrize("options", ADAM, ids=str)
def test_masked_adam(emulated: Ops, dtype: torch.dtype, form: str, options: dict) -> None:
    check_steps(emulated["masked_adam_"], mask_optim.masked_adam_, SHAPES, dtype, form, adam_arguments, options)


def test_masked_steps_on_long_mixed_lists(emulated: Ops) -> None:
    """More tensors than a launch table holds, of every dtype and form of mask."""
    forms = itertools.cycle([*MASK_FORMS, "factors"])
    params = [torch.randn((17 * i) % 23, 3, dtype=torch.float64).to(FLOATS[i % 4]) for i in range(400)]
    grads = [torch.randn_like(p) for p in params]
    masks = [draw_mask(next(forms), p.shape) for p in params]
    for name in ("masked_sgd_", "masked_adam_"):
        usable = masks if name == "masked_sgd_" else [m if m.dtype != torch.float32 else m[:0] for m in masks]
        arguments = sgd_arguments(SGD[1]) if name == "masked_sgd_" else adam_arguments(ADAM[1])
        states = [[torch.rand_like(p) for p in params] for _ in range(1 if name == "masked_sgd_" else 2)]
        together, alone = ([[t.clone() for t in part] for part in (params, *states)] for _ in range(2))
        emulated[name](together[0], grads, usable, *together[1:], *arguments)
        for i in range(len(params)):
            emulated[name](alone[0][i : i + 1], grads[i : i + 1], usable[i : i + 1], *(s[i : i + 1] for s in alone[1:]), *arguments)
        assert all(torch.equal(a, b) for one, two in zip(together, alone, strict=True) for a, b in zip(one, two, strict=True))


def test_steps_refuse_foreign_masks(emulated: Ops) -> None:
    p = torch.zeros(4, 6)
    for mask in (torch.ones(5, dtype=torch.bool), torch.ones(4, dtype=torch.uint8), torch.ones(4, dtype=torch.int64), torch.ones(24)):
        with pytest.raises(RuntimeError, match=r"masked_sgd_: masks.*accepted"):
            emulated["masked_sgd_"]([p], [p], [mask], [], *sgd_arguments(SGD[0]))
    with pytest.raises(RuntimeError, match=r"masked_adam_: masks.*accepted"):
        emulated["masked_adam_"]([p], [p], [torch.ones(4)], [p.clone()], [p.clone()], *adam_arguments(ADAM[0]))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_misaligned_tensors_give_the_same_bits_and_keep_their_neighbours(emulated: Ops, dtype: torch.dtype, offset: int) -> None:
    wide = wide_dtype(dtype)

    def run(shift: int) -> list[Tensor]:
        torch.manual_seed(1)
        guard = Guarded(shift)

        def draw(*shape: int) -> Tensor:
            return guard(torch.randn(shape, dtype=torch.float64).to(dtype))

        for form in (*MASK_FORMS, "factors"):
            p, g, m, v = draw(77, 33), draw(77, 33), draw(77, 33), draw(77, 33).abs_()
            mask = guard(draw_mask(form, p.shape))
            emulated["masked_sgd_"]([p], [g], [mask], [m], *sgd_arguments(SGD[1]))
            if form != "factors":
                emulated["masked_adam_"]([p], [g], [mask], [m], [v], *adam_arguments(ADAM[1]))
        x, g = draw(3, 4001), draw(3, 4001)
        emulated["accumulate_importance_"]([x], [g], 2, 0.5)
        l1, nnz = guard(torch.zeros(1, dtype=torch.float64)), guard(torch.zeros(1, dtype=torch.int64))
        emulated["soft_threshold_"]([x], [0.7], l1, nnz)
        plain, packed = guard(torch.zeros(3, 4001, dtype=torch.bool)), guard(torch.zeros(1501, dtype=torch.uint8))
        for mask in (plain, packed):
            emulated["saliency_mask"]([x], 5000, [mask], guard(torch.zeros(1, dtype=wide)))
        return guard.check()

    for aligned, shifted in zip(run(0), run(offset), strict=True):
        assert torch.equal(aligned, shifted)
    for dim, shapes in ((0, [(40, 333), (7, 64)]), (1, [(9, 8, 12), (300, 20), (70, 6, 7, 7), (3, 4, 5003)])):
        guard = Guarded(offset)
        check_stats(emulated["neuron_stats"], dim, shapes, dtype, guard)
        guard.check()


# ---- elementwise


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("power", [1, 2])
def test_accumulate_importance(emulated: Ops, dtype: torch.dtype, wide: bool, power: int) -> None:
    kept = wide_dtype(dtype) if wide else dtype
    sizes = [0, 1, 7, 4096, 4097, 20_001]
    grads = [torch.randn(n, dtype=torch.float64).to(dtype) for n in sizes]
    importances = [torch.rand(n, dtype=torch.float64).to(kept) for n in sizes]
    check_importances(emulated["accumulate_importance_"], importances, grads, power)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("each", [False, True])
def test_soft_threshold(emulated: Ops, dtype: torch.dtype, each: bool) -> None:
    sizes = [0, 1, 7, 4096, 4097, 20_001]
    xs = [torch.randn(n, dtype=torch.float64).to(dtype) for n in sizes]
    check_shrink(emulated["soft_threshold_"], xs, [0.25 * (i + 1) for i in range(len(sizes))] if each else [0.5])


def test_soft_threshold_of_special_values(emulated: Ops) -> None:
    inf = math.inf
    x = torch.tensor([math.nan, inf, -inf, 0.0, -0.0, -0.25, 0.5, 1.0])
    got, expected = x.clone(), x.clone()
    outputs = [(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)) for _ in range(2)]
    emulated["soft_threshold_"]([got], [0.5], *outputs[0])
    reference.soft_threshold_([expected], [0.5], *outputs[1])
    assert torch.equal(got.nan_to_num(9.0), expected.nan_to_num(9.0))
    assert torch.equal(torch.signbit(got[1:]), torch.signbit(expected[1:]))
    assert outputs[0][0].isnan() and outputs[0][1] == outputs[1][1] == 4


# ---- neuron_stats


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("dim", "shapes"), STAT_SHAPES)
def test_neuron_stats(emulated: Ops, dtype: torch.dtype, dim: int, shapes: Sequence[Sequence[int]]) -> None:
    check_stats(emulated["neuron_stats"], dim, shapes, dtype)


def test_neuron_stats_of_large_and_undefined_values(emulated: Ops) -> None:
    x = torch.full((4, 40), 3e38)
    x[1, 3], x[2, 5], x[3, 7] = math.nan, math.inf, -math.inf
    for values, dim in ((x, 0), (x.t().contiguous(), 1)):
        mean, total = torch.zeros(4), torch.zeros(4)
        emulated["neuron_stats"]([values], dim, [mean], [total])
        assert mean[0] == x[0, 0] and mean[1].isnan() and mean[2:].tolist() == [math.inf] * 2
        assert total[1].isnan() and total[[0, 2, 3]].tolist() == [math.inf] * 3


# ---- saliency_mask


@pytest.mark.parametrize("dtypes", [FLOATS[:1], FLOATS[1:2], FLOATS[2:3], FLOATS[3:], FLOATS[:3], FLOATS[1:3], FLOATS], ids=str)
@pytest.mark.parametrize("packed", [(False,), (True, True, False)], ids=str)
def test_saliency_mask(emulated: Ops, dtypes: Sequence[torch.dtype], packed: tuple[bool, ...]) -> None:
    for xs in saliency_lists(dtypes):
        total = sum(x.numel() for x in xs)
        for k in (0, 1, total // 3, total // 2 + 1, total):
            check_saliency(emulated["saliency_mask"], xs, k, packed)


def test_saliency_mask_of_small_and_many_tensors(emulated: Ops) -> None:
    for n in range(18):
        for k in {0, n // 2, n}:
            check_saliency(emulated["saliency_mask"], [torch.randint(0, 4, (n,)).float()], k, (True,))
    check_saliency(emulated["saliency_mask"], [], 0, (True,))
    many = [torch.randint(0, 9, ((17 * i) % 23, 2)).to(FLOATS[i % 3]) for i in range(400)]
    for k in (7, 4000):
        check_saliency(emulated["saliency_mask"], many, k, (True, False))


def test_saliency_mask_refuses_impossible_counts(emulated: Ops) -> None:
    x, mask, threshold = torch.zeros(3), torch.zeros(3, dtype=torch.bool), torch.zeros(())
    for k in (-1, 4):
        with pytest.raises(RuntimeError, match="k is .*accepted: 0 to 3"):
            emulated["saliency_mask"]([x], k, [mask], threshold)


def test_results_do_not_depend_on_the_number_of_multiprocessors(emulated: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for count in ("1", "5"):
        monkeypatch.setenv("FASTFORGET_EMULATED_MULTIPROCESSORS", count)
        torch.manual_seed(0)
        guard = Guarded(0)
        x, y, p, m, v = (guard(torch.randn(3, 20_001)) for _ in range(5))
        emulated["masked_sgd_"]([p], [y], [draw_mask("elements", p.shape)], [m], *sgd_arguments(SGD[1]))
        emulated["masked_adam_"]([p], [y], [draw_mask("bits", p.shape)], [m], [v.abs_()], *adam_arguments(ADAM[1]))
        l1, nnz = guard(torch.zeros(1, dtype=torch.float64)), guard(torch.zeros(1, dtype=torch.int64))
        emulated["soft_threshold_"]([x], [0.3], l1, nnz)
        emulated["accumulate_importance_"]([y], [x], 1, 0.5)
        for z, dim in ((p, 0), (y.view(20_001, 3), 1), (p.view(3, 3, -1), 1)):
            emulated["neuron_stats"]([z], dim, *([guard(torch.zeros(z.shape[dim]))] for _ in range(2)))
        emulated["saliency_mask"]([x], 40_000, [guard(torch.zeros(x.shape, dtype=torch.bool))], guard(torch.zeros(1)))
        results.append(guard.check())
    for one, five in zip(*results, strict=True):
        assert torch.equal(one, five)
