"""The forget samples that a model gives away most."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..figures import ExposedSample
from ..names import THRESHOLDS
from .attacks import Scored

STRENGTH = ("lira", "rmia", "perplexity_ratio", "loss")
MOST = 12


def exposed(
    scored: Mapping[str, Mapping[str, Scored]],
    judged: list[str],
    attacks: tuple[str, ...],
    labels: Tensor | None = None,
    most: int = MOST,
) -> tuple[str, list[ExposedSample]]:
    """The attack, and the forget samples with the highest member score on any of the judged models (on the last model where none is
    judged), the highest first; undefined scores (NaN) don't count. ``labels``: their classes, int64[N], where they have some.

    Returns:
        The attack, the strongest at hand: LiRA, else RMIA, else of sequences the ratio of perplexities, else the loss (both negated, as
        everywhere: higher = more member-like); and the samples.
    """
    attack = next(name for name in STRENGTH if name in attacks)
    sign = THRESHOLDS.get(attack, 1)
    scores = {name: sign * sets["forget"].scores[attack].double() for name, sets in scored.items()}
    names = judged or list(scored)[-1:]
    highest = torch.stack([scores[name].nan_to_num(nan=-torch.inf) for name in names]).amax(dim=0)
    order = highest.argsort(descending=True, stable=True)[:most]
    samples = [
        ExposedSample(i, None if labels is None else int(labels[i]), {name: float(values[i]) for name, values in scores.items()})
        for i in order.tolist()
        if highest[i] > -torch.inf
    ]
    return attack, samples
