"""LiRA on stored scores: accuracy, each named convention against its formula written out, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import FLOATS, assert_two_times

from fastforget.ops import membership

SHAPES = [(1, 1, 1), (2, 5, 1), (7, 33, 1), (16, 300, 1), (9, 40, 3), (65, 130, 1), (33, 17, 18), (5, 2, 200), (300, 20, 2)]
OPTIONS = [("online", "one_sided"), ("offline", "one_sided"), ("offline", "density")]


def draw(models, samples, queries, dtype=torch.float64):
    """Scores in which members lie higher, members about half the time, one target."""
    member = torch.rand(models, samples) < 0.5
    scores = 2.0 * torch.randn(models, samples, queries, dtype=torch.float64) + 1.5 * member[:, :, None] + 4.0
    target = 2.0 * torch.randn(samples, queries, dtype=torch.float64) + 4.5
    return target.to(dtype), scores.to(dtype), member


def sides(scores, member, n):
    """A sample's OUT and IN scores as [models of the side, queries] arrays."""
    s, m = scores[:, n].double().numpy(), member[:, n].numpy()
    return s[~m], s[m]


def log_normal_density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def one_by_one(target, scores, member, mode, location, tail, least=2, var_floor=0.0, std=None):
    """Sample by sample over lists, as the published scripts do it; std: a fixed standard deviation a side."""
    place = np.median if location == "median" else np.mean
    result = np.full(len(target), np.nan)
    for n, t in enumerate(target.double().numpy()):
        groups = sides(scores, member, n)
        if len(groups[0]) < least or (mode == "online" and len(groups[1]) < least):
            continue
        logs, z = [], None
        for side, group in enumerate(groups):
            if side == 1 and mode == "offline":
                continue
            center, spread = place(group, axis=0), np.sqrt(np.maximum(group.var(axis=0), var_floor))
            spread = spread if std is None else std[side]
            logs.append(log_normal_density(t, center, spread))
            z = (t - center) / spread if z is None else z
        score = logs[1] - logs[0] if mode == "online" else z if tail == "one_sided" else -logs[0]
        result[n] = score.mean()
    return torch.from_numpy(result)


def plain(target, scores, member, mode, location, tail, var_floor):
    """Masked PyTorch in the scores' own dtype."""
    least, centers, spreads, counts = 2, [], [], []
    for on in (~member, member):
        chosen = torch.where(on[:, :, None], scores, math.nan)
        counts.append(on.sum(0))
        mean = chosen.nanmean(0)
        spreads.append((chosen - mean).square().nanmean(0).clamp_min(var_floor))
        if location == "median":
            upper = -(-chosen).nanmedian(0).values  # torch's median is the lower of the middle two
            centers.append((chosen.nanmedian(0).values + upper) / 2)
        else:
            centers.append(mean)
    z = [(target - c) / s.sqrt() for c, s in zip(centers, spreads, strict=True)]
    if mode == "online":
        score = 0.5 * (z[0].square() - z[1].square()) + 0.5 * (spreads[0] / spreads[1]).log()
    else:
        score = z[0] if tail == "one_sided" else 0.5 * z[0].square() + 0.5 * (2 * math.pi * spreads[0]).log()
    bad = (counts[0] < least) | ((counts[1] < least) if mode == "online" else False)
    return score.mean(-1).masked_fill(bad, math.nan)


POOL: dict = {}


def pool(shape, location, dtype, mode, tail):
    """A pool of samples with plain PyTorch's and the exact scores, the same for every implementation."""
    key = (shape, location, dtype, mode, tail)
    if key not in POOL:
        models, samples, queries = shape
        torch.manual_seed(models * 1000 + queries)
        t, s, m = draw(models, max(samples, 1500 // (1 + models * queries // 64)), queries, dtype)
        exact = one_by_one(t, s, m, mode, location, tail, var_floor=1e-3)
        POOL[key] = t, s, m, plain(t, s, m, mode, location, tail, 1e-3), exact
    return POOL[key]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("location", ["mean", "median"])
@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(implementation, shape, location, dtype):
    samples = shape[1]
    for mode, tail in OPTIONS:
        t, s, m, rough, exact = pool(shape, location, dtype, mode, tail)
        got = membership.lira(
            t[:samples], s[:, :samples], m[:, :samples], mode=mode, location=location, tail=tail, var_floor=1e-3
        )
        assert got.dtype == dtype and got.shape == (samples,)
        assert_two_times(got, rough, exact, f"{mode} {tail}")


@pytest.mark.parametrize("location", ["mean", "median"])
def test_a_common_offset_costs_only_its_own_rounding(implementation, location):
    """Scores 10^4 spreads from 0: in float32, E[x^2] - m^2 would keep no digit of the variance."""
    t, s, m = draw(64, 200, 1, torch.float32)
    t, s = t + 2.0**15, s + 2.0**15
    got = membership.lira(t, s, m, location=location)
    exact = one_by_one(t, s, m, "online", location, "")
    assert ((got - exact).abs() / exact.abs().clamp_min(1.0)).max() < 0.02
    rough = plain(t, s, m, "online", location, "", 0.0)
    assert_two_times(got, rough, exact)


# ---- the conventions, each as its tool writes it (float64) ---------------------------------------------------------------


def all_scores(scores, member, side):
    m = member.numpy() == bool(side)
    return scores.double().numpy()[m]  # [every (model, sample) of the side, queries]


def expected_std(variance, scores, member):
    spreads = [np.std(all_scores(scores, member, side)) for side in (0, 1)]
    if variance == "global":  # LeakPro, SACRO: np.std over everything, IN and OUT apart
        return spreads
    if variance == "global_in":  # mi_lira_2021: std_in = std_out = np.std(dat_in)
        return [spreads[1], spreads[1]]
    groups = [[sides(scores, member, n)[side] for n in range(scores.shape[1])] for side in (0, 1)]
    if variance == "pooled":  # TensorFlow Privacy: the deviations from each sample's own mean, together
        apart = [np.concatenate([(g - g.mean(axis=0)).ravel() for g in group if len(g)]) for group in groups]
        return [np.sqrt((d**2).mean()) for d in apart]
    return [np.mean([g.std(axis=0) for g in group if len(g)]) for group in groups]  # PrivacyGuard: mean of the stds


@pytest.mark.parametrize("variance", ["global", "global_in", "pooled", "mean_std"])
@pytest.mark.parametrize("location", ["mean", "median"])
@pytest.mark.parametrize("queries", [1, 3])
def test_fixed_variances(implementation, variance, location, queries):
    t, s, m = draw(12, 60, queries)
    m[:, 7], m[:, 8] = True, False  # samples that lack a side still count for the other
    std = expected_std(variance, s, m)
    for mode, tail in OPTIONS:
        got = membership.lira(t, s, m, mode=mode, location=location, tail=tail, variance=variance)
        exact = one_by_one(t, s, m, mode, location, tail, least=1, std=std)
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize(("mode", "tail"), OPTIONS)
@pytest.mark.parametrize("location", ["mean", "median"])
def test_per_example_as_the_official_code(implementation, mode, tail, location):
    """mi_lira_2021: medians, np.std of each sample, log-densities averaged over the queries; density offline is its -logpdf."""
    t, s, m = draw(16, 50, 4)
    m[:2], m[2:4] = True, False
    got = membership.lira(t, s, m, mode=mode, tail=tail, location=location)
    exact = one_by_one(t, s, m, mode, location, tail)
    torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_offline_tails_rank_as_the_paper_and_the_code(implementation):
    """Equation 4's 1 - Pr[Z > t] grows with z; the code's two-sided density turns round at the centre."""
    s = torch.tensor([[-1.0], [1.0]]).expand(2, 5).contiguous()
    t, m = torch.tensor([-4.0, -1.0, 0.0, 2.0, 30.0]), torch.zeros(2, 5, dtype=torch.bool)
    z = membership.lira(t, s, m, mode="offline")
    assert torch.equal(z, t)
    tail = 1.0 - 0.5 * torch.erfc(z.double() / math.sqrt(2.0))
    assert (tail.diff() >= 0).all()
    density = membership.lira(t, s, m, mode="offline", tail="density")
    assert density.argmin() == 2 and density[0] > density[1] and density[4] > density[3]


def test_auto_switches_at_64_models(implementation):
    for models, same in ((63, "global"), (64, "per_example")):
        t, s, m = draw(models, 20, 1)
        auto = membership.lira(t, s, m, variance="auto")
        assert torch.equal(auto, membership.lira(t, s, m, variance=same))


# ---- leave one out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("location", ["mean", "median"])
@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 3, 1), (5, 20, 1), (16, 33, 2), (12, 2, 150), (40, 9, 1)])
def test_loo_equals_the_loop(implementation, shape, location, dtype):
    models = shape[0]
    _, s, m = draw(*shape, dtype)
    for mode, tail in OPTIONS:
        got = membership.lira("loo", s, m, mode=mode, tail=tail, location=location, var_floor=1e-3)
        assert got.shape == shape[:2] and got.dtype == dtype
        for i in range(models):
            rest = [j for j in range(models) if j != i]
            exact = one_by_one(s[i], s[rest], m[rest], mode, location, tail, var_floor=1e-3)
            rtol = 1e-6 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(got[i].double(), exact, rtol=rtol, atol=rtol, equal_nan=True)


def test_loo_with_a_common_variance(implementation):
    _, s, m = draw(14, 30, 2)
    for variance in ("global", "global_in", "pooled"):
        std = expected_std(variance, s, m)
        got = membership.lira("loo", s, m, variance=variance)
        for i in range(14):
            rest = [j for j in range(14) if j != i]
            exact = one_by_one(s[i], s[rest], m[rest], "online", "mean", "", least=1, std=std)
            torch.testing.assert_close(got[i], exact, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("location", ["mean", "median"])
def test_loo_where_subtraction_would_lose_all_digits(implementation, dtype, location):
    """The target is a far outlier among equal or nearly equal scores of its side; or infinite."""
    m = torch.tensor([[False]] * 5 + [[True]] * 5)
    for outlier in (1e6, math.inf):
        s = torch.tensor([[0.0], [1.0], [3.0], [2.0], [7.0], [0.5], [0.5], [0.5], [0.5 + 2.0**-20], [outlier]], dtype=dtype)
        offline = membership.lira("loo", s, ~m, mode="offline", location=location, var_floor=0.0)
        rest = s[5:9].double()
        center = rest.median() / 2 + -(-rest).median() / 2 if location == "median" else rest.mean()
        expected = (outlier - center) / rest.var(correction=0).sqrt()
        torch.testing.assert_close(offline[9, 0].double(), expected, rtol=1e-6, atol=0.0)


# ---- edges ---------------------------------------------------------------------------------------------------------------


def test_too_few_models_score_nan(implementation):
    t, s, m = draw(6, 4, 1)
    m[:, 0], m[:, 1] = False, True  # never IN, never OUT
    m[:, 2] = torch.tensor([True, False, False, False, False, False])
    m[:, 3] = torch.tensor([True, True, True, False, False, False])
    assert torch.isnan(membership.lira(t, s, m)).tolist() == [True, True, True, False]
    assert torch.isnan(membership.lira(t, s, m, min_count=1)).tolist() == [True, True, False, False]
    assert torch.isnan(membership.lira(t, s, m, mode="offline")).tolist() == [False, True, False, False]
    assert torch.isnan(membership.lira(t, s, m, variance="global")).tolist() == [True, True, False, False]
    assert torch.isnan(membership.lira(t, s, m, min_count=4)).all()
    loo = torch.isnan(membership.lira("loo", s, m, variance="pooled"))
    assert loo[:, 0].all() and loo[:, 1].all() and loo[:, 2].tolist() == [True] + [False] * 5 and not loo[:, 3].any()


def test_one_model_a_side_rests_on_the_floor(implementation):
    """Peers add 1e-30 to the standard deviation and return 1e60."""
    s, m = torch.tensor([[1.0], [3.0]]), torch.tensor([[False], [True]])
    got = membership.lira(torch.tensor([2.5]), s, m, min_count=1, var_floor=0.25)
    assert got.item() == pytest.approx((1.5**2 - 0.5**2) / (2 * 0.25))
    assert torch.isnan(membership.lira(torch.tensor([2.5]), s, m))


def test_zero_variance(implementation):
    s = torch.tensor([[1.0, 1.0]] * 4 + [[2.0, 2.0]] * 4)
    m = torch.tensor([[False, False]] * 4 + [[True, True]] * 4)
    got = membership.lira(torch.tensor([1.25, 2.0]), s, m)
    assert torch.isfinite(got).all() and got[0] < 0 < got[1]
    offline = membership.lira(torch.tensor([1.25, 1.0]), s, m, mode="offline", var_floor=0.0)
    assert offline[0] == math.inf and torch.isnan(offline[1])


@pytest.mark.parametrize("location", ["mean", "median"])
def test_a_nan_stays_with_its_sample_and_side(implementation, location):
    t, s, m = draw(20, 50, 1)
    clean = {mode: membership.lira(t, s, m, mode=mode, location=location) for mode in ("online", "offline")}
    inside = int(m[:, 10].nonzero()[0])
    s[inside, 10] = math.nan
    t[20] = math.nan
    for mode, before in clean.items():
        got = membership.lira(t, s, m, mode=mode, location=location)
        before[20] = math.nan
        if mode == "online":
            before[10] = math.nan
        torch.testing.assert_close(got, before, rtol=0, atol=0, equal_nan=True)
    assert torch.isnan(membership.lira(t, s, m, variance="global")).all()


@pytest.mark.parametrize("shape", [(0, 3, 1), (4, 0, 1), (0, 0, 1), (0, 2, 3)])
def test_empty_sizes(implementation, shape):
    t, s, m = draw(*shape)
    for location in ("mean", "median"):
        got = membership.lira(t, s, m, location=location)
        assert got.shape == shape[1:2] and torch.isnan(got).all()
        assert membership.lira("loo", s, m, location=location).shape == shape[:2]
    assert membership.lira(t[None][:0], s, m).shape == (0, shape[1])
    assert torch.isnan(membership.lira(t, s, m, variance="global")).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("location", ["mean", "median"])
def test_layout_and_dtypes(implementation, dtype, location):
    """Several targets, strided and misaligned inputs, [M, N] beside [M, N, 1]: one result; 16-bit types are widened."""
    _, s, m = draw(19, 45, 1, dtype)
    targets = draw(3, 45, 1, dtype)[1][..., 0]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = membership.lira(targets, s[..., 0], m, location=location)
    assert got.dtype == wide and got.shape == (3, 45)
    for i in range(3):
        one = membership.lira(targets[i].to(wide), s[..., 0].to(wide), m, location=location)
        torch.testing.assert_close(got[i], one, rtol=0, atol=0, equal_nan=True)
    with_query = membership.lira(targets[..., None], s, m, location=location)
    turned = s[..., 0].T.contiguous().T
    shifted = torch.empty(19 * 45 + 1, dtype=dtype)[1:].view(19, 45).copy_(s[..., 0])
    members = torch.empty(19, 90, dtype=torch.bool)[:, ::2].copy_(m)
    for other in (turned, shifted):
        again = membership.lira(targets, other, members, location=location)
        torch.testing.assert_close(again, got, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(with_query, got, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("location", ["mean", "median"])
def test_no_result_depends_on_threads_or_on_the_other_samples(implementation, location):
    t, s, m = draw(24, 5000, 2, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loo = membership.lira("loo", s[:, :999], m[:, :999], location=location)
            results.append((membership.lira(t, s, m, location=location), loo))
    finally:
        torch.set_num_threads(before)
    for score, loo in results[1:]:
        torch.testing.assert_close(score, results[0][0], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(loo, results[0][1], rtol=0, atol=0, equal_nan=True)
    if implementation == "reference":  # torch's own sums may group terms by the size
        return
    part = membership.lira(t[1234:1300], s[:, 1234:1300], m[:, 1234:1300], location=location)
    torch.testing.assert_close(part, results[0][0][1234:1300], rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(-50, 50, width=32), st.booleans()), min_size=4, max_size=40),
    seed=st.integers(0, 2**20),
    location=st.sampled_from(["mean", "median"]),
)
def test_the_order_of_the_models_matters_only_to_rounding(data, seed, location):
    """To rounding, not to the bit: the sums are taken in the models' order. The result in float64 agrees to 1e-9 of its scale."""
    s = torch.tensor([[x] for x, _ in data], dtype=torch.float64)
    m = torch.tensor([[b] for _, b in data])
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    t = torch.tensor([1.0], dtype=torch.float64)
    one = membership.lira(t, s, m, location=location, var_floor=1.0)
    other = membership.lira(t, s[order], m[order], location=location, var_floor=1.0)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_float32_scores_are_scored_with_the_range_of_float64(implementation):
    """Scores of 10^-18 to 10^18: squares, and quotients by them, leave float32; the results don't."""
    scale = torch.logspace(-18, 18, 173)
    s = torch.tensor([-1.0, 1.0, 2.0, 4.0])[:, None] * scale
    m = torch.tensor([False, False, True, True])[:, None].expand(4, 173)
    expected = {
        ("online", "one_sided"): torch.tensor(0.5 * (2.5**2 - 0.5**2), dtype=torch.float64).expand(173),
        ("offline", "one_sided"): torch.tensor(2.5, dtype=torch.float64).expand(173),
        ("offline", "density"): 0.5 * (2.5**2 + (2 * math.pi * scale.double().square()).log()),
    }
    for (mode, tail), exact in expected.items():
        got = membership.lira(2.5 * scale, s, m, mode=mode, tail=tail, var_floor=0.0)
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0.0)
    # both terms beyond float32, the first one further
    wide = torch.tensor([-1.0, 1.0, 2.0, 6.0])[:, None] * scale
    far = (1e21 * scale).clamp_max(3e38)
    got = membership.lira(far, wide, m, var_floor=0.0)
    assert (got == math.inf).all()


def test_probability(implementation):
    ratio = torch.tensor([-800.0, -1.0, 0.0, 1.0, 800.0, math.nan], dtype=torch.float64)
    got = membership.lira_probability(ratio)
    assert got[:5].tolist() == pytest.approx([0.0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1.0]) and torch.isnan(got[5])
    # in the tails the quotient of densities, as published, is 0 / 0
    s = torch.tensor([[0.0], [1.0], [4.0], [5.0]], dtype=torch.float64)
    m = torch.tensor([[False], [False], [True], [True]])
    far = torch.tensor([60.0], dtype=torch.float64)
    density = [math.exp(-0.5 * ((60.0 - c) / 0.5) ** 2) for c in (0.5, 4.5)]
    assert density == [0.0, 0.0] and membership.lira_probability(membership.lira(far, s, m)).item() == 1.0
