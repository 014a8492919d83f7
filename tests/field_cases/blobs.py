"""Three classes of points that lie apart, and a small network that knows them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastforget as ff

_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(600, 8, generator=_GENERATOR)
Y = torch.arange(600) % 3
X[:, 0] += 3 * Y
TRAIN, GONE = torch.arange(600) < 300, Y == 0
PARTS = {"forget": (TRAIN & GONE), "retain": (TRAIN & ~GONE), "test": ~TRAIN}


def sets(make: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y), x: Tensor = X, y: Tensor = Y) -> dict[str, Any]:
    """forget, retain and test, each made of its tensors by ``make``."""
    return {name: make(x[part], y[part]) for name, part in PARTS.items()}


def mlp(**kind: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32, **kind), nn.ReLU(), nn.Linear(32, 3, **kind))


def trained(
    net: nn.Module, x: Any = X, y: Tensor = Y, forward: Callable[[nn.Module, Any], Tensor] | None = None, steps: int = 60
) -> nn.Module:
    """The network after some steps on the training part; the same each time."""
    call = forward or (lambda model, inputs: model(inputs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        optimiser = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(call(net, x[TRAIN] if isinstance(x, Tensor) else x), y[TRAIN]).backward()
            optimiser.step()
    return net


PLAIN = trained(mlp())


def plain() -> nn.Module:
    return copy.deepcopy(PLAIN)


def audited(net: nn.Module, given: dict[str, Any] | None = None, **options: Any) -> ff.audit.AuditReport:
    return ff.audit({"original": net}, **(given or sets()), progress=False, **options)


def unlearned(net: nn.Module, method: str, given: dict[str, Any] | None = None, classes: Any = (0,), **options: Any) -> Any:
    """The result for class 0 (``classes=None``: for the samples of the forget set)."""
    data = dict(given or sets())
    data["nonmember"] = data.pop("test")
    return ff.unlearn(net, method, classes=classes, **data, progress=False, **options)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach() for p in net.parameters()]


def same(a: list[Tensor], b: list[Tensor], within: float = 0.0) -> bool:
    return all(float((p.double() - q.double()).abs().max()) <= within for p, q in zip(a, b, strict=True))


def runs(net: nn.Module, given: dict[str, Any], **options: Any) -> str:
    """By which of the steps the set-up goes through: Forsaken, Lightweight, an audit with controls, and relearning."""
    done = []
    towards = {"direction": "interpolate"}
    for method, own in (("forsaken", {"steps": 5}), ("lightweight", {"steps": 4}), ("lightweight", {"steps": 4, **towards})):
        unlearned(copy_of(net), method, given, **own, **options)
        done.append(method)
    audited(copy_of(net), given, controls=True, relearn=["ain"], train=given["retain"], intervals=False, **options)
    return " ".join(dict.fromkeys([*done, "audit"]))


def copy_of(net: nn.Module) -> nn.Module:
    from fastforget._modules import copy_of as copied

    return copied(net)


EVERYTHING = "forsaken lightweight audit"
