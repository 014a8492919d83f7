"""The diagonal of the Fisher information: the mean over samples of the square of each single sample's gradient.

The square of a batch's mean gradient is something else: gradients of several samples cancel in it. Here no sample is run alone: one pass
over a batch gives every layer's inputs and its outputs' gradients, and from these come the samples' own (:mod:`.per_sample`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _outputs, _tree, _weights
from ..._data import Unpack, source
from ..cost import Cost
from ..task import Forward, Task
from . import per_sample
from .calls import Alone, Call, Layers
from .loop import trainable

LABELS = ("true", "model")
LAYERS = "by layers"


class Fisher(NamedTuple):
    """What :func:`fisher_diagonal` found."""

    diagonal: list[Tensor]  # one for each trainable parameter, in its shape; float32, or float64 where the parameter is
    samples: int
    way: str  # "by layers", or "sample by sample: " and why


def fisher_diagonal(
    model: nn.Module | Task,
    data: Any,
    *,
    labels: str = "true",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    unpack: Unpack | None = None,
    batch_size: int | None = None,
) -> Fisher:
    """The diagonal Fisher information of every trainable parameter, in eval mode; the model stays as it is.

    F = E_x g(x, y)^2 with g the gradient of one sample's cross-entropy: with the data's own labels (the *empirical* Fisher), or
    F = E_x sum_y p(y | x) g(x, y)^2 over the model's own (Golatkar, Achille & Soatto, CVPR'20, "Eternal Sunshine of the Spotless Net",
    section 4, as their code has it), which takes a backward pass of the batch for each class.

    Layers known by formula: linear, convolution, batch, group, instance, layer and RMS norm, embedding and embedding bag. A net with any
    other trainable weights, one that uses weights other than by calling their layer, or one in which the rows of a layer's inputs aren't
    samples, is run sample by sample: the same values, slowly. ``way`` says which, and why. Memory: about twice that of a training step on a
    batch.

    Args:
        model: maps a batch to logits [B, K]; or a task, whose model and way of calling it are used, and whose cost counts the passes.
        data: the samples: a DataLoader, a Dataset, or an ``(inputs, labels)`` pair.
        labels: ``"true"`` or ``"model"``.
        forward, unpack: as of ``ff.unlearn``.
        batch_size: instead of the loader's (256).

    Raises:
        ValueError, TypeError: of an argument, or of a label that isn't one of the K classes.

    >>> import torch
    >>> net = torch.nn.Linear(1, 2, bias=False)
    >>> _ = torch.nn.init.zeros_(net.weight)
    >>> found = fisher_diagonal(net, (torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1])))
    >>> found.diagonal[0].tolist(), found.samples, found.way  # p = 1/2: the mean of (2 / 2)^2 and (4 / 2)^2
    ([[2.5], [2.5]], 2, 'by layers')
    """
    if labels not in LABELS:
        raise ValueError(f"labels: got {labels!r}; accepted are {', '.join(map(repr, LABELS))}")
    own = isinstance(model, Task)
    net: nn.Module = model.model if isinstance(model, Task) else model
    call: Forward = model.forward if isinstance(model, Task) else _outputs.reading(forward)
    cost = model.cost if isinstance(model, Task) else Cost()
    if own and forward is not None:
        raise ValueError("forward: given beside a task, which has its own; accepted is one of them")
    params = trainable(net)
    if not params:
        raise ValueError("model: no parameter requires grad; accepted is a model with at least one that does")
    read = source(data, name="data", unpack=unpack, batch_size=batch_size)
    one = next(iter(read.at([[0]])))[0]
    size = 1 if _tree.is_opaque(one) or _tree.rows(one) is None else None  # a batch whose rows can't be told apart
    with _weights.evaluating(net), torch.enable_grad():
        work = _Work(net, call, params, labels, cost)
        for inputs, targets in cost.reading(read.batches(device=_weights.device_of(net), batch_size=size)):
            work.add(inputs, targets)
    way = f"sample by sample: {work.alone}" if work.alone else LAYERS
    return Fisher([total.div_(len(read)) for total in work.totals.values()], len(read), way)


class _Work:
    """The sums so far, and why samples are run one by one, if they are."""

    def __init__(self, net: nn.Module, forward: Forward, params: list[nn.Parameter], labels: str, cost: Cost) -> None:
        self.net, self.forward, self.params, self.labels, self.cost = net, forward, params, labels, cost
        self.totals = {p: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False) for p in params}
        self.alone, self.tried = "", False
        try:
            self.layers = Layers(net)
        except Alone as why:
            self.alone = str(why)

    def add(self, inputs: Any, labels: Tensor) -> None:
        """Adds the squares of a batch's samples."""
        if not self.alone:
            try:
                if not self.tried and len(labels) > 1:
                    self.layers.try_two(self.forward, _tree.index(inputs, slice(2)))
                    self.tried = True
                logits, calls = self.layers.called(self.forward, inputs, len(labels))
            except Alone as why:
                self.alone = str(why)
            else:
                for grads in self._passes(logits, labels, [call.outputs for call in calls]):
                    with torch.no_grad(), self.cost.at("ops"):
                        self._square(calls, grads)
                return
        for i in range(len(labels)):
            one = inputs if len(labels) == 1 else _tree.index(inputs, slice(i, i + 1))
            for grads in self._passes(self.forward(self.net, one), labels[i : i + 1], self.params):
                for total, g in zip(self.totals.values(), grads, strict=True):
                    if g is not None:
                        total += g.to_dense().to(total.dtype).square()

    def _passes(self, logits: Tensor, labels: Tensor, wanted: list[Any]) -> Iterator[tuple[Tensor | None, ...]]:
        """Gradients of every sample's loss for its own label; or, one class after another, for the class times the root of its
        probability, whose square is then weighted by it."""
        samples, classes = logits.shape
        if not logits.requires_grad:
            raise ValueError("model: its logits come without gradients; accepted is a model that can be trained")
        if self.labels == "model":
            roots = logits.detach().softmax(1).sqrt()
            passes = [(torch.full_like(labels, y), roots[:, y]) for y in range(classes)]
            self.cost.count(2 * samples * (classes - 1), trained=False)  # a backward pass takes as long as two forward passes
        elif bool(((labels >= 0) & (labels < classes)).all()):
            passes = [(labels, torch.ones_like(logits[:, 0]))]
        else:
            raise ValueError(f"data: labels go from {int(labels.min())} to {int(labels.max())}, but the model has {classes} classes")
        for i, (targets, weights) in enumerate(passes):
            losses = F.cross_entropy(logits, targets, reduction="none")
            with self.cost.at("model"):
                grads = torch.autograd.grad(losses, wanted, weights, retain_graph=i + 1 < len(passes), allow_unused=True)
            yield grads

    def _square(self, calls: list[Call], outputs: tuple[Tensor | None, ...]) -> None:
        """Adds the squares; where a parameter was used more than once, each sample's gradients are added up first."""
        uses: dict[nn.Parameter, list[tuple[nn.Module, str, Tensor, Tensor]]] = {}
        for call, g in zip(calls, outputs, strict=True):
            for name, p in call.layer._parameters.items():
                if g is not None and p is not None and p.requires_grad:
                    dtype, x = self.totals[p].dtype, call.inputs
                    uses.setdefault(p, []).append((call.layer, name, x.to(dtype) if x.is_floating_point() else x, g.to(dtype)))
        for p, used in uses.items():
            if len(used) == 1:
                per_sample.add_squares_(self.totals[p], *used[0])
                continue
            each = sum(per_sample.numbers(*use) for use in used)
            for rows in per_sample.chunks(len(used[0][2]), each, p.device):
                joined = torch.zeros((), device=p.device)
                for layer, name, x, g in used:
                    joined = joined + per_sample.gradients(layer, name, x[rows], g[rows])
                self.totals[p] += joined.square().sum(0)
