"""Statistics of rows: accurate over all shapes and dtypes, every element once, the same for every thread count."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from tolerance import FLOATS, assert_two_times

import fastforget as ff
from fastforget.ops import mask
from fastforget.ops.mask import rows as mask_rows

# rows of one element, shorter and longer than a vector; a long row in pieces; activations with short, middling and long
# slices, several groups of outer indices, an odd count of them
SHAPES = [
    ((1,), 0), ((5,), 0), ((0,), 0), ((3, 0), 0), ((0, 3), 0), ((0, 3), 1), ((64, 576), 0), ((7, 13), 0), ((3, 15), 0), ((3, 17), 0),
    ((1000, 10), 0), ((37, 129), 0), ((2, 200_003), 0), ((70_001,), 0), ((64, 3, 7, 7), 0), ((300, 10), 1), ((17, 1001), 1),
    ((5, 3, 70_000), 1), ((33, 7, 3, 3), 1), ((41, 130, 7, 7), 1), ((9, 16, 16, 16), 1), ((70, 8, 32, 32), 1), ((2, 3, 4, 5), 2),
    ((2, 3, 4, 5), -1), ((5, 600, 2), 1), ((2000, 3), 1), ((1031, 257), 1),
]  # fmt: skip
IDS = [f"{'x'.join(map(str, shape))}-{dim}" for shape, dim in SHAPES]


def plain(x, dim):
    rows = x.movedim(dim, 0).reshape(x.shape[dim], math.prod(x.shape) // max(1, x.shape[dim]) if x.shape[dim] else 0)
    return rows.abs().mean(1), rows.square().sum(1)


def precise(x, dim):
    """``plain`` with enough digits to judge x's dtype: in float64, or in extended precision."""
    if x.dtype != torch.float64:
        return plain(x.to(torch.float64), dim)
    rows = numpy.moveaxis(x.numpy(), dim, 0).reshape(x.shape[dim], -1 if x.numel() else 0).astype(numpy.longdouble)
    with numpy.errstate(invalid="ignore"):
        mean, total = numpy.abs(rows).sum(1) / numpy.float64(rows.shape[1]), (rows * rows).sum(1)
    return tuple(torch.from_numpy(t.astype(numpy.float64)) for t in (mean, total))


def judged(x, dim, got, others=()):
    """Twice plain PyTorch's error on x and ``others``, relative to each row: a small row must not hide behind a large one."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    enough = 1 + 64 // max(1, x.shape[dim])  # a few rows would measure plain PyTorch's luck
    draws = [x, *(others or (torch.randn_like(x) for _ in range(enough)))]
    for i, what in enumerate(("mean_abs", "sum_sq")):
        assert got[i].dtype == dtype and got[i].shape == (x.shape[dim],)
        exacts = [precise(d, dim)[i] for d in draws]
        plains = [plain(d.to(dtype), dim)[i] for d in draws]  # 16-bit sums would make any error look small
        scales = [torch.ldexp(torch.ones_like(e), torch.frexp(e).exponent) for e in exacts]  # by powers of two: nothing is rounded
        ratios = [(p.to(torch.float64) / s, e / s) for p, e, s in zip(plains, exacts, scales, strict=True)]
        assert_two_times((got[i].to(torch.float64) / scales[0]).to(dtype), [r[0] for r in ratios], [r[1] for r in ratios], what)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=IDS)
def test_every_shape_and_dtype(implementation, shape, dim, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    judged(x, dim, mask.neuron_stats(x, dim=dim))


@pytest.mark.parametrize(("shape", "dim"), SHAPES, ids=IDS)
def test_every_element_counts_once(implementation, shape, dim):
    """Whole numbers below 2**24 are exact in any order."""
    x = torch.randint(-3, 4, shape).float()
    mean, total = mask.neuron_stats(x, dim=dim)
    count = math.prod(shape) // max(1, shape[dim])
    want_mean, want_total = plain(x.to(torch.float64), dim)
    assert torch.equal(total.double(), want_total)
    if count:
        assert torch.equal(mean, want_mean.float())
    else:
        assert mean.isnan().all() and (total == 0).all()


def test_lists_equal_single_calls(implementation):
    kinds = (((64, 3, 3, 3), torch.float32), ((7,), torch.bfloat16), ((0, 5), torch.float32), ((300, 4000), torch.float64),
             ((2, 90_000), torch.float16), ((1, 1), torch.float32))  # fmt: skip
    xs = [torch.randn(shape).to(dtype) for shape, dtype in kinds]
    together = mask.neuron_stats(xs)
    assert len(together.mean_abs) == len(together.sum_sq) == len(xs)
    for x, mean, total in zip(xs, *together, strict=True):
        alone = mask.neuron_stats(x)
        assert torch.equal(mean, alone.mean_abs) and torch.equal(total, alone.sum_sq)
    assert mask.neuron_stats([]) == ([], [])


def test_special_values(implementation):
    x = torch.zeros(6, 70)
    x[0, 66], x[1, 3], x[2, 64] = math.nan, math.inf, -math.inf
    x[3], x[4, :2], x[5, 69] = 1e-41, -0.0, 1e30
    mean, total = mask.neuron_stats(x)
    assert mean[0].isnan() and total[0].isnan() and not mean[1:].isnan().any()
    assert mean[1:3].tolist() == [math.inf] * 2 and total[1:3].tolist() == [math.inf] * 2
    assert mean[3] == torch.tensor(1e-41) and total[3] == 0
    assert mean[4] == 0 and not torch.signbit(mean[4]) and total[5] == math.inf


@pytest.mark.parametrize("shape", [(2, 100), (2, 50_000), (2, 70_000, 3), (100, 2, 4)])
def test_a_mean_of_huge_values_is_finite(implementation, shape):
    """Where the sum is beyond float32's range and the mean is not."""
    for dim in range(len(shape)):
        x = torch.full(shape, 3e38)
        mean, total = mask.neuron_stats(x, dim=dim)
        torch.testing.assert_close(mean, torch.full_like(mean, 3e38), rtol=2e-7, atol=0.0)
        assert (total == math.inf).all()


def test_long_sums_keep_their_digits(implementation):
    """A float32 sum of ones stands still at 2**24."""
    mean, total = mask.neuron_stats(torch.ones(1, 40_000_000))
    assert mean.item() == 1.0 and total.item() == 4e7


@pytest.mark.parametrize("shape", [(3, 40_000), (4000, 3), (3000, 2, 7)])
def test_equal_values_do_not_drift(implementation, shape):
    """Each addition of the same value errs the same way; plain PyTorch's short sums bound how far that goes."""
    draws = [torch.full(shape, value) for value in (0.1, 0.7, 1 / 3, 1.1, 1.3, 0.9)]
    for x in draws:
        for dim in (0, 1):
            judged(x, dim, mask.neuron_stats(x, dim=dim), draws)


def test_thread_count_does_not_matter(implementation):
    xs = [torch.randn(3, 5, 200_003), torch.randn(70, 40, 16, 16), torch.randn(1031, 257, 1), torch.randn(50, 64, 7, 7)]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([t for dim in (0, 1) for part in mask.neuron_stats(xs, dim=dim) for t in part])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_strided_and_misaligned(implementation):
    base = torch.randn(40, 24, 12, 12)
    channels_last = base.to(memory_format=torch.channels_last)
    views = [channels_last, base.transpose(0, 1), base[:, ::2], base[1:, 1:, 1:, 1:], torch.randn(1, 6, 1, 9).expand(5, 6, 4, 9)]
    flat = torch.randn(1 + 30 * 50)[1:].view(30, 50)
    for x, dim in [(v, d) for v in views for d in (0, 1, -1)] + [(flat, 0), (flat, 1), (flat.half()[3:], 0), (flat.t(), 0)]:
        got, same = mask.neuron_stats(x, dim=dim), mask.neuron_stats(x.contiguous().clone(), dim=dim)
        for a, b in zip(got, same, strict=True):
            torch.testing.assert_close(a, b, rtol=5e-7, atol=0.0)  # another order of the same additions
    mixed = mask.neuron_stats([channels_last, base[0]], dim=-3)  # another place from the front in each
    assert [m.shape for m in mixed.mean_abs] == [(24,), (24,)]
    judged(channels_last, 1, (mixed.mean_abs[0], mixed.sum_sq[0]))


def test_channels_last_activations_are_not_copied(monkeypatch):
    x = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
    seen = []
    monkeypatch.setattr(mask_rows, "_neuron_stats", lambda xs, dim, *_: seen.append((xs[0], dim)))
    mask.neuron_stats(x, dim=1)
    ((given, dim),) = seen
    assert given.data_ptr() == x.data_ptr() and given.shape == (100, 8, 1) and dim == 1 and given.is_contiguous()


def test_raw_op_refuses_what_it_cannot_take():
    if ff.backend.why_not("native", "neuron_stats", "cpu") is not None:
        pytest.skip(ff.backend.why_not("native", "neuron_stats", "cpu"))
    op, x, out = torch.ops.fastforget.neuron_stats, torch.randn(4, 3), torch.empty(4)
    for args, message in (
        (([x], 2, [out], [out.clone()]), r"dim is 2, but xs\[0\] has 2 dimensions"),
        (([x], 1, [out], [out.clone()]), "mean_abs has 4 elements; expected 3"),
        (([x], 0, [out.double()], [out.clone()]), "mean_abs has dtype Double; expected Float"),
        (([x.t()], 0, [out], [out.clone()]), "xs is not contiguous"),
        (([x, x], 0, [out], [out.clone()]), "2 xs, 1 mean_abs and 1 sum_sq"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*args)
