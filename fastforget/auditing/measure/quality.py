"""The score of the NeurIPS'23 machine-unlearning challenge, from ensembles of unlearned and retrained models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops.membership import forget_quality
from . import intervals

CONVENTION = (
    "NeurIPS'23 unlearning challenge (Triantafillou et al., arXiv 2406.09073): mean over the forget samples of 2^-floor(epsilon / 0.5), "
    "all single and double thresholds by exact counts, times the ratios of retain and test accuracy to those of retraining"
)


class ForgettingQuality(NamedTuple):
    """``score`` = ``forgetting`` x ``retain_ratio`` x ``test_ratio``; ``epsilon`` is float64[F]."""

    score: float
    forgetting: float
    forgetting_interval: list[float] | None
    retain_ratio: float
    test_ratio: float
    epsilon: Tensor
    convention: str


def forgetting_quality(
    unlearned_scores: Tensor,
    retrained_scores: Tensor,
    *,
    retain_accuracy: tuple[Any, Any],
    test_accuracy: tuple[Any, Any],
    **options: Any,
) -> ForgettingQuality:
    """How hard it is to tell unlearned from retrained models by one number for each forget sample, times what utility was kept.

    Args:
        unlearned_scores: [S, F], a number of each of S unlearned models for each of F forget samples, e.g. the logit-scaled confidence.
        retrained_scores: [S', F], of S' models retrained without them.
        retain_accuracy: (unlearned, retrained), shares in [0, 1]; each one number, or one for each model, whose mean counts.
        test_accuracy: the same on the test set.
        options: of ``ff.ops.membership.forget_quality``: ``delta``, ``rules``, ``cap``.

    Returns:
        :class:`ForgettingQuality`. The interval is over the draw of forget samples. A ratio above 1 (an unlearned model better than the
        retrained ones) is not cut off, as in the challenge.

    Raises:
        TypeError, ValueError: as ``forget_quality``; accuracies that are not shares, or a retrained accuracy of 0.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> unlearned, retrained = torch.randn(64, 20, generator=g), torch.randn(64, 20, generator=g)
    >>> good = forgetting_quality(unlearned, retrained, retain_accuracy=(0.9, 0.9), test_accuracy=(0.4, 0.8))
    >>> bad = forgetting_quality(unlearned + 9, retrained, retain_accuracy=(0.9, 0.9), test_accuracy=(0.4, 0.8))
    >>> good.test_ratio, good.score > 0.01 > bad.score
    (0.5, True)
    """
    quality = forget_quality(unlearned_scores, retrained_scores, **options)
    retain, test = (_ratio(name, pair) for name, pair in (("retain_accuracy", retain_accuracy), ("test_accuracy", test_accuracy)))
    forgetting = float(quality.score)
    interval = intervals.mean(torch.exp2(-torch.floor(quality.epsilon / 0.5)), 0.0, 1.0)
    return ForgettingQuality(forgetting * retain * test, forgetting, interval, retain, test, quality.epsilon, CONVENTION)


def _ratio(name: str, pair: Sequence[Any]) -> float:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: got {type(pair).__name__}; accepted is a pair (unlearned, retrained)")
    means = []
    for value, model in zip(pair, ("unlearned", "retrained"), strict=True):
        values = torch.as_tensor(value, dtype=torch.float64)
        if values.numel() == 0 or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name}, {model}: got {value!r}; accepted are shares from 0 to 1")
        means.append(float(values.mean()))
    if means[1] == 0 or math.isnan(means[1]):
        raise ValueError(f"{name}, retrained: got 0; a ratio to it has no value")
    return means[0] / means[1]
