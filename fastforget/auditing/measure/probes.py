"""Figures beside the attacks, of the logits themselves: collected batch by batch in the pass that scores the sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._columns import Column
from ...ops.membership import roc_stats
from ..figures import ClassProbe, Probe
from . import divergences as dv
from . import intervals, passes

CLASSES_KEPT = 64
MARGIN = (
    "class-wise requests: the AUC by which z_c - max_{k != c} z_k tells test samples of a forgotten class c from test samples of the kept "
    "classes; the largest of the forgotten classes. It asks what the network still knows below an output that was merely shifted: "
    "a constant added to one logit changes nothing. A model that never saw the class is well above 0.5 too, so read it beside the "
    "retrained model's"
)


class Distance(NamedTuple):
    """A mean over the forget set of a distance between two models' answers to each sample."""

    other: str
    between: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float
    convention: str


TO_RETRAINED = "against the retrained model, mean over the forget set; 0 = the same answers; two retrained models are not at 0 either"
TO_TEACHER = "mean over the forget set, against the randomly initialised teacher given; read it beside the retrained model's"
DISTANCES = {
    "js_to_retrained": Distance(
        "retrained",
        dv.js_divergence,
        0.0,
        dv.LN2,
        f"Jensen-Shannon divergence of the softmax outputs, in nats (at most ln 2), {TO_RETRAINED}",
    ),
    "activation_distance": Distance(
        "retrained",
        dv.activation_distance,
        0.0,
        math.sqrt(2.0),
        f"L2 distance of the softmax outputs (Chundawat et al., AAAI'23), {TO_RETRAINED}",
    ),
    "activation_distance_l1": Distance(
        "retrained",
        partial(dv.activation_distance, norm=1),
        0.0,
        2.0,
        f"L1 distance of the softmax outputs (Golatkar et al., CVPR'20), {TO_RETRAINED}",
    ),
    "zrf": Distance("teacher", dv.zrf, 1 - dv.LN2, 1.0, f"1 - JS(model, teacher), JS in nats, so at least 1 - ln 2; {TO_TEACHER}"),
    "zrf_bits": Distance(
        "teacher", partial(dv.zrf, variant="bits"), 0.0, 1.0, f"1 - JS(model, teacher), JS in bits, so from 0 to 1; {TO_TEACHER}"
    ),
    "zrf_badt": Distance(
        "teacher",
        partial(dv.zrf, variant="badt"),
        -math.inf,
        1.0,
        "as the published code computes it, which is not 1 - JS: 1 - (KL(m || p) + KL(m || q)) / (2 K), near 1 whatever the models do; "
        + TO_TEACHER,
    ),
}
JS_OF_MEANS = (
    "Jensen-Shannon divergence, in nats, of the two models' mean softmax outputs over the forget set: what they say on the whole, not to "
    "each sample"
)


def margins(logits: Tensor, classes: Tensor) -> Tensor:
    """z_c - max_{k != c} z_k for each of ``classes``, float[N, len(classes)].

    >>> import torch
    >>> margins(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [[-3.0, 2.0]]
    """
    classes = classes.to(logits.device)
    top, at = logits.topk(2, dim=1)
    is_top = at[:, :1] == classes
    return logits[:, classes] - torch.where(is_top, top[:, 1:], top[:, :1])


class ClassMargins:
    """Margins of the forgotten classes on the test set, a batch at a time; one model."""

    def __init__(self, forgotten: Tensor) -> None:
        self.forgotten = forgotten[:CLASSES_KEPT]
        self.all_forgotten = forgotten
        self.kept = Column()

    def add(self, logits: Tensor) -> None:
        self.kept.add(margins(logits, self.forgotten).cpu())

    def figure(self, labels: Tensor, seed: int, with_interval: bool) -> ClassProbe:
        """The worst forgotten class's AUC; ``labels`` are the test set's."""
        if not len(self.all_forgotten):
            return _no_margin("the request is sample-wise: no class is forgotten whole")
        others = ~torch.isin(labels, self.all_forgotten)
        if not bool(others.any()):
            return _no_margin("the test set holds no sample of a kept class")
        columns = self.kept.joined()
        aucs = {}
        for column, c in zip(columns.T, self.forgotten.tolist(), strict=True):
            of_class = labels == c
            if bool(of_class.any()):
                aucs[c] = float(roc_stats(column[of_class], column[others], fprs=()).auc)
        if not aucs:
            return _no_margin("the test set holds no sample of a forgotten class")
        worst = max(aucs, key=lambda c: aucs[c])
        column = columns[:, self.forgotten.tolist().index(worst)]
        ends = intervals.auc(column[labels == worst], column[others], seed) if with_interval else None
        return ClassProbe(aucs[worst], ends, convention=MARGIN, by_class=aucs, worst_class=worst)


def _no_margin(reason: str) -> ClassProbe:
    return ClassProbe(math.nan, reason=reason, convention=MARGIN)


def only_in(labels: Tensor, others: Tensor) -> Tensor:
    """The classes that are among ``labels`` and not among ``others``, sorted."""
    classes = labels.unique()
    return classes[~torch.isin(classes, others)]


class _Pair:
    """One model's answers to the forget set beside another's."""

    def __init__(self, probes: list[str]) -> None:
        self.values = {name: Column() for name in probes}
        self.sums = Column()
        self.reason: str | None = None

    def add(self, logits: Tensor, others: Tensor) -> None:
        if logits.shape != others.shape:
            self.reason = f"the models have {logits.shape[1]} and {others.shape[1]} classes: their answers can't be compared"
            return
        for name, kept in self.values.items():
            kept.add(DISTANCES[name].between(logits, others))
        self.sums.add(torch.stack([z.detach().cpu().double().softmax(dim=1).sum(dim=0) for z in (logits, others)])[None])

    def figure(self, name: str, with_interval: bool) -> Probe:
        distance = DISTANCES[name]
        if self.reason:
            return Probe(math.nan, reason=self.reason, convention=distance.convention)
        values = self.values[name].joined()
        value = float(values.mean())
        if math.isinf(value):
            return Probe(value, reason="a model gives a class a probability of exactly 0", convention=distance.convention)
        ends = intervals.mean(values, distance.low, distance.high) if with_interval else None
        return Probe(value, ends, convention=distance.convention)

    def of_means(self) -> Probe:
        if self.reason:
            return Probe(math.nan, reason=self.reason, convention=JS_OF_MEANS)
        n = len(next(iter(self.values.values())))
        return Probe(dv.js_of_means(*(self.sums.joined().sum(dim=0) / n)), convention=JS_OF_MEANS)


class Recorder:
    """What the probes keep of every batch's logits; hand it to :func:`passes.run` as ``watch``."""

    def __init__(
        self,
        names: list[str],
        *,
        reference: str = "retrained",
        teacher: nn.Module | None = None,
        forward: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self.names, self.reference, self.teacher, self.forward = names, reference, teacher, forward
        self.labels: dict[str, Column] = {}
        self.margins: dict[str, ClassMargins] = {}
        self.pairs: dict[tuple[str, str], _Pair] = {}
        others = {"retrained": reference in names, "teacher": teacher is not None}
        for other in (other for other, given in others.items() if given):
            distances = [name for name, distance in DISTANCES.items() if distance.other == other]
            self.pairs |= {(name, other): _Pair(distances) for name in names if (name, other) != (reference, "retrained")}

    def __call__(self, set_name: str, inputs: Any, labels: Tensor, logits: dict[str, Tensor]) -> None:
        seen = self.labels.setdefault(set_name, Column())
        if set_name == "forget":
            others = {"retrained": logits.get(self.reference)}
            if self.teacher is not None:
                others["teacher"] = passes.batch_logits(self.teacher, inputs, self.forward, f"teacher, forget set, sample {len(seen)}")
            for (name, other), pair in self.pairs.items():
                their = others[other]
                assert their is not None
                pair.add(logits[name], their)
        seen.add(labels)
        if set_name == "test":
            if not self.margins:
                # the forget and the retain set come first
                forgotten = only_in(self.labels["forget"].joined(), self.labels["retain"].joined())
                self.margins = {name: ClassMargins(forgotten) for name in self.names}
            for name, model in self.margins.items():
                model.add(logits[name])

    def figures(self, name: str, seed: int, with_intervals: bool) -> dict[str, Probe]:
        """One model's probes by name."""
        probes: dict[str, Probe] = {}
        probes["class_logit_auc"] = self.margins[name].figure(self.labels["test"].joined(), seed, with_intervals)
        for probe, distance in DISTANCES.items():
            pair = self.pairs.get((name, distance.other))
            if pair:
                probes[probe] = pair.figure(probe, with_intervals)
            else:
                probes[probe] = Probe(math.nan, reason=self._missing(name, distance.other), convention=distance.convention)
        pair = self.pairs.get((name, "retrained"))
        missing = None if pair else self._missing(name, "retrained")
        means = pair.of_means() if pair else Probe(math.nan, reason=missing, convention=JS_OF_MEANS)
        return probes | {"js_of_means_to_retrained": means}

    def _missing(self, name: str, other: str) -> str:
        if other == "teacher":
            return "no teacher was given (teacher=: the same network, randomly initialised)"
        return "it is the retrained model itself" if name == self.reference else f'no model named "{self.reference}" was given'
