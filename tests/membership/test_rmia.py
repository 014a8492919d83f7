"""RMIA: the counts are those of all pairs, bit for bit; the scores are those of the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastforget.ops import membership

GAMMAS = (1.0, 1.5, 2.0, 1 / 3, 0.1, 3.14159, 1.0000001, 1e-30, 1e30, math.inf)


def awkward(rows, n, dtype):
    """Ratios that are ordinary, tied, powers of two or denormal, and now and then zero, infinite, NaN or at a limit of the dtype."""
    limits = torch.finfo(dtype)
    low, high = math.log2(limits.smallest_normal * limits.eps), math.log2(limits.max)
    kinds = torch.stack(
        [
            torch.exp(2 * torch.randn(rows, n, dtype=torch.float64)).to(dtype),
            torch.randint(0, 6, (rows, n)).to(dtype) / 4,
            torch.exp2(torch.randint(int(low), int(high), (rows, n)).double()).to(dtype),
            torch.rand(rows, n, dtype=dtype) * limits.tiny * 4,
        ]
    )
    values = kinds[torch.randint(0, 4, (rows, n)), torch.arange(rows)[:, None], torch.arange(n)]
    special = torch.tensor([0.0, -0.0, math.inf, math.nan, limits.max, limits.tiny, limits.smallest_normal * limits.eps, 1.0], dtype=dtype)
    return torch.where(torch.rand(rows, n) < 0.1, special[torch.randint(0, 8, (rows, n))], values)


def all_pairs(x, z, gamma, strict):
    quotient = x[..., :, None] / z[..., None, :]
    return (quotient > gamma) if strict else (quotient >= gamma)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 0), (1, 0, 3), (2, 65, 2), (1, 2049, 300), (3, 333, 777), (1, 30, 5000)])
def test_counts_are_those_of_all_pairs(implementation, shape, dtype, strict):
    rows, n, z_count = shape
    x, z = awkward(rows, n, dtype), awkward(rows, z_count, dtype)
    got = membership.rmia_counts(x, z, gamma=GAMMAS, strict=strict)
    assert got.shape == (len(GAMMAS), rows, n) and got.dtype == torch.int64
    for gamma, counts in zip(GAMMAS, got, strict=True):
        assert torch.equal(counts, all_pairs(x, z, gamma, strict).sum(-1)), gamma


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_where_the_quotient_rounds_to_gamma(implementation, dtype):
    """z beside x / gamma: the predicate depends on the quotient's last bit, and no product with gamma says the same."""
    x = torch.rand(400, dtype=dtype) + 0.5
    z = []
    for gamma in (1.5, 3.14159, 1 / 3):
        near = x / gamma
        for _ in range(3):
            z += [near]
            near = torch.nextafter(near, torch.full_like(near, math.inf))
        near = torch.nextafter(x / gamma, torch.zeros_like(near))
        z += [near, torch.nextafter(near, torch.zeros_like(near))]
    z = torch.cat(z)
    gammas = (1.5, 3.14159, 1 / 3)
    for strict in (False, True):
        got = membership.rmia_counts(x, z, gamma=gammas, strict=strict)
        for gamma, counts in zip(gammas, got, strict=True):
            assert torch.equal(counts, all_pairs(x, z, gamma, strict).sum(-1))
    products = (x[:, None] >= torch.tensor(3.14159, dtype=dtype) * z).sum(1)
    assert not torch.equal(products, membership.rmia_counts(x, z, gamma=3.14159)), "the case does not tell the two predicates apart"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, width=32), min_size=1, max_size=30),
    st.lists(st.floats(0, width=32), min_size=1, max_size=30),
    st.floats(2.0**-100, 2.0**100, width=32),
    st.booleans(),
)
def test_counts_of_any_floats(x, z, gamma, strict):
    x, z = torch.tensor(x), torch.tensor(z)
    got = membership.rmia_counts(x, z, gamma=gamma, strict=strict)
    assert torch.equal(got, all_pairs(x, z, gamma, strict).sum(-1))


def test_counts_of_an_interval_of_near_ties(implementation):
    """All z but a few in one place: the start table helps nobody."""
    z = torch.cat((torch.full((3000,), 1.0), 1 + torch.arange(500) * 2.0**-23, torch.tensor([1e-30, 1e30])))
    x = torch.cat((torch.rand(200) * 4, 2 + torch.arange(-100, 100) * 2.0**-22))
    assert torch.equal(membership.rmia_counts(x, z, gamma=2.0), all_pairs(x, z, 2.0, False).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("copies", [0, 1, 14, 16, 30, 31, 32, 33, 300])
def test_counts_of_intervals_with_any_number_of_z(implementation, dtype, copies):
    """Evenly spread z, and one that comes so often that its interval is compared as a whole, or sorted."""
    spread = torch.logspace(-3, 3, 700, dtype=dtype)[torch.randperm(700)]
    z = torch.cat((spread, spread[5:6].expand(copies)))
    x = 2.0 * torch.cat((z, torch.nextafter(z, torch.zeros_like(z)), torch.nextafter(z, torch.full_like(z, math.inf))))
    for strict in (False, True):
        expected = all_pairs(x, z, 2.0, strict).sum(-1)
        assert torch.equal(membership.rmia_counts(x, z, gamma=2.0, strict=strict), expected)
        assert torch.equal(membership.rmia_counts(x, z, gamma=[2.0], strict=strict)[0], expected)


def test_counts_strided_and_narrow(implementation):
    x, z = torch.rand(40, 2)[:, 0], torch.rand(60, 3)[:, 1]
    assert torch.equal(membership.rmia_counts(x, z), all_pairs(x, z, 2.0, False).sum(-1))
    x, z = x.bfloat16(), z.bfloat16()
    assert torch.equal(membership.rmia_counts(x, z), all_pairs(x.float(), z.float(), 2.0, False).sum(-1))


def test_threads_change_nothing(implementation):
    x, z = awkward(3, 20_000, torch.float32), awkward(3, 900, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((membership.rmia_counts(x, z, gamma=(1.0, 2.0)), ratio_vote(x, z, 2.0, False)))
    finally:
        torch.set_num_threads(before)
    for counts, votes in results[1:]:
        assert torch.equal(counts, results[0][0]) and torch.equal(votes, results[0][1])


# ---- votes ----------------------------------------------------------------------------------------------------------


def ratio_vote(x, z, gamma, strict):
    """The op on ratios, by the backend in force."""
    from fastforget.ops import _arguments as arg
    from fastforget.ops.membership import _rmia as membership_rmia

    counts = torch.empty(x.shape[1], dtype=torch.int64)
    arg.run("rmia_vote", membership_rmia._rmia_vote, [counts], (x, z, gamma, strict, counts))
    return counts


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 130, 31), (18, 70, 257), (3, 300, 4097), (5, 1, 1), (0, 3, 4), (4, 3, 0), (4, 0, 3)])
def test_votes_are_those_of_all_pairs(implementation, shape, dtype, strict):
    queries, n, z_count = shape
    x, z = awkward(queries, n, dtype), awkward(queries, z_count, dtype)
    for gamma in (1.0, 1.5, math.inf):
        votes = all_pairs(x, z, gamma, strict).sum(0)
        assert torch.equal(ratio_vote(x, z, gamma, strict), (2 * votes > queries).sum(1))


def test_an_even_split_is_no_majority(implementation):
    logs = torch.tensor([[4.0], [1.0]]).log()
    zero = torch.zeros(1, 2, 1)
    assert membership.rmia_vote(logs, zero, torch.zeros(2, 1), zero).item() == 0.0
    assert membership.rmia_vote(logs[[0, 0, 1]], zero[:, [0, 0, 0]], torch.zeros(3, 1), zero[:, [0, 0, 0]]).item() == 1.0


# ---- the scores -----------------------------------------------------------------------------------------------------


def world(t=3, m=7, n=40, z=60):
    """Probabilities in float64: targets, references, who was trained on what."""
    def p(*shape):
        return torch.rand(*shape, dtype=torch.float64) * 0.9 + 0.05

    member = torch.rand(m, n) < 0.5
    member[0], member[1] = True, False
    return p(t, n), p(m, n), p(t, z), p(m, z), member


def formula(p_x, ref_x, p_z, ref_z, member, gamma, a, online, strict):
    """The definition with probabilities and all pairs, in numpy."""
    p_x, ref_x, p_z, ref_z = (v.numpy() for v in (p_x, ref_x, p_z, ref_z))
    outside = np.ones_like(ref_x, dtype=bool) if member is None else ~member.numpy()
    mean_out = (ref_x * outside).sum(0) / outside.sum(0)
    if online:
        mean_in = (ref_x * ~outside).sum(0) / (~outside).sum(0)
        p, q = (mean_in + mean_out) / 2, ref_z.mean(0)
    else:
        p, q = ((1 + a) * mean_out + (1 - a)) / 2, ((1 + a) * ref_z.mean(0) + (1 - a)) / 2
    quotient = (p_x / p)[:, :, None] / (p_z / q)[:, None]
    return torch.from_numpy(((quotient > gamma) if strict else (quotient >= gamma)).mean(-1))


@pytest.mark.parametrize("strict", [False, True])
def test_scores_follow_the_paper(implementation, strict):
    p_x, ref_x, p_z, ref_z, member = world()
    logs = [v.log() for v in (p_x, ref_x, p_z, ref_z)]
    gammas, scales = (1.0, 1.5, 2.0), (0.0, 0.3, 1.0)
    offline = membership.rmia(*logs, gamma=gammas, a=scales, strict=strict)
    assert offline.shape == (3, 3, 3, 40) and offline.dtype == torch.float64
    online = membership.rmia(*logs, member=member, gamma=gammas, strict=strict)
    out_only = membership.rmia(*logs, member=member, mode="offline", gamma=gammas, a=scales, strict=strict)
    for i, gamma in enumerate(gammas):
        torch.testing.assert_close(online[i], formula(p_x, ref_x, p_z, ref_z, member, gamma, 0, True, strict), atol=1e-14, rtol=0)
        for j, a in enumerate(scales):
            torch.testing.assert_close(offline[i, j], formula(p_x, ref_x, p_z, ref_z, None, gamma, a, False, strict), atol=1e-14, rtol=0)
            torch.testing.assert_close(out_only[i, j], formula(p_x, ref_x, p_z, ref_z, member, gamma, a, False, strict), atol=1e-14, rtol=0)
    single = membership.rmia(logs[0][1], logs[1], logs[2][1], logs[3], gamma=1.5, a=0.3, strict=strict)
    assert torch.equal(single, offline[1, 1, 1])


def test_member_z_makes_the_population_like_the_samples(implementation):
    p_x, ref_x, _, _, member = world()
    logs = p_x.log(), ref_x.log()
    both = membership.rmia(*logs, *logs, member=member, member_z=member, gamma=1.5)
    ratio = p_x / ((ref_x * member).sum(0) / member.sum(0) + (ref_x * ~member).sum(0) / (~member).sum(0)) * 2
    expected = all_pairs(ratio, ratio, 1.5, False).double().mean(-1)
    torch.testing.assert_close(both, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_sample_among_the_population_is_left_out_of_its_own_share(implementation, gamma, strict):
    p_x, ref_x, p_z, ref_z, _ = (v.log() if v.dtype != torch.bool else v for v in world(t=1))
    inside = torch.arange(40) < 25
    p_z[:, :25], ref_z[:, :25] = p_x[:, :25], ref_x[:, :25]
    got = membership.rmia(p_x[0], ref_x, p_z[0], ref_z, gamma=gamma, strict=strict, self_in_z=inside)
    for i in range(40):
        others = torch.arange(60) != (i if i < 25 else -1)
        alone = membership.rmia(p_x[0], ref_x, p_z[0][others], ref_z[:, others], gamma=gamma, strict=strict)
        assert got[i].item() == pytest.approx(alone[i].item(), abs=1e-14)


def test_small_probabilities_do_not_vanish(implementation):
    """exp(-200) is 0 in float32; its ratio to a reference of the same size is an ordinary number."""
    x, z = torch.tensor([-200.0, -203.0]), torch.full((3,), -1.0)
    got = membership.rmia(x, torch.full((2, 2), -201.0), z, torch.full((2, 3), -1.0), a=1.0, gamma=2.0)
    assert got.tolist() == [1.0, 0.0]


def test_missing_models_and_undefined_ratios_score_nan(implementation):
    p_x, ref_x, p_z, ref_z, member = world(t=1)
    member[:, 3], member[:, 4] = True, False
    logs = [v.log() for v in (p_x[0], ref_x, p_z[0], ref_z)]
    got = membership.rmia(*logs, member=member)
    assert torch.isnan(got).nonzero()[:, 0].tolist() == [3, 4]
    assert torch.isnan(membership.rmia(*logs, member=member, mode="offline")).nonzero()[:, 0].tolist() == [3]
    logs[0][5], logs[1][:, 5] = -math.inf, -math.inf
    assert torch.isnan(membership.rmia(*logs, a=1.0)).nonzero()[:, 0].tolist() == [5]


def test_soft_scores_order_like_the_ratio(implementation):
    p_x, ref_x, p_z, ref_z, _ = world(t=2)
    logs = [v.log() for v in (p_x, ref_x, p_z, ref_z)]
    soft = membership.rmia(*logs, a=(0.3, 0.6), soft=True)
    assert soft.shape == (2, 2, 40)
    for scores, a in zip(soft, (0.3, 0.6), strict=True):
        r_x, r_z = (torch.log(p / (((1 + a) * ref.mean(0) + 1 - a) / 2)) for p, ref in ((p_x, ref_x), (p_z, ref_z)))
        torch.testing.assert_close(scores, r_x - r_z.mean(-1, keepdim=True), atol=1e-13, rtol=0)
    hard = membership.rmia(*logs, gamma=1.0)
    for s, h in zip(soft[0], hard, strict=True):
        assert (h[s.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("online", [False, True])
def test_vote_scores_follow_the_formula(implementation, online):
    queries, m, n, z = 5, 6, 30, 50
    p_x, p_z = torch.rand(queries, n).double() + 0.05, torch.rand(queries, z).double() + 0.05
    ref_x, ref_z = torch.rand(m, queries, n).double() + 0.05, torch.rand(m, queries, z).double() + 0.05
    member = torch.rand(m, n) < 0.5
    member[0], member[1] = True, False
    got = membership.rmia_vote(
        *(v.log() for v in (p_x, ref_x, p_z, ref_z)), member=member if online else None, gamma=1.2, a=0.4
    )
    if online:
        inside = member[:, None].double()
        p = ((ref_x * inside).sum(0) / inside.sum(0) + (ref_x * (1 - inside)).sum(0) / (1 - inside).sum(0)) / 2
        q = ref_z.mean(0)
    else:
        p, q = (1.4 * ref_x.mean(0) + 0.6) / 2, (1.4 * ref_z.mean(0) + 0.6) / 2
    votes = all_pairs(p_x / p, p_z / q, 1.2, False).sum(0)
    torch.testing.assert_close(got, (2 * votes > queries).double().mean(1), atol=1e-14, rtol=0)


X = torch.zeros(4)
BAD = {
    "matrix of references": (lambda: membership.rmia(X, X, X, X), "ref_log_p_x: got shape"),
    "population": (lambda: membership.rmia(X[None], X[None], X, X[None]), "log_p_z: got shape"),
    "no population": (lambda: membership.rmia(X, X[None], X[:0], X[None, :0]), "log_p_z: got no"),
    "gamma": (lambda: membership.rmia(X, X[None], X, X[None], gamma=0.0), "gamma: got 0.0"),
    "a": (lambda: membership.rmia(X, X[None], X, X[None], a=1.5), "a: got 1.5"),
    "mode": (lambda: membership.rmia(X, X[None], X, X[None], mode="on"), "mode: got 'on'"),
    "online without members": (lambda: membership.rmia(X, X[None], X, X[None], mode="online"), "member: got None"),
    "member shape": (lambda: membership.rmia(X, X[None], X, X[None], member=X > 0), r"member: got .*accepted is bool\[1, 4\]"),
    "self": (lambda: membership.rmia(X, X[None], X, X[None], self_in_z=X), r"self_in_z: got .*bool\[4\]"),
    "several a online": (lambda: membership.rmia(X, X[None], X, X[None], member=X[None] > 0, a=(0.1, 0.2)), "a: got several"),
    "queries": (lambda: membership.rmia_vote(X[None], X[None, None], X.expand(2, 4), X[None, None]), "log_p_z: got shape"),
    "rows": (lambda: membership.rmia_counts(X[None], X), "ratio_z: got"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_no_gradient():
    with pytest.raises(RuntimeError, match="log_p_x requires grad"):
        membership.rmia(X.clone().requires_grad_(), X[None], X, X[None])
