"""ShadowSums: models one by one, samples in chunks, merged and saved, against the ops on all scores at once."""

from __future__ import annotations

import math

import pytest
import torch

from fastforget.auditing.shadow.sums import CommonVariance, Probabilities, ShadowSums, rmia_of_log_ratios
from fastforget.ops import membership

M, N, Z = 9, 23, 11
G = torch.Generator().manual_seed(3)
TARGET_LOSS = torch.rand(N, 2, generator=G)
UNLEARNED = torch.randint(-1, 2, (M, N), generator=G).to(torch.int8)
PHI, AFTER = torch.randn(2, M, N, 2, generator=G)
LOSS = torch.nn.functional.softplus(-PHI)
MEMBER = torch.stack([torch.randperm(M, generator=G) < M // 2 for _ in range(N)], dim=1)


def taken_in(models, samples=slice(None), queries: int = 2) -> ShadowSums:
    sums = ShadowSums(len(TARGET_LOSS[samples]), queries, unlearned=True, target_loss=TARGET_LOSS[samples, :queries])
    for i in models:
        phi, loss, after = (x[i, samples, :queries] for x in (PHI, LOSS, AFTER))
        sums.add(phi, loss, MEMBER[i, samples], (UNLEARNED[i, samples], after))
    return sums


def near(got, expected) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_merged_equals_one_by_one_in_either_order():
    whole, one, two = taken_in(range(M)), taken_in(range(4)), taken_in(range(4, M))
    kept = two.state_dict()
    one.merge(two)
    assert all(torch.equal(value, kept[name]) for name, value in two.state_dict().items())
    two.merge(taken_in(range(4)))
    for name, value in whole.state_dict().items():
        near(one.state_dict()[name], value)
        near(two.state_dict()[name], value)


def test_saved_and_loaded():
    whole, empty = taken_in(range(M)), taken_in(())
    state = whole.state_dict()
    empty.load_state_dict(state)
    assert state.keys() == empty.state_dict().keys() and all(torch.equal(value, empty.state_dict()[name]) for name, value in state.items())
    whole.add(PHI[0], LOSS[0], MEMBER[0])
    assert all(torch.equal(value, state[name]) for name, value in empty.state_dict().items())
    with pytest.raises(KeyError, match="log_p"):
        empty.load_state_dict({name: value for name, value in state.items() if name != "log_p"})
    with pytest.raises(ValueError, match=r"log_p: got torch.float64\[2, 22, 2\]; accepted is torch.float64\[2, 23, 2\]"):
        empty.load_state_dict({**state, "log_p": state["log_p"][:, 1:]})


def test_sums_of_other_attacks_are_not_merged():
    with pytest.raises(ValueError, match="it keeps the sums .*'lira', 'probabilities'.*; accepted are the same as here, .*larger_losses"):
        taken_in(range(2)).merge(ShadowSums(N, 2))


@pytest.mark.parametrize("variance", ["global", "global_in", "pooled", "mean_std"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_lira_in_chunks_equals_the_op_on_all_samples(variance, mode):
    gathered = CommonVariance(N, 2)
    for low in range(0, N, 5):
        gathered.add(low, TARGET_LOSS[low : low + 5], taken_in(range(M), slice(low, low + 5)))
    expected = membership.lira(TARGET_LOSS.double(), PHI.double(), MEMBER, variance=variance, mode=mode)
    near(gathered.scores(variance, 7, mode=mode), expected)
    near(taken_in(range(M)).lira_scores(TARGET_LOSS.double(), variance=variance, mode=mode), expected)


def test_u_lira_equals_the_op():
    state = membership.Lira(N, 2).update(AFTER, UNLEARNED)
    near(taken_in(range(M)).lira_scores(TARGET_LOSS.double(), unlearned=True), state.score(TARGET_LOSS.double()))


@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("queries", [1, 2])
def test_rmia_equals_the_op_on_all_scores(a, queries):
    z = torch.rand(M + 1, Z, queries, generator=torch.Generator().manual_seed(4))
    sums, population = taken_in(range(M), queries=queries), Probabilities(Z, queries, sides=1)
    for loss in z[1:]:
        population.add(loss, torch.zeros(Z, dtype=torch.int8))
    target, losses = TARGET_LOSS[:, :queries].double(), LOSS[..., :queries].double()
    wide = [-x.double().transpose(-1, -2).contiguous() for x in (target, losses, z[0], z[1:])]
    mode = {"mode": "online"} if a is None else {"mode": "offline", "a": a}
    op = (lambda *x, **o: membership.rmia(*(y[..., 0, :] for y in x), **o)) if queries == 1 else membership.rmia_vote
    expected = op(*wide, member=MEMBER, **mode)
    # from the sums by references that answer with their mean probabilities
    references, member = sums.log_means()
    turned = references.transpose(-1, -2).contiguous()
    means_z = population.log_mean(torch.full((1, Z), M)).transpose(-1, -2).contiguous()
    near(op(wide[0], turned, wide[2], means_z, member=member, **mode), expected)
    # and from the log ratios
    reference_z = means_z[0] if a is None else torch.logaddexp(math.log((1 + a) / 2) + means_z[0], torch.tensor((1 - a) / 2).double().log())
    log_ratio = -(sums.log_reference(a) + target).T.contiguous()
    near(rmia_of_log_ratios(log_ratio, wide[2] - reference_z, 2.0, False), expected)


def test_a_population_no_model_was_trained_on_has_the_mean_of_all_models():
    sums = ShadowSums(N, 2)
    for phi, loss in zip(PHI, LOSS, strict=True):
        sums.add(phi, loss, torch.zeros(N, dtype=torch.bool))
    near(sums.log_reference(None, never_in=True), torch.logsumexp(-LOSS.double(), dim=0) - math.log(M))
    assert bool(torch.isnan(sums.log_reference(None)).all())


def test_attack_r_counts_the_out_models_with_a_larger_loss():
    larger = (LOSS > TARGET_LOSS) & ~MEMBER[..., None]
    near(taken_in(range(M)).attack_r_scores(), (larger.sum(0).double() / (~MEMBER).sum(0)[:, None]).mean(1))


def test_a_sample_can_be_left_out_of_a_model():
    sums, spoiled = taken_in(range(M)), PHI[0].clone()
    spoiled[4] = math.nan
    side = MEMBER[0].to(torch.int8)
    side[4] = -1
    count = sums.count.clone()
    sums.add(spoiled, torch.nn.functional.softplus(-spoiled), side)
    assert torch.equal(sums.count[:, 4], count[:, 4]) and int(sums.count.sum()) == int(count.sum()) + N - 1
    assert not any(bool(torch.isnan(value).any()) for value in sums.state_dict().values())
