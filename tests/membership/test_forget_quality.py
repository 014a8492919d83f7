"""Forgetting quality and class thresholds, against trying every threshold and every interval."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastforget.ops import membership


def brute_epsilon(unlearned, retrained, delta, rules, cap):
    """The definition: every threshold and every interval between distinct values, both ways round, in plain Python."""
    values = sorted({*unlearned, *retrained})
    ends = [-math.inf, *[(a + b) / 2 for a, b in itertools.pairwise(values)], math.inf]
    regions = []
    if "single" in rules:
        regions += [(-math.inf, t) for t in ends]
    if "double" in rules:
        regions += [(a, b) for i, a in enumerate(ends) for b in ends[i + 1 :]]
    best = 0.0
    for low, high in regions:
        a = sum(low < x < high for x in unlearned) / len(unlearned)
        b = sum(low < x < high for x in retrained) / len(retrained)
        for fpr, fnr in ((b, 1 - a), (1 - b, a)):
            fpr, fnr = round(fpr, 12), round(fnr, 12)
            if fpr == 0 and fnr == 0:
                best = max(best, cap)
            elif fpr > 0 and fnr > 0:
                for over, under in ((fpr, fnr), (fnr, fpr)):
                    if 1 - delta - over > 0:
                        best = max(best, min(cap, math.log(1 - delta - over) - math.log(under)))
    return best


small = st.lists(st.integers(0, 8), min_size=1, max_size=9)


@settings(max_examples=120, deadline=None)
@given(small, small, st.sampled_from([0.0, 1e-5, 0.1]), st.sampled_from([("single",), ("double",), ("single", "double")]))
def test_epsilon_equals_trying_everything(unlearned, retrained, delta, rules):
    u, r = torch.tensor(unlearned, dtype=torch.float64)[:, None], torch.tensor(retrained, dtype=torch.float32)[:, None]
    got = membership.forget_quality(u, r, delta=delta, rules=rules)
    assert got.epsilon.item() == pytest.approx(brute_epsilon(unlearned, retrained, delta, rules, 50.0), abs=1e-9)


@pytest.mark.parametrize("rules", [("single",), ("double",)])
def test_several_examples(rules):
    u, r = torch.randn(40, 7) + torch.linspace(0, 2, 7), torch.randn(31, 7)
    u[:, 3] = u[:, 3].round()
    got = membership.forget_quality(u, r, rules=rules)
    expected = [brute_epsilon(a, b, 1e-5, rules, 50.0) for a, b in zip(u.T.tolist(), r.T.tolist(), strict=True)]
    assert got.epsilon.tolist() == pytest.approx(expected, abs=1e-9)
    assert got.score.item() == pytest.approx(sum(2.0 ** -math.floor(e / 0.5) for e in expected) / 7, abs=1e-12)


def test_an_interval_sees_what_a_threshold_cannot():
    u, r = torch.linspace(-1, 1, 101)[:, None], torch.cat((torch.linspace(-3, -1.5, 50), torch.linspace(1.5, 3, 50)))[:, None]
    assert membership.forget_quality(u, r).epsilon.item() == 50.0
    # the best threshold leaves one unlearned and half of the retrained models on the wrong side
    single = membership.forget_quality(u, r, rules=("single",)).epsilon.item()
    assert single == pytest.approx(math.log(0.5 - 1e-5) + math.log(101), abs=1e-12)


def test_large_epsilon_is_the_largest_that_counts_allow():
    """One model of 512 on the wrong side either way: epsilon = log(511), the challenge's last bin."""
    u, r = torch.arange(512.0)[:, None] + 1000, torch.arange(512.0)[:, None]
    u[0], r[0] = 1.0, 1200.0
    got = membership.forget_quality(u, r, delta=0.0, rules=("single",))
    assert got.epsilon.item() == pytest.approx(math.log(511), abs=1e-12)
    assert got.score.item() == 2.0**-12


def test_no_evidence_and_chunks():
    same = torch.ones(5, 3)
    got = membership.forget_quality(same, same)
    assert got.epsilon.tolist() == [0.0] * 3 and got.score.item() == 1.0
    u, r = torch.randn(3, 50), torch.randn(4, 50)
    from fastforget.ops.membership import quality as membership_quality

    whole = membership.forget_quality(u, r).epsilon
    before, membership_quality._CELLS = membership_quality._CELLS, 17
    try:
        assert torch.equal(membership.forget_quality(u, r).epsilon, whole)
    finally:
        membership_quality._CELLS = before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retrained": torch.zeros(3, 5)}, "retrained: got shape"),
        ({"unlearned": torch.zeros(3)}, "unlearned: got"),
        ({"unlearned": torch.full((2, 4), math.nan)}, "unlearned: 8 of 8 values are NaN"),
        ({"rules": ("triple",)}, "rules: got"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"cap": 0.0}, "cap: got 0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        membership.forget_quality(**{"unlearned": torch.zeros(3, 4), "retrained": torch.zeros(3, 4), **arguments})


# ---- class thresholds -----------------------------------------------------------------------------------------------


def balanced(threshold, members, others):
    return ((members >= threshold).double().mean() + (others < threshold).double().mean()).item()


def scan(members, others):
    """The published procedure on one class: every score as a threshold; of the best the largest."""
    return max((balanced(t, members, others), t.item()) for t in torch.cat((members, others)))[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_are_those_of_the_scan(dtype, ties):
    classes = 6
    m, n = torch.randn(300) + 0.7, torch.randn(170)
    if ties:
        m, n = m.round(), n.round()
    m, n = m.to(dtype), n.to(dtype)
    y_m, y_n = torch.randint(0, classes, (300,)), torch.randint(0, classes, (170,), dtype=torch.int32)
    y_m[y_m == 4], y_n[y_n == 2] = 3, 3  # class 4 keeps no members, class 2 no others, and 5 neither
    y_m[y_m == 5], y_n[y_n == 5] = 1, 1
    got = membership.class_thresholds(m, y_m, n, y_n, classes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == wide and got.shape == (classes,)
    overall = scan(m.to(wide), n.to(wide))
    for c, t in enumerate(got.tolist()):
        assert t == (scan(m[y_m == c].to(wide), n[y_n == c].to(wide)) if c in (0, 1, 3) else overall)
    alone = membership.class_thresholds(m, torch.zeros_like(y_m), n, torch.zeros_like(y_n), 1)
    assert alone.item() == overall


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 2)), min_size=1, max_size=25),
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 2)), min_size=1, max_size=25),
    st.sampled_from([torch.exp, torch.atan, lambda x: x**3, lambda x: 2 * x + 1]),
)
def test_decisions_survive_a_monotone_transform(members, others, transform):
    (m, y_m), (n, y_n) = (torch.tensor(side).T for side in (members, others))
    m, n = m.double(), n.double()
    one = membership.class_thresholds(m, y_m, n, y_n, 3)
    two = membership.class_thresholds(transform(m), y_m, transform(n), y_n, 3)
    assert torch.equal(m >= one[y_m], transform(m) >= two[y_m])
    assert torch.equal(n >= one[y_n], transform(n) >= two[y_n])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member_labels": torch.tensor([0, 3])}, r"member_labels: a label is outside \[0, 2\)"),
        ({"member_scores": torch.tensor([0.0, math.nan])}, "member_scores: 1 of 2 values are NaN"),
        ({"nonmember_scores": torch.empty(0), "nonmember_labels": torch.empty(0).long()}, "nonmember_scores: no scores"),
        ({"nonmember_labels": torch.tensor([0])}, "nonmember_labels: got"),
        ({"num_classes": 0}, "num_classes: got 0"),
    ],
)
def test_bad_class_threshold_arguments(change, message):
    base = {"member_scores": torch.zeros(2), "member_labels": torch.tensor([0, 1]), "nonmember_scores": torch.zeros(2)}
    with pytest.raises(ValueError, match=message):
        membership.class_thresholds(**{**base, "nonmember_labels": torch.tensor([0, 1]), "num_classes": 2, **change})
