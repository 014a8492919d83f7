"""A request as it came becomes a task: sets that can be read, classes, and a copy of the model to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import _overlap, _weights
from .._data import Source, source
from .._labels import CLASSES, Reading
from .._outputs import reading
from .._trial import first_step
from . import checks
from .attack import losses_of
from .cost import budget_of
from .kind import Kind, Shown
from .language.request import SEQUENCES
from .registry import Method
from .task import Forward, Task
from .verdict import judge, look_before

HELD, HOLD_BACK = 1_024, 55  # unseen samples that a method doesn't train on, at most, and the purpose of their seed


@dataclass
class Sets:
    """The sets of a request, those that were given; ``test_kept``: the part of the test data that is of what is to be kept."""

    retain: Source | None
    forget: Source | None
    nonmember: Source | None
    test: Source | None
    test_kept: Source | None = None

    @classmethod
    def read(cls, unpack: Callable[[Any], tuple[Any, Any]] | None, reading: Reading = CLASSES, **data: Any) -> Sets:
        read = {name: None if value is None else source(value, name=name, unpack=unpack, reading=reading) for name, value in data.items()}
        return cls(**read)

    def given(self) -> list[Source]:
        return [data for data in (self.retain, self.forget, self.nonmember, self.test) if data is not None]


def wanted_classes(method: Method, classes: Any, forget: Source | None) -> list[int]:
    """The classes to forget; none where a method is asked to forget the samples of ``forget``, whatever their class."""
    by_samples = method.scope == "samples"
    wanted = [] if by_samples and classes is None and forget is not None else checks.class_list(classes, forget)
    if by_samples and method.name != "none" and forget is None and (not wanted or getattr(method, "needs_forget", True)):
        raise ValueError(f"forget: not given; {method.name} needs the data to forget (for whole classes: samples of them)")
    return wanted


def check_classifier(
    model: nn.Module, forward: Forward, given: list[Source], classes: list[int], device: torch.device, method: Method
) -> Shown:
    """Refuses what isn't a classifier with labels that fit it."""
    probed = checks.probe(model, forward, given[0], device, getattr(method, "learns_noise", False))
    checks.known_classes(classes, probed.outputs)
    for data in given:
        checks.label_range(data, probed.outputs)
    first_step(model, probed.inputs, probed.labels, forward, modes=getattr(method, "gradients", ()))
    return Shown(probed.outputs)


def right(task: Task, data: Source) -> Tensor:
    """bool[N]: which samples of a set the task's model answers right, in eval mode."""
    return task.answers(data).eq(data.labels())


CLASSIFIER = Kind(
    "samples", CLASSES, wanted_classes, check_classifier, look_before, judge, right, losses_of, lambda model, forward, data: None
)


def kind_of(method: Method) -> Kind:
    """What the method's requests are about."""
    return kind_asked(method.scope == "sequences")


def kind_asked(sequences: bool) -> Kind:
    """By whether sequences of a language model are forgotten."""
    return SEQUENCES if sequences else CLASSIFIER


def make_task(
    model: nn.Module,
    method: Method,
    classes: list[int],
    sets: Sets,
    *,
    forward: Forward,
    device: torch.device,
    seed: int,
    progress: bool,
    drop_forget: bool,
    budget: int | str | None = None,
    precision: str | None = None,
) -> Task:
    """A task on a copy of the model, with sets that hold what their names say; refuses what can't serve."""
    given = sets.given()
    if not given:
        raise ValueError("retain: not given; accepted is a DataLoader, a Dataset or an (inputs, labels) pair of data to keep")
    work = _weights.working_copy(model)
    forward = reading(forward)
    probed = kind_of(method).check(work, forward, given, classes, device, method)
    checks.must_be_answered(work, forward, given, device)
    sets = _by_class(sets, classes, drop_forget, method) if classes else replace(sets, test_kept=sets.test)
    task = Task(
        work, forward, classes, probed.outputs, device, seed, progress, sets.retain, sets.forget, sets.test, sets.nonmember,
        test_kept=sets.test_kept, original=model, head=probed.head,
    )  # fmt: skip
    if getattr(method, "holds_back", False) and not classes and task.nonmember is not None and len(task.nonmember) > 3:
        held = min(HELD, len(task.nonmember) // 3)
        task.nonmember, task.held = task.nonmember.split(held, task.generator(HOLD_BACK))
    task.cost.budget, task.cost.asked = budget_of(budget, None if sets.retain is None else len(sets.retain)), budget is not None
    task.precision = checks.precision(precision) or ("auto" if method.name == "sweep" else "float32")
    return task


def count_overlap(task: Task) -> dict[str, Any]:
    """Counts of forget samples in other sets, by their names. Not of whole classes: by label their samples have been refused or left out of
    what is kept and unseen, and those of ``test`` only measure."""
    if task.classes or task.forget is None:
        return {}
    return _overlap.check(task.forget, [data for data in (task.retain, task.nonmember, task.test) if data is not None])


def _by_class(sets: Sets, classes: list[int], drop_forget: bool, method: Method) -> Sets:
    """Each set's part: of the classes to forget what is to be forgotten and measured, of the others what is kept and unseen."""
    by_class = method.name if method.scope == "classes" and sets.forget is not None else None
    return Sets(
        retain=sets.retain and checks.clean_retain(sets.retain, classes, drop_forget, by_class),
        forget=sets.forget and _only(sets.forget, classes, required=True),
        test=sets.test and _only(sets.test, classes, required=False),
        test_kept=sets.test and _without(sets.test, classes, required=False),
        nonmember=sets.nonmember and _without(sets.nonmember, classes, required=True),
    )


def _only(data: Source, classes: list[int], *, required: bool) -> Source | None:
    """The set's samples of these classes."""
    inside = torch.isin(data.labels(), torch.tensor(classes)).nonzero()[:, 0]
    if len(inside) == 0 and required:
        raise ValueError(f"{data.name}: holds no sample of classes={classes}; accepted is data of the classes to forget")
    return data.subset(inside) if len(inside) else None


def _without(data: Source, classes: list[int], *, required: bool) -> Source | None:
    """The set's samples of other classes: a model that never saw the classes wouldn't answer with them."""
    outside = (~torch.isin(data.labels(), torch.tensor(classes))).nonzero()[:, 0]
    if len(outside) == 0 and required:
        raise ValueError(f"{data.name}: holds only samples of classes={classes}; accepted is data of other classes, never trained on")
    return data.subset(outside) if len(outside) else None
