"""Figures beside the attacks, of the logits themselves: collected batch by batch in the pass that scores the sets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..ops.membership import roc_stats
from . import intervals

CLASSES_KEPT = 64
MARGIN = (
    "class-wise requests: the AUC by which z_c - max_{k != c} z_k tells test samples of a forgotten class c from test samples of the kept "
    "classes; the largest of the forgotten classes. It asks what the network still knows below an output that was merely shifted: "
    "a constant added to one logit changes nothing. A model that never saw the class is well above 0.5 too, so read it beside the "
    "retrained model's"
)


def entry(value: float, convention: str, *, interval: list[float] | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """One probe's figure; NaN comes with the reason why there is none."""
    return {"value": value, "interval": interval, "convention": convention, "reason": reason, **more}


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
        self.kept: list[Tensor] = []

    def add(self, logits: Tensor) -> None:
        self.kept.append(margins(logits, self.forgotten).cpu())

    def figure(self, labels: Tensor, seed: int, with_interval: bool) -> dict[str, Any]:
        """The worst forgotten class's AUC; ``labels`` are the test set's."""
        if not len(self.all_forgotten):
            return entry(math.nan, MARGIN, reason="the request is sample-wise: no class is forgotten whole", by_class={})
        others = ~torch.isin(labels, self.all_forgotten)
        if not bool(others.any()):
            return entry(math.nan, MARGIN, reason="the test set holds no sample of a kept class", by_class={})
        columns = torch.cat(self.kept)
        found = {}
        for column, c in zip(columns.T, self.forgotten.tolist(), strict=True):
            of_class = labels == c
            if bool(of_class.any()):
                found[c] = float(roc_stats(column[of_class], column[others], fprs=()).auc)
        if not found:
            return entry(math.nan, MARGIN, reason="the test set holds no sample of a forgotten class", by_class={})
        worst = max(found, key=lambda c: found[c])
        column = columns[:, self.forgotten.tolist().index(worst)]
        ends = intervals.auc(column[labels == worst], column[others], seed) if with_interval else None
        return entry(found[worst], MARGIN, interval=ends, by_class=found, worst_class=worst)


def only_in(labels: Tensor, others: Tensor) -> Tensor:
    """The classes that are among ``labels`` and not among ``others``, sorted."""
    classes = labels.unique()
    return classes[~torch.isin(classes, others)]


class Recorder:
    """What the probes keep of every batch's logits; hand it to :func:`passes.run` as ``watch``."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.labels: dict[str, list[Tensor]] = {}
        self.margins: dict[str, ClassMargins] = {}

    def __call__(self, set_name: str, inputs: Any, labels: Tensor, logits: dict[str, Tensor]) -> None:
        self.labels.setdefault(set_name, []).append(labels)
        if set_name == "test":
            if not self.margins:
                # the forget and the retain set come first
                forgotten = only_in(torch.cat(self.labels["forget"]), torch.cat(self.labels["retain"]))
                self.margins = {name: ClassMargins(forgotten) for name in self.names}
            for name, model in self.margins.items():
                model.add(logits[name])

    def figures(self, name: str, seed: int, with_intervals: bool) -> dict[str, dict[str, Any]]:
        """``{probe: entry}`` of one model."""
        return {"class_logit_auc": self.margins[name].figure(torch.cat(self.labels["test"]), seed, with_intervals)}
