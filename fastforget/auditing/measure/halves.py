"""What comes back when a model is taught a little of what it should have forgotten: the other half, the class from a few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._columns import Column
from ..._data import Source, source
from ..._modules import copy_of, dense_gradients
from ..._outputs import reading
from ..._random import own_randomness
from ..._weights import device_of, eval_mode
from ...ops.membership import membership_scores, roc_stats
from . import passes

Forward = Callable[[nn.Module, Any], Tensor]
STEPS, LR = 3, 0.05
HALVINGS = 12  # of a step that makes the loss larger: nets with batch norm at its stored statistics can't stand 0.05, or not 0.01
FEW, FEW_STEPS, FEW_LR, FEW_OTHERS = (1, 5, 10), 15, 1e-3, 4
HALVES = (
    f"AUC of the loss attack on the other half of the forget samples against unseen ones after {STEPS} steps of gradient descent at "
    f"{LR:g}, halved until the loss falls, on one half, mean over both ways round. What is only hidden comes back "
    "with its like; read it beside the retrained model's"
)
RELEARNING = (
    f"test accuracy on the forgotten classes after {FEW_STEPS} steps of Adam at {FEW_LR:g} on k samples of each and {FEW_OTHERS} times as "
    "many of the kept classes. Read it beside the retrained model's"
)
NEIGHBOURS = (
    "test accuracy on the two kept classes that the retrained model answers most often for samples of the forgotten ones; forgetting that "
    "goes too far takes these along"
)


class Halves(NamedTuple):
    """The mean AUC of both ways round, and each; NaN with a reason where there is none."""

    auc: float
    each: tuple[float, float]
    reason: str | None


class Neighbours(NamedTuple):
    """The classes nearest the forgotten ones, and a model's test accuracy on them."""

    classes: tuple[int, ...]
    accuracy: float
    reason: str | None


@contextmanager
def student(model: nn.Module) -> Iterator[nn.Module]:
    """A copy to be trained, in eval mode (batch norm and dropout as they are in use), all floating-point parameters training."""
    pupil = copy_of(model)
    for parameter in pupil.parameters():
        parameter.grad = None
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    pupil.eval()
    with torch.enable_grad(), dense_gradients(pupil):
        yield pupil


def _logits(model: nn.Module, inputs: Any, forward: Forward | None) -> Tensor:
    return reading(forward)(model, inputs)


def unteachable(model: nn.Module) -> str | None:
    """Why a model can't be trained at all."""
    if not any(p.is_floating_point() and p.numel() for p in model.parameters()):
        return "the model has no floating-point parameters that could be trained (quantised?)"
    return None


def _descend(model: nn.Module, held: Source, steps: int, lr: float, forward: Forward | None) -> bool:
    """Gradient descent on the whole set's mean cross-entropy, its gradient summed over the batches: each step is as long as ``lr`` says, or
    half of that, and so on, until it doesn't raise the loss. Whether there is such a step; the weights stay where there is none."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = False
    for _ in range(steps):
        for parameter in trained:
            parameter.grad = None
        loss = _loss(model, held, forward, descends=True)
        moved = [(p, p.detach().clone(), p.grad) for p in trained if p.grad is not None]
        with torch.no_grad():
            for halvings in range(HALVINGS + 1):
                for parameter, before, gradient in moved:
                    parameter.copy_(before.sub(gradient, alpha=lr / 2**halvings))
                if _loss(model, held, forward) <= loss:
                    found = True
                    break
            else:
                for parameter, before, _ in moved:
                    parameter.copy_(before)
    return found


def _loss(model: nn.Module, held: Source, forward: Forward | None, descends: bool = False) -> float:
    """The set's mean cross-entropy; ``descends``: its gradient too."""
    total = 0.0
    for inputs, labels in held.batches(device=device_of(model)):
        loss = F.cross_entropy(_logits(model, inputs, forward).float(), labels, reduction="sum") / len(held)
        if descends:
            loss.backward()
        total += loss.item()
    return total


def losses(model: nn.Module, held: Source, forward: Forward | None = None) -> Tensor:
    """Each sample's cross-entropy, float64[N] on the CPU, in eval mode."""
    kept = Column()
    with eval_mode(model), torch.no_grad():
        for inputs, labels in held.batches():
            logits = passes.batch_logits(model, inputs, forward, f"{held.name} set")
            kept.add(membership_scores(logits, labels.to(logits.device)).loss.double().cpu())
    return kept.joined()


def other_half(
    model: nn.Module,
    forget: Any,
    unseen: Any,
    *,
    steps: int = STEPS,
    lr: float = LR,
    seed: int = 0,
    forward: Forward | None = None,
) -> Halves:
    """The loss attack on one half of the forget samples after a few steps on the other half.

    A copy of the model is trained; with batch norm and dropout in eval mode, so that nothing but the weights moves. The halves are every
    other sample, and both take their turn.

    Args:
        model: stays as it is.
        forget, unseen: a DataLoader, a Dataset, an (inputs, labels) pair or a Source; unseen samples of the same classes.
        steps, lr: of gradient descent on the half's mean loss; a step that raises it is halved until it doesn't.
        seed: of dropout-like randomness that a model draws in eval mode.
        forward: (model, inputs) -> logits.

    Returns:
        :class:`Halves`; NaN, with the reason, for fewer than two forget samples or where nothing can be trained.

    Raises:
        ValueError: steps or a rate out of range, an empty set.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> x, y = torch.randn(40, 2), torch.arange(40) % 2
    >>> found = other_half(net, (x[:20], y[:20]), (x[20:], y[20:]))
    >>> 0 <= found.auc <= 1, found.reason
    (True, None)
    """
    if steps < 1 or not 0 < lr < math.inf:
        raise ValueError(f"steps, lr: got {steps!r} and {lr!r}; accepted are at least 1 and a number above 0")
    inside, outside = source(forget, name="forget"), source(unseen, name="unseen")
    reason = unteachable(model) or ("there are fewer than two forget samples" if len(inside) < 2 else None)
    if reason:
        return Halves(math.nan, (math.nan, math.nan), reason)
    halves = [inside.subset(torch.arange(start, len(inside), 2)) for start in (0, 1)]
    found = []
    for taught, judged in (halves, halves[::-1]):
        with own_randomness(seed), student(model) as pupil:
            try:
                descended = _descend(pupil, taught, steps, lr, forward)
            except RuntimeError as error:
                return Halves(math.nan, (math.nan, math.nan), f"a training step failed: {error}")
            one, two = losses(pupil, judged, forward), losses(pupil, outside, forward)
        if not descended:
            return Halves(math.nan, (math.nan, math.nan), f"no step from {lr:g} down to {lr / 2**HALVINGS:.1g} lowers the loss on one half")
        if bool(torch.isnan(one).any()) or bool(torch.isnan(two).any()):
            return Halves(math.nan, (math.nan, math.nan), f"losses are NaN after the steps at {lr:g}")
        found.append(float(roc_stats(-one, -two, fprs=()).auc))
    return Halves((found[0] + found[1]) / 2, (found[0], found[1]), None)


def relearned(
    model: nn.Module,
    forget: Any,
    retain: Any,
    test: Any,
    *,
    classes: Sequence[int],
    few: Sequence[int] = FEW,
    steps: int = FEW_STEPS,
    lr: float = FEW_LR,
    seed: int = 0,
    forward: Forward | None = None,
) -> tuple[dict[int, float], str | None]:
    """Test accuracy on the forgotten classes after a few steps on k of their samples: ``{k: accuracy}``, and the reason where NaN.

    Args:
        model: stays as it is.
        forget, retain, test: as for :func:`fastforget.audit`.
        classes: the forgotten classes.
        few: how many samples of each class are shown; a class with fewer gives all.
        steps, lr: of Adam; each step takes all samples at once.
        seed: which samples.
        forward: (model, inputs) -> logits.

    Raises:
        ValueError: ``few`` or ``steps`` below 1, no classes.

    >>> import torch
    >>> net = torch.nn.Linear(2, 3)
    >>> x, y = torch.randn(60, 2), torch.arange(60) % 3
    >>> again, reason = relearned(net, (x[y == 0], y[y == 0]), (x[y != 0], y[y != 0]), (x, y), classes=[0], few=(1, 5))
    >>> sorted(again), reason
    ([1, 5], None)
    """
    if not classes or min(few, default=0) < 1 or steps < 1:
        given = f"{list(classes)!r}, {list(few)!r}, {steps!r}"
        raise ValueError(f"classes, few, steps: got {given}; accepted are at least one class, and numbers of at least 1")
    inside, kept, judged = source(forget, name="forget"), source(retain, name="retain"), source(test, name="test")
    wanted = torch.tensor(sorted(classes))
    at = torch.isin(judged.labels(), wanted).nonzero()[:, 0]
    missing = torch.full((len(few),), math.nan).tolist()
    reason = unteachable(model) or ("the test set holds no sample of the forgotten classes" if not len(at) else None)
    if reason:
        return dict(zip(few, missing, strict=True)), reason
    of_class = judged.subset(at)
    generator = torch.Generator().manual_seed(seed)
    order, others = torch.randperm(len(inside), generator=generator), torch.randperm(len(kept), generator=generator)
    labels = inside.labels()[order]
    result = {}
    for k in few:
        shown = torch.cat([order[labels == c][:k] for c in wanted.tolist()])
        result[k] = _accuracy_after(model, inside, shown, kept, others[: FEW_OTHERS * len(shown)], of_class, steps, lr, seed, forward)
    return result, None


def _accuracy_after(
    model: nn.Module,
    forget: Source,
    shown: Tensor,
    retain: Source,
    beside: Tensor,
    judged: Source,
    steps: int,
    lr: float,
    seed: int,
    forward: Forward | None,
) -> float:
    device = device_of(model)
    batches = [*forget.at(shown.split(256), device=device), *retain.at(beside.split(256), device=device)]
    count = len(shown) + len(beside)
    with own_randomness(seed), student(model) as pupil:
        optimiser = torch.optim.Adam([p for p in pupil.parameters() if p.requires_grad], lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            for inputs, y in batches:
                (F.cross_entropy(_logits(pupil, inputs, forward).float(), y, reduction="sum") / count).backward()
            optimiser.step()
        return accuracy(pupil, judged, forward)


def accuracy(model: nn.Module, held: Source, forward: Forward | None = None) -> float:
    """The share of a set that the model answers rightly, in eval mode."""
    right = 0
    with eval_mode(model), torch.no_grad():
        for inputs, labels in held.batches():
            right += int((passes.batch_logits(model, inputs, forward, f"{held.name} set").argmax(1).cpu() == labels.cpu()).sum())
    return right / len(held)


def nearest_classes(predicted: Tensor, labels: Tensor, forgotten: Sequence[int], most: int = 2) -> tuple[int, ...]:
    """The kept classes that a retrained model answers most often for test samples of the forgotten classes; ties go to the lower id.

    >>> import torch
    >>> nearest_classes(torch.tensor([1, 1, 2, 3, 0]), torch.tensor([0, 0, 0, 0, 3]), [0])
    (1, 2)
    """
    gone = torch.tensor(sorted(forgotten))
    answers = predicted[torch.isin(labels, gone)]
    answers = answers[~torch.isin(answers, gone)]
    counts = torch.bincount(answers)
    order = sorted(range(len(counts)), key=lambda c: (-int(counts[c]), c))
    return tuple(c for c in order[:most] if counts[c])


def neighbours(predicted: Tensor, labels: Tensor, near: Sequence[int]) -> Neighbours:
    """A model's test accuracy on the classes ``near`` the forgotten ones, of its answers ``predicted`` int64[N] to the test set."""
    of_near = torch.isin(labels, torch.tensor(sorted(near), dtype=labels.dtype))
    if not near or not bool(of_near.any()):
        return Neighbours(tuple(near), math.nan, "the test set holds no sample of a class near the forgotten ones")
    return Neighbours(tuple(near), float((predicted == labels)[of_near].double().mean()), None)
