"""Processes that work together on one machine, as torchrun would start them: gloo, one environment each.

``python ranks.py MODULE FUNCTION FOLDER`` is one of them: it calls ``FUNCTION(rank, world, folder)`` inside of a process group.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


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


def run(world: int, module: str, function: str, folder: Path, timeout: float = 240, **environment: str) -> None:
    """Runs all of them to a good end."""
    for rank, (status, output) in enumerate(finish(start(world, module, function, folder, **environment), timeout)):
        assert status == 0, f"rank {rank} of {world} ended with {status}:\n{output[-4000:]}"


if __name__ == "__main__":
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    name, task, where = sys.argv[1:]
    getattr(importlib.import_module(name), task)(dist.get_rank(), dist.get_world_size(), Path(where))
    dist.barrier()
    dist.destroy_process_group()
