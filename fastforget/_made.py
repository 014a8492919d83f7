"""The overloads ``made``: they make and return what their op fills.

For small calls on CPU tensors, where torch takes longer to make an empty tensor and to hand it to an op than the op to compute. The
native library has them; the definitions here put the op itself in their place where it isn't loaded, and say what they return for
tracing. What they return shares no memory, as torch asks of ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Made(NamedTuple):
    """An overload's signature; what it returns, not yet filled; and its definition, given the op to do the work."""

    signature: str
    shapes: Callable[..., Any]
    definition: Callable[..., Any]


def _single(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sum_of_squares(x: Tensor, *_: Any) -> Tensor:
    return torch.empty((), dtype=_single(x), device=x.device)


def _step(
    op: Callable[..., None], x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, rule: Tensor, step: int
) -> Tensor:
    sum_sq = _sum_of_squares(x)
    op(x, grad, exp_avg, exp_avg_sq, sum_sq, step, *rule.tolist())
    return sum_sq


def _scores_of(logits: Tensor, *_: Any) -> tuple[Tensor, ...]:
    n, dtype = logits.shape[0], _single(logits)
    scores = (torch.empty(n, dtype=dtype, device=logits.device) for _ in range(6))
    return *scores, torch.empty(n, dtype=torch.bool, device=logits.device)


def _scores(op: Callable[..., None], logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, ...]:
    *scores, correct = _scores_of(logits)
    together = torch.stack(scores)
    op(logits, labels, temperature, together, correct)
    for score, row in zip(scores, together, strict=True):
        score.copy_(row)
    return *scores, correct


def _row_sums(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    mean_abs, sum_sq = (torch.empty(x.shape[dim], dtype=_single(x), device=x.device) for _ in range(2))
    return mean_abs, sum_sq


def _stats(op: Callable[..., None], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    mean_abs, sum_sq = _row_sums(x, dim)
    op([x], dim, [mean_abs], [sum_sq])
    return mean_abs, sum_sq


MADE = {
    # rule, float64 on the CPU: lr, beta1, beta2, eps, l2, clamp_min, clamp_max. Torch takes as long for a number as for a tensor.
    "error_max_step_": Made(
        "(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor rule, int step) -> Tensor",
        _sum_of_squares,
        _step,
    ),
    "membership_scores": Made(
        "(Tensor logits, Tensor labels, float temperature) -> (Tensor loss, Tensor confidence, Tensor entropy, "
        "Tensor modified_entropy, Tensor margin, Tensor logit_confidence, Tensor correct)",
        _scores_of,
        _scores,
    ),
    "neuron_stats": Made("(Tensor x, int dim) -> (Tensor mean_abs, Tensor sum_sq)", _row_sums, _stats),
}
