"""Relearn time: how soon a model knows the forget set again when it is trained on. Three published definitions, which disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _data
from ..._caller import Caller
from ..._data import Source
from ..._labels import classes_alone
from ..._modules import copy_of, dense_gradients, refuse_half, refuse_kind
from ..._outputs import Forward, reading
from ..._progress import Progress
from ..._progress import progress as progress_bar
from ..._trial import explained, least_of, refuse_single_gradients
from ..._weights import device_of, training_mode
from ..figures import Probe, RelearnProbe
from ..names import FOR_SEQUENCES
from . import passes


class Definition(NamedTuple):
    """One definition's defaults."""

    unit: str
    samples: int | None  # in an epoch, drawn at random; None: the whole set
    replacement: bool
    optimizer: str
    lr: float
    cap: int
    goal: str
    tolerance: float
    source: str


DEFINITIONS = {
    "unsir": Definition(
        "epochs", 500, False, "SGD", 0.01, 100, "accuracy", 0.0,
        "epochs of 500 random training samples until the original's accuracy on the forget set, 100 at most (Tarun et al., TNNLS'23, whose "
        "paper names neither optimiser nor rate: SGD at 0.01 here, as in Golatkar et al.)",
    ),
    "golatkar": Definition(
        "epochs", 500, True, "SGD", 0.01, 100, "loss", 1e-5,
        "epochs of 500 training samples drawn with replacement, SGD at 0.01 without momentum or decay, until the mean loss on the forget "
        "set is at most the original's + 1e-5, 100 at most (Golatkar et al., CVPR'20, and SCRUB's code)",
    ),
    "ain": Definition(
        "batches", None, False, "Adam", 1e-3, 10, "accuracy", 0.05,
        "mini-batches of the whole training set, Adam at 0.001, until 95 % of the original's accuracy on the forget set, looked at after "
        "every batch, 10 epochs at most (Chundawat et al., TIFS'23)",
    ),
}  # fmt: skip
LABELS = classes_alone("ff.audit.relearn_time", FOR_SEQUENCES["relearn"])
AIN = (
    "anamnesis index: relearn time of the model / of the retrained model, in mini-batches (Chundawat et al., TIFS'23); 1 is the aim, well "
    "under 1 means that knowledge was left, well over 1 that the forgetting itself can be seen"
)


class RelearnTime(NamedTuple):
    """``value`` in ``unit``; where ``reached`` is false it is the cap, and the true one is larger. ``trace`` is the forget set's accuracy
    (or mean loss) before training and after each step of the count."""

    value: int
    unit: str
    reached: bool
    cap: int
    goal: float
    trace: list[float]
    definition: str
    convention: str


def relearn_time(
    model: nn.Module,
    *,
    train: Any,
    forget: Any,
    original_accuracy: float | None = None,
    original_loss: float | None = None,
    definition: str = "unsir",
    lr: float | None = None,
    samples: int | None = None,
    tolerance: float | None = None,
    cap: int | None = None,
    batch_size: int | None = None,
    unpack: Callable[[Any], tuple[Any, Tensor]] | None = None,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RelearnTime:
    """Trains a copy of the model on until it knows the forget set as the original did, and counts.

    0 means that it never forgot: the goal is looked at before the first step too. A short time against the retrained model's says that
    knowledge was left in the weights; read it beside the retrained model's, never alone.

    Args:
        model: stays as it is, weights, modes and random state included.
        train: the full training set, forget samples included: a DataLoader, a Dataset or an (inputs, labels) pair.
        forget: the forget set.
        original_accuracy: the original model's accuracy on the forget set, in [0, 1]; for "unsir" and "ain".
        original_loss: its mean cross-entropy there; for "golatkar".
        definition: which of the published ones:

            - ``"unsir"``: epochs of 500 random samples until the original accuracy
            - ``"golatkar"``: the same, drawn with replacement, until the original loss + 1e-5
            - ``"ain"``: mini-batches until 95 % of the original accuracy; the anamnesis index is the ratio to the retrained model's

        lr, samples, tolerance, cap: instead of the definition's (``cap`` in epochs); the convention in the result says so.
        batch_size: of the training; default the loader's, else 256.
        unpack, forward: as for ``ff.audit``.
        seed: of the draws, of dropout and of augmentation.
        progress: show a bar when the output is a terminal.

    Returns:
        :class:`RelearnTime`.

    Raises:
        ValueError: an unknown definition, its goal not given or out of range, an empty set, no parameter that trains.
        TypeError: a set that can't be read.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> x = torch.cat((torch.randn(60, 2) + 3, torch.randn(60, 2) - 3))
    >>> y = torch.arange(120) // 60
    >>> fresh = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     _ = fresh.weight.zero_(), fresh.bias.copy_(torch.tensor([0.0, 1.0]))
    >>> time = relearn_time(fresh, train=(x, y), forget=(x[:60], y[:60]), original_accuracy=1.0)
    >>> time.reached, time.unit, time.value > 0, time.trace[0]
    (True, 'epochs', True, 0.0)
    """
    refuse_kind("model", model)
    rule = _rule(definition, lr, samples, tolerance, cap)
    goal = _goal(rule, definition, original_accuracy, original_loss)
    with Caller() as caller, caller.aside("relearn_time", seed):
        whole = _data.source(train, name="train", unpack=unpack, batch_size=batch_size, reading=LABELS)
        target = _data.source(forget, name="forget", unpack=unpack, reading=LABELS)
        student = copy_of(model)
        if not any(p.requires_grad for p in student.parameters()):
            raise ValueError("model: none of its parameters requires grad; accepted is a model that can be trained on")
        refuse_half("relearn, model", student)
        call = reading(caller.own(forward))
        epoch = rule.samples if rule.samples and rule.replacement else min(len(whole), rule.samples or len(whole))
        least = least_of(student, whole, call) if epoch % whole.batch_size == 1 else 1
        with dense_gradients(student):
            value, trace = _train(student, model, whole, target, rule, goal, call, seed, progress, least)
    convention = rule.source if rule == DEFINITIONS[definition] else f"{rule.source}; CHANGED: {_changes(rule, DEFINITIONS[definition])}"
    reached = value is not None
    most = rule.cap if rule.unit == "epochs" else len(trace) - 1
    return RelearnTime(most if value is None else value, rule.unit, reached, rule.cap, goal, trace, definition, convention)


def _rule(definition: str, lr: float | None, samples: int | None, tolerance: float | None, cap: int | None) -> Definition:
    if definition not in DEFINITIONS:
        raise ValueError(f"definition: got {definition!r}; accepted are {', '.join(map(repr, DEFINITIONS))}")
    given: dict[str, Any] = {"lr": lr, "samples": samples, "tolerance": tolerance, "cap": cap}
    given = {name: value for name, value in given.items() if value is not None}
    for name, low in (("lr", 0.0), ("tolerance", -1e-300), ("samples", 0), ("cap", 0)):
        if name in given and not (low < given[name] < math.inf):
            raise ValueError(f"{name}: got {given[name]!r}; accepted is a number above 0{' (or 0)' if name == 'tolerance' else ''}")
    if "samples" in given and DEFINITIONS[definition].samples is None:
        raise ValueError(f"samples: {definition!r} trains on the whole set; leave samples out")
    return DEFINITIONS[definition]._replace(**given)


def _changes(rule: Definition, default: Definition) -> str:
    names = [name for name in ("lr", "samples", "tolerance", "cap") if getattr(rule, name) != getattr(default, name)]
    return ", ".join(f"{name} {getattr(rule, name)}" for name in names)


def _goal(rule: Definition, definition: str, accuracy: float | None, loss: float | None) -> float:
    name, value = ("original_accuracy", accuracy) if rule.goal == "accuracy" else ("original_loss", loss)
    if value is None:
        raise ValueError(f"{name}: got None; definition={definition!r} stops at the original model's, so pass it")
    if not (0 <= value < math.inf) or (rule.goal == "accuracy" and value > 1):
        raise ValueError(f"{name}: got {value!r}; accepted is {'a share from 0 to 1' if rule.goal == 'accuracy' else 'a finite loss >= 0'}")
    return value + rule.tolerance if rule.goal == "loss" else value * (1 - rule.tolerance)


def _train(
    model: nn.Module,
    given: nn.Module,
    train: Source,
    forget: Source,
    rule: Definition,
    goal: float,
    forward: Forward,
    seed: int,
    progress: bool,
    least: int,
) -> tuple[int | None, list[float]]:
    """The count at which the goal was reached (None: never), and the goal's figure all along."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = (torch.optim.SGD if rule.optimizer == "SGD" else torch.optim.Adam)(trained, lr=rule.lr)
    generator = torch.Generator().manual_seed(seed)
    trace = [_figure(model, forget, rule, forward)]
    if _reached(trace[0], goal, rule):
        return 0, trace
    bar: Progress[int] = progress_bar(rule.cap, f"relearn, {rule.unit}", progress)
    with bar:
        for _ in range(rule.cap):
            for inputs, labels in _epoch(train, rule, generator, least):
                training_mode(model, given)
                _step(model, optimizer, inputs, labels, forward)
                if rule.unit == "batches":
                    trace.append(_figure(model, forget, rule, forward))
                    if _reached(trace[-1], goal, rule):
                        return len(trace) - 1, trace
            if rule.unit == "epochs":
                trace.append(_figure(model, forget, rule, forward))
                if _reached(trace[-1], goal, rule):
                    return len(trace) - 1, trace
            bar.step(note=f"{trace[-1]:.3f} of {goal:.3f}")
    return None, trace


def _reached(figure: float, goal: float, rule: Definition) -> bool:
    # rounding of a share must not cost an epoch
    return figure <= goal if rule.goal == "loss" else figure >= goal - 1e-12


def _epoch(train: Source, rule: Definition, generator: torch.Generator, least: int) -> Iterator[tuple[Any, Tensor]]:
    if rule.samples is None:
        return train.batches(generator=generator, least=least)
    if rule.replacement:
        order = torch.randint(len(train), (rule.samples,), generator=generator)
    else:
        order = torch.randperm(len(train), generator=generator)[: rule.samples]
    return train.at(_data.cut(order, train.batch_size, least))


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Any,
    labels: Tensor,
    forward: Forward,
) -> None:
    device = device_of(model)
    moved = _data.move(inputs, device)
    with explained("relearn, model"):
        logits = forward(model, moved)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels.to(device)).backward()
        refuse_single_gradients("relearn, model", model)
    optimizer.step()


@torch.no_grad()
def _figure(model: nn.Module, forget: Source, rule: Definition, forward: Forward) -> float:
    model.eval()
    total, n = 0.0, 0
    for inputs, labels in forget.batches():
        logits = passes.batch_logits(model, inputs, forward, "relearn, forget set")
        labels = labels.to(logits.device)
        if rule.goal == "loss":
            total += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
        else:
            total += float((logits.argmax(dim=1) == labels).sum())
        n += len(labels)
    return total / n


def probes(
    models: dict[str, nn.Module],
    definitions: tuple[str, ...],
    *,
    train: Any,
    forget: Source,
    accuracy: float,
    loss: float,
    **options: Any,
) -> dict[str, dict[str, Probe]]:
    """The probes of an audit, by model and name: ``relearn_time_<definition>`` each, and ``ain`` beside the retrained model.

    ``accuracy`` and ``loss`` are the original's on the forget set; NaN where there is no original.
    """
    by_model: dict[str, dict[str, Probe]] = {name: {} for name in models}
    for definition in definitions:
        times: dict[str, RelearnTime] = {}
        for name, model in models.items():
            probe = f"relearn_time_{definition}"
            if math.isnan(accuracy):
                reason = 'no model named "original" was given, whose accuracy or loss is the goal'
                by_model[name][probe] = Probe(math.nan, reason=reason, convention=DEFINITIONS[definition].source)
                continue
            times[name] = relearn_time(
                model, train=train, forget=forget, original_accuracy=accuracy, original_loss=loss, definition=definition, **options
            )
            by_model[name][probe] = _probe(times[name])
        if definition == "ain":
            for name in models:
                by_model[name]["ain"] = _index(times.get(name), times.get("retrained"))
    return by_model


def _probe(time: RelearnTime) -> RelearnProbe:
    reason = None if time.reached else f"not reached in {time.cap} epochs: the true value is larger"
    return RelearnProbe(
        float(time.value), reason=reason, convention=time.convention, unit=time.unit, reached=time.reached, trace=time.trace
    )


def _index(time: RelearnTime | None, retrained: RelearnTime | None) -> Probe:
    if time is None or retrained is None:
        return Probe(math.nan, reason="it needs an original and a retrained model", convention=AIN)
    if not retrained.reached or retrained.value == 0:
        why = "did not relearn within the cap" if not retrained.reached else "knows the forget set without relearning"
        return Probe(math.nan, reason=f"the retrained model {why}", convention=AIN)
    reason = None if time.reached else "the model did not relearn within the cap: a lower bound"
    return Probe(time.value / retrained.value, reason=reason, convention=AIN)
