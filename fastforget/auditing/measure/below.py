"""The evidence below the answers, and the rule that reads it beside retrained models.

:func:`measure` takes every figure of every model; :func:`judge` compares a model's with those of the retrained ones. The limits are
first of all those of one retrained model; where several are given, their spread widens them (leave one out): what one retrained model may
differ from the others, another may too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._data import Source, source
from ...ops.membership import roc_stats
from . import features as ft
from . import halves as hv
from . import linear as ln
from . import noised as nz
from . import structure

Forward = Callable[[nn.Module, Any], Tensor]
Finding = tuple[str, str]

WAY = 1 / 4  # of retraining's way from the original, by CKA inside the forgotten classes
READ_WAY = 1 / 4  # the same, by what can't be read linearly off a model's features
KNOWN = 0.5  # of the log-odds between retrained and original, by a linear probe
ODDS = 2.0  # a probe's odds may be this many times the retrained model's in any case
ERRORS = 3.0  # standard errors of a probe's log-odds
EXCESS = 0.05  # AUC above the retrained model's, on noised samples and on the other half
EXCESS_ERRORS = 2.0  # the same in standard errors of an AUC: honest models read on the same samples differ by .4 of one
HEAD_WAY = 1 / 3  # of the original's AUC above the retrained model's, by a fresh last layer
HEAD_ERRORS = 0.5  # a model may be that far above in any case, in standard errors of an AUC; honest ones differ by .2 to .5
TELLING = 1.2  # the original's AUC above the retrained model's, in standard errors, from which on that tells anything
SPREAD = 1.5  # times what one retrained model was seen to differ from the others
# A retrained model isn't believed whose features lie that near the original's (1 - CKA over the test set), or nearer than the second where
# its weights below the last layer lie nearer than STILL as well. Of honest ones those from the original's own initial weights come nearest.
SAME_FEATURES, NEAR_FEATURES, STILL = 0.02, 0.045, 0.2
FEWEST = 3  # test samples of the forgotten classes, for a likeness inside them
OF_CLASSES = ("class_cka", "readable", "probe_auc")
MOST = 4096  # samples read of a set for features


@dataclass
class Below:
    """One model's figures; NaN comes with an entry in ``reasons`` under the figure's name.

    ``class_cka``: likeness of its features to the original's, inside the forgotten classes (test samples). ``readable``: the share of the
    original's features that can be read linearly off its own, there. ``cka``: as ``class_cka``, over the whole test set. ``probe_auc``: of
    the linear probe. ``noised_auc``, ``halves_auc``, ``new_head_auc``: of the loss attack. ``relearned``: accuracy on the forgotten classes
    after steps on k samples. ``neighbours``: accuracy on the classes near the forgotten ones. ``structure``: how the model is built
    otherwise than the original, or None. ``members``, ``others``: test samples of the forgotten and of the kept classes; ``forget``,
    ``unseen``: the attack's two sides.
    """

    class_cka: float = math.nan
    readable: float = math.nan
    cka: float = math.nan
    probe_auc: float = math.nan
    noised_auc: float = math.nan
    halves_auc: float = math.nan
    new_head_auc: float = math.nan
    relearned: dict[int, float] = field(default_factory=dict)
    neighbours: float = math.nan
    structure: str | None = None
    members: int = 0
    others: int = 0
    forget: int = 0
    unseen: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


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
) -> dict[str, Below]:
    """All figures below the answers, of every model.

    Args:
        models: by name; the original may be among them.
        original: the model before unlearning.
        forget, retain, test: as for :func:`fastforget.audit`.
        forgotten: the classes that are forgotten as a whole; none for single samples.
        near: the classes nearest the forgotten ones (:func:`fastforget.auditing.measure.halves.nearest_classes`).
        seed: of the noise and of the samples that are shown.
        forward: (model, inputs) -> logits.
        relearning: also relearn from 1, 5 and 10 samples, which takes 45 training steps a model.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(90, 4), torch.arange(90) % 3
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> sets = {"forget": (x[:9], y[:9]), "retain": (x[9:60], y[9:60]), "test": (x[60:], y[60:])}
    >>> found = measure({"same": net}, original=net, **sets)["same"]
    >>> found.structure is None, 0 <= found.noised_auc <= 1, list(found.reasons)
    (True, True, ['class_cka', 'readable', 'probe_auc'])
    """
    sets = {name: source(data, name=name) for name, data in (("forget", forget), ("retain", retain), ("test", test))}
    labels = sets["test"].labels()
    wanted = torch.tensor(sorted(forgotten), dtype=torch.int64)
    of_same = torch.isin(labels, wanted if len(wanted) else sets["forget"].labels().unique())
    unseen = sets["test"].subset(of_same.nonzero()[:, 0]) if bool(of_same.any()) else sets["test"]
    read = _Read(original, sets, wanted, forward)
    found = {}
    for name, model in models.items():
        row = Below(forget=len(sets["forget"]), unseen=len(unseen))
        row.structure = structure.difference(model, original)
        read.fill(row, model)
        noised = nz.noised_attack(model, sets["forget"], unseen, seed=seed, forward=forward)
        half = hv.other_half(model, sets["forget"], unseen, seed=seed, forward=forward)
        row.noised_auc, row.halves_auc = noised.auc, half.auc
        row.reasons |= {k: r for k, r in (("noised_auc", noised.reason), ("halves_auc", half.reason)) if r}
        if len(wanted) and relearning:
            again, reason = hv.relearned(
                model, sets["forget"], sets["retain"], sets["test"], classes=wanted.tolist(), seed=seed, forward=forward
            )
            row.relearned = again
            row.reasons |= {"relearned": reason} if reason else {}
        found[name] = row
    if len(wanted) and near:
        for name, model in models.items():
            beside = sets["test"].subset(torch.isin(labels, torch.tensor(sorted(near))).nonzero()[:, 0])
            found[name].neighbours = hv.accuracy(model, beside, forward)
    return found


class _Read:
    """Features of all models beside the original's."""

    def __init__(self, original: nn.Module, sets: dict[str, Source], wanted: Tensor, forward: Forward | None) -> None:
        self.wanted, self.forward = wanted, forward
        self.sets = {name: _spread(held, wanted) for name, held in sets.items()}
        self.original = ft.penultimate(original, self.sets["test"], forward=forward)
        trained = self._trained(original) if len(wanted) else {}
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
        seen = ft.penultimate(model, self.sets["test"], forward=self.forward)
        gone = torch.isin(seen.labels, self.wanted)
        row.members, row.others = int(gone.sum()), int((~gone).sum())
        if self.original.values is not None and seen.values is not None:
            row.cka = ln.class_cka(seen.values, self.original.values)
        trained = self._trained(model)
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
        elif row.members < FEWEST:
            few = f"the test set holds fewer than {FEWEST} samples of the forgotten classes"
            row.reasons |= dict.fromkeys(OF_CLASSES[:2], few)
        else:
            row.class_cka = ln.class_cka(seen.values[gone], self.original.values[gone])
            row.readable = ln.readable(together, self.known, seen.values[gone], self.original.values[gone])
        side = torch.cat([torch.isin(features.labels, self.wanted) for features in trained.values()])
        found = ln.probe(together, side, seen.values, gone)
        row.probe_auc = found.auc
        row.reasons |= {"probe_auc": found.reason} if found.reason else {}


def _joined(parts: dict[str, ft.Features]) -> Tensor:
    return torch.cat([part.values for part in parts.values() if part.values is not None])


def _spread(held: Source, wanted: Tensor) -> Source:
    """At most MOST samples, spread evenly; half of them of the forgotten classes where there are as many."""
    if len(held) <= MOST:
        return held
    gone = torch.isin(held.labels(), wanted)
    parts = [side.nonzero()[:, 0] for side in (gone, ~gone)]
    few = min(len(parts[0]), MOST // 2)
    counts = few, min(len(parts[1]), MOST - few)
    taken = [p[torch.linspace(0, len(p) - 1, n, dtype=torch.float64).round().long()] for p, n in zip(parts, counts, strict=True) if n]
    return held.subset(torch.cat(taken).sort().values)


# ---- the rule ------------------------------------------------------------------------------------------------------------------------


def judge(row: Below, original: Below, references: Sequence[Below], *, class_wise: bool) -> list[Finding]:
    """Findings (PASS or PARTIAL, and why) of one model beside the retrained ``references``, the first of which is "retrained".

    A figure that can't be had is PARTIAL, but for single samples' noised attack on inputs that can't be noised and where no model has it.
    """
    findings: list[Finding] = []
    if row.structure:
        findings.append(("PARTIAL", f"built otherwise than the original ({row.structure}): what it does on other inputs isn't shown"))
    if class_wise:
        findings += [_way(row, references, name) for name in WAYS]
        findings.append(_known(row, original, references))
    else:
        for name, label in (("noised_auc", "noised forget samples"), ("halves_auc", "the other half after steps on one half")):
            findings.append(_excess(row, original, references, name, f"loss-attack AUC on {label}"))
        findings.append(_fresh(row, original, references))
    return findings


def telling(original: Below, references: Sequence[Below], *, class_wise: bool) -> bool:
    """Whether these figures tell the original from the retrained models: if not, a model that forgot nothing passes them too."""
    return any(status != "PASS" for status, _ in judge(original, original, references, class_wise=class_wise))


def _missing(row: Below, references: Sequence[Below], name: str, label: str) -> Finding | None:
    for who, figures in (("", row), *(("retrained: ", r) for r in references)):
        if math.isnan(getattr(figures, name)):
            return "PARTIAL", f"{label} can't be measured: {who}{figures.reasons.get(name, 'no value')}"
    return None


WAYS = {
    "class_cka": (WAY, "likeness of its features to the original's inside the forgotten classes (CKA)"),
    "readable": (READ_WAY, "share of the original's features there that can be read off its own"),
}


def _distance(row: Below, name: str) -> float:
    """1 - the figure; a share below 0 is one of nothing."""
    return 1 - max(getattr(row, name), 0.0)


def way_limit(references: Sequence[Below], name: str = "class_cka") -> tuple[float, float]:
    """The retrained models' mean distance from the original, 1 - the figure, and the share of it that a model must reach.

    >>> way_limit([Below(class_cka=0.75)]) == (0.25, WAY)
    True
    """
    distances = [_distance(r, name) for r in references]
    mean, share = sum(distances) / len(distances), WAYS[name][0]
    if len(distances) < 2 or min(distances) <= 0:
        return mean, share
    alone = [d / ((sum(distances) - d) / (len(distances) - 1)) for d in distances]
    return mean, min(share, min(alone) / 2)


def _way(row: Below, references: Sequence[Below], name: str) -> Finding:
    label = WAYS[name][1]
    missing = _missing(row, references, name, label)
    if missing:
        return missing
    mean, share = way_limit(references, name)
    mine = getattr(row, name)
    if mean <= 0:
        return "PARTIAL", f"{label}: the retrained models are as near the original as can be ({1 - mean:.3f}), so it tells nothing"
    way = _distance(row, name) / mean
    text = f"{label} {mine:.3f}, retrained {1 - mean:.3f}: {100 * way:.0f} % of retraining's way, at least {100 * share:.0f} %"
    return ("PASS" if way >= share else "PARTIAL"), text


def log_odds(auc: float, pairs: int) -> float:
    return math.log(ln.odds(auc, pairs))


def log_odds_error(auc: float, members: int, others: int) -> float:
    """Standard error of an AUC's log-odds (Hanley & McNeil, Radiology 143, 1982).

    >>> round(log_odds_error(0.9, 50, 450), 3)
    0.328
    """
    low = 0.5 / max(members * others, 1)
    a = min(max(auc, low), 1 - low)
    one, two = a / (2 - a) - a * a, 2 * a * a / (1 + a) - a * a
    variance = (a * (1 - a) + (members - 1) * one + (others - 1) * two) / (members * others)
    return math.sqrt(variance) / (a * (1 - a))


def probe_limit(original: Below, references: Sequence[Below]) -> tuple[float, float]:
    """The retrained models' mean log-odds, and the highest that a model may have."""
    pairs = references[0].members * references[0].others
    values = [log_odds(r.probe_auc, pairs) for r in references]
    mean = sum(values) / len(values)
    error = log_odds_error(1 / (1 + math.exp(-mean)), references[0].members, references[0].others)
    allowed = max(math.log(ODDS), ERRORS * error)
    if not math.isnan(original.probe_auc):
        allowed = max(allowed, KNOWN * (log_odds(original.probe_auc, pairs) - mean))
    if len(values) > 1:
        alone = [abs(v - (sum(values) - v) / (len(values) - 1)) for v in values]
        allowed = max(allowed, SPREAD * max(alone))
    return mean, mean + allowed


def _known(row: Below, original: Below, references: Sequence[Below]) -> Finding:
    label = "AUC of a linear probe for the forgotten classes"
    missing = _missing(row, references, "probe_auc", label)
    if missing:
        return missing
    mean, highest = probe_limit(original, references)
    mine = log_odds(row.probe_auc, row.members * row.others)
    text = f"{label} {row.probe_auc:.3f}, retrained {_auc(mean):.3f}, at most {_auc(highest):.3f}"
    return ("PASS", text) if mine <= highest else ("PARTIAL", f"{text}: below its answers the model still tells them")


def _auc(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def _excess(row: Below, original: Below, references: Sequence[Below], name: str, label: str) -> Finding:
    missing = _missing(row, references, name, label)
    if missing and all(math.isnan(getattr(r, name)) for r in (row, *references)) and row.reasons.get(name) == nz.NO_FLOATS:
        return "PASS", f"{label}: not measured, {row.reasons[name]}"
    if missing:
        return missing
    values = [getattr(r, name) for r in references]
    mean, mine = sum(values) / len(values), getattr(row, name)
    allowed = max(EXCESS, EXCESS_ERRORS * _auc_error(row))
    if len(values) > 1:
        alone = [abs(v - (sum(values) - v) / (len(values) - 1)) for v in values]
        allowed = max(allowed, SPREAD * max(alone))
    gap = getattr(original, name) - mean
    if gap > allowed:
        allowed = min(allowed, gap / 2)
    text = f"{label} {mine:.3f}, retrained {mean:.3f}, tolerance {allowed:.3f}"
    return ("PASS", text) if mine - mean <= allowed else ("PARTIAL", f"{text}: what it kept shows there")


def _fresh(row: Below, original: Below, references: Sequence[Below]) -> Finding:
    label = "loss-attack AUC under a fresh last layer"
    missing = _missing(row, references, "new_head_auc", label)
    if missing:
        return missing
    values = [r.new_head_auc for r in references]
    mean, gap = sum(values) / len(values), original.new_head_auc - sum(values) / len(values)
    error = _auc_error(row)
    text = f"{label} {row.new_head_auc:.3f}, retrained {mean:.3f}"
    if not gap >= TELLING * error:
        return "PASS", f"{text}: it doesn't tell the original ({original.new_head_auc:.3f}) from the retrained model"
    allowed = max(HEAD_WAY * gap, HEAD_ERRORS * error)
    if len(values) > 1:
        alone = [abs(v - (sum(values) - v) / (len(values) - 1)) for v in values]
        allowed = max(allowed, min(SPREAD * max(alone), gap / 2))
    text += f", tolerance {allowed:.3f}"
    return ("PASS", text) if row.new_head_auc - mean <= allowed else ("PARTIAL", f"{text}: below the last layer the samples are kept")


def _auc_error(row: Below) -> float:
    """Standard error of an AUC of one half, between the forget samples and the unseen ones."""
    return math.sqrt((row.forget + row.unseen + 1) / (12 * row.forget * row.unseen))


def believed(reference: Below, moved: float | None, *, frozen_body: bool = False) -> str | None:
    """Why a "retrained" model is not believed, or None.

    Args:
        reference: its figures.
        moved: its weights' distance from the original's below the last layer, relative to both norms together; None where unknown.
        frozen_body: the caller says that retraining leaves the body alone.
    """
    if frozen_body or math.isnan(reference.cka):
        return None
    distance, still = 1 - reference.cka, moved is not None and moved < STILL
    if distance < SAME_FEATURES or (still and distance < NEAR_FEATURES):
        near = f", and its weights below the last layer {100 * (moved or 0):.2g} % of their size" if still else ""
        return f"its features are nearly the original's (CKA {reference.cka:.3f}){near}: it was not retrained from the start"
    return None
