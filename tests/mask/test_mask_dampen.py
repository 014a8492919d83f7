"""Dampening: bit-exact to the published rule, over lists, dtypes and special values."""

from __future__ import annotations

import math

import pytest
import torch
from mask_cases import published
from tolerance import FLOATS, assert_two_times

from fastforget.ops import mask

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
SIZES = [0, 1, 3, 16, 63, 64, 65, 1025, 70_001]


def importances(n, dtype):
    return tuple(torch.rand(n, dtype=torch.float64).pow(6).to(dtype) for _ in range(2))


@pytest.mark.parametrize("n", SIZES)
def test_float32_is_bit_exact(implementation, n):
    p = torch.randn(n)
    forget, retain = importances(n, torch.float32)
    expected, selected = published(p, forget, retain, 10.0, 1.0)
    got = p.clone()
    count = mask.dampen_(got, forget, retain, alpha=10.0, lam=1.0)
    assert torch.equal(got, expected)
    assert count.dtype == torch.int64 and count.item() == selected


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_every_dtype(implementation, n, dtype):
    p = torch.randn(n, dtype=torch.float64).to(dtype)
    forget, retain = importances(n, dtype)
    exact, selected = published(*(t.to(torch.float64) for t in (p, forget, retain)), 4.0, 2.0)
    got = p.clone()
    count = mask.dampen_(got, forget, retain, alpha=4.0, lam=2.0)
    plain, _ = published(p, forget, retain, 4.0, 2.0)
    assert count.item() == selected  # powers of two: the comparison is exact in every dtype
    assert_two_times(got, plain, exact, "params")


def test_lists_equal_single_calls(implementation):
    shapes = [(64, 3, 7, 7), (64,), (0,), (), (128, 64), (70_001,)]
    params = [torch.randn(s) for s in shapes]
    forget = [torch.rand(s) for s in shapes]
    retain = [torch.rand(s).pow(4) for s in shapes]
    together = [p.clone() for p in params]
    count = mask.dampen_(together, forget, retain, alpha=2.0, lam=1.0)
    alone = [p.clone() for p in params]
    counts = [mask.dampen_(p, f, r, alpha=2.0, lam=1.0).item() for p, f, r in zip(alone, forget, retain, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert count.item() == sum(counts) > 0


def test_special_importances(implementation):
    nan, inf = math.nan, math.inf
    forget = torch.tensor([0.0, 1.0, nan, 1.0, inf, 1e-45, inf])
    retain = torch.tensor([0.0, 0.0, 1.0, nan, 1.0, 0.0, inf])
    p = torch.full((7,), 3.0)
    count = mask.dampen_(p, forget, retain, alpha=1.0, lam=1.0)
    # 0 > 0 is false; 1 > 0 selects and 0/1 erases; NaN selects nothing; 1/inf erases; a denormal still selects; inf > inf is false
    assert p.tolist() == [3.0, 0.0, 3.0, 3.0, 0.0, 0.0, 3.0]
    assert count.item() == 3


def test_neighbours_of_a_misaligned_view_are_untouched(implementation):
    memory = torch.full((100,), 2.0)
    mask.dampen_(memory[3:70], torch.ones(67), torch.zeros(67), alpha=1.0, lam=1.0)
    assert (memory[3:70] == 0).all() and (memory[:3] == 2).all() and (memory[70:] == 2).all()


def test_strided_parameters(implementation):
    p, f, r = torch.randn(8, 6), torch.rand(6, 8).t(), torch.rand(8, 6)
    expected, _ = published(p.flatten(), f.flatten(), r.flatten(), 1.0, 0.5)
    strided = torch.empty(6, 8).t().copy_(p)
    mask.dampen_(strided, f, r, alpha=1.0, lam=0.5)
    assert torch.equal(strided.flatten(), expected)
