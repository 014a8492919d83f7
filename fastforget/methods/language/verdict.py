"""Forgotten or not, by sequences: the loss attack on the mean log-probability of each.

As with single samples of classifiers, sequences are forgotten when the attack could tell them from unseen ones before and can't any more,
either way round; and the model must still be of use on what is kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ... import _weights
from ..._columns import Column
from ..._data import Source
from ..._text import percent
from ..attack import attack_auc
from ..task import Task
from ..verdict import LOST, USE, USE_SAMPLES, Before, Verdict, ending_said, on_samples
from .answers import scores

LOOK = 32  # sequences at a time, at most


def losses(task: Task, data: Source) -> Tensor:
    """Minus the mean log-probability of each sequence's scored tokens, [N], in eval mode."""
    return _scored(task, data)[0]


def look_before(task: Task, weights_sha256: str) -> Before:
    """Measures the task's model before the method works on it."""
    before = Before(weights_sha256)
    if task.retain is not None:
        before.retain = _right(task, task.retain)
    if task.forget is not None and (unseen := task.unseen) is not None:
        before.auc, _ = attack_auc(task, task.forget, unseen, losses)
    return before


def judge(task: Task, before: Before, proxy: dict[str, Any] | None) -> Verdict:
    """The verdict on the task's model."""
    return ending_said(task, _still_of_use(task, before, on_samples(task, before, losses)))


def _still_of_use(task: Task, before: Before, verdict: Verdict) -> Verdict:
    """Of the tokens to keep most that were answered right must still be, on average over the sequences: shares of tokens are low even in
    good models, so what counts is the part of it that is lost; and a short fact counts as much as a long text. A loss is said of a model
    that did not forget, too.
    """
    if task.retain is None:
        return verdict
    after = _right(task, task.retain)
    assert before.retain is not None
    figures = verdict.figures | {"retain_accuracy_before": before.retain, "retain_accuracy": after}
    if after >= (1 - LOST) * before.retain:
        return Verdict(verdict.forgot, verdict.why, figures)
    right = f"only {percent(after)} are answered right on average, {percent(before.retain)} before (at most {percent(LOST)} of it less)"
    why = f"{verdict.why}; but of a retain sequence's tokens {right}: the model lost more than it was to forget"
    return Verdict(False, why, figures)


def _right(task: Task, data: Source) -> float:
    """Share of a sequence's tokens that the model gives the highest probability, the mean over some sequences."""
    return right(task, data.at_most(USE_SAMPLES, task.generator(USE))).mean().item()


def right(task: Task, data: Source) -> Tensor:
    """float64[N]: the share of each sequence's scored tokens that the model gives the highest probability."""
    return _scored(task, data)[1]


def _scored(task: Task, data: Source) -> tuple[Tensor, Tensor]:
    losses_of, shares = Column(), Column()
    with _weights.evaluating(task.model):
        for inputs, labels in task.cost.reading(data.batches(device=task.device, batch_size=min(data.batch_size, LOOK))):
            found = scores(task, inputs, labels)
            losses_of.add(found.loss)
            shares.add(found.first.sum(dim=1) / found.length)
    losses = losses_of.joined()
    if bool((unknown := losses.isnan()).any()):
        raise FloatingPointError(
            f"{data.name}: the model's loss on {int(unknown.sum())} of {len(losses)} sequences is NaN, as logits are NaN or too large; "
            "the given model is unchanged. Where the run made them so, lower lr="
        )
    return losses, shares.joined().double()
