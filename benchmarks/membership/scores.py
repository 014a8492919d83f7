"""Membership inference: six scores a sample from the logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastforget.ops import membership
from fastforget.reference.membership import scores as reference

from ..cases import Case, Judge, Options, Place, Work, compiled, limit

SCORE_SHAPES = {
    "1000x10": (1000, 10),
    "50000x10": (50000, 10),
    "50000x100": (50000, 100),
    "10000x1000": (10000, 1000),
}
def eager_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The scores one after the other, as audits write them (loss, confidence, two entropies, margin, LiRA's
    logit, correct)."""
    index = labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    confidence = p.gather(1, index)[:, 0]
    entropy = -(p * log_p).sum(dim=1)
    others = p.scatter(1, index, 0.0)
    modified = -(1.0 - confidence) * log_p.gather(1, index)[:, 0] - (others * (1.0 - others).clamp_min(1e-30).log()).sum(1)
    z_y = logits.gather(1, index)[:, 0]
    rivals = logits.scatter(1, index, -math.inf)
    margin = z_y - rivals.amax(dim=1)
    logit_confidence = z_y - rivals.logsumexp(dim=1)
    return loss, confidence, entropy, modified, margin, logit_confidence, logits.argmax(dim=1) == labels


def _scores_work(place: Place, n: int, classes: int, options: Options) -> Work:
    labels = place.integers(classes, n)
    logits = place.normal(n, classes, scale=2.0)
    logits.scatter_add_(1, labels[:, None], torch.full((n, 1), 4.0, device=logits.device))  # a trained model: mostly right
    run = {
        "ours": lambda: membership.membership_scores(logits, labels),
        "eager": lambda: eager_scores(logits, labels),
        **limit([logits], "read"),
    }
    if options.compiled:
        form = compiled(eager_scores)
        run["compiled"] = lambda: form(logits, labels)
    scores = torch.empty(6, n, dtype=torch.float64, device=logits.device)
    correct = torch.empty(n, dtype=torch.bool, device=logits.device)
    for begin in range(0, n, 10_000):  # bounds the reference's float64 temporaries
        part = slice(begin, begin + 10_000)
        reference.membership_scores(logits[part].double(), labels[part], 1.0, scores[:, part], correct[part])
    return Work(run, Judge([*scores.unbind(0), correct], lambda _name, result: result))


def membership_scores(label: str, n: int, classes: int, options: Options, large: bool) -> Case:
    return Case(
        "membership_scores",
        label,
        f"{n}x{classes}",
        "float32",
        n * classes,
        lambda place: _scores_work(place, n, classes, options),
        bytes_touched=4 * n * classes + 33 * n,
        unit="logit",
        family="membership",
        large=large,
    )


def cases(options: Options) -> list[Case]:
    large = {"50000x100", "10000x1000"}
    return [membership_scores(label, *shape, options, label in large) for label, shape in SCORE_SHAPES.items()]
