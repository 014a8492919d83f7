"""gradient_products: the inner product and the squared norms of two lists, against extended precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tolerance import FLOATS, assert_two_times, drawn_once

from fastforget.ops import update

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
LISTS = {
    "nothing": [],
    "empty": [(0,), (3, 0)],
    "one": [()],
    "few": [(7,), (1,), (3, 5, 2)],
    "odd": [(1023,), (16385,), (33, 31)],
    "long": [(3, 20_001), (100_003,)],
}


@drawn_once
def case(label, dtype):
    """Lists, their plain sums in several orders (one order would measure its luck), and the exact ones."""
    a, b = ([torch.randn(shape, dtype=torch.float64).to(dtype) for shape in LISTS[label]] for _ in range(2))

    def flat(xs):
        return torch.cat([x.flatten() for x in xs]).double() if xs else torch.zeros(0, dtype=torch.float64)

    pairs = [(flat(a), flat(b)), (flat(a), flat(a)), (flat(b), flat(b))]
    plain, exact = [], []
    for x, y in pairs:
        product = x * y
        orders = [product[torch.randperm(len(product))] for _ in range(16)]
        plain.append([p.cumsum(0)[-1] if len(p) else torch.zeros((), dtype=torch.float64) for p in orders])
        total = (x.numpy().astype(np.longdouble) * y.numpy().astype(np.longdouble)).sum()
        exact.append([torch.tensor(float(total), dtype=torch.float64)] * 16)
    return a, b, plain, exact


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("label", LISTS)
def test_the_three_sums(implementation, label, dtype):
    a, b, plain, exact = case(label, dtype)
    found = update.gradient_products(a, b)
    for got, p, e, name in zip(found, plain, exact, found._fields, strict=True):
        assert got.dtype == torch.float64 and got.shape == ()
        assert_two_times(got, p, e, name)


def test_float32_products_are_exact_before_they_are_added(implementation):
    """Sums that float32 would lose: 1 + 2^-40, and numbers whose squares are below its range."""
    small = torch.tensor([1.0, 2.0**-20])
    assert update.gradient_products(small, small).dot.item() == 1 + 2.0**-40
    tiny = torch.full((3,), 1e-30)
    assert update.gradient_products(tiny, tiny).sum_sq_a.item() == pytest.approx(3e-60, rel=1e-6)


def test_mixed_dtypes_and_many_tensors(implementation):
    sizes = [(17 * i) % 23 for i in range(300)]
    a, b = ([torch.randn(n, dtype=torch.float64).to(FLOATS[i % 4]) for i, n in enumerate(sizes)] for _ in range(2))
    found = update.gradient_products(a, b)
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    assert found.dot.item() == pytest.approx(sum((x * y).sum().item() for x, y in pairs), rel=1e-12)
    assert found.sum_sq_a.item() == pytest.approx(sum((x * x).sum().item() for x, _ in pairs), rel=1e-13)
    assert found.sum_sq_b.item() == pytest.approx(sum((y * y).sum().item() for _, y in pairs), rel=1e-13)


def test_strided_misaligned_and_shared_tensors(implementation):
    a, b = torch.randn(40, 30), torch.randn(40, 30)
    expected = update.gradient_products(a, b)
    assert update.gradient_products(a.t().contiguous().t(), b) == expected
    memory = torch.zeros(2, 1201)
    memory[0, 1:], memory[1, 1:] = a.flatten(), b.flatten()
    assert update.gradient_products(memory[0, 1:], memory[1, 1:]) == expected
    same = update.gradient_products(a, a)  # what is only read may be given twice
    assert same.dot == same.sum_sq_a == same.sum_sq_b == expected.sum_sq_a


def test_nan_and_infinity_pass_through(implementation):
    a, b = torch.tensor([math.nan, 1.0]), torch.tensor([1.0, math.inf])
    found = update.gradient_products(a, b)
    assert found.dot.isnan() and found.sum_sq_a.isnan() and found.sum_sq_b == math.inf


def test_the_sums_do_not_depend_on_the_thread_count(implementation):
    if implementation == "reference":
        pytest.skip("torch's own sums do")
    before = torch.get_num_threads()
    a, b = [torch.randn(100_003), torch.randn(7)], [torch.randn(100_003), torch.randn(7)]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(update.gradient_products(a, b))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_munbas_combination_by_it(implementation):
    """g = (g_r/|g_r| + g_f/|g_f|) / sqrt(1 + c): both gradients have the same inner product with it."""
    r, f = [torch.randn(50, dtype=torch.float64)], [torch.randn(50, dtype=torch.float64)]
    found = update.gradient_products(r, f)
    c = found.dot / (found.sum_sq_a * found.sum_sq_b).sqrt()
    g = (r[0] / found.sum_sq_a.sqrt() + f[0] / found.sum_sq_b.sqrt()) / (1 + c).sqrt()
    assert (g @ r[0] / r[0].norm()).item() == pytest.approx((g @ f[0] / f[0].norm()).item(), rel=1e-12)
    assert g.norm().item() == pytest.approx(math.sqrt(2), rel=1e-12)


F = torch.zeros(4, 3)
BAD_CALLS = {
    "integers": (lambda: update.gradient_products(F.int(), F), TypeError, "a: .*int32"),
    "none": (lambda: update.gradient_products(F, None), TypeError, "b: got NoneType"),
    "count": (lambda: update.gradient_products([F, F], [F]), ValueError, "b: got 1 tensors; accepted are 2"),
    "shape": (lambda: update.gradient_products([F], [F[:2]]), ValueError, r"b\[0\]: .*shape must be that of a\[0\]"),
    "dtype": (lambda: update.gradient_products(F, F.double()), ValueError, r"b\[0\]: .*dtype must be"),
    "gradient": (lambda: update.gradient_products(F, F.clone().requires_grad_()), RuntimeError, "b requires grad"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(implementation, name):
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind, match=message):
        call()
