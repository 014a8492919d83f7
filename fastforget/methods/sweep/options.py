"""The sweep's options, and how a budget of sample passes becomes steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ..._trial import least_of
from ..cost import FORWARD
from ..engine.norms import has_statistics
from ..engine.terms import HOLDS
from ..options import check, given
from ..task import Task
from ..unsir.options import Options as ImageOptions
from . import images

# sample passes of a run without a budget of its own: at most, and epochs over the data to keep, up to twice as many the more the model
# has memorised
BUDGET, EPOCHS = 15_000, 2.0
A_SAMPLE = 28  # passes for each sample that goes, where that is more than BUDGET: each is shown eight times then
FLOOR = 2_400  # and at least: fewer steps forget nothing or lose much, however little data there is
BATCHES = {9_000: 32, 1_500: 16, 0: 8}  # the least budget, and its batches of unseen samples: more steps serve better than larger ones
SETTLE, CHECK = 6, 3  # steps whose samples batch norm's statistics are taken anew from, and whose samples say whether that helped
TRIALS = 16  # forget batches that finding precision and rate costs, at most
LEAST, MOST = 3, 20_000  # steps: fewer bring nothing, nor do more, whose draws would fill the memory
SHARE = 0.95  # of the steps that the budget has room for: one long sweep serves better than two short ones


@dataclasses.dataclass
class SweepOptions:
    """Every option of :class:`fastforget.methods.Sweep`."""

    rate: float | None = None
    steps: int | None = None
    sweeps: int = 3
    batch_size: int | None = None
    hold: str = "anchor"
    alike: float | None = None

    def __post_init__(self) -> None:
        check(self, {"hold": HOLDS}, ("sweeps", *given(self, ("steps", "batch_size"))), given(self, ("alike",)), (), given(self, ("rate",)))

    def receipt(self) -> dict[str, Any]:
        """Every option as given, JSON-able; what was found instead of ``None`` is the receipt's ``chosen``."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does: ``steps`` of each sweep (0: the budget has room for none), unseen samples in a step, samples in a step
    altogether, samples in a trial step, and how images are learned where there are no samples."""

    steps: int
    batch_size: int
    each: int
    trial: int
    images: ImageOptions | None = None

    def receipt(self) -> dict[str, Any]:
        """The plan, JSON-able."""
        return {**vars(self), "images": None if self.images is None else self.images.receipt()}


def kept_size(batch_size: int) -> int:
    """Samples to keep in a step: half as many again as unseen ones."""
    return batch_size + batch_size // 2


def forget_size(batch_size: int, of_classes: bool) -> int:
    """Samples to forget in a step: of classes half as many as unseen ones, so that they don't rule the statistics of batch norm; else as
    many, with which they are compared, and whose statistics are theirs as well."""
    return max(1, batch_size // 2) if of_classes else batch_size


def settling(model: nn.Module, each: int) -> int:
    """Sample passes, at most, of what batch norm's statistics cost at a sweep's end."""
    return -(-(SETTLE + 2 * CHECK) * each // FORWARD) if has_statistics(model) else 0


def own_budget(kept: int, samples: int, strength: float) -> int:
    """Sample passes of a run over ``kept`` samples to keep, with ``samples`` that go (0 for classes); ``strength``, 0 to 1: what the model
    has memorised of them."""
    return round(min(max(BUDGET, A_SAMPLE * samples), max(FLOOR, EPOCHS * (1 + strength) * kept)))


def plan(options: SweepOptions, task: Task, look: int, spare: int, known: int = 0) -> Plan:
    """The most steps that the budget has room for, with the teacher's passes, trials and looks (of ``look`` sample passes) beside them;
    ``spare`` sample passes are for looks at parts of the way, and come out of what :data:`SHARE` leaves, if that is enough; the teacher
    has answered ``known`` samples.

    Sets the run's own budget where the user gave none.
    """
    assert task.retain is not None
    if task.cost.budget is None:
        task.cost.budget = own_budget(len(task.retain), 0, 0.0)
    b = options.batch_size or next(size for least, size in BATCHES.items() if task.cost.budget >= least)
    if task.forget is None and options.batch_size is None:
        b = min(BATCHES.values())  # images take more steps
    of_classes = bool(task.classes)
    if forget_size(b, of_classes) == 1 and least_of(task.model, task.retain, task.forward) > 1:
        b = 4 if of_classes else 2  # two samples to forget, as batch norm can't train on one
    sizes = {"retain": kept_size(b), "nonmember": b if task.nonmember is not None else 0, "forget": forget_size(b, of_classes)}
    learned = None if task.forget is not None else images.options(len(task.classes), forget_size(b, of_classes))
    shown = forget_size(b, of_classes) if learned is None else learned.noise_batch * len(task.classes)
    each, trial = sizes["retain"] + sizes["nonmember"] + shown, forget_size(b, of_classes)
    room = task.cost.budget - task.cost.passes - look - TRIALS * trial - settling(task.model, each)
    if learned is not None:
        room -= learned.noise_steps * shown

    def costs(steps: int) -> int:
        """Steps, and what the teacher is asked for them: every sample once."""
        asked = sum(min(steps * n, len(getattr(task, name))) for name, n in sizes.items() if getattr(task, name) is not None)
        return steps * each + -(-max(0, asked - known) // FORWARD)

    most = min(max(room, 0) // each, MOST)
    while most and costs(most) > room:
        most -= 1
    steps = min(options.steps, most) if options.steps else min(round(SHARE * most), most - -(-spare // each))
    return Plan(steps if steps >= min(LEAST, options.steps or LEAST) else 0, b, each, trial, learned)
