"""Processes that work together on one machine, as torchrun would start them: gloo, one environment each.

``python ranks.py MODULE FUNCTION FOLDER`` is one of them: it calls ``FUNCTION(rank, world, folder)`` inside of a process group.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
WORLDS = [1, 2, 4]
Worlds = Callable[[str, str, int], list[Any]]


def start(world: int, module: str, function: str, folder: Path, **environment: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(HERE / "ranks.py"), module, function, str(folder)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]


def finish(started: list[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str]]:
    """Each one's exit status and what it wrote. Whatever happens, none is left."""
    try:
        outputs = [one.communicate(timeout=timeout)[0] for one in started]
        return [(one.returncode, output) for one, output in zip(started, outputs, strict=True)]
    finally:
        for one in started:
            if one.poll() is None:
                one.kill()
                one.wait()


def worlds(new_folder: Callable[[str], Path]) -> Worlds:
    """What each rank of a world of that size had in the end; of a task that was run before what it had then."""
    made: dict[tuple[str, str, int], list[Any]] = {}

    def of(module: str, task: str, world: int) -> list[Any]:
        if (module, task, world) not in made:
            folder = new_folder(f"{task}{world}")
            run(world, module, task, folder)
            made[module, task, world] = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
        return made[module, task, world]

    return of


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def assert_same_state(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name in got:
        assert same_bits(got[name], expected[name]), name


def run(world: int, module: str, function: str, folder: Path, timeout: float = 240, **environment: str) -> None:
    """Runs all of them to a good end."""
    for rank, (status, output) in enumerate(finish(start(world, module, function, folder, **environment), timeout)):
        assert status == 0, f"rank {rank} of {world} ended with {status}:\n{output[-4000:]}"


if __name__ == "__main__":
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    name, task, where = sys.argv[1:]
    getattr(importlib.import_module(name), task)(dist.get_rank(), dist.get_world_size(), Path(where))
    dist.barrier()
    dist.destroy_process_group()
