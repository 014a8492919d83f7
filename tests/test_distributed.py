"""Sharded parameters: the bits of one process, on any number of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import ranks_calls
import ranks_ops
import torch
from ranks import WORLDS, Worlds, assert_same_state, same_bits

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("placement", ranks_ops.PLACEMENTS)
@pytest.mark.parametrize("case", ranks_ops.CASES)
def test_sharded_as_in_one_process(case: str, placement: str, world: int, worlds: Worlds) -> None:
    expected = ranks_ops.alone(case)
    for rank, made in enumerate(worlds("ranks_ops", "work", world)):
        got = made[case, placement]
        assert not isinstance(got, str), got
        assert len(got) == len(expected)
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert same_bits(one, other), (rank, i, one, other)


@pytest.mark.slow
def test_compiled_in_one_graph(worlds: Worlds) -> None:
    for plain, compiled in worlds("ranks_ops", "compiled", 2):
        assert all(map(same_bits, plain, compiled))


def test_two_ranks_in_brief(worlds: Worlds) -> None:
    base = ranks_calls.net()
    alone = ranks_calls.call(base, "lightweight", ranks_calls.sets("lightweight"))
    for made in worlds("ranks_calls", "smoke", 2):
        assert all(map(same_bits, made["noise"], ranks_ops.alone("perturb float32")))
        assert_same_state(made["model"], ranks_calls.whole(alone.model))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ranks_calls.METHODS)
def test_unlearn_as_in_one_process(method: str, kind: str, world: int, worlds: Worlds) -> None:
    everyone = worlds("ranks_calls", "calls", world)
    state, forgot, hashes = everyone[0][method, "alone"]
    assert not all(map(same_bits, state.values(), everyone[0]["base"].values()))
    for made in everyone:
        for part in ("same", "sampler", "inplace"):
            got = made[method, kind, part]
            assert_same_state(got[0], state)
            assert got[1:] == (forgot, hashes)
        assert_same_state(made[method, kind, "same", "given"], made["base"])
        assert made[method, kind, "inplace", "is given"] and made[method, kind, "still trains"]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_audit_as_in_one_process(kind: str, world: int, worlds: Worlds) -> None:
    everyone = worlds("ranks_calls", "calls", world)
    for made in everyone:
        for part in ("same", "sampler"):
            assert made["audit", kind, part] == everyone[0]["audit", "alone", part]


SAID = {
    "other data": ("RankError: unlearn: retain: rank 1 was given other data than rank 0", "DistributedSampler"),
    "other seed": ("RankError: unlearn: seed: rank 0 was given 0, rank 1 1", "same on every rank"),
    "other set": ("RankError: unlearn: test:", ""),
    "bad option": ("TypeError", "classes_"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", [*SAID, "one fails"])
def test_every_rank_is_told(what: str, worlds: Worlds) -> None:
    for rank, made in enumerate(worlds("ranks_calls", "failing", 2)):
        said, seconds, untouched = made[what]
        first, second = SAID.get(what) or (
            ("ZeroDivisionError: out of luck", "") if rank == 1 else ("RankError: unlearn: rank 1 stopped (ZeroDivisionError", "as it was")
        )
        assert said.startswith(first) and second in said, said
        assert untouched and seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("dies", [1, 0])  # 0 keeps the store
def test_a_dead_rank_holds_up_nobody(dies: int, tmp_path: Path) -> None:
    started = ranks.start(3, "ranks_calls", "dying", tmp_path, DIES=str(dies))
    ended = ranks.finish(started, timeout=180)
    assert ended[dies][0] == -9
    for rank in {0, 1, 2} - {dies}:
        assert ended[rank][0] == 0, ended[rank][1][-3000:]
        said, seconds, untouched = torch.load(tmp_path / f"{rank}.pt")
        assert said.startswith("RankError: unlearn:") and ("no sign of life" if dies else "store is gone") in said, said
        assert untouched and seconds < 60


@pytest.mark.slow
def test_a_call_on_one_rank_alone_ends(tmp_path: Path) -> None:
    ranks.run(2, "ranks_calls", "absent", tmp_path)
    said, seconds, untouched = torch.load(tmp_path / "0.pt")
    assert "rank 1 hasn't begun the call" in said and "model.module" in said, said
    assert untouched and 3 <= seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_results_in_distributed_checkpoints(world: int, worlds: Worlds) -> None:
    for made in worlds("ranks_calls", "checkpoint", world):
        for name in ("sharded", "plain"):
            for kind in ("fsdp", "bare"):
                assert_same_state(made[name, kind], made["result"])


def test_nothing_distributed_is_imported() -> None:
    code = "import sys, fastforget; from fastforget.ops import noise; import torch; noise.normal_([torch.empty(3)], seed=1); " \
        "assert 'torch.distributed.tensor' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
