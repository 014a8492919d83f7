"""Networks: what they keep, what they return, how their steps fail."""

from __future__ import annotations

import copy
from collections import namedtuple

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import fastforget as ff

from . import case, refusal
from .blobs import EVERYTHING, GONE, TRAIN, X, Y, audited, mlp, plain, runs, same, sets, trained, unlearned, weights

Outputs = namedtuple("Outputs", "logits aux_logits")


class Keeps(nn.Module):
    """Keeps what a forward pass made: by itself, in a list and in a dict."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.maps, self.named = nn.Linear(8, 16), nn.Linear(16, 3), [], {}

    def forward(self, x):
        self.features = self.a(x).relu()
        self.maps, self.named = [self.features], {"x": {"y": self.features}}
        return self.b(self.features)


class Auxiliary(nn.Module):
    """Logits in eval mode, more in training mode."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.aux, self.kind = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 3), kind

    def forward(self, x):
        h = self.a(x).relu()
        return self.kind(self.b(h), self.aux(h)) if self.training else self.b(h)


def _pruned():
    net = mlp()
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    return net


def _with(norm):
    return lambda: nn.Sequential(norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3))


NETS = {
    "weight_norm": _with(weight_norm),
    "weight_norm, parametrised": _with(parametrizations.weight_norm),
    "spectral_norm": _with(spectral_norm),
    "spectral_norm, parametrised": _with(parametrizations.spectral_norm),
    "pruned": _pruned,
    "keeps features": Keeps,
    "scripted": lambda: torch.jit.script(mlp()),
    "float64": lambda: mlp(dtype=torch.float64),
    "checkpointing": lambda: Checkpointed(False),
    "auxiliary outputs, named tuple": lambda: Auxiliary(Outputs),
    "auxiliary outputs, tuple": lambda: Auxiliary(lambda a, b: (a, b)),
    "auxiliary outputs, dict": lambda: Auxiliary(lambda a, b: {"out": a, "aux": b}),
    "bfloat16": lambda: mlp().bfloat16(),
}


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(8, 16), nn.Linear(16, 3), reentrant

    def forward(self, x):
        return self.last(checkpoint(torch.relu, self.first(x), use_reentrant=self.reentrant))


def _logits(net, x):
    given = net(x)
    return given if isinstance(given, torch.Tensor) else next(iter(given.values())) if isinstance(given, dict) else given[0]


def _knowing(make):
    net = make()
    dtype = next(net.parameters()).dtype
    return trained(net, X.to(dtype), forward=lambda m, x: _logits(m, x).float()), sets(x=X.to(dtype))


for _name, _make in NETS.items():

    @case(f"network: {_name}", EVERYTHING)
    def _(make=_make):
        return runs(*_knowing(make))

    @case(f"network: {_name}, UNSIR", True)
    def _(make=_make):
        net, given = _knowing(make)
        result = unlearned(net, "unsir", given, preset="paper", noise_steps=5)
        return all(bool(p.isfinite().all()) for p in result.model.parameters())


@case("network: a copy of what keeps features holds values alone", True)
def _():
    from fastforget._modules import copy_of

    net = trained(Keeps())
    other = copy_of(net)
    kept = (other.features, other.maps[0], other.named["x"]["y"])
    return all(t.grad_fn is None and t is not net.features and torch.equal(t, net.features) for t in kept)


# What is refused, with what to do

REFUSED = {
    "reentrant checkpointing": (lambda: trained(Checkpointed(True)), ("model", "use_reentrant=False")),
    "float16": (lambda: plain().half(), ("model", "float16", "model.float()")),
    "exported": (lambda: torch.export.export(plain(), (X[:2],)).module(), ("model", "exported")),
    "exported program": (lambda: torch.export.export(plain(), (X[:2],)), ("model", "exported")),
    "not initialised": (lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)), ("model", "initialised")),
    "a gradient for each sample": (lambda: PerSample(plain()), ("model", "_module")),
    "detached": (lambda: Detached(), ("model", "gradient")),
}


class PerSample(nn.Module):
    """Like the wrappers of differential privacy: in training mode every parameter gets its gradients sample by sample."""

    def __init__(self, module):
        super().__init__()
        self._module = module
        for parameter in module.parameters():
            parameter.register_hook(lambda gradient, p=parameter: setattr(p, "grad_sample", gradient[None]))

    def forward(self, x):
        for parameter in self._module.parameters():
            if self.training and parameter.requires_grad:
                parameter.grad_sample = torch.zeros(len(x), *parameter.shape)
        return self._module(x)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = plain()

    def forward(self, x):
        with torch.no_grad():
            logits = self.inner(x)
        return logits + 0 * x.sum().requires_grad_()


for _name, (_make, _words) in REFUSED.items():

    @case(f"refused: {_name}", "refused")
    def _(make=_make, words=_words):
        net = make()
        given = sets(x=X.half()) if isinstance(net, nn.Module) and "float16" in words else sets()
        return refusal(lambda: unlearned(net, "unsir", given), *words)


@case("refused: float16, in an audit's controls", "refused")
def _():
    return refusal(lambda: audited(plain().half(), sets(x=X.half()), controls=True), "controls", "float16")


@case("refused: outputs in which the logits can't be told", "refused")
def _():
    def forward(m, x):
        return m[0](x), m(x)  # features and logits

    return refusal(lambda: audited(plain(), forward=forward), "original", "forward=")


# Batch norm and batches of one sample


def _normed(seed=0):
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def _cut(forget, retain):
    given = sets()
    sizes = {"forget": forget, "retain": retain, "test": 300}
    return {name: tuple(t[: sizes[name]] for t in pair) for name, pair in given.items()}


ONE_LEFT = {
    "UNSIR for samples, 65 to forget": (65, 128, "unsir", {"preset": "samples", "batch_size": 64, "noise_steps": 2}),
    "UNSIR for samples, 65 retained": (60, 65, "unsir", {"preset": "samples", "batch_size": 64, "noise_steps": 2}),
    "Lightweight, 129 retained": (60, 129, "lightweight", {"direction": "interpolate", "steps": 4}),
}
for _name, (_f, _r, _m, _o) in ONE_LEFT.items():

    @case(f"last batch of one, batch norm: {_name}", True)
    def _(f=_f, r=_r, m=_m, o=_o):
        result = unlearned(trained(_normed()), m, _cut(f, r), classes=None, **o)
        return all(bool(p.isfinite().all()) for p in result.model.parameters())


@case("last batch of one, batch norm: relearning", True)
def _():
    given, net = sets(), trained(_normed())
    x, y = (t[:65] for t in given["retain"])
    train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64)
    options = {"original_accuracy": 1.0, "definition": "ain", "cap": 2, "progress": False}
    return ff.audit.relearn_time(net, train=train, forget=(X[TRAIN & GONE], Y[TRAIN & GONE]), **options).value >= 0


@case("last batch of one, batch norm: shadow models", 4)
def _():
    return ff.audit.shadows(_normed, (X[:7], Y[:7]), n=4, epochs=2, batch_size=2, progress=False).n_models


@case("last batch of one, batch norm: a pool of two", "refused")
def _():
    return refusal(lambda: ff.audit.shadows(_normed, (X[:2], Y[:2]), n=2, epochs=1, progress=False), "dataset", "at least 4")


for _method, _options in (
    ("unsir", {"preset": "samples", "noise_steps": 2}), ("forsaken", {"steps": 5}), ("lightweight", {"steps": 4}),
    ("lightweight", {"steps": 4, "direction": "interpolate"}), ("none", {}),
):  # fmt: skip

    @case(f"one sample to forget: {_method} {' '.join(map(str, _options.values()))}", True)
    def _(method=_method, options=_options):
        result = unlearned(trained(_normed()), method, _cut(1, 200), classes=None, **options)
        return all(bool(p.isfinite().all()) for p in result.model.parameters())


@case("one sample to forget: audit with controls", "NO REFERENCE")
def _():
    return audited(trained(_normed()), _cut(1, 200), controls=True).verdict


@case("one sample to forget: shadow models", "NO REFERENCE")
def _():
    held = ff.audit.shadows(lambda seed: nn.Linear(8, 3), (X, Y), n=4, epochs=1, progress=False)
    return audited(plain(), _cut(1, 200), shadows=held).verdict


# Layouts and numbers


def _conv():
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


IMAGES = X.view(600, 2, 2, 2)
for _method, _options in (
    ("unsir", {"preset": "paper", "noise_steps": 5}), *(("forsaken", {"steps": 10, "generator": g}) for g in ("neuron", "direct",
    "coordinate", "dense")), ("lightweight", {"steps": 8}), ("lightweight", {"steps": 8, "direction": "interpolate"}),
):  # fmt: skip

    @case(f"channels_last: {_method} {' '.join(map(str, _options.values()))} as contiguous", True)
    def _(method=_method, options=_options):
        net = trained(_conv(), IMAGES)
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        results = [unlearned(one, method, sets(x=IMAGES), **options) for one in (net, last)]
        return same(*(weights(result.model) for result in results), within=1e-3)


for _generator in ("neuron", "direct", "coordinate", "dense"):

    @case(f"default float64: Forsaken {_generator} as under float32", True)
    def _(generator=_generator):
        results = []
        for default in (torch.float32, torch.float64):
            was = torch.get_default_dtype()
            try:
                torch.set_default_dtype(default)
                results.append(unlearned(plain(), "forsaken", steps=10, generator=generator))
            finally:
                torch.set_default_dtype(was)
        return same(*(weights(result.model) for result in results), within=1e-5)


class Words(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8, sparse=sparse), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


IDS = torch.randint(0, 6, (600, 5), generator=torch.Generator().manual_seed(0)) + 6 * Y[:, None]


@case("sparse embedding: as a dense one", "True True True True")
def _():
    first = trained(Words(False), IDS)
    second = Words(True)
    second.load_state_dict(first.state_dict())
    same_bytes, given = [], sets(x=IDS)
    for method, options in (("unsir", {"preset": "paper", "noise_at": "embed", "noise_steps": 3}), ("forsaken", {"steps": 5}), (
        "lightweight", {"steps": 4, "direction": "interpolate"})):  # fmt: skip
        results = [unlearned(net, method, given, **options) for net in (first, second)]
        same_bytes.append(same(*(weights(result.model) for result in results)) and results[1].model.embed.sparse)
    audited(second, given, controls=True, relearn=["ain"], train=given["retain"])
    return " ".join(map(str, [*same_bytes, second.embed.sparse]))
