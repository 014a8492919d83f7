"""LiRA, RMIA and the bootstrap on CUDA tensors, native and Triton; skipped where there is no CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import membership_oracle as oracle
import pytest
import torch
from native_parts import REQUIRED
from torch import Tensor

import fastforget as ff

OPS = ("lira_stats", "lira_ratio", "lira_loo", "lira_update_", "rmia_counts", "rmia_vote", "roc_bootstrap")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
    ),
]


def on_device(name: str) -> Callable[..., None]:
    """The op on copies of its tensors on the device, which come back into the caller's."""

    def call(*args: Any) -> None:
        there = [a.cuda() if isinstance(a, Tensor) else a for a in args]
        ff.backend.call_forced(name, "cuda", tuple(there))
        for mine, result in zip(args, there, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(result)

    return call


@pytest.fixture(params=["native", "triton"])
def ops(request: pytest.FixtureRequest) -> Iterator[oracle.Ops]:
    reason = ff.backend.why_not(request.param, "lira_stats", "cuda")
    if reason is not None:
        (pytest.fail if REQUIRED else pytest.skip)(f"{request.param}: {reason}")
    with ff.use_backend(request.param):
        yield {name: on_device(name) for name in OPS}


def test_lira(ops: oracle.Ops) -> None:
    oracle.check_all_stats(ops)
    oracle.check_far_from_zero(ops)
    oracle.check_all_ratios(ops)
    oracle.check_updates(ops)


def test_lira_loo(ops: oracle.Ops) -> None:
    oracle.check_all_loo(ops)


def test_rmia(ops: oracle.Ops) -> None:
    oracle.check_rmia_counts(ops)
    oracle.check_rmia_vote(ops)
    oracle.check_even_votes(ops)


def test_bootstrap(ops: oracle.Ops) -> None:
    sizes = [(1, 1, 2), (1, 7, 3), (5, 1, 4), (300, 1000, 50), (50, 12_001, 300), (20_000, 10_000, 20)]
    oracle.check_bootstraps(ops, sizes)


def test_a_graph_replays_the_same_bits(ops: oracle.Ops) -> None:
    """Nothing waits for the host: all of it can be captured."""
    scores, member = (x.cuda() for x in oracle.shadow(20, 300, 1, torch.float32))
    out = torch.empty(20, 300, device="cuda")
    x, z = (oracle.ratios(3, 200, torch.float32, False).cuda() for _ in range(2))
    counts, votes = torch.empty(2, 3, 200, dtype=torch.int64, device="cuda"), torch.empty(200, dtype=torch.int64, device="cuda")
    boot = torch.empty(9, 2, dtype=torch.float64, device="cuda")
    none = torch.empty(0, device="cuda")

    def everything() -> None:
        ff.backend.call_forced("lira_loo", "cuda", (scores, member, True, none, 0, 1e-3, 2, out))
        ff.backend.call_forced("rmia_counts", "cuda", (x, z, [1.0, 2.0], False, counts))
        ff.backend.call_forced("rmia_vote", "cuda", (x, z, 2.0, False, votes))
        ff.backend.call_forced("roc_bootstrap", "cuda", (scores[0].flatten(), scores[1].flatten(), [0.1], 3, boot))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        everything()
    torch.cuda.current_stream().wait_stream(side)
    expected = [t.clone() for t in (out, counts, votes, boot)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        everything()
    for t in (out, counts, votes, boot):
        t.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for before, after in zip(expected, (out, counts, votes, boot), strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0))
