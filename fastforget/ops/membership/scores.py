"""Membership-inference scores, batched."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _schema
from .. import _arguments as arg

__all__ = ["MembershipScores", "membership_scores"]

_membership_scores = _schema.overload("membership_scores")
_try_membership_scores = _schema.boxed("membership_scores")
class MembershipScores(NamedTuple):
    """Per-sample scores, each with the labels' shape (float32; float64 for float64 logits), and ``correct`` (bool)."""

    loss: Tensor
    confidence: Tensor
    entropy: Tensor
    modified_entropy: Tensor
    margin: Tensor
    logit_confidence: Tensor
    correct: Tensor


def membership_scores(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> MembershipScores:
    """All per-sample membership-inference scores in one pass over the logits.

    With p = softmax(logits / temperature) and y the label:

    - ``loss`` = -log p_y (Yeom et al., CSF'18), exact down to the smallest losses
    - ``confidence`` = p_y
    - ``entropy`` = -sum_k p_k log p_k
    - ``modified_entropy`` = -(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k) (Song & Mittal, USENIX Security'21, eq. 8), no clipping
    - ``margin`` = z_y - max_{k != y} z_k
    - ``logit_confidence`` = z_y - logsumexp_{k != y} z_k = log(p_y / (1 - p_y)) (LiRA: Carlini et al., S&P'22, VI-A), no saturation
    - ``correct``: the arg-max is the label (the first index wins a tie)

    Args:
        logits: [..., K], K >= 2; float32, bfloat16, float16 or float64. ``-inf`` marks a class of probability 0. A row with NaN, +inf or
            nothing but -inf scores NaN and counts as not correct.
        labels: [...], int64 or int32, in [0, K).
        temperature: divides the logits first; > 0.

    Returns:
        :class:`MembershipScores`.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or range.
        RuntimeError: logits require grad outside ``torch.no_grad()`` (the scores have no gradient); on the CPU, a label out of range
            (on CUDA that sample scores NaN instead).

    >>> import torch
    >>> from fastforget.ops import membership
    >>> s = membership.membership_scores(torch.tensor([[2.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 1]))
    >>> [round(v, 4) for v in s.loss.tolist()], s.margin.tolist(), s.correct.tolist()
    ([0.1269, 0.0], [2.0, 50.0], [True, True])
    """
    if arg.plain(logits, labels) and logits.dim() == 2 and isinstance(temperature, (int, float)):
        n = logits.shape[0]
        scores = torch.empty((6, n), dtype=torch.float64 if logits.dtype is torch.float64 else torch.float32, device="cpu")
        correct = torch.empty(n, dtype=torch.bool, device="cpu")
        if arg.accepted(_try_membership_scores, (logits, labels, temperature, scores, correct)):
            return MembershipScores(*scores.unbind(0), correct)  # type: ignore[call-arg]
    if not (isinstance(temperature, (int, float)) and temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature: got {temperature!r}; accepted is a finite number > 0")
    arg.floating("logits", logits)
    arg.not_differentiable("membership_scores", logits=logits)
    if logits.dim() < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits: got {arg.describe(logits)}; accepted is [..., classes] with at least 2 classes")
    shape = logits.shape[:-1]
    labels = arg.label_vector(labels, shape, logits)
    flat = logits.dim() == 2
    rows = (logits if flat else logits.reshape(-1, logits.shape[-1])).contiguous()
    n = rows.shape[0]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = torch.empty((6, n), dtype=dtype, device=logits.device)
    correct = torch.empty(n, dtype=torch.bool, device=logits.device)
    inputs = (rows, labels if flat else labels.reshape(-1), float(temperature), scores, correct)
    arg.run("membership_scores", _membership_scores, [scores, correct], inputs)
    if not flat:
        scores, correct = scores.view(6, *shape), correct.view(shape)
    return MembershipScores(*scores.unbind(0), correct)  # type: ignore[call-arg]
