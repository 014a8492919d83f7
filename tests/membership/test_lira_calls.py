"""Calls of LiRA: bad arguments, compiled graphs, and what the raw ops refuse."""

from __future__ import annotations

import pytest
import torch

import fastforget as ff
from fastforget.ops import membership
from fastforget.ops.membership._lira import VARIANCES

T, S, M = torch.zeros(3), torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bool)
BAD = {
    "scores dtype": (lambda: membership.lira(T, S.int(), M), TypeError, "scores: .*int32"),
    "scores shape": (lambda: membership.lira(T, T, M), ValueError, r"scores: .*\[models, samples\]"),
    "no query": (lambda: membership.lira(T, S[..., None][..., :0], M), ValueError, "queries >= 1"),
    "member dtype": (lambda: membership.lira(T, S, M.to(torch.int8)), TypeError, r"member: .*bool\[models, samples\]"),
    "member shape": (lambda: membership.lira(T, S, M[:2]), ValueError, r"member: got shape \(2, 3\); accepted is \(4, 3\)"),
    "target shape": (lambda: membership.lira(torch.zeros(4), S, M), ValueError, r"target: got shape \(4,\); accepted is \(3,\)"),
    "target word": (lambda: membership.lira("all", S, M), ValueError, "target: got 'all'.*'loo'"),
    "target kind": (lambda: membership.lira([1.0], S, M), TypeError, "target: got list"),
    "mode": (lambda: membership.lira(T, S, M, mode="both"), ValueError, "mode: got 'both'; accepted are 'online', 'offline'"),
    "location": (lambda: membership.lira(T, S, M, location="mode"), ValueError, "location: got 'mode'"),
    "variance": (lambda: membership.lira(T, S, M, variance="fixed"), ValueError, "variance: got 'fixed'; accepted are 'per_ex"),
    "tail": (lambda: membership.lira(T, S, M, tail="two"), ValueError, "tail: got 'two'"),
    "floor": (lambda: membership.lira(T, S, M, var_floor=-1.0), ValueError, "var_floor: got -1.0"),
    "count": (lambda: membership.lira(T, S, M, min_count=0), ValueError, "min_count: got 0"),
    "gradient": (lambda: membership.lira(T, S.clone().requires_grad_(), M), RuntimeError, "scores requires grad.*detach"),
    "device": (lambda: membership.lira(T, S, M.to("meta")), ValueError, "member: on meta, but scores is on cpu"),
    "probability": (lambda: membership.lira_probability(M), TypeError, "ratio: .*bool"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("variance", VARIANCES)
def test_compiled_equals_eager(variance):
    torch.manual_seed(0)
    s, m = torch.randn(9, 14, 2, dtype=torch.float64), torch.rand(9, 14) < 0.5
    t = torch.randn(14, 2, dtype=torch.float64)

    def score(t, s, m):
        return membership.lira(t, s, m, variance=variance), membership.lira("loo", s, m, variance=variance)

    torch.compiler.reset()
    for eager, compiled in zip(score(t, s, m), torch.compile(score, fullgraph=True, backend="aot_eager")(t, s, m), strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_raw_ops_refuse_what_would_leave_their_memory():
    if ff.backend.why_not("native", "lira_stats", "cpu") is not None:
        pytest.skip("needs the native CPU library")
    ops, scores, member = torch.ops.fastforget, torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.bool)
    pair, count = torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="lira_stats: member has 6 elements; expected 12"):
        ops.lira_stats(scores, member[:2], False, pair, pair.clone(), count)
    with pytest.raises(RuntimeError, match="lira_stats: center has dtype"):
        ops.lira_stats(scores, member, False, pair.double(), pair.clone(), count)
    with pytest.raises(RuntimeError, match="lira_ratio: mode is 3"):
        ops.lira_ratio(scores, pair, pair.clone(), count, 3, 0.0, 1, torch.zeros(4, 3))
    with pytest.raises(RuntimeError, match="lira_loo: out has 3 elements; expected 12"):
        ops.lira_loo(scores, member, False, torch.empty(0), 0, 0.0, 1, torch.zeros(3))
    with pytest.raises(RuntimeError, match="lira_update_: member must be contiguous int8"):
        ops.lira_update_(scores, member, count, pair.double(), pair.double())
