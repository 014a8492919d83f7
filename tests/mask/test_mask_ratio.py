"""ratio_mask: bit for bit the comparison of its definition, in both forms of mask."""

from __future__ import annotations

import math

import pytest
import torch
from mask_cases import Guarded
from tolerance import FLOATS

from fastforget.ops import mask

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
SHAPES = [(), (0,), (1,), (7,), (8,), (9,), (3, 0), (5, 3), (33, 31), (1023,), (1025,), (16384,), (16385,), (3, 20_001)]


def pair(shape, dtype):
    """Importances >= 0, a third of them equal, some tiny or 0."""
    a, b = (torch.rand(shape, dtype=torch.float64).square().mul(4).to(dtype) for _ in range(2))
    choice = torch.randint(0, 6, shape)
    b = torch.where(choice < 2, a, b)
    return torch.where(choice == 5, a * 1e-12, a), torch.where(choice == 4, 0, b)


def by_hand(a, b, threshold, eps):
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    return a.to(wide) + eps >= threshold * (b.to(wide) + eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("threshold", "eps"), [(1.0, 1e-15), (0.3, 0.0), (7, 1e-3), (0.0, 0.0)])
def test_each_element_is_compared(implementation, shape, dtype, threshold, eps):
    a, b = pair(shape, dtype)
    got = mask.ratio_mask(a, b, threshold, eps=eps)
    assert got.dtype == torch.bool and torch.equal(got, by_hand(a, b, threshold, eps))
    packed = mask.ratio_mask(a, b, threshold, eps=eps, packed=True)
    assert torch.equal(packed, mask.pack_bits(got))


def test_it_is_the_published_quotient_at_one(implementation):
    """SFRon's (f + 1e-15) / (r + 1e-15) >= 1: a quotient of unequal numbers does not round to 1 from below."""
    a = torch.rand(100_000)
    near = torch.nextafter(a, torch.where(torch.rand(100_000) < 0.5, 2.0, -2.0)).abs()
    for b in (a, near, torch.rand(100_000), torch.zeros(100_000)):
        for x, y in ((a, b), (b, a)):
            assert torch.equal(mask.ratio_mask(x, y, 1.0), (x + 1e-15) / (y + 1e-15) >= 1.0)


def test_lists_of_mixed_dtypes_and_many_tensors(implementation):
    sizes = [(17 * i) % 23 for i in range(300)]
    pairs = [pair((n,), FLOATS[i % 4]) for i, n in enumerate(sizes)]
    a, b = ([p[k] for p in pairs] for k in range(2))
    for packed in (False, True):
        together = mask.ratio_mask(a, b, 0.7, packed=packed)
        alone = [mask.ratio_mask(x, y, 0.7, packed=packed) for x, y in pairs]
        assert len(together) == 300 and all(torch.equal(x, y) for x, y in zip(together, alone, strict=True))
    assert mask.ratio_mask([], [], 1.0) == []


def test_nan_is_off_and_infinity_compares(implementation):
    inf, nan = math.inf, math.nan
    a, b = torch.tensor([nan, 1.0, inf, inf, 1.0, 0.0]), torch.tensor([1.0, nan, 1.0, inf, inf, 0.0])
    assert mask.ratio_mask(a, b, 1.0).tolist() == [False, False, True, True, False, True]


def test_strided_and_misaligned_tensors(implementation):
    a, b = pair((40, 30), torch.float32)
    expected = mask.ratio_mask(a, b, 0.9)
    strided = mask.ratio_mask(a.t().contiguous().t(), b.t().contiguous().t(), 0.9)
    assert strided.is_contiguous() and torch.equal(strided, expected)
    shifted = torch.zeros(2, 1201)
    shifted[0, 1:], shifted[1, 1:] = a.flatten(), b.flatten()
    assert torch.equal(mask.ratio_mask(shifted[0, 1:], shifted[1, 1:], 0.9), expected.flatten())


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_written_beyond_a_mask(emulated, dtype, offset):
    guard = Guarded(offset)
    for shape in [(7,), (77, 33), (4099,)]:
        a, b = (guard(x) for x in pair(shape, dtype))
        masks = guard(torch.zeros(shape, dtype=torch.bool)), guard(torch.zeros(-(-a.numel() // 8), dtype=torch.uint8))
        for one in masks:
            emulated["ratio_mask"]([a], [b], [one], 0.5, 1e-15)
        assert torch.equal(masks[0], by_hand(a, b, 0.5, 1e-15)) and torch.equal(masks[1], mask.pack_bits(masks[0]))
    guard.check()


F = torch.zeros(4, 3)
BAD_CALLS = {
    "threshold": (lambda: mask.ratio_mask(F, F, -1.0), ValueError, "threshold: got -1.0; accepted is a finite number >= 0"),
    "threshold tensor": (lambda: mask.ratio_mask(F, F, torch.ones(())), ValueError, "threshold: got tensor"),
    "eps": (lambda: mask.ratio_mask(F, F, 1.0, eps=math.nan), ValueError, "eps: got nan"),
    "integers": (lambda: mask.ratio_mask(F.int(), F, 1.0), TypeError, "numerators: .*int32"),
    "no denominators": (lambda: mask.ratio_mask(F, None, 1.0), TypeError, "denominators: got NoneType"),
    "count": (lambda: mask.ratio_mask([F, F], [F], 1.0), ValueError, "denominators: got 1 tensors; accepted are 2"),
    "shape": (lambda: mask.ratio_mask(F, F[:2], 1.0), ValueError, r"denominators\[0\]: .*shape must be"),
    "dtype": (lambda: mask.ratio_mask([F, F], [F, F.half()], 1.0), ValueError, r"denominators\[1\]: .*dtype must be"),
    "gradient": (lambda: mask.ratio_mask(F.clone().requires_grad_(), F, 1.0), RuntimeError, "numerators requires grad"),
    "a tensor's gradient": (lambda: mask.ratio_mask([F], [F.clone().requires_grad_()], 1.0), RuntimeError, "denominators requires grad"),
    "text": (lambda: mask.ratio_mask(["a"], [F], 1.0), TypeError, "numerators: got str|numerators.0.: got str"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(implementation, name):
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind, match=message):
        call()
