"""How much each weight matters for a set: its gradients, summed over the set's batches as they are, squared, or as magnitudes.

The gradient is that of a batch's *mean* loss, in eval mode: its square depends on the batch size, so what is compared must have been
read in batches of one size. Buffers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ..._data import Source, cut
from ...ops import mask
from ..task import Task
from .drawn import joined
from .loop import gradients, steps, trainable

Loss = Callable[[Tensor, Tensor], Tensor]
Parts = list[tuple[Any, Tensor]]  # a batch, in parts of one set each
SUM, MAGNITUDES, SQUARES = 0, 1, 2  # powers of the gradient


def squared_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean squared l2 norm of the answers: a loss that reads no labels (Foster et al., arXiv 2402.19308).

    >>> squared_norm(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 1])).item()
    7.0
    """
    return logits.square().sum(dim=1).mean()


def importance(
    task: Task,
    sets: Sequence[Source],
    size: int,
    power: int,
    *,
    loss: Loss = F.cross_entropy,
    generator: torch.Generator | None = None,
    phase: str = "importance",
) -> list[Tensor]:
    """One tensor a trainable parameter: the gradients' sum over batches (``power`` 0), or the mean over batches of ``|g|**power``. It is
    float32 where the parameter has 16 bits, in which a long sum of small numbers stalls.

    Args:
        task: whose model is read, and whose budget the caller has asked.
        sets: read as one, one after another.
        size: samples in a batch.
        power: :data:`SUM`, :data:`MAGNITUDES` or :data:`SQUARES`.
        loss: of logits [B, K] and labels [B], a mean over the batch.
        generator: shuffles the samples of all sets together; else each has its own order.
        phase: of the cost.

    Raises:
        FloatingPointError: a gradient is NaN or infinite.
    """
    total = sum(map(len, sets))
    order = cut(torch.arange(total) if generator is None else torch.randperm(total, generator=generator), size)
    params = trainable(task.model)
    sums = [torch.zeros(p.shape, dtype=_wide(p.dtype), device=p.device) for p in params]
    batches = _parts(task, sets, order)
    with _weights.eval_mode(task.model), torch.enable_grad():
        for _ in steps(task, len(order), phase, each=0):
            grads = gradients(task, _mean_loss(task, next(batches), loss), params)
            with task.cost.at("ops"):
                if power == SUM:
                    torch._foreach_add_(sums, [g.to(s.dtype) for g, s in zip(grads, sums, strict=True)])
                else:
                    mask.accumulate_importance_(sums, grads, power=power, scale=1 / len(order))
    if not all(bool(torch.isfinite(value).all()) for value in sums):
        raise FloatingPointError(f"{phase}: a gradient became NaN or infinite; the model is unchanged. Check its answers on this data")
    return sums


def importance_of_two(
    task: Task, forget: Source, retain: Source, size: int, power: int, *, loss: Loss = F.cross_entropy
) -> tuple[list[Tensor], list[Tensor]]:
    """Means over batches for the forget set, and for all data, in one sweep: batches of all are those of the retain set, then those of the
    forget set, so these serve for both.
    """
    known = importance(task, [forget], size, power, loss=loss)
    every = importance(task, [retain], size, power, loss=loss)
    parts = [-(-len(data) // size) for data in (forget, retain)]
    torch._foreach_mul_(every, parts[1] / sum(parts))
    torch._foreach_add_(every, known, alpha=parts[0] / sum(parts))
    return known, every


def of_dtype(values: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Each in its parameter's dtype."""
    return [value.to(p.dtype) for value, p in zip(values, params, strict=True)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _mean_loss(task: Task, parts: Parts, loss: Loss) -> Tensor:
    """The mean loss of a batch; its parts go through the model as one where they can be joined, which changes nothing in eval mode."""
    whole = parts[0][0] if len(parts) == 1 else joined([inputs for inputs, _ in parts])
    answers = [task.forward(task.model, inputs) for inputs, _ in parts] if whole is None else [task.forward(task.model, whole)]
    return loss(torch.cat(answers), torch.cat([labels for _, labels in parts]))


def _parts(task: Task, sets: Sequence[Source], order: list[Tensor]) -> Iterator[Parts]:
    """Batches of the sets as one; a batch has a part of each set that it holds samples of."""
    starts = [sum(map(len, sets[:i])) for i in range(len(sets))]
    own = [[rows[(rows >= start) & (rows < start + len(data))] - start for rows in order] for start, data in zip(starts, sets, strict=True)]
    read = [
        task.cost.reading(data.at([rows for rows in mine if len(rows)], device=task.device)) for data, mine in zip(sets, own, strict=True)
    ]
    for i in range(len(order)):
        yield [next(batches) for batches, mine in zip(read, own, strict=True) if len(mine[i])]
