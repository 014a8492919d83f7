"""Membership oracles for the forgetting rate: fixed before unlearning, reused after.

An oracle is any callable ``(logits [N, K], labels [N]) -> bool [N]``, True = "was a training sample". Forsaken (Liu et al., arXiv
2003.10933) builds its forgetting rate on a shadow-model attack (after Shokri et al., S&P'17); public code uses a loss threshold. Both are
here, and LiRA's per-sample verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..._columns import Column
from ..._data import Source, source
from ..._labels import classes_alone
from ..._random import own_randomness
from ..._weights import eval_mode, reading_copy
from ...ops.membership import forgetting_rate, membership_scores, roc_stats
from ..figures import Figure, OracleRate
from ..names import FOR_SEQUENCES
from . import passes

Oracle = Callable[[Tensor, Tensor], Tensor]
LABELS = classes_alone("an oracle", FOR_SEQUENCES["oracles"])
FEATURES = ("loss", "entropy", "modified_entropy", "margin")


@torch.no_grad()
def logits_of(
    model: nn.Module, data: Any, name: str = "data", forward: Callable[[nn.Module, Any], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and labels [N] of a whole set, in eval mode, on the CPU."""
    held: Source = source(data, name=name, reading=LABELS)
    kept, labels = Column(), Column()
    called = reading_copy(model)
    with own_randomness(0), eval_mode(called):
        for inputs, y in held.batches():
            kept.add(passes.batch_logits(called, inputs, forward, f"{name} set").cpu())
            labels.add(y.cpu())
    return kept.joined(), labels.joined()


class LossThreshold:
    """Member when the cross-entropy is at most a threshold.

    >>> import torch
    >>> LossThreshold(0.5)(torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])).tolist()
    [True, False]
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    @classmethod
    def calibrated(cls, model: nn.Module, members: Any, nonmembers: Any, **options: Any) -> LossThreshold:
        """The threshold of best balanced accuracy between known members and non-members of ``model``."""
        inside, outside = (membership_scores(*logits_of(model, data, **options)).loss for data in (members, nonmembers))
        return cls(-float(roc_stats(-inside, -outside, fprs=()).best_threshold))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return membership_scores(logits, labels).loss <= self.threshold


class ShadowLogistic:
    """Logistic regression on a sample's scores (loss, entropy, modified entropy, margin), trained on shadow models' own members.

    Args:
        shadows: for each shadow model ``(model, its training data, data it never saw)``.
        forward: (model, inputs) -> logits, where calling the model doesn't give them.
    """

    def __init__(
        self, shadows: Sequence[tuple[nn.Module, Any, Any]], forward: Callable[[nn.Module, Any], Tensor] | None = None
    ) -> None:
        if not shadows:
            raise ValueError("shadows: empty; accepted is at least one (model, members, non-members)")
        rows, targets = [], []
        for i, (model, members, others) in enumerate(shadows):
            for data, is_member in ((members, 1.0), (others, 0.0)):
                features = self._features(*logits_of(model, data, f"shadows[{i}]", forward))
                rows.append(features)
                # both sides weigh the same whatever their sizes
                targets.append(torch.tensor([is_member, 1.0 / len(features)]).expand(len(features), 2))
        x, pair = torch.cat(rows), torch.cat(targets).double()
        self.mean, self.deviation = x.mean(dim=0), x.std(dim=0).clamp_min(1e-12)
        self.weights = _logistic((x - self.mean) / self.deviation, pair[:, 0], pair[:, 1] / len(shadows))

    @staticmethod
    def _features(logits: Tensor, labels: Tensor) -> Tensor:
        scores = membership_scores(logits, labels)
        # losses and entropies span many decades: their logarithms are what a linear rule can tell apart
        columns = [getattr(scores, f).double() for f in FEATURES]
        return torch.stack([c if f == "margin" else c.clamp(1e-12, 1e12).log() for f, c in zip(FEATURES, columns, strict=True)], dim=1)

    def probability(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Probability of membership, float64[N]."""
        x = (self._features(logits, labels) - self.mean) / self.deviation
        return torch.sigmoid(x @ self.weights[:-1] + self.weights[-1])

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.probability(logits, labels) > 0.5


def _logistic(x: Tensor, y: Tensor, weight: Tensor, ridge: float = 1e-4) -> Tensor:
    """Weights and intercept of a ridge-regularised logistic regression, by Newton's method in float64."""
    x = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), dim=1)
    penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 0.0
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (weight * (p - y)) + penalty @ w
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + penalty + 1e-10 * torch.eye(len(w), dtype=x.dtype)
        step = torch.linalg.solve(curvature, gradient)
        w = w - step * min(1.0, 5.0 / float(step.norm().clamp_min(1e-300)))
        if float(step.norm()) < 1e-10:
            break
    return w


class LiRAVerdict:
    """LiRA's verdict for fixed samples: member when the likelihood ratio is above ``threshold``.

    Args:
        lira: a :class:`fastforget.ops.membership.Lira` state over the forget set, in the order in which it will be judged, updated with
            the logit-scaled confidences of shadow models.
        threshold: of the log-likelihood ratio.
        options: of ``lira.score``, such as ``mode="offline"``.
    """

    def __init__(self, lira: Any, threshold: float = 0.0, **options: Any) -> None:
        self.lira, self.threshold, self.options = lira, threshold, options

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.lira.score(membership_scores(logits, labels).logit_confidence, **self.options) > self.threshold


def rates(
    models: dict[str, nn.Module],
    forget: Source,
    oracles: dict[str, Oracle],
    original: str,
    forward: Callable[[nn.Module, Any], Tensor] | None,
) -> dict[str, dict[str, OracleRate]]:
    """Forgetting rates on the forget set, by model and oracle; verdicts before being those on the original model."""
    answers = {name: logits_of(model, forget, "forget", forward) for name, model in models.items()}
    by_model: dict[str, dict[str, OracleRate]] = {name: {} for name in models}
    for oracle, judge in oracles.items():
        verdicts = {name: _verdicts(oracle, judge, *pair) for name, pair in answers.items()}
        before = verdicts.get(original)
        for name, after in verdicts.items():
            rate = Figure(math.nan)
            if before is None:
                rate.reason = f"no model named {original!r} was given"
            elif not bool(before.any()):
                rate.reason = "the oracle recognises no forget sample as a member on the original model (BT = 0)"
            else:
                rate.value = forgetting_rate(before, after)
            by_model[name][oracle] = OracleRate(rate, int(after.sum()))
    return by_model


def _verdicts(name: str, judge: Oracle, logits: Tensor, labels: Tensor) -> Tensor:
    members = judge(logits, labels)
    if not isinstance(members, Tensor) or members.dtype != torch.bool or members.shape != labels.shape:
        got = f"{members.dtype}{tuple(members.shape)}" if isinstance(members, Tensor) else type(members).__name__
        raise TypeError(f"oracles[{name!r}]: returned {got}; accepted is a bool tensor [{len(labels)}], True = member")
    return members.cpu()
