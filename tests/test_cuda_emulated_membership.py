"""LiRA, RMIA and the bootstrap of the CUDA sources on the emulated device (see test_cuda_emulated.py)."""

from __future__ import annotations

import membership_oracle as oracle
import pytest
import torch

pytestmark = pytest.mark.slow


def test_lira_stats(emulated):
    oracle.check_all_stats(emulated)
    oracle.check_far_from_zero(emulated)


def test_lira_ratio(emulated):
    oracle.check_all_ratios(emulated)


def test_lira_loo(emulated):
    oracle.check_all_loo(emulated)


def test_lira_update(emulated):
    oracle.check_updates(emulated)


def test_rmia_counts(emulated):
    oracle.check_rmia_counts(emulated)


def test_rmia_vote(emulated):
    oracle.check_rmia_vote(emulated)
    oracle.check_even_votes(emulated)


def test_roc_bootstrap(emulated):
    """The last sizes do not fit into shared memory."""
    oracle.check_bootstraps(emulated, [(1, 1, 2), (1, 7, 3), (5, 1, 4), (300, 1000, 5), (1001, 257, 3), (50, 12_001, 3)])


@pytest.mark.parametrize("dtype", oracle.FLOATS)
def test_many_rows_of_ratios_and_more_tiles_than_one(emulated, dtype):
    x, z = oracle.ratios(2, 2500, dtype, True), oracle.ratios(2, 300, dtype, True)
    got, expected = (oracle.poisoned(2500, dtype=torch.int64) for _ in range(2))
    emulated["rmia_vote"](x, z, 1.25, False, got)
    oracle.reference_rmia.rmia_vote(x, z, 1.25, False, expected)
    assert torch.equal(got, expected)


def test_results_do_not_depend_on_the_number_of_multiprocessors(emulated, monkeypatch):
    results = []
    for count in ("1", "5"):
        monkeypatch.setenv("FASTFORGET_EMULATED_MULTIPROCESSORS", count)
        torch.manual_seed(0)
        scores, member = oracle.shadow(9, 3000, 1, torch.float32)
        center, variance = (oracle.poisoned(2, 3000, 1) for _ in range(2))
        counts = oracle.poisoned(2, 3000, dtype=torch.int64)
        emulated["lira_stats"](scores, member, True, center, variance, counts)
        out = oracle.poisoned(9, 3000)
        emulated["lira_loo"](scores, member, True, torch.empty(0), 0, 1e-3, 1, out)
        x, z = oracle.ratios(2, 1500, torch.float32, False), oracle.ratios(2, 700, torch.float32, False)
        votes = oracle.poisoned(1500, dtype=torch.int64)
        emulated["rmia_vote"](x, z, 1.25, False, votes)
        boot = oracle.poisoned(7, 3, dtype=torch.float64)
        emulated["roc_bootstrap"](x[0], z[0], [0.01, 0.1], 5, boot)
        results.append([center, variance, counts, out.nan_to_num(7.0), votes, boot])
    for one, five in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(7.0), five.nan_to_num(7.0))


def test_bad_arguments_are_named(emulated):
    scores, member = oracle.shadow(3, 4, 1, torch.float32)
    good = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"lira_stats: scores has dtype .*; accepted: float32, float64"):
        emulated["lira_stats"](scores.half(), member, False, *good)
    with pytest.raises(RuntimeError, match="lira_stats: member has 12 elements; expected 8"):
        emulated["lira_stats"](scores[:2], member, False, *good)
    with pytest.raises(RuntimeError, match="lira_loo: mode is 3; accepted: 0, 1, 2"):
        emulated["lira_loo"](scores, member, False, torch.empty(0), 3, 0.0, 1, torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match="roc_bootstrap: member and nonmember must not be empty"):
        emulated["roc_bootstrap"](torch.zeros(0), torch.zeros(3), [], 0, torch.zeros(2, 1, dtype=torch.float64))
