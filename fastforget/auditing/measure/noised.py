"""The loss attack on noised samples: what a model remembers around the samples that it saw, not only at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._columns import Column
from ..._data import Source, source
from ..._random import own_randomness
from ..._tree import like
from ..._weights import eval_mode
from ...ops.membership import membership_scores, roc_stats
from ...ops.noise import normal_
from . import passes

Forward = Callable[[nn.Module, Any], Tensor]
SCALE, DRAWS = 0.3, 4
NO_FLOATS = "the inputs hold no floating-point tensor that noise could be added to"
CONVENTION = (
    f"AUC of the loss attack on forget samples against unseen ones, normal noise of {SCALE:g} of the inputs' own deviation being added to "
    f"both; each sample's loss is the mean of {DRAWS} draws. A rule that changes the answers at the forget samples alone doesn't reach "
    "their surroundings. Read it beside the retrained model's"
)


class Noised(NamedTuple):
    """AUC (0.5 = nothing remembered) with the mean losses of both sides; NaN with a reason where there is none."""

    auc: float
    forget_loss: float
    unseen_loss: float
    deviation: float
    reason: str | None


def deviation_of(held: Source) -> float:
    """The deviation of all floating-point input values of a set around their common mean; NaN where there are none."""
    n, total, squares = 0, 0.0, 0.0
    for inputs, _ in held.batches():
        for x in _floats(inputs):
            wide = x.double()
            n, total, squares = n + x.numel(), total + float(wide.sum()), squares + float((wide * wide).sum())
    if n == 0:
        return math.nan
    return math.sqrt(max(squares / n - (total / n) ** 2, 0.0))


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _floats(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _floats(v)]
    return []


def add_noise(value: Any, std: float, *, seed: int, step: int, first: int, stream: int = 0) -> Any:
    """A copy of a batch with noise on every floating-point tensor, integers as they are.

    The noise of a sample is a function of the seed, the step and the sample's number in the set (``first`` is the batch's first), so that
    it doesn't depend on how the set is batched.

    >>> import torch
    >>> x = torch.zeros(4, 3)
    >>> whole = add_noise(x, 1.0, seed=0, step=0, first=0)
    >>> parts = [add_noise(x[i : i + 2], 1.0, seed=0, step=0, first=i) for i in (0, 2)]
    >>> torch.equal(whole, torch.cat(parts))
    True
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        each = value[0].numel() if len(value) else 0
        # drawn on the CPU: the same noise whatever device the samples lie on
        noise = normal_(torch.empty(value.shape, dtype=torch.float32), std=std, seed=seed, step=step, stream=stream, start=first * each)
        return value + noise.to(value.device, value.dtype)
    how: dict[str, Any] = {"seed": seed, "step": step, "first": first}
    if isinstance(value, Mapping):
        noised = {k: add_noise(v, std, stream=stream + i, **how) for i, (k, v) in enumerate(value.items())}
        return noised if type(value) is dict else like(value, noised)
    if isinstance(value, (tuple, list)):
        parts = [add_noise(v, std, stream=stream + i, **how) for i, v in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def noised_losses(model: nn.Module, held: Source, std: float, *, draws: int, seed: int, forward: Forward | None = None) -> Tensor:
    """Each sample's cross-entropy, the mean of ``draws`` noised copies, float64[N] on the CPU."""
    kept = Column()
    first = 0
    with eval_mode(model), own_randomness(seed), torch.no_grad():
        for inputs, labels in held.batches():
            total = torch.zeros(len(labels), dtype=torch.float64)
            for draw in range(draws):
                noisy = add_noise(inputs, std, seed=seed, step=draw, first=first)
                logits = passes.batch_logits(model, noisy, forward, f"{held.name} set, noised")
                total += membership_scores(logits, labels.to(logits.device)).loss.double().cpu()
            kept.add(total / draws)
            first += len(labels)
    return kept.joined()


def noised_attack(
    model: nn.Module,
    forget: Any,
    unseen: Any,
    *,
    scale: float = SCALE,
    draws: int = DRAWS,
    seed: int = 0,
    forward: Forward | None = None,
) -> Noised:
    """The loss attack (Yeom et al., CSF'18) on noised forget samples against noised unseen ones.

    Args:
        model: stays as it is; its random state too.
        forget, unseen: a DataLoader, a Dataset, an (inputs, labels) pair or a Source. Unseen samples are to be of the same classes.
        scale: the noise's deviation as a share of that of the unseen inputs.
        draws: noised copies of each sample, whose losses are averaged.
        seed: of the noise: the same for every model that is to be compared.
        forward: (model, inputs) -> logits.

    Returns:
        :class:`Noised`; NaN, with the reason, for inputs that aren't floating point (text, categories).

    Raises:
        ValueError: a scale or a number of draws out of range, an empty set.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> x, y = torch.randn(40, 2), torch.arange(40) % 2
    >>> found = noised_attack(net, (x[:20], y[:20]), (x[20:], y[20:]))
    >>> 0 <= found.auc <= 1, noised_attack(net, (x[:2].long(), y[:2]), (x[2:4].long(), y[2:4])).reason == NO_FLOATS
    (True, True)
    """
    if not 0 < scale < math.inf or draws < 1:
        raise ValueError(f"scale, draws: got {scale!r} and {draws!r}; accepted are a number above 0 and at least 1")
    inside, outside = source(forget, name="forget"), source(unseen, name="unseen")
    deviation = deviation_of(outside)
    if math.isnan(deviation) or deviation == 0:
        return Noised(math.nan, math.nan, math.nan, deviation, NO_FLOATS if math.isnan(deviation) else "the inputs are constant")
    std = scale * deviation
    # the sets' noise comes of seeds of its own, or sample i of both would get the same
    one = noised_losses(model, inside, std, draws=draws, seed=2 * seed, forward=forward)
    two = noised_losses(model, outside, std, draws=draws, seed=2 * seed + 1, forward=forward)
    if bool(torch.isnan(one).any()) or bool(torch.isnan(two).any()):
        return Noised(math.nan, math.nan, math.nan, deviation, "the model answers NaN on noised samples")
    auc = float(roc_stats(-one, -two, fprs=()).auc)
    return Noised(auc, float(one.mean()), float(two.mean()), deviation, None)
