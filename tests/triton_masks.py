"""Checks of the mask family's Triton kernels on lists, for test_triton_interpreter.py, which runs this file in a
process of its own.
"""

from __future__ import annotations

import itertools
import math

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
    saliency_lists,
    sgd_arguments,
    wide_dtype,
)
from tolerance import FLOATS
from triton_elementwise import main

SHAPES = [(5,), (3, 7), (), (4, 3, 3, 3), (0, 4), (2, 4099), (1, 1), (300, 16), (5, 1024)]
SIZES = [0, 1, 7, 2048, 2049, 5001]


def masked_steps():
    from fastforget._triton.mask import optim as mask

    from fastforget.reference.mask import optim as reference

    cases = [(mask.masked_sgd_, reference.masked_sgd_, sgd_arguments, o, f) for o in SGD for f in (*MASK_FORMS, "factors")]
    cases += [(mask.masked_adam_, reference.masked_adam_, adam_arguments, o, f) for o in ADAM for f in MASK_FORMS]
    for (op, definition, arguments, options, form), dtype in itertools.product(cases, FLOATS):
        if dtype == torch.float32 or options in (SGD[1], ADAM[1]):
            check_steps(op, definition, SHAPES, dtype, form, arguments, options)
    for dtype in FLOATS:
        guard = Guarded(1)
        check_steps(mask.masked_adam_, reference.masked_adam_, SHAPES, dtype, "elements", adam_arguments, ADAM[1], guard)
        guard.check()


def elementwise():
    from fastforget._triton.mask import elementwise as mask

    for dtype, wide, power, shift in itertools.product(FLOATS, (False, True), (1, 2), (0, 1)):
        grads = [torch.randn(n, dtype=torch.float64).to(dtype) for n in SIZES]
        kept = wide_dtype(dtype) if wide else dtype
        importances = [torch.rand(n, dtype=torch.float64).to(kept) for n in SIZES]
        guard = Guarded(shift)
        check_importances(mask.accumulate_importance_, importances, grads, power, guard)
        guard.check()
    for dtype, each, shift in itertools.product(FLOATS, (False, True), (0, 1)):
        xs = [torch.randn(n, dtype=torch.float64).to(dtype) for n in SIZES]
        guard = Guarded(shift)
        check_shrink(mask.soft_threshold_, xs, [0.25 * (i + 1) for i in range(len(SIZES))] if each else [0.5], guard)
        guard.check()
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, -0.25, 0.5, 1.0])
    l1, nnz = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    mask.soft_threshold_([x], [0.5], l1, nnz)
    assert x[0].isnan() and x[1:].tolist() == [math.inf, -math.inf, 0.0, 0.0, 0.0, 0.0, 0.5]
    assert torch.signbit(x[1:]).tolist() == [False, True, False, True, True, False, False]
    assert l1.isnan() and nnz == 4


def row_statistics():
    from fastforget._triton.mask import rows as mask

    for (dim, shapes), dtype, shift in itertools.product(STAT_SHAPES, FLOATS, (0, 1)):
        guard = Guarded(shift)
        check_stats(mask.neuron_stats, dim, shapes, dtype, guard)
        guard.check()
    x = torch.full((4, 400), 3e38)
    x[1, 3], x[2, 5], x[3, 7] = math.nan, math.inf, -math.inf
    for values, dim in ((x, 0), (x[:, :40].contiguous(), 0), (x.t().contiguous(), 1)):
        mean, total = torch.zeros(4), torch.zeros(4)
        mask.neuron_stats([values], dim, [mean], [total])
        assert mean[0] == x[0, 0] and mean[1].isnan() and mean[2:].tolist() == [math.inf] * 2
        assert total[1].isnan() and total[[0, 2, 3]].tolist() == [math.inf] * 3


def saliency():
    from fastforget._triton.mask import select as mask

    for dtypes, packed in itertools.product(([d] for d in FLOATS), ((False,), (True, False, True))):
        for xs in saliency_lists(dtypes):
            total = sum(x.numel() for x in xs)
            for k in (0, 1, total // 3, total):
                check_saliency(mask.saliency_mask, xs, k, packed)
    for dtypes in (FLOATS[:3], FLOATS[1:3], FLOATS):
        for xs in saliency_lists(dtypes):
            check_saliency(mask.saliency_mask, xs, sum(x.numel() for x in xs) // 2, (True, False))
    for n in range(18):
        check_saliency(mask.saliency_mask, [torch.randint(0, 4, (n,)).float()], n // 2, (True,))
    guard = Guarded(3)
    check_saliency(mask.saliency_mask, [torch.randint(0, 9, (5003,)).float()], 2000, (False,), guard)
    guard.check()


def ratios():
    from fastforget._triton.mask import select as mask

    from fastforget.reference.mask import select as reference

    for dtype, shift, packed in itertools.product(FLOATS, (0, 1), (False, True)):
        guard = Guarded(shift)
        a, b = ([guard(torch.rand(n, dtype=torch.float64).to(dtype)) for n in SIZES] for _ in range(2))
        a[5][::7] = math.nan
        b[4][:] = a[4]
        got, expected = (
            [torch.full((-(-n // 8),), 0xA5, dtype=torch.uint8) if packed else torch.rand(n) < 0.5 for n in SIZES] for _ in range(2)
        )
        got = [guard(m) for m in got]
        mask.ratio_mask(a, b, got, 1.0, 1e-15)
        reference.ratio_mask(a, b, expected, 1.0, 1e-15)
        assert all(torch.equal(m, e) for m, e in zip(got, expected, strict=True))
        guard.check()


CHECKS = {"mask lists": [masked_steps, elementwise, row_statistics], "mask select": [saliency, ratios]}

if __name__ == "__main__":
    main(CHECKS)
