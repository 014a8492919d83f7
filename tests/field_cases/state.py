"""The caller's state: interrupts, threads, generators, modes; and classes that were not known, samples that stand out."""

from __future__ import annotations

import copy
import random
import threading
import warnings

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fastforget as ff
from fastforget import _weights

from . import case, refusal
from .blobs import X, Y, plain, sets, unlearned

SMALL = {"preset": "paper", "noise_batch": 8, "noise_steps": 2}


def _hash(result) -> str:
    return result.receipt["weights_sha256"]["after"]


def _paper(net: nn.Module | None = None, **options) -> str:
    return _hash(unlearned(plain() if net is None else net, "unsir", **{**SMALL, **options}))


class Augmented(Dataset):
    """Points that are moved a little each time, by one of three generators."""

    def __init__(self, x, y, kind: str) -> None:
        self.x, self.y, self.kind = x, y, kind

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int):
        noise = {
            "torch": lambda: torch.randn(8),
            "numpy": lambda: torch.from_numpy(np.random.randn(8)).float(),
            "python": lambda: torch.tensor([random.gauss(0, 1) for _ in range(8)]),
        }[self.kind]()
        return self.x[i] + 0.1 * noise, int(self.y[i])


def _generators() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))


for _kind in ("torch", "numpy", "python"):

    @case(f"generators: a set that augments by {_kind}'s gives the same bytes, and the caller's stay", (True, True))
    def _(kind=_kind):
        before = _generators()
        runs = [_paper(given=sets(lambda x, y: DataLoader(Augmented(x, y, kind), 100))) for _ in range(2)]
        return runs[0] == runs[1], before == _generators()


@case("threads: four runs at once give the bytes of one alone", (True, True))
def _():
    before, alone, got = _generators(), _paper(), []
    threads = [threading.Thread(target=lambda: got.append(_paper())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got == [alone] * 4, before == _generators()


@case("failure: a warning raised as an error leaves the model as it was", ("raised", True))
def _():
    net = plain()
    before = _weights.fingerprint(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ff.NotForgottenWarning)
        try:
            unlearned(net, "unsir", inplace=True, impair_lr=1e-6, repair_lr=1e-6, **SMALL)
        except ff.NotForgottenWarning:
            return "raised", _weights.fingerprint(net) == before
    return "not raised", False


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        self.calls += 1
        return self.net(x)


@case("forward: a buffer that counts stays, in unlearn, audit, controls and relearning", (0, 0, True))
def _():
    net, given = Counts().train(), sets()
    result = unlearned(net, "lightweight", steps=2)
    ff.audit({"original": net}, **given, controls=True, relearn=["ain"], train=(X, Y), progress=False)
    return int(net.calls), int(unlearned(net, "none").model.calls), net.training and result.model.training


AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "a default device": lambda: torch.device("meta"),
}
for _name, _context in AROUND.items():

    @case(f"around the call: {_name} doesn't count", True)
    def _(context=_context):
        expected, given = _paper(), sets()
        with context():
            return _paper(given=given) == expected


@case("around the call: a transform of torch.func is refused", "refused")
def _():
    return refusal(lambda: torch.vmap(lambda x: (_paper(), x)[1])(X[:2]), "unlearn", "torch.func", "outside")


def _with_norm() -> nn.Module:
    net = plain()
    return nn.Sequential(nn.BatchNorm1d(8), *net)


for _by, _freeze in {"its parameters": lambda m: m.requires_grad_(False), "its module's flag": lambda m: m.eval()}.items():

    @case(f"batch norm: frozen by {_by}, keeps its statistics", [True, True, True])
    def _(freeze=_freeze):
        net = _with_norm().train()
        freeze(net[0])
        methods = (("unsir", SMALL), ("unsir", {"preset": "samples", "noise_steps": 1}), ("lightweight", {"steps": 2}))
        runs = [unlearned(net, method, classes=None if "samples" in own.values() else [0], **own) for method, own in methods]
        return [torch.equal(run.model[0].running_mean, net[0].running_mean) for run in runs]


for _method, _own in {"none": {}, "unsir": SMALL, "forsaken": {"steps": 5}, "lightweight": {"steps": 4}}.items():

    @case(f"not known before: labels in another order, {_method}", (False, "not shown: the model answered 0 % of class 0 before"))
    def _(method=_method, own=_own):
        x, y = X[:300], 2 - Y[:300]  # turned round: what is called 0 here lies farthest from what the model calls 0
        given = {"forget": (x[y == 0], y[y == 0]), "retain": (x[y != 0], y[y != 0]), "test": (X[300:], 2 - Y[300:])}
        result = unlearned(plain(), method, given, **own)
        return result.forgot, result.why.partition(";")[0]


class Relabels:
    """A published baseline: the forget set is taught wrong answers, until it is answered worse than anything unseen."""

    name, scope, learns_noise = "relabels", "samples", False

    def receipt(self):
        return {}

    def run(self, task):
        optimiser = torch.optim.Adam(task.model.parameters(), 1e-2)
        x, y = next(task.forget.batches())
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(task.model(x), (y + 1) % 3).backward()
            optimiser.step()
        return {}


@case("stands out: samples pushed past what unseen ones look like", (False, True))
def _():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=generator), torch.randint(3, (300,), generator=generator)  # learned by heart
    net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[:200]), y[:200]).backward()
            optimiser.step()
    given = {"forget": (x[:50], y[:50]), "retain": (x[50:200], y[50:200]), "test": (x[200:], y[200:])}
    result = unlearned(copy.deepcopy(net), Relabels(), given, classes=None)
    return result.forgot, "stand out" in result.why
