"""MIA-efficacy as the OPTML group's unlearning papers report it (SalUn, l1-sparse): which share of the forget set does an attack on the
model itself call NON-member?

The attack is calibrated on the audited model, between as many retain samples (members) as there are test samples (non-members). Beware of
the sign: here higher means better forgotten; the share of forget samples called member, which other papers report under the same name, is
one minus this.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops.membership import membership_scores, roc_stats
from ..figures import Probe
from . import intervals
from .passes import Scored

CLASSIFIERS = ("threshold", "svc")
FORMULAS = ("song_mittal", "published")
# +1: a member has more of it
SIGN = {"correctness": 1, "confidence": 1, "entropy": -1, "m_entropy": -1}
CONVENTION = (
    "share of the forget set that a threshold on the confidence calls NON-member; the threshold is that of best balanced accuracy between "
    "the model's own first retain samples and as many test samples. The published figure (MIA-efficacy in SalUn) has a support-vector "
    "machine in place of the threshold: near this one, not equal"
)


class SvcFeatures(NamedTuple):
    """[N] each, and ``prob`` [N, K]; float32, or float64 for float64 logits."""

    correctness: Tensor
    confidence: Tensor
    entropy: Tensor
    m_entropy: Tensor
    prob: Tensor


def svc_features(logits: Tensor, labels: Tensor, *, m_entropy: str = "song_mittal") -> SvcFeatures:
    """The five features of the SVC attack.

    Args:
        logits: [N, K], float.
        labels: int64[N].
        m_entropy: ``"song_mittal"``, the definition: -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k); or ``"published"``, what the
            attack's published code computes: -sum_k w_k log p_k, where w_k is 1 - p_k for every class k that occurs among ``labels`` at
            all, and p_k for the others, and log 0 is log 1e-30. It depends on the other samples of the call, not on the sample's own
            label; for comparing with published tables only.

    Raises:
        ValueError: an unknown formula; otherwise as ``membership_scores``.

    >>> import torch
    >>> z, y = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1])
    >>> [round(v, 3) for v in svc_features(z, y).m_entropy.tolist()]
    [0.03, 0.005]
    >>> [round(v, 3) for v in svc_features(z, y, m_entropy="published").m_entropy.tolist()]
    [1.889, 2.906]
    """
    if m_entropy not in FORMULAS:
        raise ValueError(f"m_entropy: got {m_entropy!r}; accepted are {', '.join(map(repr, FORMULAS))}")
    scores = membership_scores(logits, labels)
    prob = torch.softmax(logits.to(scores.loss.dtype), dim=-1)
    modified = scores.modified_entropy if m_entropy == "song_mittal" else _published(prob, labels)
    return SvcFeatures(scores.correct.to(prob.dtype), scores.confidence, scores.entropy, modified, prob)


def _published(prob: Tensor, labels: Tensor) -> Tensor:
    logs = torch.where(prob > 0, prob.log(), math.log(1e-30))
    occurs = torch.zeros(prob.shape[1], dtype=torch.bool, device=prob.device)
    occurs[labels] = True
    return -(torch.where(occurs, 1 - prob, prob) * logs).sum(dim=-1)


def mia_efficacy(
    retain: Tensor, test: Tensor, forget: Tensor, *, classifier: str = "threshold", higher: str = "member"
) -> tuple[float, str | None]:
    """The share of forget samples that the attack calls NON-member, on one feature of the audited model's outputs.

    Args:
        retain, test, forget: [N] each (``"svc"`` also takes [N, F]), the same feature; of ``retain`` the first len(test) are used, so that
            both sides weigh the same.
        classifier: ``"threshold"``, the threshold of best balanced accuracy, in one sort; or ``"svc"``, scikit-learn's
            ``SVC(C=3, gamma="auto", kernel="rbf")`` as published, which takes quadratic time.
        higher: ``"member"`` or ``"nonmember"``: what a larger value means (for "threshold").

    Returns:
        (share, None), or (NaN, why): where no threshold tells retain from test samples.

    Raises:
        ValueError: an empty set, shapes that don't fit, NaN, an unknown option.
        ImportError: ``"svc"`` without scikit-learn.

    >>> import torch
    >>> mia_efficacy(torch.tensor([0.9, 0.8]), torch.tensor([0.4, 0.5]), torch.tensor([0.95, 0.3, 0.2, 0.1]))
    (0.75, None)
    """
    if classifier not in CLASSIFIERS:
        raise ValueError(f"classifier: got {classifier!r}; accepted are {', '.join(map(repr, CLASSIFIERS))}")
    if higher not in ("member", "nonmember"):
        raise ValueError(f"higher: got {higher!r}; accepted are 'member' and 'nonmember'")
    dimensions = (1, 2) if classifier == "svc" else (1,)
    for name, x in (("retain", retain), ("test", test), ("forget", forget)):
        if x.dim() not in dimensions or x.shape[1:] != retain.shape[1:] or len(x) == 0:
            accepted = "[N], one feature a sample" + " or [N, F]" * (classifier == "svc")
            raise ValueError(f"{name}: got shape {tuple(x.shape)}; accepted is {accepted}, at least one")
        if bool(torch.isnan(x).any()):
            raise ValueError(f"{name}: {int(torch.isnan(x).sum())} values are NaN; leave those samples out")
    members = retain[: len(test)]
    if classifier == "svc":
        return _by_svc(members, test, forget), None
    sign = 1 if higher == "member" else -1
    threshold = float(roc_stats(sign * members, sign * test, fprs=()).best_threshold)
    if threshold == math.inf:
        return math.nan, "no threshold tells the model's retain samples from its test samples"
    return float((sign * forget < threshold).double().mean()), None


def _by_svc(members: Tensor, others: Tensor, forget: Tensor) -> float:
    try:
        SVC = importlib.import_module("sklearn.svm").SVC
    except ImportError as error:
        raise ImportError("classifier: 'svc' needs scikit-learn: pip install scikit-learn, or use classifier='threshold'") from error
    x = [side.detach().cpu().double().reshape(len(side), -1).numpy() for side in (members, others, forget)]
    machine: Any = SVC(C=3, gamma="auto", kernel="rbf")
    machine.fit([*x[0], *x[1]], [1] * len(x[0]) + [0] * len(x[1]))
    return float(1 - machine.predict(x[2]).mean())


def mia_probe(scored: dict[str, Scored], with_interval: bool) -> Probe:
    """The probe ``mia_efficacy`` of one audited model: by a threshold on the confidence, in float64 from the loss."""
    confidence = [torch.exp(-scored[name].scores["loss"].double()) for name in ("retain", "test", "forget")]
    value, reason = mia_efficacy(*confidence)
    n = len(confidence[2])
    ends = intervals.share(round(value * n), n) if with_interval and reason is None else None
    return Probe(value, ends, reason, CONVENTION)


def all_features(retain: SvcFeatures, test: SvcFeatures, forget: SvcFeatures, *, classifier: str = "threshold") -> dict[str, float]:
    """:func:`mia_efficacy` on every feature that the classifier can take (``prob`` needs the SVC); NaN where undefined."""
    names = [name for name in SvcFeatures._fields if name in SIGN or classifier == "svc"]
    efficacies = {}
    for name in names:
        sides = [getattr(features, name) for features in (retain, test, forget)]
        higher = "member" if SIGN.get(name, 1) > 0 else "nonmember"
        efficacies[name] = mia_efficacy(*sides, classifier=classifier, higher=higher)[0]
    return efficacies
