"""TPR conventions against the formulas of the tools they come from, the bootstrap against its definition and theory, exact intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastforget.ops import membership
from fastforget.reference.membership import roc as reference

FPRS = (0.0, 0.001, 0.01, 0.037, 0.1, 0.5, 0.93, 1.0)


def curve(members, nonmembers):
    """(FPR, TPR, threshold) of every distinct score from the largest down, after the point where nothing is called a member."""
    thresholds = np.unique(np.concatenate((members, nonmembers)))[::-1]
    tpr = [0.0] + [float((members >= t).mean()) for t in thresholds]
    fpr = [0.0] + [float((nonmembers >= t).mean()) for t in thresholds]
    return np.array(fpr), np.array(tpr), np.concatenate(([np.inf], thresholds))


def restated(convention, x, fpr, tpr, thresholds):
    """The tools' own lines on that curve."""
    if convention == "le":
        return tpr[np.where(fpr <= x)[0][-1]]
    if convention == "lt":
        below = np.where(fpr < x)[0]
        return tpr[below[-1]] if len(below) else 0.0
    if convention == "nearest":
        return tpr[np.argmin(np.abs(fpr - x))]
    if convention == "interpolated":
        return np.interp(x, fpr, tpr)
    finite = thresholds.copy()
    finite[0] = thresholds[1] + 1  # older tools start there; the TPR does not depend on it
    threshold = np.interp(x, fpr, finite)
    return np.interp(threshold, finite[::-1], tpr[::-1])


def draw(sizes, ties):
    m, n = torch.randn(sizes[0], dtype=torch.float64) + 0.7, torch.randn(sizes[1], dtype=torch.float64)
    return ((4 * m).round() / 4, (4 * n).round() / 4) if ties else (m, n)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (60, 1), (1, 60), (200, 333)])
@pytest.mark.parametrize("convention", ["le", "lt", "nearest", "interpolated", "threshold_interpolated"])
def test_conventions(implementation, convention, sizes, ties):
    m, n = draw(sizes, ties)
    points = curve(m.numpy(), n.numpy())
    # the tools' answer where rates and curve points coincide hangs on floating point: also ask between points
    rates = [*FPRS, *(((points[0][:-1] + points[0][1:]) / 2 + 1e-9).clip(0, 1).tolist())]
    got = membership.roc_stats(m, n, fprs=rates, convention=convention)
    expected = [restated(convention, x, *points) for x in rates]
    assert got.tpr.tolist() == pytest.approx(expected, abs=1e-9)
    assert got.auc.item() == membership.roc_stats(m, n).auc.item()
    for tpr, threshold in zip(got.tpr.tolist(), got.thresholds.tolist(), strict=True):
        if convention in ("le", "lt", "nearest"):
            assert (m >= threshold).double().mean().item() == pytest.approx(tpr, abs=1e-12)


def test_interpolated_thresholds():
    m, n = draw((40, 50), False)
    fpr, _, thresholds = curve(m.numpy(), n.numpy())
    first = fpr[fpr > 0].min()
    rates = np.linspace(first, 1, 37)
    got = membership.roc_stats(m, n, fprs=rates.tolist(), convention="threshold_interpolated").thresholds
    np.testing.assert_allclose(got.numpy(), np.interp(rates, fpr[1:], thresholds[1:]), atol=1e-12)
    lowest = membership.roc_stats(-n.abs(), n.abs(), fprs=(0.001,), convention="threshold_interpolated")
    assert lowest.thresholds.item() == math.inf


def test_conventions_differ_where_published_tools_differ():
    """One set of scores, five answers: what the argument is for."""
    m, n = torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([4.5, 3.5, 2.5, 1.0])
    tprs = {c: membership.roc_stats(m, n, fprs=(0.25, 0.4), convention=c).tpr.tolist() for c in membership.CONVENTIONS}
    assert tprs["le"] == [0.5, 0.5] and tprs["lt"] == [0.25, 0.5]
    assert tprs["nearest"] == [0.25, 0.5] and tprs["interpolated"] == [0.5, 0.5]


def signed_root(x):
    return torch.sign(x) * x.abs().sqrt()


monotone = st.sampled_from([lambda x: x, lambda x: 3 * x - 7, torch.exp, torch.atan, lambda x: x**3, signed_root])
small_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(small_scores, small_scores, monotone, st.sampled_from(membership.CONVENTIONS[:4]))
def test_a_monotone_transform_changes_nothing_but_thresholds(m, n, transform, convention):
    m, n = torch.tensor(m, dtype=torch.float64), torch.tensor(n, dtype=torch.float64)
    one = membership.roc_stats(m, n, fprs=(0.0, 0.1, 0.5), convention=convention)
    two = membership.roc_stats(transform(m), transform(n), fprs=(0.0, 0.1, 0.5), convention=convention)
    for field in ("auc", "balanced_accuracy", "advantage", "tpr"):
        assert torch.equal(getattr(one, field), getattr(two, field)), field
    for a, b in zip(one.thresholds, two.thresholds, strict=True):
        assert torch.equal(m >= a, transform(m) >= b) and torch.equal(n >= a, transform(n) >= b)
    boot = [membership.roc_bootstrap(f(m), f(n), fprs=(0.1,), resamples=20, seed=3).samples for f in (lambda x: x, transform)]
    assert torch.equal(*boot)


# ---- bootstrap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "separated", "infinite"])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 70), (257, 4), (700, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bootstrap_is_the_reference_bit_for_bit(implementation, sizes, kind, dtype):
    m, n = torch.randn(sizes[0], dtype=dtype) + 0.5, torch.randn(sizes[1], dtype=dtype)
    if kind == "ties":
        m, n = (2 * m).round(), (2 * n).round()
    elif kind == "constant":
        m, n = torch.zeros_like(m), -torch.zeros_like(n)
    elif kind == "separated":
        m = m.abs() + 100
    elif kind == "infinite":
        m[0], n[-1] = math.inf, -math.inf
    fprs = (0.0, 0.01, 0.3, 1.0)
    expected = torch.empty(9, 5, dtype=torch.float64)
    reference.roc_bootstrap(m, n, fprs, 2**62 + 5, expected)
    got = membership.roc_bootstrap(m, n, fprs=fprs, resamples=9, seed=2**62 + 5)
    assert torch.equal(got.samples, expected)


def test_a_resample_is_roc_stats_of_its_draws(implementation):
    m, n = torch.randn(50).add(0.5), (torch.randn(80) * 3).round()
    got = membership.roc_bootstrap(m, n, fprs=(0.1, 0.02), resamples=6, seed=11).samples
    for b in range(6):
        draws = [
            side.sort().values[reference.bootstrap_indices(len(side), 11, stream, b, side.device)] for stream, side in enumerate((m, n))
        ]
        stats = membership.roc_stats(*draws, fprs=(0.1, 0.02))
        assert torch.equal(got[b], torch.cat((stats.auc[None], stats.tpr)))


def test_bootstrap_agrees_with_theory(implementation):
    """Mean and variance of the resampled AUC against what the bootstrap estimates exactly: with placements V (share of non-members below
    each member) and W, the mean is the AUC and the variance is (n1 n0)^-1 [ (n0 - 1) var V + (n1 - 1) var W + AUC(1 - AUC) ] for distinct
    scores, variances with divisor n (the variance of a two-sample U-statistic under the empirical distribution)."""
    m, n = torch.randn(60, dtype=torch.float64) + 0.8, torch.randn(90, dtype=torch.float64)
    resamples = 4000 if implementation != "reference" else 500
    got = membership.roc_bootstrap(m, n, fprs=(), resamples=resamples, seed=5)
    wins = (m[:, None] > n).double()
    auc, v, w = wins.mean(), wins.mean(1), wins.mean(0)
    variance = ((len(n) - 1) * v.var(correction=0) + (len(m) - 1) * w.var(correction=0) + auc * (1 - auc)) / (len(m) * len(n))
    sample = got.samples[:, 0]
    # five standard errors of a mean, and of a variance of nearly normal values
    assert abs(sample.mean() - auc) < 5 * (variance / resamples).sqrt()
    assert abs(sample.var() / variance - 1) < 5 * math.sqrt(2 / resamples)
    assert got.auc_low < got.auc < got.auc_high
    for below_low in (sample - got.auc_low, got.auc_high - sample):  # the ends are 2.5 % quantiles, as far as ties let them be
        below, up_to = (below_low < 0).double().mean(), (below_low <= 0).double().mean()
        assert below <= 0.025 + 1 / resamples and up_to >= 0.025 - 1 / resamples


def test_bootstrap_of_a_proportion(implementation):
    """FPR 1 calls all members; with non-members all below and FPR 0 so too. With ties only, TPR at FPR 0 is 0 in every resample."""
    m, n = torch.arange(20.0) + 100, torch.arange(30.0)
    got = membership.roc_bootstrap(m, n, fprs=(0.0, 1.0), resamples=5)
    assert (got.samples == 1).all()
    tied = membership.roc_bootstrap(torch.ones(9), torch.ones(9), fprs=(0.0, 0.99), resamples=5)
    assert (tied.samples == torch.tensor([0.5, 0.0, 0.0])).all()


def test_seeds_and_threads(implementation):
    m, n = torch.randn(300), torch.randn(400)
    before = torch.get_num_threads()
    try:
        one, *others = [(torch.set_num_threads(t), membership.roc_bootstrap(m, n, resamples=40, seed=9))[1] for t in (1, 2, 3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one.samples, other.samples) for other in others)
    assert not torch.equal(one.samples, membership.roc_bootstrap(m, n, resamples=40, seed=10).samples)
    more = membership.roc_bootstrap(m, n, resamples=60, seed=9)
    assert torch.equal(more.samples[:40], one.samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resamples": 1}, "resamples: got 1"),
        ({"confidence": 95.0}, "confidence: got 95.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"fprs": (2.0,)}, "fprs: got 2.0"),
        ({"member_scores": torch.tensor([math.nan])}, "member_scores: 1 of 1 scores are NaN"),
        ({"nonmember_scores": torch.empty(0)}, "nonmember_scores: no scores"),
    ],
)
def test_bad_bootstrap_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        membership.roc_bootstrap(**{"member_scores": torch.ones(3), "nonmember_scores": torch.ones(3), **arguments})


# ---- exact intervals ------------------------------------------------------------------------------------------------


def binomial_tail(k, n, p):
    """P[X >= k], summed in logarithms."""

    def log_choose(i):
        return math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)

    return math.fsum(math.exp(log_choose(i) + i * math.log(p) + (n - i) * math.log1p(-p)) for i in range(k, n + 1))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 2), (3, 10), (5, 50), (50, 100), (99, 100), (12, 5000), (2500, 5000), (4999, 5000)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_clopper_pearson_inverts_the_binomial_test(k, n, confidence):
    """At the lower end, k or more successes have probability (1 - confidence) / 2; at the upper end, k or fewer."""
    low, high = membership.clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    assert low < k / n <= high
    assert binomial_tail(k, n, low) == pytest.approx(tail, rel=1e-8)
    assert (binomial_tail(n - k, n, 1 - high) if k < n else tail) == pytest.approx(tail, rel=1e-8)


def test_clopper_pearson_known_values():
    assert membership.clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1, rel=1e-12))  # closed forms
    assert membership.clopper_pearson(10, 10) == (pytest.approx(0.025**0.1, rel=1e-12), 1.0)
    assert membership.clopper_pearson(5, 50) == pytest.approx((0.0332750936, 0.2181353664), abs=1e-9)
    low, high = membership.clopper_pearson(10**6, 10**9)
    assert low < 1e-3 < high and high - low < 5e-6
    with pytest.raises(ValueError, match="k: got 11"):
        membership.clopper_pearson(11, 10)
