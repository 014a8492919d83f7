"""What a linear rule finds in penultimate features: a probe, a fresh last layer, and their likeness to another model's features."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._data import Source, source
from ...ops.membership import roc_stats
from .features import Forward, bare, narrowed, reading

PROBE_RIDGE = 2e-1
READ_RIDGE = 1e-2
HEAD_RIDGE = 1e-3


class Probe(NamedTuple):
    """A linear probe's figures: the AUC on test samples, its odds AUC / (1 - AUC), and how many samples each side has."""

    auc: float
    odds: float
    members: int
    others: int
    reason: str | None


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


def new_head_losses(train: Tensor, labels: Tensor, others: list[tuple[Tensor, Tensor]], ridge: float = HEAD_RIDGE) -> list[Tensor]:
    """Cross-entropies under a fresh last layer: a multinomial logistic regression with a fixed ridge on standardised features.

    Trained on retained samples only, it knows nothing of the forgotten ones but what the features hold; whatever was done to the model's
    own last layer, or after it, is gone.

    Args:
        train, labels: features [N, D] and labels [N] of retained samples.
        others: pairs of features [M, D] and labels [M] to be read; a label that ``labels`` lacks gives a large loss.
        ridge: of the regression.

    Returns:
        a float64[M] for each of ``others``.

    >>> import torch
    >>> g = torch.Generator().manual_seed(0)
    >>> y = torch.arange(90) % 3
    >>> x = torch.randn(90, 4, generator=g) + 3.0 * torch.eye(3, 4)[y]
    >>> (losses,) = new_head_losses(x[:60], y[:60], [(x[60:], y[60:])])
    >>> tuple(losses.shape), float(losses.mean()) < 0.5
    ((30,), True)
    """
    classes = int(max(int(y.max()) for y in (labels, *(y for _, y in others)))) + 1
    deviation, mean = torch.std_mean(train.double(), dim=0, correction=0)
    moving = deviation > 1e-6 * deviation.max().clamp_min(1e-300)
    x = ((train.double() - mean) / deviation)[:, moving]
    with torch.enable_grad():
        weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

        def aim() -> Tensor:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(x @ weight + bias, labels) + ridge * (weight**2).sum()
            loss.backward()
            return loss

        optimiser.step(aim)
    read = [(((z.double() - mean) / deviation)[:, moving] @ weight + bias, y) for z, y in others]
    return [nn.functional.cross_entropy(z, y, reduction="none").detach() for z, y in read]


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
