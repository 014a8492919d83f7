"""Everything that a verdict could look at, of one model in one world, as numbers; which of them decide is chosen afterwards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget.auditing.measure import features as ft
from fastforget.auditing.measure import halves as hv
from fastforget.auditing.measure import linear as ln
from fastforget.auditing.measure import structure
from fastforget.auditing.measure.noised import noised_attack
from fastforget.auditing.measure.weights import layer_rows, weight_distance
from fastforget.ops.membership import roc_stats

from .zoo_worlds import Pair, World

Row = dict[str, Any]
SCALES = (0.1, 0.3, 0.6, 1.0)


class Ruler:
    """Measures the models of one world against its original; ``near``: classes beside the forgotten ones."""

    def __init__(self, w: World, original: nn.Module, near: tuple[int, ...]) -> None:
        self.w, self.original, self.near = w, original, near
        self.gone = torch.isin(w.test[1], torch.tensor(w.forgotten)) if w.forgotten else torch.ones(len(w.test[1]), dtype=torch.bool)
        self.unseen = (w.test[0][self.gone], w.test[1][self.gone])
        self.train_is = torch.isin(w.train[1], torch.tensor(w.forgotten)) if w.forgotten else torch.zeros(len(w.train[1]), dtype=torch.bool)
        self.of_original = {name: ft.penultimate(original, pair).values for name, pair in self._sets().items()}
        with torch.no_grad():
            self.wanted = _margin(original(w.train[0]), w.forgotten) if w.forgotten else None
            self.wanted_test = _margin(original(w.test[0]), w.forgotten) if w.forgotten else None

    def _sets(self) -> dict[str, Pair]:
        return {"train": self.w.train, "test": self.w.test, "forget": self.w.forget, "retain": self.w.retain}

    def row(self, model: nn.Module) -> Row:
        w = self.w
        found: Row = {"accuracy": {name: _accuracy(model, pair) for name, pair in self._sets().items()}}
        found["auc"] = _aucs(model, w, self.unseen)
        found["loss"] = {name: float(_losses(model, pair).mean()) for name, pair in (*self._sets().items(), ("unseen", w.unseen))}
        seen = {name: ft.penultimate(model, pair) for name, pair in self._sets().items()}
        found["features_reason"] = next((f.reason for f in seen.values() if f.reason), None)
        values = {name: f.values for name, f in seen.items() if f.values is not None}
        if len(values) == len(seen):
            found["cka"] = self._alike(values)
            found |= self._probes(values) if w.forgotten else self._new_head(values)
        for scale in SCALES if not w.forgotten else (0.3,):
            found[f"noised_{scale:g}"] = noised_attack(model, w.forget, self.unseen, scale=scale).auc
        for steps, lr in ((3, 0.05), (3, 0.2)) if not w.forgotten else ((3, 0.05),):
            found[f"halves_{steps}_{lr:g}"] = hv.other_half(model, w.forget, self.unseen, steps=steps, lr=lr).auc
        if w.forgotten:
            again, _ = hv.relearned(model, w.forget, w.retain, w.test, classes=w.forgotten)
            found["relearned"] = {str(k): v for k, v in again.items()}
            with torch.no_grad():
                found["neighbours"] = hv.neighbours(model(w.test[0]).argmax(1), w.test[1], self.near).accuracy
        found["structure"] = structure.difference(model, self.original)
        found["weights"] = _moved(model, self.original)
        return found

    def _alike(self, values: dict[str, Tensor]) -> Row:
        parts = {name: (values[name], self.of_original[name]) for name in ("test", "forget", "retain")}
        parts |= {"gone": (values["test"][self.gone], self.of_original["test"][self.gone])}  # type: ignore[index]
        parts |= {"kept": (values["test"][~self.gone], self.of_original["test"][~self.gone])}  # type: ignore[index]
        found: Row = {}
        for name, (a, b) in parts.items():
            if b is not None and len(a) > 1:
                found[name] = ln.cka(a, b)
                found[f"{name}_std"] = ln.class_cka(a, b)
        found |= self._read(values)
        return found

    def _read(self, values: dict[str, Tensor]) -> Row:
        """How much of the original's features can be read linearly off this model's, each at deviation 1, inside each set."""
        found = {}
        if self.w.forgotten:
            known, test = (self.of_original[name] for name in ("train", "test"))
            assert known is not None and test is not None
            found["read_all"] = ln.readable(values["train"], known, values["test"][self.gone], test[self.gone])
        train, wanted = values["retain"], self.of_original["retain"]
        assert wanted is not None
        moving = wanted.std(0) > 1e-3 * wanted.std(0).max()
        mean, deviation = wanted[:, moving].mean(0), wanted[:, moving].std(0)
        wanted = (wanted[:, moving] - mean) / deviation
        for name, rows in (("forget", slice(None)), ("test", self.gone)):
            there = self.of_original[name]
            assert there is not None
            aim = ((there[:, moving] - mean) / deviation)[rows]
            guess = _linear(train, wanted, values[name][rows])
            scale = ((aim - aim.mean(0)) ** 2).sum()
            found[f"read_{name}"] = 1 - float(((guess - aim) ** 2).sum() / scale)
            found[f"read_{name}_shape"] = 1 - float((((guess - guess.mean(0)) - (aim - aim.mean(0))) ** 2).sum() / scale)
        return found

    def _probes(self, values: dict[str, Tensor]) -> Row:
        train, test = values["train"], values["test"]
        found: Row = {}
        for ridge in (2e-2, 2e-1):
            found[f"probe_{ridge:g}"] = ln.probe(train, self.train_is, test, self.gone, ridge)._asdict()
        few = [torch.isin(self.w.train[1], torch.tensor([c])).nonzero()[:5, 0] for c in self.w.forgotten]
        at = torch.cat((*few, (~self.train_is).nonzero()[:45, 0]))
        found["probe_few"] = ln.probe(train[at], self.train_is[at], test, self.gone, 2e-2)._asdict()
        assert self.wanted is not None and self.wanted_test is not None
        read = _linear(train, self.wanted, test)
        found["echo"] = {"all": _r2(read, self.wanted_test), "gone": _correlation(read[self.gone], self.wanted_test[self.gone])}
        return found

    def _new_head(self, values: dict[str, Tensor]) -> Row:
        """The attack on a fresh last layer, trained on retain features: what the body alone remembers."""
        sides = [(values["forget"], self.w.forget[1]), (values["test"], self.w.test[1])]
        one, two = ln.new_head_losses(values["retain"], self.w.retain[1], sides)
        return {"new_head_auc": float(roc_stats(-one, -two, fprs=()).auc)}


def _margin(z: Tensor, classes: list[int]) -> Tensor:
    kept = [c for c in range(z.shape[1]) if c not in classes]
    return z[:, classes].amax(1) - z[:, kept].amax(1)


def _linear(train: Tensor, wanted: Tensor, test: Tensor, ridge: float = 1e-2) -> Tensor:
    mean, deviation = train.double().mean(0), train.double().std(0) + 1e-6
    x, z = (train.double() - mean) / deviation, (test.double() - mean) / deviation
    y = wanted.double()
    w = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - y.mean(0)) / len(x))
    return z @ w + y.mean(0)


def _r2(read: Tensor, wanted: Tensor) -> float:
    return 1 - float(((read - wanted) ** 2).mean() / wanted.double().var(correction=0))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])


@torch.no_grad()
def _losses(model: nn.Module, pair: Pair) -> Tensor:
    return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in zip(pair[0].split(512), pair[1].split(512), strict=True)])


@torch.no_grad()
def _accuracy(model: nn.Module, pair: Pair) -> float:
    answers = torch.cat([model(x).argmax(1) for x in pair[0].split(512)])
    return float((answers == pair[1]).double().mean())


def _aucs(model: nn.Module, w: World, unseen: Pair) -> Row:
    forget, retain, test, other = (-_losses(model, p) for p in (w.forget, w.retain, unseen, w.unseen))
    pairs = {"forget_test": (forget, test), "retain_test": (retain, test), "forget_retain": (forget, retain)}
    pairs["forget_unseen"] = forget, other
    return {name: float(roc_stats(a, b, fprs=()).auc) for name, (a, b) in pairs.items()}


def _moved(model: nn.Module, original: nn.Module) -> Row:
    """Distance from the original below the last layer, as a share of both norms together: 1 for unrelated weights of one norm."""
    moved = weight_distance(model, original)
    if moved.reason:
        return {"reason": moved.reason}
    last = layer_rows(original)[-1][0]
    below = [layer for layer in moved.layers if layer.layer != last]
    held = [p for m in (model, original) for n, p in m.named_parameters() if not n.startswith(f"{last}.")]
    norms = [float((p.detach().double() ** 2).sum()) for p in held]
    distance = math.sqrt(sum(layer.l2**2 for layer in below))
    return {"distance": distance, "relative": distance / math.sqrt(sum(norms)), "identical": moved.identical, "reason": None}
