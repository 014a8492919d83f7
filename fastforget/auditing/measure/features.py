"""What a classifier knows below its answers: its penultimate features, a linear probe on them, and their likeness to another model's.

The answers can be dressed up without touching what was learnt: a logit pushed down, a new last layer on the old body. What the last layer
reads is harder to dress up, so these figures look at the last layer's input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._data import Source, source
from ...ops.membership import roc_stats
from ...ops.noise import normal_
from . import passes

Forward = Callable[[nn.Module, Any], Tensor]
# Wider features are projected on this many random directions, which keeps inner products to about 3 %.
WIDEST = 1024
PROBE_RIDGE = 2e-2
READ_RIDGE = 1e-2
SAME = 1e-4  # of the logits' spread: what two paths to the same logits may differ by
NO_LAYER = "no layer's output is the logits, so the features that they are read from are unknown (a wrapper, or a head without a module)"
CHANGING = "on some samples the logits are not the last layer's output: the model answers these in another way"


class Features(NamedTuple):
    """``values`` float32[N, D] on the CPU, with the samples' ``labels`` int64[N]; or None with the ``reason``. ``layer``: the name of the
    module whose input they are."""

    values: Tensor | None
    labels: Tensor
    layer: str | None
    reason: str | None


class Probe(NamedTuple):
    """A linear probe's figures: the AUC on test samples, its odds AUC / (1 - AUC), and how many samples each side has."""

    auc: float
    odds: float
    members: int
    others: int
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
    with passes.evaluating({"model": model}), torch.no_grad(), Reader(model, forward) as reader:
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
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    with reading(model, forward) as reader:
        for inputs, y in held.batches():
            _, values = reader.read(inputs, f"{name} set")
            labels.append(y.cpu())
            if values is not None:
                kept.append(narrowed(values))
    every = torch.cat(labels)
    if reader.reason:
        return Features(None, every, None, reader.reason)
    return Features(torch.cat(kept), every, reader.layer, None)


def narrowed(values: Tensor) -> Tensor:
    """Features [N, D] as they are, or projected on :data:`WIDEST` random directions where there are more, the same for every call."""
    width = values.shape[1]
    if width <= WIDEST:
        return values
    directions = normal_(torch.empty(width, WIDEST), std=WIDEST**-0.5, seed=width)
    return values @ directions


def logistic(x: Tensor, is_member: Tensor, ridge: float = PROBE_RIDGE) -> Tensor:
    """Weights and intercept, float64[D + 1], of a ridge-regularised logistic regression by Newton's method.

    Minimises the mean cross-entropy, both sides weighing the same whatever their sizes, plus ridge / 2 |w|^2. No random start and a
    strictly convex aim: the same samples give the same weights.

    Args:
        x: [N, D], any float dtype.
        is_member: bool[N], with both values.
        ridge: above 0.
    """
    x = torch.cat((x.double(), torch.ones(len(x), 1, dtype=torch.float64, device=x.device)), dim=1)
    y = is_member.double()
    weight = torch.where(is_member, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    penalty = torch.full((x.shape[1],), ridge, dtype=torch.float64, device=x.device)
    penalty[-1] = 1e-10

    def aim(w: Tensor) -> float:
        return float((weight * (torch.nn.functional.softplus(x @ w) - y * (x @ w))).sum() + 0.5 * (penalty * w * w).sum())

    w = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    value = aim(w)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (weight * (p - y)) + penalty * w
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + torch.diag(penalty)
        step = torch.linalg.solve(curvature, gradient)
        size = 1.0
        while aim(w - size * step) > value and size > 1e-6:
            size /= 2
        w = w - size * step
        before, value = value, aim(w)
        if before - value <= 1e-12 * max(1.0, abs(before)):
            break
    return w


def probe(train: Tensor, train_is: Tensor, test: Tensor, test_is: Tensor, ridge: float = PROBE_RIDGE) -> Probe:
    """How well a linear rule on a model's features tells forgotten classes from kept ones (Alain & Bengio, arXiv 1610.01644, 2016).

    A logistic regression with a fixed ridge on standardised features, fitted on training samples and read on test samples. A model that
    never saw the class can be probed for it too (a new class is often easy to tell), so read it beside a retrained model's.

    Args:
        train, test: features [N, D] of one model.
        train_is, test_is: bool[N], whether a sample is of a forgotten class.
        ridge: of the regression.

    Returns:
        :class:`Probe`. The odds are kept within what one mis-ranked pair can resolve, so an AUC of 1 has finite odds. NaN, with a reason,
        where a side is empty.

    Raises:
        ValueError: widths or lengths that don't fit.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> is_member = torch.arange(200) % 2 == 0
    >>> x = torch.randn(200, 5, generator=g) + 2.0 * is_member[:, None]
    >>> found = probe(x[:100], is_member[:100], x[100:], is_member[100:])
    >>> found.auc > 0.95, found.members, found.others
    (True, 50, 50)
    """
    if train.dim() != 2 or test.dim() != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"features: got {tuple(train.shape)} to train and {tuple(test.shape)} to test; accepted are [N, D] of one D")
    if train_is.shape != train.shape[:1] or test_is.shape != test.shape[:1]:
        raise ValueError(f"labels: got {tuple(train_is.shape)} and {tuple(test_is.shape)}; accepted is one bool a sample")
    members, others = int(test_is.sum()), int((~test_is).sum())
    for side, count in (
        ("training samples of the forgotten classes", int(train_is.sum())),
        ("training samples of kept classes", int((~train_is).sum())),
        ("test samples of the forgotten classes", members),
        ("test samples of kept classes", others),
    ):
        if count == 0:
            return Probe(math.nan, math.nan, members, others, f"there are no {side}")
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    # features that never move carry nothing, and their rounding must not be blown up
    moving = deviation > 1e-6 * deviation.max().clamp_min(1e-300)
    if not bool(moving.any()):
        return Probe(0.5, 1.0, members, others, "all features are constant")
    a, b = (((f.double() - mean) / deviation)[:, moving] for f in (train, test))
    weights = logistic(a, train_is, ridge)
    scores = b @ weights[:-1]
    auc = float(roc_stats(scores[test_is], scores[~test_is], fprs=()).auc)
    return Probe(auc, odds(auc, members * others), members, others, None)


def odds(auc: float, pairs: int) -> float:
    """AUC / (1 - AUC), an AUC of 0 or 1 being read as half a mis-ranked pair.

    >>> odds(0.8, 100), odds(1.0, 100)
    (4.0, 199.0)
    """
    low = 0.5 / max(pairs, 1)
    held = min(max(auc, low), 1 - low)
    return round(held / (1 - held), 12)


class LinearCKA:
    """Linear centred kernel alignment of two models' features of the same samples, a batch at a time (Kornblith et al., ICML'19).

    CKA = |A'B|^2 / (|A'A| |B'B|), Frobenius norms of the centred features' products: 1 for features that are equal up to a rotation and
    one scale, near 0 for unrelated ones. Sums are kept in float64, so memory is that of three [D, D] matrices, whatever the set's size.

    >>> import torch
    >>> a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    >>> alike = LinearCKA()
    >>> for part in a.split(20):
    ...     alike.add(part, 3 * part @ turned)
    >>> round(alike.value(), 6)
    1.0
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._products: list[Tensor] = []
        self._origin: tuple[Tensor, Tensor] | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        """Features [n, D] and [n, E] of the same samples.

        Raises:
            ValueError: shapes that don't fit.
        """
        if a.dim() != 2 or b.dim() != 2 or len(a) != len(b):
            raise ValueError(f"features: got {tuple(a.shape)} and {tuple(b.shape)}; accepted are [n, D] and [n, E] of the same samples")
        if not len(a):
            return
        x, y = a.double(), b.double()
        if self._origin is None:
            # near the mean already, so that taking it off later cancels little
            self._origin = x.mean(0), y.mean(0)
        x, y = x - self._origin[0], y - self._origin[1]
        sums, products = (x.sum(0), y.sum(0)), [x.T @ x, y.T @ y, x.T @ y]
        if self._sums is None:
            self._sums, self._products = sums, products
        else:
            self._sums = self._sums[0] + sums[0], self._sums[1] + sums[1]
            self._products = [before + now for before, now in zip(self._products, products, strict=True)]
        self.n += len(a)

    def value(self) -> float:
        """NaN with fewer than two samples or where a model's features are constant."""
        if self._sums is None or self.n < 2:
            return math.nan
        x, y = self._sums
        xx, yy, xy = (p - torch.outer(a, b) / self.n for p, (a, b) in zip(self._products, ((x, x), (y, y), (x, y)), strict=True))
        below = float(torch.linalg.matrix_norm(xx)) * float(torch.linalg.matrix_norm(yy))
        return float(torch.linalg.matrix_norm(xy)) ** 2 / below if below > 0 else math.nan


def cka(a: Tensor, b: Tensor) -> float:
    """:class:`LinearCKA` of features that are at hand, [N, D] and [N, E]."""
    alike = LinearCKA()
    alike.add(a, b)
    return alike.value()


def class_cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA inside one group of samples, every feature brought to one deviation first.

    Hidden units in another order and at other scales leave it at 1, so this is what a model keeps of another's view of these samples
    alone; what both learnt of all other classes doesn't come in.

    >>> import torch
    >>> a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(class_cka(a, a[:, [2, 0, 1, 3]] * torch.tensor([1.0, 20.0, 0.05, 3.0])), 6)
    1.0
    """
    return cka(_one_deviation(a), _one_deviation(b))


def _one_deviation(x: Tensor) -> Tensor:
    """Features at deviation 1; units that hardly move, relative to the mean of all, stay small."""
    wide = x.double()
    deviation, mean = torch.std_mean(wide, dim=0, correction=0)
    # each unit on its own scale, or a unit that was scaled down would be taken for one that is still
    moving = deviation > 1e-6 * wide.abs().amax(0).clamp_min(1e-300)
    return torch.where(moving, (wide - mean) / deviation.clamp_min(1e-300), 0.0)


def readable(train: Tensor, wanted: Tensor, test: Tensor, wanted_test: Tensor, ridge: float = READ_RIDGE) -> float:
    """The share of another model's features that can be read linearly off a model's (linear regression, Kornblith et al., ICML'19), R^2.

    A ridge regression from one model's features to the other's, each at deviation 1, fitted on ``train`` samples; R^2 is that of all
    ``test`` features together, around their own means. Unlike CKA it isn't lowered by features that are added to the old ones, nor by any
    invertible mixture of them.

    Args:
        train, test: features [N, D] and [M, D] of the model.
        wanted, wanted_test: the other's, [N, E] and [M, E], of the same samples.
        ridge: of the regression, relative to the mean of squares.

    Returns:
        1 where all is there; 0 or less where nothing is. NaN where the other's features are constant.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> old, mix = torch.randn(300, 6, generator=g), torch.randn(6, 6, generator=g)
    >>> more = torch.cat((old @ mix, 3 * torch.randn(300, 40, generator=g)), 1)
    >>> readable(more[:200], old[:200], more[200:], old[200:]) > 0.85
    True
    """
    deviation, mean = torch.std_mean(wanted.double(), dim=0, correction=0)
    told = deviation > 1e-3 * deviation.max().clamp_min(1e-300)
    if not bool(told.any()) or not len(test):
        return math.nan
    y, aim = (((f.double() - mean) / deviation)[:, told] for f in (wanted, wanted_test))
    spread, centre = torch.std_mean(train.double(), dim=0, correction=0)
    moving = spread > 1e-6 * spread.max().clamp_min(1e-300)
    x, z = (((f.double() - centre) / spread)[:, moving] for f in (train, test))
    weights = torch.linalg.solve(x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device), x.T @ y / len(x))
    whole = float(((aim - aim.mean(0)) ** 2).sum())
    return 1 - float(((z @ weights - aim) ** 2).sum()) / whole if whole > 0 else math.nan


def cka_between(
    model: nn.Module, other: nn.Module, data: Any, *, name: str = "test", forward: Forward | None = None
) -> tuple[float, str | None]:
    """Linear CKA of two models' penultimate features over a set, and the reason where it is NaN; one batch in memory at a time."""
    held: Source = source(data, name=name)
    alike = LinearCKA()
    with reading(model, forward) as mine, reading(_apart(other, model), forward) as theirs:
        for inputs, _ in held.batches():
            a, b = mine.read(inputs, f"{name} set")[1], theirs.read(inputs, f"{name} set")[1]
            reason = mine.reason or theirs.reason
            if a is None or b is None:
                return math.nan, reason
            alike.add(narrowed(a), narrowed(b))
    value = alike.value()
    return value, "the features are constant" if math.isnan(value) else None


def _apart(other: nn.Module, model: nn.Module) -> nn.Module:
    """``other``, or a copy where both are one object, whose hooks would fire for both readers."""
    return copy.deepcopy(other) if bare(other) is bare(model) else other
