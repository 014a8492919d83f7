"""What the verdict says of models that are dressed up, built otherwise or not to be compared, and beside false references."""

from __future__ import annotations

import copy

import torch
from torch import nn

import fastforget as ff

from . import case
from .blobs import GONE, TRAIN, X, Y, mlp, sets


def _trained(net: nn.Module, keep: torch.Tensor, seed: int, parameters=None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            if hasattr(module, "reset_parameters") and parameters is None:
                module.reset_parameters()
        optimiser = torch.optim.Adam(parameters or net.parameters(), 1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            answers = net(X[keep])
            one = answers.shape[1] == 1
            loss = nn.functional.binary_cross_entropy_with_logits(answers[:, 0], (Y[keep] > 0).float()) if one else None
            (loss if loss is not None else nn.functional.cross_entropy(answers, Y[keep])).backward()
            optimiser.step()
        for p in net.parameters():
            p.grad = None
    return net.eval()


ORIGINAL = _trained(mlp(), TRAIN, 0)
RETRAINED = _trained(mlp(), TRAIN & ~GONE, 1)
AGAIN = _trained(mlp(), TRAIN & ~GONE, 2)


def _status(unlearned: nn.Module, *, original=ORIGINAL, retrained=RETRAINED, **options) -> str:
    models = {"original": original, "unlearned": unlearned, "retrained": retrained}
    return ff.audit(models, **sets(), progress=False, intervals=False, **options).verdict


def _changed(seed: int = 0, *, row: float = 1.0, bias: float = 0.0, body: float = 0.0) -> nn.Module:
    net, generator = copy.deepcopy(ORIGINAL), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        net[2].weight[0] *= row
        net[2].bias[0] += bias
        for p in net[0].parameters():
            p += body * p.std() * torch.randn(p.shape, generator=generator)
    return net


def _new_head(seed: int) -> nn.Module:
    net = copy.deepcopy(ORIGINAL)
    net[2] = nn.Linear(32, 3)
    return _trained(net, TRAIN & ~GONE, seed, parameters=list(net[2].parameters()))


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def _quantised(net: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)


@case("verdict: retrained, from another seed and at another width", ("PASS", "PASS"))
def _():
    wide = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 3))
    return _status(AGAIN), _status(_trained(wide, TRAIN & ~GONE, 3))


@case("verdict: only the last layer changed, only biases changed", ("FAIL", "FAIL"))
def _():
    biases = _changed(bias=-20)
    with torch.no_grad():
        biases[0].bias += 0.1
    return _status(_changed(bias=-20)), _status(biases)


@case("verdict: the body shaken, the class's row negated", "PARTIAL")
def _():
    return _status(_changed(row=-0.3, bias=-8, body=0.03))


@case("verdict: a wrapper, data parallelism, torch.compile", ("PARTIAL", "PASS", "PASS"))
def _():
    return tuple(map(_status, (Wrapped(AGAIN), nn.DataParallel(AGAIN), torch.compile(AGAIN, backend="eager"))))


@case("verdict: quantised models have no weights to compare", "PARTIAL")
def _():
    return _status(_quantised(AGAIN), original=_quantised(ORIGINAL), retrained=_quantised(RETRAINED))


@case("verdict: a retrained model with the original's body, and with the body frozen by the caller's word", ("FAIL", "PARTIAL", "PASS"))
def _():
    fake = _new_head(4)
    return _status(_new_head(5), retrained=fake), _status(AGAIN, retrained=fake), _status(_new_head(5), retrained=fake, frozen_body=True)


@case("verdict: several retrained models are references, not judged", ("PASS", ["unlearned"]))
def _():
    models = {"original": ORIGINAL, "unlearned": AGAIN, "retrained": RETRAINED, "retrained 2": _trained(mlp(), TRAIN & ~GONE, 6)}
    report = ff.audit(models, **sets(), progress=False, intervals=False)
    return report.verdict, [row["model"] for row in report.judged()]


@case("verdict: one logit for two classes", "PASS")
def _():
    nets = []
    for keep, seed in ((TRAIN, 0), (TRAIN & ~GONE, 1), (TRAIN & ~GONE, 2)):
        nets.append(_trained(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)), keep, seed))
    y = (Y > 0).long()
    parts = {"forget": TRAIN & GONE, "retain": TRAIN & ~GONE, "test": ~TRAIN}
    models = dict(zip(("original", "retrained", "unlearned"), nets, strict=True))
    return ff.audit(models, **{name: (X[part], y[part]) for name, part in parts.items()}, progress=False, intervals=False).verdict
