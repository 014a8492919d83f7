"""Ranks that hold a model together (FSDP2, gloo): equal bytes, seconds and memory a rank, by the number of processes.

    python -m fastforget._bench.distributed --out FILE.json [--processes 1 2 4] [--width 2048]

Each number of processes does the same two things, with one thread a process:

- steps: noise and ``MaskedAdamW`` on a net of three layers whose weights are sharded: what a rank holds falls with their number
- unlearn: ``ff.unlearn`` of that net, for which each rank makes a whole copy: what a rank holds doesn't fall

Seconds are wall seconds of the slowest rank and CPU seconds of the mean one; more processes than cores share them. Memory is the process's
peak above what it held before. ``sha256`` is over the whole weights: equal where the bytes are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget._dtensors import replicated
from fastforget._files import write_whole

from . import machine

STEPS, CLASSES, INPUTS, SAMPLES = 5, 10, 256, 2_000


def _net(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))


def _sharded(model: nn.Sequential) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=g)
    centres = torch.randn(CLASSES, INPUTS, generator=g)
    return centres[y] + torch.randn(SAMPLES, INPUTS, generator=g), y


def _steps(model: nn.Module) -> nn.Module:
    params = dict(model.named_parameters())
    rows = {name: torch.arange(len(p)) % 2 == 0 for name, p in params.items()}
    optimizer = ff.optim.MaskedAdamW(params.items(), lr=1e-3, mask=rows)
    for step in range(STEPS):
        for p in params.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        ff.ops.noise.normal_([p.grad for p in params.values()], 0.01, seed=2, step=step)  # type: ignore[misc]
        optimizer.step()
        with torch.no_grad():
            ff.ops.noise.add_normal_(list(params.values()), 1e-4, seed=3, step=step)
    return model


def _unlearn(model: nn.Module) -> nn.Module:
    x, y = _data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        result = ff.unlearn(
            model, "unsir", classes=[3], retain=(x[y != 3], y[y != 3]), forget=(x[y == 3], y[y == 3]), progress=False, preset="paper"
        )
    return result.model


def _rank(rank: int, world: int, port: int, width: int, what: str, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work: Callable[[nn.Module], nn.Module] = {"steps": _steps, "unlearn": _unlearn}[what]
    work(_sharded(_net(16)))  # what is loaded at first use
    model = _sharded(_net(width))
    dist.barrier()
    machine.forget_peak()
    before, wall, cpu = machine.resident("VmRSS"), time.perf_counter(), time.process_time()
    made = work(model)
    spent = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    spent["peak_mb_above"] = machine.resident("VmHWM") - before
    digest = hashlib.sha256()
    for p in made.parameters():
        digest.update(replicated(p.detach()).numpy().tobytes())
    Path(folder, f"{rank}.json").write_text(json.dumps({**spent, "sha256": digest.hexdigest()}))
    dist.barrier()
    dist.destroy_process_group()


def measure(world: int, width: int, what: str) -> dict[str, Any]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        context = multiprocessing.get_context("spawn")
        ranks = [context.Process(target=_rank, args=(rank, world, port, width, what, folder)) for rank in range(world)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
        if any(one.exitcode for one in ranks):
            raise RuntimeError(f"{what} with {world} processes: exit statuses {[one.exitcode for one in ranks]}")
        rows = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return {
        "what": what,
        "processes": world,
        "width": width,
        "parameters": sum(p.numel() for p in _net(width).parameters()),
        "wall_seconds": max(row["wall_seconds"] for row in rows),
        "cpu_seconds_a_rank": sum(row["cpu_seconds"] for row in rows) / world,
        "peak_mb_above_a_rank": max(row["peak_mb_above"] for row in rows),
        "sha256": sorted({row["sha256"] for row in rows}),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args(argv)
    facts = machine.facts()
    rows = [measure(world, options.width, what) for what in ("steps", "unlearn") for world in options.processes]
    for row in rows:
        print({**row, "sha256": [one[:12] for one in row["sha256"]]})
    equal = {what: len({one for row in rows if row["what"] == what for one in row["sha256"]}) == 1 for what in ("steps", "unlearn")}
    print("equal bytes:", equal)
    if options.out:
        made = {"what": "distributed", "machine": facts, "rows": rows, "equal_bytes": equal}
        write_whole(options.out, json.dumps(made, indent=1) + "\n")
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
