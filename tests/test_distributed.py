"""Sharded parameters: the bits of one process, on any number of ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import ranks_ops
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
WORLDS = [1, 2, 4]
Results = list[dict[tuple[str, str], Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Results]:
    """What each rank of a world of that size had in the end."""
    made: dict[int, Results] = {}

    def of(world: int) -> Results:
        if world not in made:
            folder = tmp_path_factory.mktemp(f"world{world}")
            ranks.run(world, "ranks_ops", "work", folder)
            made[world] = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
        return made[world]

    return of


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("placement", ranks_ops.PLACEMENTS)
@pytest.mark.parametrize("case", ranks_ops.CASES)
def test_sharded_as_in_one_process(case: str, placement: str, world: int, results: Callable[[int], Results]) -> None:
    expected = ranks_ops.alone(case)
    for rank, made in enumerate(results(world)):
        got = made[case, placement]
        assert not isinstance(got, str), got
        assert len(got) == len(expected)
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert same_bits(one, other), (rank, i, one, other)


def test_nothing_distributed_is_imported() -> None:
    code = "import sys, fastforget; from fastforget.ops import noise; import torch; noise.normal_([torch.empty(3)], seed=1); " \
        "assert 'torch.distributed.tensor' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
