"""A causal model's next-token answers: by blocks of the vocabulary where its last layer is a plain product, else from its logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._labels import IGNORED
from ..ops import membership
from ..ops._head import COLUMNS, ROWS, Divergence, Table
from .head import Forward, untouched, without


class Outputs(NamedTuple):
    """Hidden states [N, T, D] with the head's weight and bias; or logits [N, T, V], and None twice."""

    out: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Outputs:
        """The same answers elsewhere."""
        out, *head = (part if part is None else part.to(device, dtype) for part in self)
        assert out is not None
        return Outputs(out, *head)

    def scores(self, labels: Tensor, **options: Any) -> membership.TokenScores:
        """Scores of the labels [N, T], without a gradient; ``options`` are those of ``membership.token_scores``."""
        return membership.token_scores(self.out, labels, self.weight, self.bias, **options)

    def table(self, rows: Tensor) -> Table:
        """The answers at these rows of [N * T]."""
        return Table(self.out.flatten(0, 1)[rows], self.weight, self.bias)


def outputs(model: nn.Module, head: str | None, forward: Forward, inputs: Any) -> Outputs:
    """Of a batch; ``head``: the layer that is skipped, by its name (:func:`fastforget._causal.head.find_head`)."""
    if head is None:
        return Outputs(forward(model, inputs))
    layer = model.get_submodule(head)
    with without(layer) as given:
        hidden = forward(model, inputs)
    if not untouched(given, hidden):
        return Outputs(forward(model, inputs))
    assert isinstance(layer, nn.Linear)
    return Outputs(hidden, layer.weight, layer.bias)


def of_labels(answers: Outputs, labels: Tensor) -> Outputs:
    """The answers as they are, one row a label.

    Raises:
        ValueError: there are more or fewer.
    """
    if answers.out.shape[:2] != labels.shape:
        raise ValueError(
            f"labels: a batch has labels of shape {tuple(labels.shape)}, and the model answers {tuple(answers.out.shape[:2])} tokens; "
            "accepted is one label for each token of the inputs, not shifted, with -100 where it isn't scored"
        )
    return answers


def log_probs(answers: Outputs, labels: Tensor) -> Tensor:
    """[N, T]: log p of each label, with a gradient; 0 where it isn't scored. By blocks where the head is known."""
    out, weight, bias = answers
    if weight is not None:
        return membership.token_log_probs(out, labels, weight, bias)
    rows, of_label = rows_of(labels)
    flat = -F.cross_entropy(wide(out.flatten(0, 1)[rows]), of_label, reduction="none")
    return flat.new_zeros(labels.shape).masked_scatter(scored(labels), flat)


def divergence(own: Outputs, theirs: Outputs, labels: Tensor) -> Tensor:
    """[R]: KL(theirs || own) of each scored token, in nats, with a gradient in ``own``; by blocks, but where a gradient goes to logits."""
    rows, _ = rows_of(labels)
    answers, teacher = own.table(rows), theirs.table(rows)
    if own.weight is None and torch.is_grad_enabled():
        log_q, log_p = (wide(table.outputs).log_softmax(dim=1) for table in (answers, teacher))
        return torch.where(log_p.isfinite(), log_p.exp() * (log_p - log_q), 0.0).sum(dim=1)
    apart: Tensor = Divergence.apply(answers.outputs, answers.weight, answers.bias, teacher, ROWS, COLUMNS)
    return apart


def scored(labels: Tensor) -> Tensor:
    """bool[N, T]: the token at t is answered at t - 1, so the first is no answer."""
    wanted = labels != IGNORED
    wanted[:, :1] = False
    return wanted


def rows_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where scored tokens are answered, as rows of [N * T], and these tokens."""
    wanted = scored(labels)
    return wanted.flatten().nonzero()[:, 0] - 1, labels[wanted]


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the scored tokens, from logits [N, T, V]."""
    rows, of_label = rows_of(labels)
    return F.cross_entropy(wide(logits.flatten(0, 1)[rows]), of_label)


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
