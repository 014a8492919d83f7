"""Processes that train shadow models together: what each one runs, and what it tells.

``python shadows_ranks.py FUNCTION FOLDER`` is one that shares a folder only; the same functions run on ranks by ``ranks.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from shadows_world import POOL, POPULATION, forget_half_way, make_model, train
from torch import nn

import fastforget as ff
from fastforget._identity import digest
from fastforget.auditing.shadow import claims
from fastforget.auditing.shadow import training as shadow_training

HERE = Path(__file__).parent
MODELS = 7
FULL: dict[str, Any] = {"population": POPULATION, "keep_scores": True, "unlearn": forget_half_way, "epochs": 2}
trained: list[int] = []  # by this process
_real = shadow_training._train_and_score


def start(count: int, function: str, folder: Path, **environment: str) -> list[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / "shadows_ranks.py"), function, str(folder)]
    common = {**environment_of_tests(), **environment}
    return [
        subprocess.Popen(command, env={**common, "NUMBER": str(i)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(count)
    ]


def environment_of_tests() -> dict[str, str]:
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def told(folder: Path) -> list[dict[str, Any]]:
    """What the processes have told in the end, by their numbers."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def tell(folder: Path, **facts: Any) -> None:
    number = os.environ.get("RANK", os.environ.get("NUMBER"))
    (folder / f"{number}.json").write_text(json.dumps({"trained": trained, **facts}))


def counted(work, indices, tick):
    trained.extend(indices)
    return _real(work, indices, tick)


def at_once(folder: Path) -> None:
    """Waits until all processes are here."""
    (folder / f"here-{os.getpid()}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob("here-*"))) < int(os.environ["PROCESSES"]) and time.monotonic() < until:
        time.sleep(0.002)


def work(folder: Path, **options: Any) -> ff.audit.Shadows:
    shadow_training._train_and_score = counted
    began, said, held = time.monotonic(), "", None
    try:
        held = train(MODELS, out=folder / "out", **{**FULL, **options})
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    sums = digest(held.tensors()) if held is not None else None
    tell(folder, sums=sums, said=said, seconds=time.monotonic() - began)
    return held


def plain(folder: Path) -> None:
    at_once(folder)
    work(folder)


def stacked(folder: Path) -> None:
    at_once(folder)
    work(folder, stack=2)


def dies(folder: Path) -> None:
    """Process 0 is killed at its third model."""
    if os.environ["NUMBER"] == "0":

        def mortal(work, indices, tick):
            trained.extend(indices)
            if len(trained) == 3:
                tell(folder)
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(work, indices, tick)

        globals()["counted"] = mortal
    at_once(folder)
    work(folder)


def stumbles(folder: Path) -> None:
    """Process 0 can't make its third model."""
    work_on_others(folder, "0")


def work_on_others(folder: Path, number: str) -> None:
    made = []

    def stumble(seed: int) -> nn.Module:
        made.append(seed)
        if os.environ.get("RANK", os.environ.get("NUMBER")) == number and len(made) == 3:
            raise ZeroDivisionError("out of luck")
        return make_model(seed)

    import shadows_world

    shadows_world.make_model = stumble
    work(folder)


def elsewhere(folder: Path) -> None:
    """A process that nobody here can look up: as on another machine."""
    claims._process = lambda pid: None
    claims.BEAT, claims.SILENCE = 0.2, float(os.environ["SILENCE"])
    dies(folder)


# ------------------------------------------------------------------ ranks


def on_ranks(rank: int, world: int, folder: Path) -> None:
    held = work(folder)
    if world == 1:
        return
    model = nn.parallel.DistributedDataParallel(make_model(1))
    torch.manual_seed(0)
    nn.init.normal_(model.module[0].weight)
    x, y = POOL
    sets = {"forget": (x[:8], y[:8]), "retain": (x[8:24], y[8:24]), "test": (x[24:], y[24:])}
    more = {"shadows": held, "population": POPULATION, "attacks": ("lira", "rmia", "attack_r", "u_lira")}
    report = ff.audit({"original": model}, progress=False, **sets, **more)
    (folder / f"report-{rank}").write_text(repr(report.rows))


def rank_stumbles(rank: int, world: int, folder: Path) -> None:
    work_on_others(folder, "1")


def rank_differs(rank: int, world: int, folder: Path) -> None:
    work(folder, epochs=2 + rank)


def other_folders(rank: int, world: int, folder: Path) -> None:
    shadow_training._train_and_score = counted
    own = folder / str(rank)
    own.mkdir()
    try:
        train(MODELS, out=own)
    except ValueError as error:
        tell(folder, said=str(error))


def rank_dies(rank: int, world: int, folder: Path) -> None:
    """Rank 1 is killed at its first model; no agent ends the others."""
    from fastforget import _ranks

    _ranks.SILENCE = 3.0

    def mortal(work, indices, tick):
        trained.extend(indices)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.0)
        return _real(work, indices, tick)

    globals()["counted"] = mortal
    work(folder)
    os._exit(0)  # the group is broken: no barrier can follow


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
