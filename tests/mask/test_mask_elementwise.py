"""Importance sums and soft thresholds: the bits of the definition, sums that keep their digits."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import FLOATS, assert_two_times

from fastforget.ops import mask

SIZES = [0, 1, 3, 16, 63, 64, 65, 1025, 70_001]
PAIRS = [(d, d) for d in FLOATS] + [(torch.float32, torch.bfloat16), (torch.float32, torch.float16)]


def accumulated(importance, grad, power, scale):
    """As training loops write it, in the importance's dtype (float32 for 16 bits)."""
    dtype = torch.float64 if importance.dtype == torch.float64 else torch.float32
    g = grad.to(dtype)
    return importance.to(dtype) + scale * (g.abs() if power == 1 else g.pow(2))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_importance_is_bit_exact(implementation, n, dtype, grad_dtype, power):
    importance, grad = torch.rand(n).to(dtype), torch.randn(n).to(grad_dtype)
    want = accumulated(importance, grad, power, 0.3).to(dtype)
    got = mask.accumulate_importance_(importance, grad, power=power, scale=0.3)
    assert got is importance and torch.equal(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_importance_is_accurate(implementation, dtype):
    importance, grad = torch.rand(70_001).to(dtype), torch.randn(70_001).to(dtype)
    plain = importance + 0.3 * grad * grad
    exact = accumulated(importance.double(), grad.double(), 2, 0.3)
    assert_two_times(mask.accumulate_importance_(importance, grad, scale=0.3), plain, exact)


def test_importance_of_lists(implementation):
    shapes = [(64, 3, 7, 7), (64,), (0,), (), (70_001,)]
    grads = [torch.randn(s).to(d) for s, d in zip(shapes, [torch.float32, torch.bfloat16, torch.float16] * 2, strict=False)]
    sums = [torch.rand(s) for s in shapes]
    alone = [mask.accumulate_importance_(s.clone(), g, scale=0.25) for s, g in zip(sums, grads, strict=True)]
    assert mask.accumulate_importance_(sums, grads, scale=0.25) is sums
    assert all(torch.equal(a, b) for a, b in zip(sums, alone, strict=True))
    assert mask.accumulate_importance_([], []) == []


def test_importance_of_special_gradients(implementation):
    grad = torch.tensor([math.nan, -math.inf, 1e-30, -0.0, 1e30])
    assert mask.accumulate_importance_(torch.zeros(5), grad).nan_to_num(7.0, 8.0).tolist() == [7.0, 8.0, 0.0, 0.0, 8.0]
    one = mask.accumulate_importance_(-torch.zeros(5), grad, power=1)
    assert one[0].isnan() and one[1] == math.inf and not torch.signbit(one[3])


def test_sixteen_bit_gradients_sum_in_float32(implementation):
    """In bfloat16 a sum of equal squares stands still at 256 of them."""
    importance, grad = torch.zeros(9), torch.full((9,), 0.5, dtype=torch.bfloat16)
    for _ in range(600):
        mask.accumulate_importance_(importance, grad)
    assert (importance == 150.0).all()


def test_misaligned_and_strided_importance(implementation):
    memory, grad = torch.zeros(100), torch.full((67,), 2.0)
    mask.accumulate_importance_(memory[3:70], grad)
    assert (memory[3:70] == 4).all() and (memory[:3] == 0).all() and (memory[70:] == 0).all()
    strided, grad = torch.zeros(6, 8).t(), torch.randn(16, 6)[::2]
    mask.accumulate_importance_(strided, grad)
    assert torch.equal(strided, grad * grad)


def shrunk(x, t):
    """sign(x) * max(|x| - t, 0), computed in float32 or better."""
    value = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return torch.where(value > 0, (value - t).clamp_min(0), -(-value - t).clamp_min(0)).to(x.dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_soft_threshold_is_bit_exact(implementation, n, dtype):
    x = torch.randn(n).to(dtype)
    want = shrunk(x, 0.75)
    found = mask.soft_threshold_(x, 0.75)
    assert torch.equal(x, want)
    assert found.l1.dtype == torch.float64 and found.nnz.dtype == torch.int64
    assert found.nnz == torch.count_nonzero(want)
    torch.testing.assert_close(found.l1, want.double().abs().sum(), rtol=1e-12, atol=0.0)


def test_soft_threshold_at_special_values(implementation):
    x = torch.tensor([1.0, -1.0, 0.0, -0.0, math.inf, -math.inf, 1e-41, math.nan, 2.0])
    found = mask.soft_threshold_(x[:8], 1.0)
    assert x[:7].tolist() == [0.0, 0.0, 0.0, 0.0, math.inf, -math.inf, 0.0] and x[7].isnan() and x[8] == 2.0
    assert torch.signbit(x[:7]).tolist() == [False, True, False, True, False, True, False]
    assert found.nnz == 3 and found.l1.isnan()  # a NaN is not zero
    x = torch.tensor([1e-41, -3.0])
    assert mask.soft_threshold_(x, 0.0) == (x.double().abs().sum(), 2)


def test_soft_threshold_counts_what_is_stored(implementation):
    """1 + 2**-12 - 1 is not zero in float32; the sums are of the 16-bit value, which has lost it before."""
    x = torch.tensor([1.0 + 2.0**-7, 1.0]).to(torch.bfloat16)
    found = mask.soft_threshold_(x, 1.0 - 2.0**-20)
    assert found.l1 == x.double().abs().sum() and found.nnz == 2 and found.l1 != 2.0**-7 + 2.0**-19


def test_soft_threshold_of_lists(implementation):
    xs = [torch.randn(s).to(d) for s, d in (((64, 3, 7, 7), torch.float32), ((0,), torch.float32), ((), torch.float64),
                                            ((70_001,), torch.bfloat16))]  # fmt: skip
    limits = [0.1, 0.2, 0.3, 0.4]
    wants = [shrunk(x, t) for x, t in zip(xs, limits, strict=True)]
    found = mask.soft_threshold_(xs, limits)
    assert all(torch.equal(x, w) for x, w in zip(xs, wants, strict=True))
    assert found.nnz == sum(int(torch.count_nonzero(w)) for w in wants)
    torch.testing.assert_close(found.l1, sum(w.double().abs().sum() for w in wants), rtol=1e-12, atol=0.0)
    assert mask.soft_threshold_([], 1.0) == (0.0, 0)


def test_soft_threshold_does_not_depend_on_threads(implementation):
    xs = [torch.randn(300_001), torch.randn(17), torch.randn(70_000).half()]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            copies = [x.clone() for x in xs]
            results.append((mask.soft_threshold_(copies, 0.3), copies))
    finally:
        torch.set_num_threads(before)
    for found, copies in results[1:]:
        assert found == results[0][0] and all(torch.equal(a, b) for a, b in zip(copies, results[0][1], strict=True))


def test_strided_soft_threshold(implementation):
    base = torch.randn(30, 41)
    x, want = base.t()[1::2], shrunk(base.t()[1::2], 0.5)
    mask.soft_threshold_(x, 0.5)
    assert torch.equal(x, want)
