"""The evidence below the answers: all its figures, of every model of an audit. ``auditing/limits.py`` judges them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..._arrays import first_line
from ..._data import Source, source
from ..._progress import Progress
from ..._progress import progress as progress_bar
from ..._random import own_randomness
from ...ops.membership import roc_stats
from ..figures_below import NUMBERS, Below
from . import features as ft
from . import halves as hv
from . import linear as ln
from . import noised as nz
from . import structure
from .weights import moved_below, nothing_below

Forward = Callable[[nn.Module, Any], Tensor]

FEWEST = 3  # test samples of the forgotten classes, for a likeness inside them
OF_CLASSES = ("class_cka", "readable", "probe_auc")
MOST = 4096  # samples read of a set for features, and of each side of an attack
NOTHING_BELOW = "the model has one layer: below it lie the inputs, which hold nothing of its training"
FAILED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
CONVENTIONS = {
    "class_cka": "linear CKA of what the last layers read, every feature at one deviation, on unseen samples "
    "of the forgotten classes; 1 = the original's own. Retraining moves away from it",
    "readable": "share (R^2) of the original's features that a ridge regression reads off the model's, on these samples",
    "probe_auc": "AUC by which a logistic regression on what the last layer reads tells the forgotten classes from the kept ones, on "
    "unseen samples. A retrained model can be probed for a class it never saw, too",
    "relearned": hv.RELEARNING,
    "neighbours": hv.NEIGHBOURS,
    "noised_auc": nz.CONVENTION,
    "halves_auc": hv.HALVES,
    "new_head_auc": "AUC of the loss attack after the last layer was trained anew on the model's features of retain samples alone",
    "below": f"of sets with more than {MOST} samples as many as that are read, spread evenly",
}


def measure(
    models: dict[str, nn.Module],
    *,
    original: nn.Module,
    forget: Any,
    retain: Any,
    test: Any,
    forgotten: Sequence[int] = (),
    near: Sequence[int] = (),
    seed: int = 0,
    forward: Forward | None = None,
    relearning: bool = False,
    progress: bool = False,
) -> dict[str, Below]:
    """All figures below the answers, of every model.

    What fails on a model is NaN, with the reason; a figure never ends an audit.

    Args:
        models: by name; the original may be among them.
        original: the model before unlearning.
        forget, retain, test: as for :func:`fastforget.audit`.
        forgotten: the classes that are forgotten as a whole; none for single samples.
        near: the classes nearest the forgotten ones (:func:`fastforget.auditing.measure.halves.nearest_classes`).
        seed: of the noise and of the samples that are shown.
        forward: (model, inputs) -> logits.
        relearning: also relearn from 1, 5 and 10 samples, which takes 45 training steps a model.
        progress: show a bar when the output is a terminal.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> sets = {"forget": (x[:9], y[:9]), "retain": (x[9:60], y[9:60]), "test": (x[60:], y[60:])}
    >>> found = measure({"same": net}, original=net, **sets)["same"]
    >>> found.structure is None, 0 <= found.noised_auc <= 1, list(found.reasons)
    (True, True, ['class_cka', 'readable', 'probe_auc', 'neighbours'])
    """
    sets = {name: source(data, name=name) for name, data in (("forget", forget), ("retain", retain), ("test", test))}
    labels = sets["test"].labels()
    wanted = torch.tensor(sorted(forgotten), dtype=torch.int64)
    of_same = torch.isin(labels, wanted if len(wanted) else sets["forget"].labels().unique())
    unseen = sets["test"].subset(of_same.nonzero()[:, 0]) if bool(of_same.any()) else sets["test"]
    sides = _spread(sets["forget"]), _spread(unseen)
    shown = {"classes": wanted.tolist(), "seed": seed, "forward": forward}
    found = {}
    bar: Progress[int] = progress_bar(1 + 4 * len(models), "audit, below the answers", progress)
    with bar:
        read = _Read(original, sets, wanted, forward, seed)
        bar.step()
        for name, model in models.items():
            row = found[name] = Below(forget=len(sides[0]), unseen=len(sides[1]))
            row.structure = structure.difference(model, original)
            _attempt(row, ("moved",), lambda row=row, model=model: _moved(row, model, original, read.original.layer))  # type: ignore[misc]
            features = (*OF_CLASSES, "cka") if len(wanted) else ("new_head_auc", "cka")
            _attempt(row, features, lambda row=row, model=model: read.fill(row, model))  # type: ignore[misc]
            bar.step(note=name)
            _attempt(row, ("noised_auc",), lambda row=row, model=model: _noised(row, model, sides, seed, forward))  # type: ignore[misc]
            bar.step(note=name)
            _attempt(row, ("halves_auc",), lambda row=row, model=model: _halves(row, model, sides, seed, forward))  # type: ignore[misc]
            bar.step(note=name)
            if len(wanted) and relearning:
                _attempt(row, ("relearned",), lambda row=row, model=model: _relearned(row, model, sets, shown))  # type: ignore[misc]
            if len(wanted) and near:
                beside = sets["test"].subset(torch.isin(labels, torch.tensor(sorted(near))).nonzero()[:, 0])
                row.neighbours = hv.accuracy(model, beside, forward)
            bar.step(note=name)
            _explain(row, bool(len(wanted)))
    return found


def _explain(row: Below, class_wise: bool) -> None:
    """A reason for every figure that has no value."""
    other = {"new_head_auc": "it is taken of single samples"} if class_wise else {"neighbours": "no class is forgotten whole"}
    for name in NUMBERS:
        if math.isnan(getattr(row, name)):
            row.reasons.setdefault(name, other.get(name, "it has no value (features that never move?)"))


def _attempt(row: Below, names: Iterable[str], figure: Callable[[], None]) -> None:
    try:
        figure()
    except FAILED as error:
        why = f"it can't be taken of this model ({type(error).__name__}: {first_line(error)})"
        missing = (name for name in names if name == "relearned" or math.isnan(getattr(row, name)))
        row.reasons |= {name: why for name in missing if name not in row.reasons}


def _moved(row: Below, model: nn.Module, original: nn.Module, last: str | None) -> None:
    row.moved, reason = moved_below(model, original, last)
    row.reasons |= {"moved": reason} if reason else {}


def _noised(row: Below, model: nn.Module, sides: tuple[Source, Source], seed: int, forward: Forward | None) -> None:
    noised = nz.noised_attack(model, *sides, seed=seed, forward=forward)
    row.noised_auc = noised.auc
    row.reasons |= {"noised_auc": noised.reason} if noised.reason else {}


def _halves(row: Below, model: nn.Module, sides: tuple[Source, Source], seed: int, forward: Forward | None) -> None:
    half = hv.other_half(model, *sides, seed=seed, forward=forward)
    row.halves_auc = half.auc
    row.reasons |= {"halves_auc": half.reason} if half.reason else {}


def _relearned(row: Below, model: nn.Module, sets: dict[str, Source], shown: dict[str, Any]) -> None:
    row.relearned, reason = hv.relearned(model, sets["forget"], sets["retain"], sets["test"], **shown)
    row.reasons |= {"relearned": reason} if reason else {}


class _Read:
    """Features of all models beside the original's."""

    def __init__(self, original: nn.Module, sets: dict[str, Source], wanted: Tensor, forward: Forward | None, seed: int) -> None:
        self.wanted, self.forward, self.seed = wanted, forward, seed
        self.sets = {name: _spread(held, wanted) for name, held in sets.items()}
        # from one seed for each model: sets that augment at random give all of them the same
        with own_randomness(seed):
            self.original = ft.penultimate(original, self.sets["test"], forward=forward)
            trained = self._trained(original) if len(wanted) else {}
        self.nothing = nothing_below(original, self.original.layer)
        self.known = None if not trained or any(f.reason for f in trained.values()) else _joined(trained)

    def _new_head(self, row: Below, seen: dict[str, ft.Features]) -> None:
        reason = next((f.reason for f in seen.values() if f.reason), None)
        if reason:
            row.reasons["new_head_auc"] = reason
            return
        values = {name: f.values for name, f in seen.items() if f.values is not None}
        same = torch.isin(seen["test"].labels, seen["forget"].labels.unique())
        unseen = same if bool(same.any()) else torch.ones_like(same)
        sides = [(values["forget"], seen["forget"].labels), (values["test"][unseen], seen["test"].labels[unseen])]
        one, two = ln.new_head_losses(values["retain"], seen["retain"].labels, sides)
        row.new_head_auc = float(roc_stats(-one, -two, fprs=()).auc)

    def _trained(self, model: nn.Module) -> dict[str, ft.Features]:
        return {name: ft.penultimate(model, self.sets[name], name=name, forward=self.forward) for name in ("forget", "retain")}

    def fill(self, row: Below, model: nn.Module) -> None:
        with own_randomness(self.seed):
            seen = ft.penultimate(model, self.sets["test"], forward=self.forward)
            trained = self._trained(model)
        gone = torch.isin(seen.labels, self.wanted)
        row.members, row.others = int(gone.sum()), int((~gone).sum())
        nothing = self.nothing and nothing_below(model, seen.layer)
        if nothing:
            row.reasons["cka"] = NOTHING_BELOW
        elif self.original.values is not None and seen.values is not None:
            row.cka = min(ln.class_cka(seen.values, self.original.values), 1.0)
        else:
            row.reasons["cka"] = seen.reason or f"of the original model: {self.original.reason}"
        if not len(self.wanted):
            row.reasons |= dict.fromkeys(OF_CLASSES, "no class is forgotten whole")
            self._new_head(row, {"test": seen, **trained})
            return
        reason = next((f.reason for f in (seen, *trained.values()) if f.reason), None)
        if reason or seen.values is None:
            row.reasons |= dict.fromkeys(OF_CLASSES, reason or "")
            return
        together = _joined(trained)
        if self.original.values is None or self.known is None:
            row.reasons |= dict.fromkeys(OF_CLASSES[:2], f"of the original model: {self.original.reason}")
        elif nothing:
            row.reasons |= dict.fromkeys(OF_CLASSES[:2], NOTHING_BELOW)
        elif row.members < FEWEST:
            few = f"the test set holds fewer than {FEWEST} samples of the forgotten classes"
            row.reasons |= dict.fromkeys(OF_CLASSES[:2], few)
        else:
            row.class_cka = min(ln.class_cka(seen.values[gone], self.original.values[gone]), 1.0)
            row.readable = ln.readable(together, self.known, seen.values[gone], self.original.values[gone])
        side = torch.cat([torch.isin(features.labels, self.wanted) for features in trained.values()])
        found = ln.probe(together, side, seen.values, gone)
        row.probe_auc = found.auc
        row.reasons |= {"probe_auc": found.reason} if found.reason else {}


def _joined(parts: dict[str, ft.Features]) -> Tensor:
    return torch.cat([part.values for part in parts.values() if part.values is not None])


def _spread(held: Source, wanted: Tensor | None = None) -> Source:
    """At most MOST samples, spread evenly; half of them of the forgotten classes where there are as many."""
    if len(held) <= MOST:
        return held
    gone = torch.isin(held.labels(), wanted) if wanted is not None else torch.zeros(len(held), dtype=torch.bool)
    parts = [side.nonzero()[:, 0] for side in (gone, ~gone)]
    few = min(len(parts[0]), MOST // 2)
    counts = few, min(len(parts[1]), MOST - few)
    taken = [p[torch.linspace(0, len(p) - 1, n, dtype=torch.float64).round().long()] for p, n in zip(parts, counts, strict=True) if n]
    return held.subset(torch.cat(taken).sort().values)
