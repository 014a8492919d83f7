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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shadows_world
import torch
from shadows_world import POOL, POPULATION, forget_half_way, make_model, train
from torch import nn

import fastforget as ff
from fastforget._files import write_json
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
    write_json(folder / f"{number()}.json", {"trained": trained, **facts})


def counted(work, indices, tick):
    trained.extend(indices)
    return _real(work, indices, tick)


def number() -> str:
    return os.environ.get("RANK", os.environ.get("NUMBER", ""))


def until(there: Callable[[], bool]) -> None:
    """Waits, for a minute at most."""
    end = time.monotonic() + 60
    while not there() and time.monotonic() < end:
        time.sleep(0.002)


def after_its_end(folder: Path, which: str) -> None:
    """The other processes stay at their first model until this one has told what it did: it gets its share on a busy machine too."""
    if number() != which:

        def patient(work, indices, tick):
            until((folder / f"{which}.json").exists)
            return counted(work, indices, tick)

        _at_work[0] = patient


def at_once(folder: Path) -> None:
    """Waits until all processes are here."""
    (folder / f"here-{os.getpid()}").touch()
    until(lambda: len(list(folder.glob("here-*"))) == int(os.environ["PROCESSES"]))


_at_work = [counted]  # how this process trains


def work(folder: Path, **options: Any) -> ff.audit.Shadows:
    shadow_training._train_and_score = _at_work[0]
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


def mixed(folder: Path) -> None:
    """As on machines of two kinds: other numbers of threads, and each process trains a model at least."""
    torch.set_num_threads(1 + int(number()))

    def slow(work, indices, tick):
        (folder / f"began-{number()}").touch()
        until(lambda: len(list(folder.glob("began-*"))) == 2)
        return counted(work, indices, tick)

    _at_work[0] = slow
    machines = work(folder).machines
    write_json(folder / f"machines-{number()}.txt", machines)


def dies(folder: Path) -> None:
    """Process 0 is killed at its third model."""
    after_its_end(folder, "0")
    if number() == "0":

        def mortal(work, indices, tick):
            trained.extend(indices)
            if len(trained) == 3:
                tell(folder)
                os.kill(os.getpid(), signal.SIGKILL)
            return _real(work, indices, tick)

        _at_work[0] = mortal
    at_once(folder)
    work(folder)


def stumbles(folder: Path) -> None:
    work_but_for(folder, "0")


def work_but_for(folder: Path, which: str) -> None:
    """One process can't make a model: the second that it trains, after the one that is made to be looked at."""
    after_its_end(folder, which)
    made = []

    def stumble(seed: int) -> nn.Module:
        made.append(seed)
        if number() == which and len(made) == 3:
            raise ZeroDivisionError("out of luck")
        return make_model(seed)

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
    work_but_for(folder, "1")


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

    _at_work[0] = mortal
    work(folder)
    os._exit(0)  # the group is broken: no barrier can follow


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](Path(sys.argv[2]))
