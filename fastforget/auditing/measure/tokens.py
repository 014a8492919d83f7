"""One pass of every model over every set of sequences: token scores, and how far a model's answers lie from the retrained one's.

As with samples the outer loop is over the batches. Logits are made block by block where a model's last layer is a plain product, and two
models' answers are compared so too: no [N, T, V] table is made for the audit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..._causal import answers, checks
from ..._causal.answers import Outputs
from ..._causal.head import Forward
from ..._columns import Column
from ..._data import Source, move
from ..._outputs import reading
from ..._progress import Progress
from ..._progress import progress as progress_bar
from ..._random import own_randomness
from ..._weights import device_of, eval_mode
from ...ops import membership
from ..figures import ORIGINAL, RETRAINED
from . import passes

LOOK = 32  # sequences at a time, at most
MIN_K = 0.2  # of a sequence's tokens
CONVENTION = {
    "loss": "a sequence's mean log-probability, minus the loss (Yeom et al., CSF'18)",
    "min_k": f"the mean log-probability of the {100 * MIN_K:.0f} % least probable of a sequence's tokens (Min-K%: Shi et al., ICLR'24)",
    "min_k_plus": f"the mean of the lowest {100 * MIN_K:.0f} % of (log p - mean) / deviation of log p under the model, token by token "
    "(Min-K%++: Zhang et al., ICLR'25)",
    "perplexity_ratio": "minus a sequence's perplexity over that by the retrained model (by the original one where there is no retrained), "
    "which takes out how hard the text is (as Carlini et al., USENIX Security'21); on the reference itself all sequences tie",
}


@dataclass
class Answered:
    """What one model answered to one set; on the CPU, sequence by sequence in the set's order.

    Attributes:
        length: int64[N], scored tokens.
        right: float64[N], the share of them that are answered right.
        scores: [N] by the attacks' names.
        apart: float64[N], mean KL(retrained || model) of the scored tokens, of the forget set alone; None where it can't be had.
    """

    length: Tensor
    right: Tensor
    scores: dict[str, Tensor]
    apart: Tensor | None = None


@dataclass
class _Columns:
    length: Column = field(default_factory=Column)
    right: Column = field(default_factory=Column)
    apart: Column = field(default_factory=Column)
    scores: dict[str, Column] = field(default_factory=lambda: {name: Column() for name in ("loss", "min_k", "min_k_plus")})

    def add(self, found: membership.TokenScores) -> None:
        self.length.add(found.length.cpu())
        self.right.add((found.first.sum(dim=1).double() / found.length).cpu())
        for name, column in self.scores.items():
            values: Tensor = getattr(found, name)
            column.add(values.flatten().cpu())  # of one share k

    def joined(self) -> Answered:
        scores = {name: column.joined() for name, column in self.scores.items()}
        return Answered(self.length.joined(), self.right.joined(), scores, self.apart.joined() if len(self.apart) else None)


def run(
    models: dict[str, nn.Module],
    sets: dict[str, Source],
    *,
    forward: Callable[[nn.Module, Any], Tensor] | None,
    seed: int,
    progress: bool,
) -> tuple[dict[str, dict[str, Answered]], dict[str, str | None]]:
    """Scores every set with every model: ``{model: {set: Answered}}``; and each model's layer whose product makes its logits."""
    call = reading(forward)
    done: dict[str, dict[str, Answered]] = {name: {} for name in models}
    with eval_mode(*models.values()), own_randomness(seed), torch.no_grad():
        first = sets["forget"]
        inputs, labels = next(iter(first.at([torch.arange(min(2, len(first)))])))
        causal: dict[str, checks.Causal] = {}
        for name, model in models.items():
            who, device = f"models[{name!r}]", device_of(model)
            checks.refuse_encoders(who, model)
            where = f"model {name!r}, {first.name} set, sequences 0 to {len(labels) - 1}"
            look = _named(call, where)
            causal[name] = checks.look(who, model, look, move(inputs, device), labels.to(device), first.name, stacklevel=6)
        words = min(one.words for one in causal.values())
        for source in sets.values():
            checks.check_labels(source, words)
        bar: Progress[int] = progress_bar(sum(map(len, sets.values())), "audit", progress)
        with bar:
            for set_name, source in sets.items():
                for name, answered in _one_set(models, causal, set_name, source, call, bar).items():
                    done[name][set_name] = answered
    _against_reference(done)
    return done, {name: one.head for name, one in causal.items()}


def _one_set(
    models: dict[str, nn.Module],
    causal: dict[str, checks.Causal],
    set_name: str,
    source: Source,
    forward: Callable[[nn.Module, Any], Tensor],
    bar: Progress[int],
) -> dict[str, Answered]:
    kept = {name: _Columns() for name in models}
    reference = RETRAINED if set_name == "forget" and RETRAINED in models else None
    order = sorted(models, key=lambda name: name != reference)
    seen = 0
    for inputs, labels in source.batches(batch_size=min(source.batch_size, LOOK)):
        theirs: Outputs | None = None
        for name in order:
            model = models[name]
            where = f"model {name!r}, {set_name} set, sequences {seen} to {seen + len(labels) - 1}"
            own = _outputs(model, causal[name].head, forward, inputs, labels, where)
            here = labels.to(own.out.device)
            kept[name].add(own.scores(here, k=(MIN_K,)))
            theirs = own if name == reference else theirs
            if theirs is not None and reference is not None and causal[name].words == causal[reference].words:
                kept[name].apart.add(_apart(own, theirs, here))
        seen += len(labels)
        bar.step(len(labels))
    done = {name: columns.joined() for name, columns in kept.items()}
    for name, answered in done.items():
        passes.refuse_nan(answered.scores["loss"], name, set_name)
    return done


def _outputs(
    model: nn.Module, head: str | None, forward: Callable[[nn.Module, Any], Tensor], inputs: Any, labels: Tensor, where: str
) -> Outputs:
    return answers.of_labels(answers.outputs(model, head, _named(forward, where), move(inputs, device_of(model))), labels)


def _named(forward: Forward, where: str) -> Forward:
    """Its errors say which model failed on what."""

    def call(model: nn.Module, inputs: Any) -> Tensor:
        try:
            return forward(model, inputs)
        except Exception as error:
            raise RuntimeError(f"{where}: its forward failed with {type(error).__name__}: {error}") from error

    return call


def _apart(own: Outputs, theirs: Outputs, labels: Tensor) -> Tensor:
    """[N]: the mean KL(theirs || own) of each sequence's scored tokens, in the wider of the two models' dtypes."""
    wide, device = torch.promote_types(own.out.dtype, theirs.out.dtype), own.out.device
    told = answers.scored(labels)
    of_tokens = answers.divergence(own.to(device, wide), theirs.to(device, wide), labels).double()
    total = of_tokens.new_zeros(len(labels)).index_add(0, told.nonzero()[:, 0], of_tokens)
    return (total / told.sum(dim=1)).cpu()


def reference_of(models: Any) -> str | None:
    """The model whose perplexities others' are divided by, among these names."""
    return next((name for name in (RETRAINED, ORIGINAL) if name in models), None)


def _against_reference(done: dict[str, dict[str, Answered]]) -> None:
    """Adds the ratio of perplexities; NaN where there is no reference."""
    reference = reference_of(done)
    losses = {} if reference is None else {name: one.scores["loss"].double() for name, one in done[reference].items()}
    for sets in done.values():
        for name, one in sets.items():
            loss = one.scores["loss"].double()
            unknown = torch.full_like(loss, math.nan)
            one.scores["perplexity_ratio"] = membership.perplexity_ratio(loss, losses[name]) if losses else unknown
