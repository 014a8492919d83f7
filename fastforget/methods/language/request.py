"""A request about sequences: what is refused, and what a first small batch shows of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ... import _tree, _weights
from ..._data import Source
from ..._labels import IGNORED, TOKENS
from ..._outputs import probabilities, warn_of_probabilities
from ..._trial import first_step
from .. import checks
from ..kind import Kind, Shown
from ..task import Forward
from .answers import find_head, product_alone, scored
from .verdict import judge, look_before

AHEAD = 1e-4  # of the logits' spread (or a rounding of theirs): by so much answers may change with a later token
ADVICE = "Pass forward=lambda model, inputs: ... that returns the logits [N, T, vocabulary] of a causal model"


def wanted(method: Any, classes: Any, forget: Source | None) -> list[int]:
    """No classes: the sequences of ``forget``."""
    if classes is not None:
        raise ValueError(f"classes: got {classes!r}; {method.name} is for language models and forgets the sequences of forget=, no classes")
    if forget is None:
        raise ValueError(f"forget: not given; {method.name} needs the sequences to forget")
    return []


def check(model: nn.Module, forward: Forward, given: list[Source], classes: list[int], device: torch.device, method: Any) -> Shown:
    """Refuses what isn't a causal model with labels that fit it."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(f"model: {type(model).__name__} has an encoder; accepted are causal models, whose token at t is answered at t - 1")
    source = given[0]
    inputs, labels = next(iter(source.at([torch.arange(min(2, len(source)))], device=device)))
    with _weights.evaluating(model):
        logits = checks.answered(model, forward, source, inputs)
        _check_logits(logits, labels, source)
        _refuse_looking_ahead(model, forward, inputs, labels, logits)
        head = find_head(model, forward, inputs, logits)
    if (remedy := probabilities(logits.flatten(0, 1))) is not None:
        warn_of_probabilities("model", remedy, stacklevel=6)
    for data in given:
        _check_labels(data, logits.shape[2])

    def answered(work: nn.Module, x: Any) -> Tensor:
        nonlocal head
        if head is None:
            return forward(work, x).flatten(0, 1)
        answers, alone = product_alone(work, head, forward, x)
        head = head if alone else None  # in this mode something is done to it
        return answers.flatten(0, 1)

    first_step(model, inputs, labels.flatten().clamp_min(0), answered, modes=getattr(method, "gradients", ()))
    return Shown(logits.shape[2], head)


def _check_logits(logits: Any, labels: Tensor, source: Source) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 3 or not logits.is_floating_point() or logits.shape[:2] != labels.shape:
        raise TypeError(
            f"model: for labels of shape {tuple(labels.shape)} it gives {_tree.describe(logits)}; accepted are logits "
            f"[N, T, vocabulary], one row a token. {ADVICE}"
        )
    if not bool(torch.isfinite(logits[scored(labels).roll(-1, dims=1)]).all()):
        raise ValueError(f"model: its logits on the first {source.name} batch aren't finite (NaN or inf); nothing was changed")


def _refuse_looking_ahead(model: nn.Module, forward: Forward, inputs: Any, labels: Tensor, logits: Tensor) -> None:
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
    if float((before - after).abs().mean()) > max(AHEAD, torch.finfo(logits.dtype).eps) * float(before.std()):
        raise TypeError(
            f"model: {type(model).__name__}'s answers change with a token that comes after them; accepted are causal models, whose token "
            "at t is answered at t - 1 from what comes before it"
        )


def _words(inputs: Any, labels: Tensor) -> Tensor | None:
    """The token ids [N, T] among a batch's inputs, where they can be told."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    return ids if isinstance(ids, Tensor) and not ids.is_floating_point() and ids.shape == labels.shape else None


def _check_labels(source: Source, words: int) -> None:
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


SEQUENCES = Kind(TOKENS, wanted, check, look_before, judge)
