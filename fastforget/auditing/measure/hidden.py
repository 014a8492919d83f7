"""What a language model's answers hide: does it know half of the forget set again when it is taught the other half?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..._causal import answers
from ..._causal.head import Forward
from ..._data import Source
from ..._random import own_randomness
from ..._weights import device_of
from ...ops.membership import roc_stats
from ..figures import Probe
from . import halves

STEPS, LENGTH = 10, 0.005  # of gradient descent; a step's length, as a share of all weights' norm
MOST, DRAWN, AT_ONCE = 1_024, 91, 32  # sequences of a set, the purpose of their seed, and of a batch
CONVENTION = (
    f"AUC of the loss attack on the other half of the forget sequences against unseen ones after {STEPS} steps of gradient descent on one "
    f"half, each {100 * LENGTH:g} % of the weights' norm long; mean over both ways round, at most {MOST:,} sequences of a set. What is "
    "only hidden comes back with its like; read it beside the retrained model's"
)


def hidden(model: nn.Module, head: str | None, forward: Forward, forget: Source, unseen: Source, seed: int) -> Probe:
    """The loss attack on half of the forget sequences after a few steps on the other half, on copies of the model.

    Args:
        model: stays as it is.
        head: the layer whose product makes its logits (:func:`fastforget._causal.head.find_head`).
        forward: (model, inputs) -> logits.
        forget, unseen: sequences.
        seed: of which sequences are taken from large sets.

    Returns:
        The mean AUC of both ways round; NaN with a reason where there is one sequence, or nothing can be trained.
    """
    reason = halves.unteachable(model) or ("there are fewer than two forget sequences" if len(forget) < 2 else None)
    if reason is not None:
        return Probe(math.nan, None, reason, CONVENTION)
    inside, outside = (held.at_most(MOST, torch.Generator().manual_seed(seed + DRAWN)) for held in (forget, unseen))
    parts = [inside.subset(torch.arange(start, len(inside), 2)) for start in (0, 1)]
    found = []
    for taught, judged in (parts, parts[::-1]):
        with own_randomness(seed), halves.student(model) as student:
            try:
                for _ in range(STEPS):
                    _step(student, head, forward, taught)
                with torch.no_grad():
                    one, two = (torch.cat([*_losses(student, head, forward, held)]) for held in (judged, outside))
            except (RuntimeError, FloatingPointError) as error:
                return Probe(math.nan, None, f"a training step failed: {error}", CONVENTION)
        if bool(torch.isnan(torch.cat((one, two))).any()):
            return Probe(math.nan, None, "the steps end in NaN", CONVENTION)
        found.append(float(roc_stats(-one, -two, fprs=()).auc))
    return Probe(sum(found) / 2, None, None, CONVENTION)


def _losses(model: nn.Module, head: str | None, forward: Forward, held: Source) -> Iterator[Tensor]:
    """Of each batch the sequences' losses."""
    for inputs, labels in held.batches(device=device_of(model), batch_size=min(held.batch_size, AT_ONCE)):
        own = answers.of_labels(answers.outputs(model, head, forward, inputs), labels)
        yield -answers.log_probs(own, labels).sum(dim=1) / answers.scored(labels).sum(dim=1)


def _step(model: nn.Module, head: str | None, forward: Forward, held: Source) -> None:
    """One step down the mean loss of all sequences, its length in proportion to the weights: the same for models of any scale."""
    for loss in _losses(model, head, forward, held):
        (loss.sum() / len(held)).backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        weights, slope = (_norm([one.detach() for one in part]) for part in (trained, [p.grad for p in trained if p.grad is not None]))
        if not 0 < slope < math.inf:
            raise FloatingPointError(f"the gradient's norm is {slope:g}")
        for parameter in trained:
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=LENGTH * weights / slope)
            parameter.grad = None


def _norm(parts: list[Tensor]) -> float:
    return math.sqrt(math.fsum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts))
