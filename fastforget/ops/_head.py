"""The last product of a language model by chunks: log-probabilities of tokens without a [tokens, vocabulary] table.

A table of answers is read block by block: some rows (tokens), some columns (of the vocabulary). Sums over the vocabulary run along as the
columns come, as in an online softmax (Milakov & Gimelshein, arXiv 1805.02867), mean and variance by the rule of Chan, Golub & LeVeque
(1979). So memory depends neither on the number of tokens nor on the vocabulary. Backward passes read the blocks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 4096  # of a block
_FAR = -800.0  # exp of it is 0 in float64 too: what lies further below the largest logit weighs nothing


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything narrower is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(like: Tensor) -> torch.autocast:
    """Products in the tensors' own dtype, whatever autocast is around."""
    return torch.autocast(like.device.type, enabled=False)


@dataclass
class Table:
    """Answers of ``len`` tokens over a vocabulary: logits [R, V], or hidden states [R, D] with a head's ``weight`` [V, D] and ``bias``
    [V]. ``places``: which rows of ``outputs`` are the tokens, int64; None for all.
    """

    outputs: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    places: Tensor | None = None
    columns: int = COLUMNS

    def __len__(self) -> int:
        return len(self.outputs) if self.places is None else len(self.places)

    @property
    def vocabulary(self) -> int:
        return self.outputs.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return computed_in(self.outputs.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """What the logits of these tokens are made of: their hidden states [R, D], or where logits are given their places."""
        at = torch.arange(start, stop, device=self.outputs.device) if self.places is None else self.places[start:stop]
        return at if self.weight is None else self.outputs[at].to(self.dtype)

    def blocks(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """For these rows the columns, and their logits [R, C], which the caller may change."""
        for start in range(0, self.vocabulary, self.columns):
            at = slice(start, min(start + self.columns, self.vocabulary))
            yield at, self.logits(rows, at)

    def logits(self, rows: Tensor, at: slice) -> Tensor:
        if self.weight is None:
            return self.outputs[rows, at].to(self.dtype)
        with exact(rows):
            z = rows @ self.weight[at].to(self.dtype).T
        return z if self.bias is None else z.add_(self.bias[at].to(self.dtype))


@dataclass
class Sums:
    """Of rows of logits: the largest, the sum of exponentials below it, the logit of the label; where they are asked for mean and squared
    distances from the mean of the logits under the softmax, counted from the largest, and whether the label is the first of the largest.
    """

    top: Tensor
    total: Tensor
    of_label: Tensor
    mean: Tensor | None = None
    squares: Tensor | None = None
    first: Tensor | None = None

    @property
    def log_total(self) -> Tensor:
        return self.total.log()

    @property
    def log_prob(self) -> Tensor:
        """log p of the label."""
        return (self.of_label - self.top) - self.log_total


def sums(table: Table, rows: Tensor, labels: Tensor, *, moments: bool = False) -> Sums:
    """One pass over the vocabulary.

    Args:
        table: what the rows belong to.
        rows: :meth:`Table.rows`.
        labels: int64[R].
        moments: whether mean, squares and first are asked for.
    """
    seen: Sums | None = None
    least = torch.finfo(table.dtype).min
    for at, z in table.blocks(rows):
        top = z.amax(dim=1).clamp_min(least)  # where all are -inf
        inside = (labels >= at.start) & (labels < at.stop)
        picked = z.gather(1, (labels - at.start).clamp(0, z.shape[1] - 1)[:, None])[:, 0]
        first = _first(z, top, picked, labels - at.start, inside) if moments else None
        below = z.sub_(top[:, None])
        e = below.exp()
        now = Sums(top, e.sum(dim=1), picked, first=first)
        if moments:
            below.clamp_min_(_FAR)
            weight = now.total.clamp_min(torch.finfo(table.dtype).tiny)
            now.mean = torch.linalg.vecdot(e, below) / weight
            below.sub_(now.mean[:, None]).square_()
            now.squares = torch.linalg.vecdot(e, below)
        seen = now if seen is None else _joined(seen, now, inside)
    assert seen is not None
    return seen


def _first(z: Tensor, top: Tensor, picked: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """Whether the label is the first of the block's largest: only rows where it is one of them are searched."""
    first = inside & (picked == top)
    rows = first.nonzero()[:, 0]
    first[rows] = z[rows].argmax(dim=1) == labels[rows]
    return first


def _joined(a: Sums, b: Sums, inside: Tensor) -> Sums:
    """Both parts of a row as one; ``inside``: whose label is in the second."""
    top = torch.maximum(a.top, b.top)
    down_a, down_b = ((part.top - top).clamp_min(_FAR) for part in (a, b))
    total_a, total_b = a.total * down_a.exp(), b.total * down_b.exp()
    out = Sums(top, total_a + total_b, torch.where(inside, b.of_label, a.of_label))
    if a.first is not None and b.first is not None:
        out.first = torch.where(inside, b.first & (b.top > a.top), a.first & (a.top >= b.top))
    if a.mean is not None and b.mean is not None and a.squares is not None and b.squares is not None:
        weight = out.total.clamp_min(torch.finfo(top.dtype).tiny)
        mean_a, mean_b = a.mean + down_a, b.mean + down_b
        out.mean = (total_a * mean_a + total_b * mean_b) / weight  # one that weighs nothing costs no digits
        between = (mean_b - mean_a).square() * total_a * (total_b / weight)
        out.squares = a.squares * down_a.exp() + b.squares * down_b.exp() + between
    return out


def chunks(count: int, rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, rows):
        yield start, min(start + rows, count)


class LogProb(torch.autograd.Function):
    """log p of each label [R] from hidden states [R, D] and a head, whose product is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, rows: int, columns: int) -> Tensor:
        table = Table(hidden, weight, bias, columns=columns)
        out = torch.empty(len(hidden), dtype=table.dtype, device=hidden.device)
        level = torch.empty_like(out)
        for start, stop in chunks(len(hidden), rows):
            own = sums(table, table.rows(start, stop), labels[start:stop])
            out[start:stop], level[start:stop] = own.log_prob, own.top + own.log_total
        ctx.save_for_backward(hidden, weight, bias, labels, level)
        ctx.rows, ctx.columns = rows, columns
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        hidden, weight, bias, labels, level = ctx.saved_tensors
        table = Table(hidden, weight, bias, columns=ctx.columns)
        grads = _Gradients(ctx.needs_input_grad[:3], hidden, weight, bias, table.dtype)
        for start, stop in chunks(len(hidden), ctx.rows):
            x, own, y = table.rows(start, stop), g[start:stop, None].to(table.dtype), labels[start:stop]
            for at, z in table.blocks(x):
                dz = z.sub_(level[start:stop, None]).exp_().mul_(-own)
                inside = ((y >= at.start) & (y < at.stop)).nonzero()[:, 0]
                dz[inside, y[inside] - at.start] += own[inside, 0]
                grads.add(start, stop, at, x, dz)
        return (*grads.given(), None, None, None)


class Divergence(torch.autograd.Function):
    """KL(teacher || model) [R] in nats, both from hidden states and a head; the gradient goes to the model's."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: Table, rows: int, columns: int
    ) -> Tensor:
        table = Table(hidden, weight, bias, columns=columns)
        out = torch.empty(len(hidden), dtype=table.dtype, device=hidden.device)
        levels = torch.empty((2, len(hidden)), dtype=table.dtype, device=hidden.device)
        none = torch.zeros(rows, dtype=torch.int64, device=hidden.device)
        for start, stop in chunks(len(hidden), rows):
            x, t = table.rows(start, stop), teacher.rows(start, stop)
            own, theirs = (sums(part, data, none[: stop - start]) for part, data in ((table, x), (teacher, t)))
            levels[0, start:stop], levels[1, start:stop] = own.top + own.log_total, theirs.top + theirs.log_total
            kl = torch.zeros_like(out[start:stop])
            for (_, z), (_, zt) in zip(table.blocks(x), teacher.blocks(t), strict=True):
                log_p = zt.sub_(levels[1, start:stop, None])
                apart = torch.where(log_p > _FAR, log_p - z.sub_(levels[0, start:stop, None]), 0.0)
                kl += torch.linalg.vecdot(log_p.exp_(), apart)
            out[start:stop] = kl
        ctx.save_for_backward(hidden, weight, bias, levels)
        ctx.teacher, ctx.rows, ctx.columns = teacher, rows, columns
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        hidden, weight, bias, levels = ctx.saved_tensors
        table, teacher = Table(hidden, weight, bias, columns=ctx.columns), ctx.teacher
        grads = _Gradients(ctx.needs_input_grad[:3], hidden, weight, bias, table.dtype)
        for start, stop in chunks(len(hidden), ctx.rows):
            x, t = table.rows(start, stop), teacher.rows(start, stop)
            own = g[start:stop, None].to(table.dtype)
            for (at, z), (_, zt) in zip(table.blocks(x), teacher.blocks(t), strict=True):
                dz = z.sub_(levels[0, start:stop, None]).exp_().sub_(zt.sub_(levels[1, start:stop, None]).exp_()).mul_(own)
                grads.add(start, stop, at, x, dz)
        return (*grads.given(), None, None, None)


class _Gradients:
    """Gradients of hidden states, weight and bias, block by block, in the dtype of the computation."""

    def __init__(self, needed: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight, self.dtype = weight, dtype
        self.like = (hidden, weight, bias)
        wanted = zip(needed, self.like, strict=True)
        self.grads = [torch.zeros_like(x, dtype=dtype) if need and x is not None else None for need, x in wanted]

    def add(self, start: int, stop: int, at: slice, rows: Tensor, dz: Tensor) -> None:
        hidden, weight, bias = self.grads
        with exact(dz):
            if hidden is not None:
                hidden[start:stop].addmm_(dz, self.weight[at].to(self.dtype))
            if weight is not None:
                weight[at].addmm_(dz.T, rows)
        if bias is not None:
            bias[at] += dz.sum(dim=0)

    def given(self) -> list[Tensor | None]:
        return [None if g is None or x is None else g.to(x.dtype) for g, x in zip(self.grads, self.like, strict=True)]
