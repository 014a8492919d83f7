"""Causal language models that ranks hold together: the verdict and the bytes of one process on every rank, and no waiting for the dead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import ranks_language
import torch
from ranks import WORLDS, Worlds, assert_same_state, same_bits

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


def assert_same_result(got: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Weights to the bit; whether it forgot, why, hashes and the verdict's figures."""
    assert_same_state(got[0], expected[0])
    assert got[1:] == expected[1:]


def test_two_ranks_in_brief(worlds: Worlds) -> None:
    first, second = worlds("ranks_language", "smoke", 2)
    for made in (first, second):
        assert_same_result(made["together"], first["alone"])


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ranks_language.HELD)
@pytest.mark.parametrize("method", ranks_language.METHODS)
def test_unlearn_as_in_one_process(method: str, kind: str, world: int, worlds: Worlds) -> None:
    everyone = worlds("ranks_language", "calls", world)
    alone = everyone[0][method, "alone"]
    assert not all(map(same_bits, alone[0].values(), everyone[0]["base"].values()))
    for made in everyone:
        for part in ("same", "sampler", "inplace"):
            assert_same_result(made[method, kind, part], alone)
        for part in ("same", "sampler"):
            assert_same_state(made[method, kind, part, "given"], made["base"])
            assert made[method, kind, part, "ranks"] == world
        assert made[method, kind, "inplace", "is given"] and made[method, kind, "still runs"]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ranks_language.HELD)
def test_a_head_that_is_the_embedding(kind: str, world: int, worlds: Worlds) -> None:
    everyone = worlds("ranks_language", "calls", world)
    for made in everyone:
        assert_same_result(made["tied", kind], everyone[0]["tied", "alone"])
        assert made["tied", kind, "is tied"]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ranks_language.HELD)
def test_audit_as_in_one_process(kind: str, world: int, worlds: Worlds) -> None:
    everyone = worlds("ranks_language", "calls", world)
    alone = everyone[0]["audit", "alone"]
    assert alone[0] in ("PASS", "PARTIAL", "FAIL") and alone[4]["retain"]["shared"] == 0
    for made in everyone:
        for part in ("same", "sampler"):
            assert made["audit", kind, part] == alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ranks_language.HELD)
def test_a_call_that_a_rank_ended_goes_on(kind: str, worlds: Worlds) -> None:
    everyone = worlds("ranks_language", "resumed", 2)
    for made in everyone:
        assert "ZeroDivisionError: out of luck" in made[kind, "said"]
        assert_same_state(made[kind, "given"], made["base"])
        assert made[kind, "step"] >= 2
        assert_same_result(made[kind], everyone[0]["alone"])


AUDITED = "RuntimeError: model 'original', forget set, sequences 0 to 1: its forward failed with ZeroDivisionError: out of luck"
SAID = {
    "other labels": ("RankError: unlearn: retain: rank 1 was given other data than rank 0",) * 2,
    "other method": ("RankError: unlearn: method: rank 0 was given 'gradient_difference', rank 1 'simnpo'",) * 2,
    "shared": ("ValueError: forget: 12 of its 12 samples are in retain too",) * 2,
    "one fails": ("RankError: unlearn: rank 1 stopped (ZeroDivisionError: out of luck)", "ZeroDivisionError: out of luck"),
    "one fails in the audit": (f"RankError: audit: rank 1 stopped ({AUDITED}", AUDITED),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SAID)
def test_every_rank_is_told(what: str, worlds: Worlds) -> None:
    for rank, made in enumerate(worlds("ranks_language", "failing", 2)):
        said, seconds, untouched = made[what]
        assert said.startswith(SAID[what][rank]), said
        assert untouched and seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("call", ["unlearn", "audit"])
@pytest.mark.parametrize("dies", [1, 0])  # 0 keeps the store
def test_a_dead_rank_holds_up_nobody(dies: int, call: str, tmp_path: Path) -> None:
    started = ranks.start(3, "ranks_language", "dying", tmp_path, DIES=str(dies), CALL=call)
    ended = ranks.finish(started, timeout=180)
    assert ended[dies][0] == -9
    for rank in {0, 1, 2} - {dies}:
        assert ended[rank][0] == 0, ended[rank][1][-3000:]
        said, seconds, untouched = torch.load(tmp_path / f"{rank}.pt")
        assert said.startswith(f"RankError: {call}:") and ("no sign of life" if dies else "store is gone") in said, said
        assert untouched and seconds < 60
