"""What the ranks of test_distributed.py run: ``ff.unlearn`` and ``ff.audit`` on models that they hold together, and what goes wrong."""

from __future__ import annotations

import copy
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fastforget as ff
from fastforget import _ranks, _weights

GONE = 2
METHODS = ("unsir", "forsaken", "lightweight")


def samples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Five clouds in 12 dimensions."""
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, 12, generator=torch.Generator().manual_seed(99))
    y = torch.randint(0, 5, (count,), generator=g)
    return centres[y] + torch.randn(count, 12, generator=g), y


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(12, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 5))
    x, y = samples(0, 400)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(60):
        batch = slice(step % 10 * 40, step % 10 * 40 + 40)
        optimizer.zero_grad()
        F.cross_entropy(made(x[batch]), y[batch]).backward()
        optimizer.step()
    return made.eval()


def sets(method: str) -> dict[str, Any]:
    (x, y), (u, v) = samples(0, 400), samples(1, 200)
    given: dict[str, Any] = {"retain": (x[y != GONE], y[y != GONE]), "test": (u, v)}
    if method != "unsir":
        given |= {"forget": (x[y == GONE], y[y == GONE]), "nonmember": (u, v)}
    return given


def shared_out(given: dict[str, Any]) -> dict[str, Any]:
    """The sets as loaders, each of which shows this rank its part."""
    data = {name: TensorDataset(*pair) for name, pair in given.items()}
    return {name: DataLoader(one, 64, sampler=DistributedSampler(one, shuffle=True, seed=3)) for name, one in data.items()}


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(copy.deepcopy(model))


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    made: Any = copy.deepcopy(model)
    fully_shard(made[0])
    fully_shard(made[3])
    fully_shard(made)
    made(torch.zeros(4, 12))  # leaves weights whole, as after an evaluation
    return made


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as one process has them."""
    from fastforget._unwrapped import inner, reshard

    reshard(model)
    tensors = [*inner(model).named_parameters(), *inner(model).named_buffers()]
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone() for name, t in tensors}


def call(model: nn.Module, method: str, given: dict[str, Any], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ff.unlearn(model, method, classes=[GONE], progress=False, **given, **options)


def calls(rank: int, world: int, folder: Path) -> None:
    base, made = net(), {}
    for method in METHODS:
        alone = call(base, method, sets(method))
        made[method, "alone"] = (whole(alone.model), alone.forgot, alone.receipt["weights_sha256"])
        for kind, wrap in (("ddp", ddp), ("fsdp", fsdp)):
            for part, given in (("same", sets(method)), ("sampler", shared_out(sets(method)))):
                model = wrap(base)
                result = call(model, method, given)
                made[method, kind, part] = (whole(result.model), result.forgot, result.receipt["weights_sha256"])
                made[method, kind, part, "given"] = whole(model)
            model = wrap(base)
            result = call(model, method, sets(method), inplace=True)
            made[method, kind, "inplace"] = (whole(model), result.forgot, result.receipt["weights_sha256"])
            made[method, kind, "inplace", "is given"] = result.model is model
            made[method, kind, "still trains"] = bool(torch.isfinite(model(torch.zeros(4, 12))).all())
    made["base"] = whole(base)
    given = {name: pair for name, pair in sets("forsaken").items() if name != "nonmember"}
    loaders = {name: DataLoader(TensorDataset(*pair), 64) for name, pair in given.items()}
    made["audit", "alone", "same"] = audited(base, given)
    made["audit", "alone", "sampler"] = audited(base, loaders)  # sums of losses depend on the batches
    for kind, wrap in (("ddp", ddp), ("fsdp", fsdp)):
        for part, some in (("same", given), ("sampler", shared_out(given))):
            made["audit", kind, part] = audited(wrap(base), some)
    torch.save(made, folder / f"{rank}.pt")


def audited(model: nn.Module, given: dict[str, Any]) -> tuple[str, str, str]:
    report = ff.audit({"original": model, "unlearned": model}, progress=False, **given)
    return report.verdict, repr(report.rows), report.settings["models"]["original"]["weights_sha256"]


def smoke(rank: int, world: int, folder: Path) -> None:
    """One op on one sharded list, and one call: what must hold on every change."""
    from ranks_ops import CASES, placer
    from ranks_ops import whole as gathered

    base = net()
    result = call(fsdp(base), "lightweight", shared_out(sets("lightweight")))
    made = {"noise": gathered(CASES["perturb float32"](placer("Shard(0)", world))), "model": whole(result.model)}
    torch.save(made, folder / f"{rank}.pt")


def failing(rank: int, world: int, folder: Path) -> None:
    """Calls that can't go well: what each rank is told, and whether its model is as it was."""
    base, made = net(), {}

    def attempt(name: str, **change: Any) -> None:
        model = ddp(base)
        began, said = time.monotonic(), "nothing"
        try:
            options = {"method": "unsir", "given": sets("unsir")} | change
            call(model, options.pop("method"), options.pop("given"), inplace=True, **options)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        made[name] = (said, time.monotonic() - began, _weights.fingerprint(model) == _weights.fingerprint(base))
        dist.barrier()

    x, y = sets("unsir")["retain"]
    attempt("other data", given={"retain": (x[rank::world], y[rank::world])})
    attempt("other seed", seed=rank)
    attempt("other set", given=sets("unsir") if rank else {"retain": (x, y)})
    attempt("bad option", classes_=1)

    def stumble(model: nn.Module, inputs: Tensor) -> Tensor:
        if rank == 1 and model.training:
            raise ZeroDivisionError("out of luck")
        return model(inputs)

    attempt("one fails", forward=stumble)
    torch.save(made, folder / f"{rank}.pt")


def dying(rank: int, world: int, folder: Path) -> None:
    """The rank of the environment's choice is killed at work."""
    _ranks.SILENCE = 3.0
    base = net()
    model = ddp(base)

    def die(inner: nn.Module, inputs: Tensor) -> Tensor:
        if rank == int(os.environ["DIES"]) and inner.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(inputs)

    _ends(folder, rank, base, model, lambda: call(model, "unsir", sets("unsir"), inplace=True, forward=die))


def absent(rank: int, world: int, folder: Path) -> None:
    """Rank 0 alone makes the call."""
    _ranks._timeout = lambda: 3.0
    base = net()
    model = ddp(base)
    if rank == 0:
        _ends(folder, rank, base, model, lambda: call(model, "unsir", sets("unsir"), inplace=True))


def _ends(folder: Path, rank: int, base: nn.Module, model: nn.Module, work: Callable[[], Any]) -> None:
    began, said = time.monotonic(), "nothing"
    try:
        work()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    same = _weights.fingerprint(model) == _weights.fingerprint(base)
    torch.save((said, time.monotonic() - began, same), folder / f"{rank}.pt")
    if "DIES" in os.environ:
        os._exit(0)  # the group is broken: no barrier can follow


def checkpoint(rank: int, world: int, folder: Path) -> None:
    """A result saved by torch.distributed.checkpoint, from sharded weights and as it is, and loaded into new ones."""
    import torch.distributed.checkpoint as dcp

    base = net()
    model = fsdp(base)
    result = call(model, "lightweight", sets("lightweight"))
    call(model, "lightweight", sets("lightweight"), inplace=True)
    made = {"result": whole(result.model)}
    dcp.save(model.state_dict(), checkpoint_id=folder / "sharded")
    dcp.save(result.model.state_dict(), checkpoint_id=folder / "plain")
    for name in ("sharded", "plain"):
        for kind, wrap in (("fsdp", fsdp), ("bare", copy.deepcopy)):
            fresh = wrap(base)
            state = fresh.state_dict()
            dcp.load(state, checkpoint_id=folder / name)
            fresh.load_state_dict(state)
            made[name, kind] = whole(fresh)
    torch.save(made, folder / f"{rank}.pt")
