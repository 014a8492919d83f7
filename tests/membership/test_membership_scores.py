"""Membership scores and ROC statistics: against extended precision, brute force, and by the named conventions."""

from __future__ import annotations

import math

import pytest
import torch
from score_oracle import NAMES, exact_scores, plain_scores
from tolerance import FLOATS, assert_two_times, drawn_once, error

from fastforget.ops import membership

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
SHAPES = [(0, 2), (1, 2), (3, 10), (15, 3), (16, 10), (17, 10), (65, 7), (200, 33), (33, 100), (5, 1000), (3, 4099), (2, 9001)]
@drawn_once
def score_case(rows, classes, dtype, scale):
    """A pool of logits, with what plain PyTorch and extended precision make of it: the same for every implementation."""
    z = (scale * torch.randn(rows, classes, dtype=torch.float64)).to(dtype)
    y = torch.randint(0, classes, (rows,))
    wide = z.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return z, y, plain_scores(wide, y), exact_scores(z, y)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_scores(implementation, shape, dtype, scale):
    rows, classes = shape
    z, y, plain, exact = score_case(max(rows, min(2048, 200_000 // classes)), classes, dtype, scale)
    got = membership.membership_scores(z[:rows], y[:rows])
    for name, p, e in zip(NAMES, plain, exact, strict=True):
        assert getattr(got, name).dtype == p.dtype
        assert_two_times(getattr(got, name), p, e, name)
    assert torch.equal(got.correct, z[:rows].argmax(1) == y[:rows])


@pytest.mark.parametrize("gap", [5.0, 17.0, 30.0, 60.0, 80.0])
@pytest.mark.parametrize("right", [True, False])
def test_confident_rows_keep_relative_accuracy(implementation, gap, right):
    """Where plain float32 PyTorch rounds a small loss to zero, ours keeps about seven digits."""
    z = torch.randn(64, 10)
    z[:, 4] = z.max(dim=1).values + gap
    y = torch.full((64,), 4 if right else 7)
    got = membership.membership_scores(z, y)
    exact = exact_scores(z, y)
    for name, e in zip(NAMES, exact, strict=True):
        value = getattr(got, name)
        shown = e.abs() > 1e-30  # below, float32 has no normal numbers left for products of two small factors
        relative = ((value.to(torch.float64) - e).abs() / e.abs())[shown]
        assert shown.sum() == 0 or relative.max().item() < 16 * torch.finfo(torch.float32).eps * max(1.0, gap / 8), name


def test_a_common_offset_costs_nothing(implementation):
    z = torch.randint(-8, 8, (50, 6)).float()
    y = torch.randint(0, 6, (50,))
    near, far = membership.membership_scores(z, y), membership.membership_scores(z + 2.0**20, y)
    for name in NAMES:
        assert torch.equal(getattr(near, name), getattr(far, name)), name


def test_no_saturation(implementation):
    z = torch.tensor([[1e4, 0.0, -5.0], [0.0, 1e4, -5.0], [3e38, -3e38, 0.0]])
    got = membership.membership_scores(z, torch.tensor([0, 0, 0]))
    exact = exact_scores(z, torch.tensor([0, 0, 0]))
    assert got.logit_confidence[0].item() == pytest.approx(1e4, rel=1e-6)
    assert got.logit_confidence[1].item() == pytest.approx(-1e4, rel=1e-6)
    assert got.loss[1].item() == pytest.approx(1e4, rel=1e-6) and got.loss[0].item() == 0
    assert got.modified_entropy[1].item() == pytest.approx(exact[3][1].item(), rel=1e-6)
    assert got.margin[2].item() == pytest.approx(3e38, rel=1e-6)


def test_minus_infinity_is_a_class_of_probability_zero(implementation):
    z = torch.randn(40, 9)
    without = z.clone()
    z = torch.cat((z, torch.full((40, 1), -math.inf)), 1)
    y = torch.randint(0, 9, (40,))
    got, expected = membership.membership_scores(z, y), membership.membership_scores(without, y)
    for name in NAMES:
        assert error(getattr(got, name), getattr(expected, name).to(torch.float64)) <= 1e-6, name
    lost = membership.membership_scores(z, torch.full((40,), 9))
    assert (lost.loss == math.inf).all() and (lost.confidence == 0).all() and (lost.modified_entropy == math.inf).all()
    assert (lost.margin == -math.inf).all() and (lost.logit_confidence == -math.inf).all()
    assert torch.isfinite(lost.entropy).all() and not lost.correct.any()


def test_a_single_possible_class(implementation):
    z = torch.tensor([[-math.inf, 2.0, -math.inf]])
    got = membership.membership_scores(z, torch.tensor([1]))
    assert [v.item() for v in got] == [0.0, 1.0, 0.0, 0.0, math.inf, math.inf, True]


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [math.inf, math.nan, 0.0]])
@pytest.mark.parametrize("rows", [1, 20, 70])
def test_rows_without_a_distribution_score_nan_alone(implementation, bad, rows):
    z = torch.randn(rows, 3)
    y = torch.randint(0, 3, (rows,))
    clean = membership.membership_scores(z, y)
    z[rows // 2] = torch.tensor(bad)
    got = membership.membership_scores(z, y)
    keep = torch.arange(rows) != rows // 2
    for name in NAMES:
        assert torch.isnan(getattr(got, name)[rows // 2]), name
        assert torch.equal(getattr(got, name)[keep], getattr(clean, name)[keep]), name
    assert not got.correct[rows // 2]


def test_ties_go_to_the_first_index(implementation):
    z = torch.tensor([[1.0, 1.0, 0.0]] * 20)
    y = torch.tensor([0, 1] * 10)
    got = membership.membership_scores(z, y)
    assert got.correct.tolist() == [True, False] * 10
    assert (got.margin == 0).all()


def test_temperature_batch_shape_and_strides(implementation):
    z = torch.randn(4, 5, 7)
    y = torch.randint(0, 7, (4, 5), dtype=torch.int32)
    got = membership.membership_scores(z, y, temperature=2.0)
    expected = membership.membership_scores((z / 2.0).reshape(20, 7), y.reshape(20))
    for a, b in zip(got, expected, strict=True):
        assert a.shape == (4, 5)
        assert error(a.flatten().double(), b.double()) <= 1e-6
    turned = membership.membership_scores(z.permute(2, 0, 1).contiguous().permute(1, 2, 0), y)
    assert all(torch.equal(a, b) for a, b in zip(turned, membership.membership_scores(z, y), strict=True))


def brute_roc(members, nonmembers, fprs):
    """Every threshold, by counting: the definition."""
    m, n = members.double(), nonmembers.double()
    thresholds = torch.unique(torch.cat((m, n, torch.tensor([math.inf], dtype=torch.float64))))
    tp = (m[None] >= thresholds[:, None]).sum(1)
    fp = (n[None] >= thresholds[:, None]).sum(1)
    auc = ((m[:, None] > n).sum().double() + 0.5 * (m[:, None] == n).sum()) / (len(m) * len(n))
    gain = (tp * len(n) - fp * len(m)).double() / (len(m) * len(n))
    tprs = [max(t / len(m) for t, f in zip(tp.tolist(), fp.tolist(), strict=True) if f / len(n) <= x) for x in fprs]
    return auc.item(), (1 + gain.max().item()) / 2, gain.abs().max().item(), tprs


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (9, 1), (30, 50), (257, 300)])
@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "separated", "inverted", "infinite"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_roc_equals_counting(implementation, sizes, kind, dtype):
    m, n = torch.randn(sizes[0]) + 0.5, torch.randn(sizes[1])
    if kind == "ties":
        m, n = m.round(), n.round()
    elif kind == "constant":
        m, n = torch.zeros_like(m), -torch.zeros_like(n)  # 0.0 equals -0.0
    elif kind == "separated":
        m = m.abs() + 100
    elif kind == "inverted":
        m = -m.abs() - 100
    elif kind == "infinite":
        m[0], n[-1] = math.inf, -math.inf
    m, n = m.to(dtype), n.to(dtype)
    fprs = (0.0, 0.01, 0.1, 0.29, 0.5, 1.0)
    got = membership.roc_stats(m, n, fprs=fprs)
    auc, balanced, advantage, tprs = brute_roc(m, n, fprs)
    assert got.auc.item() == pytest.approx(auc, abs=1e-12)
    assert got.balanced_accuracy.item() == pytest.approx(balanced, abs=1e-12)
    assert got.advantage.item() == pytest.approx(advantage, abs=1e-12)
    assert got.tpr.tolist() == pytest.approx(tprs, abs=1e-12)
    for rate, threshold, x in zip(got.tpr, got.thresholds, fprs, strict=True):
        assert (m.double() >= threshold).sum().item() / len(m) == pytest.approx(rate.item(), abs=1e-12)
        assert (n.double() >= threshold).sum().item() / len(n) <= x
    t = got.best_threshold
    reached = (m.double() >= t).sum().item() / len(m) - (n.double() >= t).sum().item() / len(n)
    assert (1 + reached) / 2 == pytest.approx(balanced, abs=1e-12)


def test_large_roc_equals_the_reference(implementation):
    m, n = (torch.randn(200_003) * 20).round() / 8, torch.randn(100_001) * 2
    from fastforget.reference.membership.roc import roc_stats

    expected = torch.empty(8, dtype=torch.float64)
    roc_stats(m, n, (1e-2, 1e-3), expected)
    got = membership.roc_stats(m, n)
    assert torch.equal(torch.stack(got[:4]), expected[:4])
    assert torch.equal(torch.cat((got.tpr, got.thresholds)), expected[4:])


def test_float64_scores_are_not_rounded_to_float32(implementation):
    """Scores that differ only in float64 (LiRA's can) must not tie."""
    m = 1e9 + torch.arange(1, 101, dtype=torch.float64) / 1000
    n = 1e9 - torch.arange(100, dtype=torch.float64) / 1000
    assert membership.roc_stats(m, n).auc.item() == 1.0


def test_nan_policies(implementation):
    m, n = torch.tensor([math.nan, 2.0, 3.0]), torch.tensor([1.0, math.nan])
    with pytest.raises(ValueError, match=r"member_scores: 1 of 3 scores are NaN \(the first at index 0\)"):
        membership.roc_stats(m, n)
    dropped = membership.roc_stats(m, n, nan="drop")
    assert (dropped.auc.item(), dropped.members, dropped.nonmembers, dropped.dropped) == (1.0, 2, 1, 2)
    lowest = membership.roc_stats(m, n, nan="lowest")
    assert lowest.auc.item() == pytest.approx((2 + 2 + 0.5) / 6)


def test_forgetting_rate():
    before = torch.tensor([True, True, True, True, False])
    after = torch.tensor([True, False, False, False, True])
    assert membership.forgetting_rate(before, after) == pytest.approx((3 + 0 - 1) / 4)  # (AF - BF) / BT: AF = 3, BF = 1, BT = 4
    assert math.isnan(membership.forgetting_rate(torch.tensor([False]), torch.tensor([True])))
    with pytest.raises(TypeError, match="before"):
        membership.forgetting_rate(torch.tensor([0.1]), torch.tensor([True]))
