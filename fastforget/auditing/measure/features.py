"""A classifier's penultimate features: what its last layer reads.

The answers can be dressed up without touching what was learnt: a logit pushed down, a new last layer on the old body. What the last layer
reads is harder to dress up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._columns import Column
from ..._data import source
from ..._outputs import as_columns
from ..._weights import eval_mode
from ...ops.noise import normal_
from . import passes

Forward = Callable[[nn.Module, Any], Tensor]
# Wider features are projected on this many random directions, which keeps inner products to about 3 %.
WIDEST = 1024
SAME = 1e-4  # of the logits' spread: what two paths to the same logits may differ by
NO_LAYER = (
    "no layer's output is the logits, so the features that they are read from are unknown (a wrapper, a head without a module, or one with "
    "an adapter of its own, of which the merged model can be audited)"
)
CHANGING = "on some samples the logits are not the last layer's output: the model answers these in another way"


class Features(NamedTuple):
    """``values`` float32[N, D] on the CPU, with the samples' ``labels`` int64[N]; or None with the ``reason``. ``layer``: the name of the
    module whose input they are."""

    values: Tensor | None
    labels: Tensor
    layer: str | None
    reason: str | None


def bare(model: nn.Module) -> nn.Module:
    """The network inside the usual wrappers: data parallelism and ``torch.compile``.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> bare(torch.nn.DataParallel(net)) is net, bare(net) is net
    (True, True)
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class Reader:
    """Reads a batch's penultimate features along with its logits.

    The last layer is the innermost module whose output equals the logits while its input does not: up to a view, to a mean over
    positions (a convolution before global pooling), to one position of a sequence, and up to one positive factor and a constant a sample
    (log-softmax, a temperature). It is looked for on the first batch that is read and checked on all others.

    Use it as a context: the hooks are gone afterwards.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self.model, self.forward = bare(model), forward
        self.layer: str | None = None
        self.reason: str | None = None
        self._calls: list[tuple[str, Tensor, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Reader:
        for name, module in self.model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                self.reason = f"{name or 'the model'} is a scripted module, whose layers can't be read"
                continue
            self._handles.append(module.register_forward_hook(self._record(name), always_call=False))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _record(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.layer in (None, name) and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self._calls.append((name, args[0].detach(), output.detach()))

        return hook

    def read(self, inputs: Any, where: str = "features") -> tuple[Tensor, Tensor | None]:
        """Logits [N, K] and features float32[N, D] of one batch, both on the CPU; None for the features where there is a ``reason``."""
        self._calls.clear()
        logits = passes.batch_logits(self.model, inputs, self.forward, where)
        calls, self._calls = list(self._calls), []
        if self.reason:
            return logits.cpu(), None
        for name, given, output in calls:
            values = _read_from(given, output, logits)
            if values is not None and (self.layer is not None or not self._encloses(name, [n for n, _, _ in calls])):
                self.layer = name
                return logits.cpu(), values.float().cpu()
        self.reason = NO_LAYER if self.layer is None else CHANGING
        return logits.cpu(), None

    def _encloses(self, name: str, called: list[str]) -> bool:
        """Whether other modules ran inside this one: then its input is not what the last layer reads."""
        start = f"{name}." if name else ""
        return any(other != name and other.startswith(start) and ".parametrizations." not in f".{other}." for other in called)


def _read_from(given: Tensor, output: Tensor, logits: Tensor) -> Tensor | None:
    """The features [N, D] in a module's input if its output is the logits and its input is not."""
    n = len(logits)
    if given.dim() < 2 or len(given) != n or len(output) != n or not given.is_floating_point():
        return None
    if output.numel() == n and logits.shape[1] == 2:
        # one logit for both of two classes, which is read as [0, z]
        given_as_logits = as_columns(given) if given.numel() == n else given
        if given_as_logits.shape == logits.shape and _same(given_as_logits, logits):
            return None
        return given.flatten(1) if _same(as_columns(output.reshape(n)), logits) else None
    if given.numel() == logits.numel() and _same(given.reshape(logits.shape), logits):
        return None
    if output.numel() == logits.numel():
        return given.flatten(1) if _same(output.reshape(logits.shape), logits) else None
    if output.dim() > 2 and output.shape[1] == logits.shape[1] and _same(output.flatten(2).mean(2), logits):
        return given.flatten(2).mean(2) if given.dim() > 2 else None
    if output.dim() == 3 and output.shape[2] == logits.shape[1] and given.dim() == 3 and given.shape[1] == output.shape[1]:
        at = (output - logits[:, None]).abs().amax(2).argmin(1)
        rows = torch.arange(n, device=at.device)
        return given[rows, at] if _same(output[rows, at], logits) else None
    return None


def _same(output: Tensor, logits: Tensor) -> bool:
    """Equal up to one positive factor for all samples and a constant a sample."""
    a, b = output.double(), logits.to(output.device).double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm, spread = float((a * a).sum()), float(b.abs().max())
    if norm == 0 or not math.isfinite(norm) or not math.isfinite(spread):
        return False
    factor = float((a * b).sum()) / norm
    return factor > 0 and float((factor * a - b).abs().max()) <= SAME * max(spread, 1e-12)


@contextmanager
def reading(model: nn.Module, forward: Forward | None = None) -> Iterator[Reader]:
    """A :class:`Reader` of a model in eval mode, without gradients; afterwards the model's modes are as they were."""
    with eval_mode(model), torch.no_grad(), Reader(model, forward) as reader:
        yield reader


def penultimate(model: nn.Module, data: Any, *, name: str = "test", forward: Forward | None = None, limit: int | None = None) -> Features:
    """The features that a classifier's last layer reads, sample by sample.

    Args:
        model: maps inputs to logits [batch, classes]; stays as it is.
        data: a DataLoader, a Dataset, an (inputs, labels) pair or a Source.
        name: of the set, for messages.
        forward: (model, inputs) -> logits, where calling the model doesn't give them.
        limit: read at most this many samples, spread evenly over the set.

    Returns:
        :class:`Features`; more than 1,024 of them are projected on 1,024 fixed random directions. ``values`` is None, with the reason,
        where the logits are no layer's output (:class:`Reader` says what counts as such).

    Raises:
        RuntimeError: the model's forward failed.
        TypeError, ValueError: the set can't be read.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> features = penultimate(net, (torch.randn(5, 4), torch.arange(5) % 3))
    >>> features.layer, tuple(features.values.shape)
    ('2', (5, 8))
    """
    held = source(data, name=name)
    if limit is not None and len(held) > limit:
        held = held.subset(torch.linspace(0, len(held) - 1, limit, dtype=torch.float64).round().long())
    kept, labels = Column(), Column()  # features can be a view of the batch, which a list of them would keep
    with reading(model, forward) as reader:
        for inputs, y in held.batches():
            _, values = reader.read(inputs, f"{name} set")
            labels.add(y.cpu())
            if values is not None:
                kept.add(narrowed(values))
    every = labels.joined()
    if reader.reason:
        return Features(None, every, None, reader.reason)
    return Features(kept.joined(), every, reader.layer, None)


def narrowed(values: Tensor) -> Tensor:
    """Features [N, D] as they are, or projected on :data:`WIDEST` random directions where there are more, the same for every call."""
    width = values.shape[1]
    if width <= WIDEST:
        return values
    directions = normal_(torch.empty(width, WIDEST), std=WIDEST**-0.5, seed=width)
    return values @ directions
