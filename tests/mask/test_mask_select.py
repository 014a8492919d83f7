"""Selection by magnitude: exactly k, the largest, the earliest of equals; the bits of a stable sort, whatever the values."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import FLOATS

import fastforget as ff
from fastforget.ops import mask

# 1024 and 1025: from all keys at once to a sample; 16384: a chunk; 200_001: several chunks and an odd end
SIZES = [1, 2, 7, 63, 64, 65, 1024, 1025, 16_384, 16_385, 65_537, 200_001]
KEEPS = [0.0, 1e-4, 0.25, 0.5, 0.9999, 1.0]  # 0.25: the edge of half_at_the_median's ties, where a bracket can't hold them


def normal(n):
    return torch.randn(n)


def sparse(n):
    return torch.randn(n).relu() * (torch.rand(n) > 0.3)


def tied(n):
    return torch.full((n,), -2.5)


def zero(n):
    return torch.zeros(n).copysign(torch.randn(n))


def few(n):
    return torch.randint(-3, 4, (n,)).float()


def heavy_tailed(n):
    return torch.randn(n) / torch.rand(n).pow(12)


def half_at_the_median(n):
    return torch.where(torch.rand(n) < 0.5, torch.full((n,), 0.6744), torch.randn(n))


def denormal(n):
    return torch.randn(n) * 1e-41


def special(n):
    x = torch.randn(n)
    pick = torch.randint(0, 8, (n,))
    for i, value in enumerate((math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0)):
        x[pick == i] = value
    return x


def mostly_nan(n):
    return torch.where(torch.rand(n) < 0.6, math.nan, torch.randn(n))


def sorted_with_a_period(n):
    """A ramp within each row of 576, as the rows of a weight could be: evenly spaced samples would all see one value."""
    return (torch.arange(n) % 576).float() + 1e-3 * torch.rand(n)


def near_ties(n):
    """Many values, few keys: 40 % of all lie within 839 neighbouring floats."""
    return 1.0 + torch.rand(n) * 1e-4 + (torch.rand(n) < 0.3) * 5.0 - (torch.rand(n) < 0.3) * 0.9


def against_the_sample(n):
    """The places that the CPU's sample reads hold values unlike all others, so its bracket misses."""
    x, runs, random = torch.randn(n), int(n ** (2 / 3) / 4), 1
    for j in range(runs):
        random = (random * 1664525 + 1013904223) % 2**32
        place = int((j + random * 2.0**-32) * ((n - 16) / runs))
        x[place : place + 16] = 100.0 if n % 2 else 1e-9
    return x


def alike(n):
    """Neighbours of one magnitude, so a run of the sample tells as much as one value."""
    return torch.randn(n // 100 + 1).repeat_interleave(100)[:n] * (1.0 + 1e-3 * torch.rand(n))


def outlying_rows(n):
    """All of the largest in a few rows: which of them the sample meets decides how many it sees above."""
    scale = torch.where(torch.rand(n // 500 + 1) < 0.01, 100.0, 1.0)
    return torch.randn(n) * scale.repeat_interleave(500)[:n]


VALUES = [
    normal, sparse, tied, zero, few, heavy_tailed, half_at_the_median, denormal, special, mostly_nan, sorted_with_a_period,
    near_ties, against_the_sample, alike, outlying_rows,
]  # fmt: skip


def key(x, dtype):
    """The bits of |x|, one for all NaN: order and equality without a float comparison."""
    bits = x.to(dtype).abs().contiguous().view(torch.int64 if dtype == torch.float64 else torch.int32)
    infinity = torch.tensor(math.inf, dtype=dtype).view(bits.dtype)
    return torch.minimum(bits.to(torch.int64), infinity.to(torch.int64) + 1)


def check(xs, *keeps):
    """Against one sort of (key, place), with nothing of ours."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32
    magnitudes = torch.cat([x.flatten().to(dtype).abs() for x in xs])
    order = torch.sort(-torch.cat([key(x.flatten(), dtype) for x in xs]), stable=True).indices
    n = order.numel()
    for keep in keeps:
        k = math.floor(Fraction(keep) * n + Fraction(1, 2))
        on = torch.zeros(n, dtype=torch.bool)
        on[order[:k]] = True
        want = [m.view(x.shape) for m, x in zip(on.split([x.numel() for x in xs]), xs, strict=True)]
        limit = magnitudes[order[k - 1]] if k else torch.tensor(math.inf, dtype=dtype)
        masks, threshold = mask.saliency_mask(xs, keep)
        assert all(m.dtype == torch.bool and torch.equal(m, w) for m, w in zip(masks, want, strict=True))
        assert threshold.dtype == dtype and threshold.shape == ()
        assert torch.equal(threshold, limit) or (threshold.isnan() and limit.isnan())
        packed, again = mask.saliency_mask(xs, keep, packed=True)
        assert torch.equal(again.nan_to_num(-1.0), threshold.nan_to_num(-1.0))
        for bits, w in zip(packed, want, strict=True):
            assert bits.dtype == torch.uint8 and torch.equal(bits, mask.pack_bits(w))


@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", SIZES)
def test_equals_a_stable_sort(implementation, n, values):
    if implementation == "reference" and n > 20_000:
        pytest.skip("it is a stable sort, at every size the same")
    check([values(n)], *KEEPS)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
def test_every_dtype(implementation, values, dtype):
    check([values(70_001).to(dtype)], 0.01, 0.5, 0.8)


@pytest.mark.parametrize("values", VALUES, ids=lambda f: f.__name__)
def test_a_median_of_a_million(implementation, values):
    if implementation in ("reference", "baseline"):
        pytest.skip("slow, and no other code than at the sizes above")
    check([values(1_000_003)], 0.5)


def test_lists(implementation):
    shapes = [(64, 3, 7, 7), (64,), (0,), (), (128, 64), (70_001,), (0, 3), (5, 1)]
    xs = [torch.randn(s) for s in shapes]
    check(xs, *KEEPS)
    check([torch.ones(s) for s in shapes], *KEEPS)  # the earliest of equals, across tensors


@pytest.mark.parametrize("others", [[torch.bfloat16, torch.float16, torch.float32], FLOATS], ids=["float32", "float64"])
def test_mixed_dtypes_are_compared_exactly(implementation, others):
    """1 + 2**-9 is no bfloat16 and 1 + 2**-12 no float16: a comparison in a narrow dtype would tie them."""
    xs = [(1.0 + torch.randint(0, 3, (2000,)) * 2.0**-9).to(d) for d in others]
    xs.append(1.0 + torch.randint(0, 3, (2000,)) * 2.0**-12)
    check(xs, 0.5)
    check([torch.randn(5000).to(d) for d in others], 0.3)


def test_a_tensor_gives_a_tensor(implementation):
    x = torch.randn(5, 7)
    on, threshold = mask.saliency_mask(x, 0.2)
    assert isinstance(on, torch.Tensor) and on.shape == (5, 7) and on.sum() == 7
    assert threshold == x.abs()[on].min()
    (listed,), _ = mask.saliency_mask([x], 0.2)
    assert torch.equal(listed, on)
    bits, _ = mask.saliency_mask(x, 0.2, packed=True)
    assert bits.shape == (5,) and torch.equal(mask.unpack_bits(bits, (5, 7)), on)


def test_nothing_to_choose_from(implementation):
    assert mask.saliency_mask([], 0.5)[0] == []
    for keep in (0.0, 1.0):
        on, threshold = mask.saliency_mask(torch.empty(0, 4), keep)
        assert on.shape == (0, 4) and threshold.item() == math.inf


def test_strided_and_misaligned(implementation):
    base = torch.randn(300, 400)
    for x in (base.t(), base[::2, 3:], base.flatten()[1:], torch.randn(1, 9).expand(50, 9), base.flatten().half()[3:777]):
        on, threshold = mask.saliency_mask(x, 0.4)
        plain, same = mask.saliency_mask(x.contiguous().clone(), 0.4)
        assert on.is_contiguous() and torch.equal(on, plain) and threshold == same


def test_neighbours_of_the_masks_are_untouched(implementation):
    memory, x = torch.full((300,), 7, dtype=torch.uint8), torch.randn(70)
    with torch.no_grad():
        for out in (memory[3:73].view(torch.bool), memory[100:109]):
            out.zero_()
            threshold = torch.empty(())
            if ff.backend.forced == "reference":
                ff.reference.mask.select.saliency_mask([x], 30, [out], threshold)
            else:
                torch.ops.fastforget.saliency_mask([x], 30, [out], threshold)
    assert (memory[:3] == 7).all() and (memory[73:100] == 7).all() and (memory[109:] == 7).all()
    assert int(memory[3:73].sum()) == 30 and memory[108] < 64
    assert torch.equal(mask.unpack_bits(memory[100:109], 70), memory[3:73].bool())


@pytest.mark.parametrize("values", [normal, few, against_the_sample], ids=lambda f: f.__name__)
def test_thread_count_does_not_matter(implementation, values):
    xs = [values(300_001), values(17), values(70_000)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(mask.saliency_mask(xs, 0.37))
    finally:
        torch.set_num_threads(before)
    for masks, threshold in results[1:]:
        assert threshold == results[0][1] and all(torch.equal(a, b) for a, b in zip(masks, results[0][0], strict=True))


@pytest.mark.parametrize(
    ("keep", "n", "k"),
    [
        (0.5, 10, 5), (0.5, 3, 2), (0.5, 1, 1), (0.3, 10, 3), (0.7, 10, 7), (0.1, 10, 1), (0.29, 100, 29), (0.57, 100, 57),
        (1 / 3, 3, 1), (1, 9, 9), (0, 9, 0), (0.049, 10, 0), (0.05, 10, 1), (0.15, 10, 1), (0.25, 10, 3),
    ],
)  # fmt: skip
def test_the_share_is_rounded_to_the_nearest(keep, n, k):
    """0.05 is a little above 1/20 as a float, 0.15 a little below 3/20: they round by what they are; true halves go up."""
    assert mask.saliency_mask(torch.randn(n), keep)[0].sum() == k


def test_large_shares_do_not_lose_units():
    from fastforget.ops.mask.select import _chosen

    n = 2**62 + 12345
    assert _chosen(1.0, n) == n and _chosen(0.5, n) == (n + 1) // 2
    assert _chosen(0.1, n) == math.floor(Fraction(0.1) * n + Fraction(1, 2)) != round(0.1 * n)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=40), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_properties(lists, keep, seed):
    """Exactly k are on; each that is on is at least as large as each that is off; a permutation permutes all but ties."""
    xs = [torch.tensor(values, dtype=torch.float32) for values in lists]
    masks, threshold = mask.saliency_mask(xs, keep)
    flat, on = torch.cat(xs).abs(), torch.cat(masks)
    n = flat.numel()
    k = math.floor(Fraction(keep) * n + Fraction(1, 2))
    assert int(on.sum()) == k
    if k > 0:
        assert flat[on].min() == threshold and (flat[~on] <= threshold).all()
    else:
        assert threshold == math.inf
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled, same = mask.saliency_mask(torch.cat(xs)[order], keep)
    assert same == threshold
    distinct = flat != threshold
    assert torch.equal(shuffled[distinct[order]], on[order][distinct[order]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), max_size=70))
def test_packing_and_back(values):
    on = torch.tensor(values, dtype=torch.bool)
    bits = mask.pack_bits(on)
    assert bits.tolist() == [sum(v << j for j, v in enumerate(values[i : i + 8])) for i in range(0, len(values), 8)]
    assert torch.equal(mask.unpack_bits(bits, len(values)), on)


def test_raw_op_refuses_what_it_cannot_take():
    if ff.backend.why_not("native", "saliency_mask", "cpu") is not None:
        pytest.skip(ff.backend.why_not("native", "saliency_mask", "cpu"))
    op, x = torch.ops.fastforget.saliency_mask, torch.randn(9)
    out, threshold = torch.empty(9, dtype=torch.bool), torch.empty(())
    for args, message in (
        (([x], 10, [out], threshold), "k is 10; accepted: 0 to 9"),
        (([x], -1, [out], threshold), "k is -1"),
        (([x], 3, [out[:8]], threshold), "masks has 8 elements; expected 9"),
        (([x], 3, [out.view(torch.uint8)], threshold), "masks has 9 elements; expected 2"),
        (([x], 3, [], threshold), "1 xs and 0 masks"),
        (([x.double()], 3, [out], threshold), "threshold has dtype Float; expected Double"),
        (([torch.randn(3, 3).t()], 3, [out], threshold), "xs is not contiguous"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
