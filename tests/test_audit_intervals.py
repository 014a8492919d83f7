"""The audit's confidence intervals: which method serves which figure, what they cover, what they cost."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from audit_world import World

from fastforget.auditing.measure import attacks, intervals
from fastforget.ops.membership import clopper_pearson, roc_bootstrap


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def report(world: World):
    return world.audit(unlearned=world.retrained_again, seed=3)


def scores(n1: int, n0: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n1, generator=g) + 0.5, torch.randn(n0, generator=g)


def test_every_attack_and_accuracy_has_its_interval_and_lies_within(report) -> None:
    figures = ("auc", "balanced_accuracy", "tpr_at_1pct_fpr", "tpr_at_0.1pct_fpr")
    for row in report.rows:
        for by_attack in row["attacks"].values():
            for measured, name in itertools.product(by_attack.values(), figures):
                low, high = measured[f"{name}_interval"]
                assert 0 <= low <= measured[name] <= high <= 1 and high - low > 0.01
        for part, (low, high) in row["accuracy_intervals"].items():
            assert low <= row["accuracy"][part] <= high
            n = row["counts"][part]
            assert (low, high) == pytest.approx(clopper_pearson(round(row["accuracy"][part] * n), n))
    low, high = report.rows[0]["attacks"]["forget_vs_test"]["loss"]["auc_interval"]
    assert "95 % confidence interval" in str(report) and f"[{low:.2f}, {high:.2f}]" in str(report)


def test_auc_interval_is_the_bootstrap_s_with_the_audit_s_seed() -> None:
    member, other = scores(80, 120)
    expected = roc_bootstrap(member, other, fprs=(), resamples=1000, seed=7)
    measured = attacks.figures(member, other, seed=7)
    assert measured.auc.interval == [float(expected.auc_low), float(expected.auc_high)]
    assert attacks.figures(member, other, seed=7) == measured
    assert attacks.figures(member, other, seed=8).auc.interval != measured.auc.interval


def test_tpr_interval_is_clopper_pearson_on_the_count() -> None:
    member, other = scores(200, 100)
    measured = attacks.figures(member, other)
    # 1 % of 100: one false positive is allowed, so the threshold lies above the second-largest non-member
    count = int((member > other.sort(descending=True).values[1]).sum())
    assert measured.tpr_at["1pct"].tpr.value == count / 200
    assert measured.tpr_at["1pct"].tpr.interval == pytest.approx(clopper_pearson(count, 200))


def test_balanced_accuracy_s_interval_by_hand() -> None:
    member, other = torch.tensor([3.0, 2.0, 2.0, 0.0]), torch.tensor([2.5, 1.0, 1.0, 1.0, -1.0])
    measured = attacks.figures(member, other)
    assert measured.balanced_accuracy.value == pytest.approx((3 / 4 + 4 / 5) / 2)
    (l1, u1), (l0, u0) = clopper_pearson(3, 4), clopper_pearson(1, 5)
    low = 0.775 - math.sqrt((0.75 - l1) ** 2 + (u0 - 0.2) ** 2) / 2
    high = 0.775 + math.sqrt((u1 - 0.75) ** 2 + (0.2 - l0) ** 2) / 2
    assert measured.balanced_accuracy.interval == pytest.approx([low, high])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """200 draws: AUC of two normals half a deviation apart is 0.638; 95 % +- 2.6 standard errors are 91 to 99 %."""
    truth = 0.5 * (1 + math.erf(0.5 / 2))
    hits = 0
    for seed in range(200):
        low, high = intervals.auc(*scores(60, 60, seed), seed)
        hits += low <= truth <= high
    assert 182 <= hits <= 198
    g = torch.Generator().manual_seed(0)
    means = [intervals.mean(torch.rand(50, generator=g)) for _ in range(200)]
    assert 182 <= sum(low <= 0.5 <= high for low, high in means) <= 198


def test_forgetting_rate_s_interval() -> None:
    was = torch.arange(50) < 40
    kept = torch.arange(50) < 10
    assert intervals.forgetting_rate(was, kept) == pytest.approx(clopper_pearson(30, 40))
    assert intervals.forgetting_rate(was, was)[0] == 0 and intervals.forgetting_rate(~was & was, was) is None
    # others are recognised afterwards: a bootstrap of the samples says about the same as the closed form
    now = (torch.arange(50) < 10) | (torch.arange(50) >= 46)
    low, high = intervals.forgetting_rate(was, now)
    draws = torch.randint(50, (4000, 50), generator=torch.Generator().manual_seed(0))
    rates = 1 - now[draws].sum(1).double() / was[draws].sum(1)
    assert [low, high] == pytest.approx(rates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), abs=0.03)


def test_the_oracle_s_figures_and_losses_have_intervals(report) -> None:
    for row in report.rows:
        low, high = row["forgetting_rate_interval"]
        assert low <= row["forgetting_rate"] <= high
        for side, (lower, upper) in row["oracle_members_intervals"].items():
            assert lower <= row["oracle_members"][side] <= upper and upper - lower > 0.01
        for name, ends in row["mean_loss_intervals"].items():
            assert 0 <= ends[0] < row["mean_loss"][name] < ends[1]
    assert report.row("original")["oracle_members_intervals"]["forget"] == pytest.approx(clopper_pearson(98, 100))


def test_no_interval_where_there_is_none() -> None:
    assert intervals.mean(torch.tensor([1.0])) is None
    assert intervals.mean(torch.tensor([1.0, math.inf, 2.0])) is None
    assert intervals.mean(torch.tensor([0.0, 1.0]), 0.0, 1.0) == [0.0, 1.0]
    assert all(math.isnan(end) for end in intervals.share(0, 0))


def test_sides_that_do_not_overlap_still_have_an_interval() -> None:
    member, other = torch.arange(30.0) + 100, torch.arange(20.0)
    assert attacks.figures(member, other).auc.interval == pytest.approx(clopper_pearson(20, 20))
    assert attacks.figures(-member, other).auc.interval == pytest.approx(clopper_pearson(0, 20))
    # equal scores are another matter: the AUC is one half whatever is drawn
    assert attacks.figures(member * 0, other * 0).auc.interval == [0.5, 0.5]


def test_intervals_off(world: World, report) -> None:
    plain = world.audit(unlearned=world.retrained_again, seed=3, intervals=False)
    for row, full in zip(plain.rows, report.rows, strict=True):
        assert not any("interval" in key for key in row) and row["probes"]["class_logit_auc"]["interval"] is None
        for comparison, by_attack in row["attacks"].items():
            for attack, measured in by_attack.items():
                assert not any(key.endswith("_interval") for key in measured)
                assert measured == {k: v for k, v in full["attacks"][comparison][attack].items() if not k.endswith("_interval")}
    assert plain.verdict == report.verdict and "confidence interval" not in str(plain)


def test_undefined_scores_are_left_out_and_counted() -> None:
    member, other = scores(50, 40)
    clean = attacks.figures(member, other, seed=1)
    nan = torch.full((3,), math.nan)
    measured = attacks.figures(torch.cat((nan, member)), torch.cat((other, nan[:1])), seed=1)
    assert measured.undefined == 4 and clean.undefined == 0
    assert dataclasses.replace(measured, undefined=0) == clean
    nothing = attacks.figures(nan, other)
    assert math.isnan(nothing.auc.value) and nothing.undefined == 3 and nothing.reason == "no member has a score"
    assert attacks.figures(member, nan).reason == "no non-member has a score"
