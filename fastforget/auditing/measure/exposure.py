"""The forget samples that a model gives away most."""

from __future__ import annotations

from typing import Any

import torch

from .attacks import DIRECTION
from .passes import Scored

STRENGTH = ("lira", "rmia", "loss")
MOST = 12


def exposed(
    done: dict[str, dict[str, Scored]], judged: list[str], attacks: tuple[str, ...], most: int = MOST
) -> tuple[str, list[dict[str, Any]]]:
    """The attack, and the forget samples with the highest member score on any of the judged models (on the last model where none is
    judged), the highest first; undefined scores (NaN) don't count.

    Returns:
        ``(attack, [{"index", "label", "score": {model: score}}])``; ``index`` is the sample's place in the forget set; the attack is the
        strongest at hand: LiRA, else RMIA, else the loss (negated, as everywhere: higher = more member-like).
    """
    attack = next(name for name in STRENGTH if name in attacks)
    sign = DIRECTION.get(attack, 1)
    scores = {name: sign * of["forget"].scores[attack].double() for name, of in done.items()}
    names = judged or list(done)[-1:]
    highest = torch.stack([scores[name].nan_to_num(nan=-torch.inf) for name in names]).amax(dim=0)
    order = highest.argsort(descending=True, stable=True)[:most]
    labels = done[names[0]]["forget"].labels
    rows = [
        {"index": i, "label": int(labels[i]), "score": {name: float(values[i]) for name, values in scores.items()}}
        for i in order.tolist()
        if highest[i] > -torch.inf
    ]
    return attack, rows
