"""What can't serve as a causal model, or as labels for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _tree
from .._data import Source
from .._labels import IGNORED
from .._outputs import probabilities, warn_of_probabilities
from .answers import scored
from .head import Forward, find_head

AHEAD = 1e-4  # of the logits' spread (or a rounding of theirs): by so much answers may change with a later token
ADVICE = "Pass forward=lambda model, inputs: ... that returns the logits [N, T, vocabulary] of a causal model"


class Causal(NamedTuple):
    """What a small batch shows of a model: its vocabulary, and the layer whose product makes its logits, where there is one."""

    words: int
    head: str | None


def refuse_encoders(who: str, model: nn.Module) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(f"{who}: {type(model).__name__} has an encoder; accepted are causal models, whose token at t is answered at t - 1")


def look(who: str, model: nn.Module, forward: Forward, inputs: Any, labels: Tensor, of_set: str, stacklevel: int) -> Causal:
    """What a batch of two sequences shows of a model in eval mode, without gradients.

    Args:
        who: the model's argument, for errors.
        model, forward: the model, and (model, inputs) -> logits.
        inputs, labels: the batch.
        of_set: the name of its set.
        stacklevel: of a warning that the logits look like probabilities.

    Raises:
        TypeError, ValueError: no logits, or of another shape, or not finite; answers change with later tokens.
    """
    logits = forward(model, inputs)
    _check_logits(who, logits, labels, of_set)
    _refuse_looking_ahead(who, model, forward, inputs, labels, logits)
    if (remedy := probabilities(logits.flatten(0, 1))) is not None:
        warn_of_probabilities(who, remedy, stacklevel=stacklevel + 1)
    return Causal(logits.shape[2], find_head(model, forward, inputs, logits))


def _check_logits(who: str, logits: Any, labels: Tensor, of_set: str) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.is_floating_point() or logits.shape[:2] != labels.shape:
        raise TypeError(
            f"{who}: for labels of shape {tuple(labels.shape)} it gives {_tree.describe(logits)}; accepted are logits "
            f"[N, T, vocabulary], one row a token. {ADVICE}"
        )
    if not bool(torch.isfinite(logits[scored(labels).roll(-1, dims=1)]).all()):
        raise ValueError(f"{who}: its logits on the first {of_set} batch aren't finite (NaN or inf); nothing was changed")


def _refuse_looking_ahead(who: str, model: nn.Module, forward: Forward, inputs: Any, labels: Tensor, logits: Tensor) -> None:
    """Refuses a model whose answers change with a later token: it sees what it should predict, and its scores mean nothing."""
    ids = _words(inputs, labels)
    last_ones = (scored(labels) * torch.arange(labels.shape[1], device=labels.device)).amax(dim=1)
    n, last = int(last_ones.argmax()), int(last_ones.max())
    if ids is None or last == 0:
        return
    others = ids[ids != ids[n, last]]
    if len(others) == 0:
        return
    changed = ids.clone()
    changed[n, last] = others[0]
    answers = forward(model, _tree.like(inputs, {**inputs, "input_ids": changed}) if isinstance(inputs, Mapping) else changed)
    before, after = (x[n, :last].double() for x in (logits, answers))
    known = (before.isfinite() & after.isfinite()).all(dim=1)  # padding on the left may be NaN
    before, after = before[known], after[known]
    if float((before - after).abs().mean()) > max(AHEAD, torch.finfo(logits.dtype).eps) * float(before.std()):
        raise TypeError(
            f"{who}: {type(model).__name__}'s answers change with a token that comes after them, or from call to call; accepted are "
            "causal models, whose token at t is answered at t - 1 from what comes before it, each time alike"
        )


def _words(inputs: Any, labels: Tensor) -> Tensor | None:
    """The token ids [N, T] among a batch's inputs, where they can be told."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    return ids if isinstance(ids, Tensor) and not ids.is_floating_point() and ids.shape == labels.shape else None


def check_labels(source: Source, words: int) -> None:
    """Refuses token ids that the model doesn't know, sequences without a token to score, and labels that were shifted already."""
    first = told_of = same = next_ones = 0
    for inputs, labels in source.batches(batch_size=max(2, source.batch_size)):
        if (ids := _words(inputs, labels)) is not None:
            at = (labels != IGNORED)[:, :-1]
            told_of += int(at.sum())
            same += int((labels == ids)[:, :-1][at].sum())
            next_ones += int((labels[:, :-1] == ids[:, 1:])[at].sum())
        told = scored(labels)
        wrong = (told & ((labels < 0) | (labels >= words))).nonzero()
        if len(wrong):
            n, t = wrong[0].tolist()
            raise ValueError(
                f"{source.name}: the label of token {t} of sequence {first + n} is {int(labels[n, t])}; accepted are 0 to {words - 1}, as "
                f"the model gives {words} logits, and -100 where nothing is scored. Labels were read from {source.read_from}"
            )
        silent = (~told.any(dim=1)).nonzero()
        if len(silent):
            raise ValueError(
                f"{source.name}: sequence {first + int(silent[0])} has no token to score: all labels are -100, or only the first isn't, "
                "which nothing comes before (padding that attention_mask hides is nothing). Leave it out"
            )
        first += len(labels)
    if first != len(source):
        raise ValueError(
            f"{source.name}: {len(source)} samples come as {first} sequences in batches; accepted is one row a sample, padded: "
            "evidence is a sequence's, so none may be packed with others, split or left out by the loader's collate_fn"
        )
    if 1 < told_of == next_ones and same < told_of:
        raise ValueError(
            f"{source.name}: labels are the inputs shifted by one: each is the token that comes next; accepted are labels that aren't "
            f"shifted, labels[:, t] beside input_ids[:, t], e.g. input_ids.clone() with {IGNORED} where nothing is scored"
        )
