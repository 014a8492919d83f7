"""Checks of LiRA, RMIA and the bootstrap in Triton, for test_triton_interpreter.py, which runs this file in a
process of its own. A step costs the interpreter much and a lane little: few models, several columns.
"""

from __future__ import annotations

import itertools

import membership_oracle as oracle
import torch
from triton_elementwise import main


def ops():
    from fastforget._triton.membership import lira, rmia, roc

    ours = ("lira_loo", "lira_ratio", "lira_stats", "lira_update_", "rmia_counts", "rmia_vote", "roc_bootstrap")
    return {name: getattr(module, name) for module in (lira, rmia, roc) for name in ours if hasattr(module, name)}


def lira_stats():
    for shape, median in itertools.product(oracle.FEW_SHAPES, (False, True)):
        for dtype, ties in ((torch.float32, True), (torch.float64, False)):
            scores, member = oracle.shadow(*shape, dtype, ties)
            oracle.check_stats(ops()["lira_stats"], scores, member, median, f"{shape} {dtype} median={median}")
    for dtype, median in itertools.product(oracle.FLOATS, (False, True)):
        scores, member = oracle.awkward(9, 48, dtype)
        oracle.check_stats(ops()["lira_stats"], scores, member, median, f"awkward {dtype} median={median}")
    oracle.check_far_from_zero(ops())


def lira_ratio():
    oracle.check_all_ratios(ops(), [(5, 140, 3), (2, 3, 1), (4, 3, 0), (3, 0, 1)])


def lira_loo():
    oracle.check_all_loo(ops(), [(2, 4, 3), (3, 0, 1), (4, 3, 0), (7, 150, 1)], (1, 3, 7))


def lira_update():
    oracle.check_updates(ops(), oracle.FEW_SHAPES)


def rmia_counts():
    oracle.check_rmia_counts(ops(), [(1, 300, 500), (3, 5, 33), (2, 0, 5), (2, 5, 0), (0, 3, 3), (1, 1, 1)])


def rmia_vote():
    oracle.check_rmia_vote(ops(), [(1, 70, 300), (3, 5, 70), (2, 0, 5), (2, 5, 0), (0, 3, 3), (4, 1, 2)])
    oracle.check_even_votes(ops())


def roc_bootstrap():
    from fastforget._triton.membership import roc

    oracle.check_bootstraps(ops(), [(1, 1, 2), (1, 7, 3), (5, 1, 4), (300, 1000, 5), (1001, 5000, 2)])
    before, roc.MAX_COUNTS = roc.MAX_COUNTS, 70
    try:  # several launches, of two resamples and of one
        oracle.check_bootstraps(ops(), [(40, 30, 5), (30, 100, 3)])
    finally:
        roc.MAX_COUNTS = before


CHECKS = {
    "lira": [lira_stats, lira_ratio, lira_loo, lira_update],
    "counts": [rmia_counts, rmia_vote, roc_bootstrap],
}

if __name__ == "__main__":
    main(CHECKS)
