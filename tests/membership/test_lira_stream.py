"""LiRA from running moments: streamed equals stored, merges in any order, skips, state in and out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastforget.ops import membership

VARIANCES = ["per_example", "global", "global_in", "pooled", "mean_std", "auto"]


def draw(models, samples, queries=1, dtype=torch.float64):
    member = torch.rand(models, samples) < 0.5
    scores = torch.randn(models, samples, queries, dtype=torch.float64) + member[:, :, None]
    if queries == 1:
        scores = scores[..., 0]
    return scores.to(dtype), member


def assert_near(a, b, tolerance=1e-11):
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 3, 1), (5, 0, 1), (9, 1, 1), (20, 45, 1), (7, 30, 3), (3, 2, 200)])
def test_streamed_equals_stored(implementation, shape, dtype):
    """One model at a time, in batches, or all at once; every option. Moments of the same scores in float64."""
    models, samples, queries = shape
    s, m = draw(models, samples, queries, dtype)
    target = draw(2, samples, queries)[0]
    single, batched, whole = (membership.Lira(samples, queries) for _ in range(3))
    for i in range(models):
        single.update(s[i], m[i])
    for i in range(0, models, 4):
        batched.update(s[i : i + 4], m[i : i + 4])
    whole.update(s, m.to(torch.int8))
    for variance in VARIANCES:
        for mode, tail in (("online", "one_sided"), ("offline", "one_sided"), ("offline", "density")):
            options = {"variance": variance, "mode": mode, "tail": tail}
            expected = membership.lira(target, s.double(), m, **options)
            for state in (single, batched, whole):
                got = state.score(target, **options)
                assert got.shape == expected.shape and got.dtype == torch.float64
                assert_near(got, expected, 1e-9)
    assert torch.equal(single.count, torch.stack(((~m).sum(0), m.sum(0))))
    one = single.score(target[0].float())
    assert one.dtype == torch.float32 and one.shape == (samples,)


def test_skipped_samples_are_untouched(implementation):
    s, m = draw(12, 40)
    groups = m.to(torch.int8)
    groups[torch.rand(12, 40) < 0.4] = -1
    s[groups == -1] = math.nan  # not even looked at
    got = membership.Lira(40).update(s, groups)
    for n in range(40):
        for side in (0, 1):
            chosen = s[groups[:, n] == side, n]
            assert got.count[side, n] == len(chosen)
            if len(chosen):
                state = got.state_dict()
                assert_near(state["mean"][side, n, 0], chosen.mean())
                assert_near(state["m2"][side, n, 0], (chosen - chosen.mean()).square().sum())


def test_a_large_offset_keeps_the_digits(implementation):
    """Running sums of x and x^2 would lose all: the spread is 1e-7 of the offset."""
    s, m = draw(200, 20)
    state = membership.Lira(20).update(s + 1e7, m).state_dict()
    exact = membership.Lira(20).update(s, m).state_dict()
    assert_near(state["m2"], exact["m2"], 1e-6)


def test_no_result_depends_on_threads(implementation):
    s, m = draw(9, 30000, 1, torch.float32)
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states.append(membership.Lira(30000).update(s, m).state_dict())
    finally:
        torch.set_num_threads(before)
    for state in states[1:]:
        assert all(torch.equal(state[k], states[0][k]) for k in state)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 6), min_size=2, max_size=5),
    seed=st.integers(0, 2**20),
    offset=st.sampled_from([0.0, 1e3]),
    data=st.data(),
)
def test_merge_order_and_association_do_not_matter(sizes, seed, offset, data):
    torch.manual_seed(seed)
    parts = [draw(size, 4, 2) for size in sizes]
    whole = membership.Lira(4, 2).update(torch.cat([s for s, _ in parts]) + offset, torch.cat([m for _, m in parts]))

    def fresh():
        return [membership.Lira(4, 2).update(s + offset, m) for s, m in parts]

    left = fresh()
    for other in left[1:]:
        left[0].merge(other)
    tree = [fresh()[i] for i in data.draw(st.permutations(range(len(parts))))]
    while len(tree) > 1:
        i = data.draw(st.integers(0, len(tree) - 2))
        tree[i].merge(tree.pop(i + 1))
    for merged in (left[0], tree[0]):
        assert torch.equal(merged.count, whole.count)
        for name, value in merged.state_dict().items():
            # a rounding of the offset moves a mean by as much, and the squares by its product with the spread
            assert_near(value, whole.state_dict()[name], 1e-11 * max(1.0, offset))


def test_merge_is_symmetric_and_leaves_the_other_alone():
    (s, m), (u, v) = draw(5, 30), draw(9, 30)
    a, b = membership.Lira(30).update(s, m), membership.Lira(30).update(u, v)
    kept = b.state_dict()
    c, d = membership.Lira(30).update(u, v), membership.Lira(30).update(s, m)
    assert a.merge(b) is a
    c.merge(d)
    assert all(torch.equal(kept[k], x) for k, x in b.state_dict().items())
    for name, value in a.state_dict().items():
        assert_near(value, c.state_dict()[name], 1e-14)
    empty = membership.Lira(30).merge(b)
    assert all(torch.equal(kept[k], x) for k, x in empty.state_dict().items())


def test_state_round_trip():
    s, m = draw(6, 5, 2)
    a = membership.Lira(5, 2).update(s, m)
    state = a.state_dict()
    b = membership.Lira(5, 2).load_state_dict(state)
    a.update(s, m)
    b.update(s, m)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(state["count"], a.count)  # copies, both ways
    with pytest.raises(ValueError, match="state: got .*'count', 'mean'"):
        b.load_state_dict({"count": state["count"], "mean": state["mean"]})
    with pytest.raises(ValueError, match=r"state\['mean'\]: got .*accepted is shape \(2, 5, 2\)"):
        b.load_state_dict({**state, "mean": state["mean"].float()})


def test_some_samples_are_scored_as_among_all(implementation):
    s, m = draw(20, 30, 2)
    state, target = membership.Lira(30, 2).update(s, m), draw(3, 30, 2)[0]
    some = torch.tensor([4, 4, 29, 0])
    for variance in VARIANCES:
        for mode in ("online", "offline"):
            whole = state.score(target, variance=variance, mode=mode)
            assert torch.equal(state.score(target[:, some], variance=variance, mode=mode, index=some), whole[:, some])
            assert torch.equal(state.score(target[0, some], variance=variance, mode=mode, index=some), whole[0, some])


BAD = {
    "index": (lambda l: l.score(torch.zeros(2), index=torch.tensor([0.0, 1.0])), TypeError, "index: .*int64"),
    "index length": (
        lambda l: l.score(torch.zeros(3), index=torch.tensor([0, 1])), ValueError, r"target: got shape \(3,\); accepted is \(2,\)"),
    "median": (lambda l: l.score(torch.zeros(3), location="median"), ValueError, "location: got 'median'.*use lira"),
    "scores": (lambda l: l.update(torch.zeros(4), torch.zeros(4, dtype=torch.bool)), ValueError, r"scores: got shape \(4,\)"),
    "member shape": (
        lambda l: l.update(torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool)), ValueError, r"member: got shape \(3,\)"),
    "member dtype": (lambda l: l.update(torch.zeros(3), torch.zeros(3)), TypeError, "member: .*int8 of 1, 0 and -1"),
    "integers": (lambda l: l.update(torch.zeros(3).int(), torch.zeros(3).bool()), TypeError, "scores: .*int32"),
    "gradient": (
        lambda l: l.update(torch.zeros(3, requires_grad=True), torch.zeros(3).bool()), RuntimeError, "scores requires grad"),
    "other": (lambda l: l.merge(3), TypeError, "other: got int 3; accepted is a Lira"),
    "other size": (lambda l: l.merge(membership.Lira(4)), ValueError, r"other: got Lira\(n_samples=4"),
    "target": (lambda l: l.score(torch.zeros(4)), ValueError, r"target: got shape \(4,\)"),
    "samples": (lambda l: membership.Lira(-1), ValueError, "n_samples: got -1"),
    "queries": (lambda l: membership.Lira(3, 0), ValueError, "queries: got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_and_change_nothing(case):
    call, kind, message = BAD[case]
    state = membership.Lira(3).update(torch.ones(2, 3), torch.tensor([[True] * 3, [False] * 3]))
    before = state.state_dict()
    with pytest.raises(kind, match=message):
        call(state)
    assert all(torch.equal(before[k], x) for k, x in state.state_dict().items())
