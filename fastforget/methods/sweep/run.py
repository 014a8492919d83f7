"""The sweep's loop: draw, push and hold at a falling rate, look, and once more where what was to be forgotten is still known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..._text import percent
from ...ops import membership
from ..attack import auc_of
from ..cost import FORWARD
from ..engine import norms, precision
from ..engine.drawn import Drawn, together
from ..engine.loop import cosine, descend, must_be_finite, steps, trainable, training
from ..engine.tensorwise import TensorwiseAdam
from ..task import Task
from .images import Images
from .objective import Objective, Step, first, lost
from .options import CHECK, SETTLE, SweepOptions, forget_size, kept_size, plan, settling
from .rate import few_trained, size, steady

RETAIN_ORDER, UNSEEN_ORDER, FORGET_ORDER, LOOK_ORDER = 61, 62, 63, 64  # purposes of seeds
LIMIT = 0.03  # of the rate
FEW = 0.05  # the same where most weights are frozen (adapters): the few others must move further for the same change
BY_IMAGES = 0.01  # the same without samples of the classes, where no look can say that it was too much
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
LOOK = 512  # samples that a look takes of a set, at most
MARGIN = 1.0  # standard errors that the loss attack's AUC may be from a half
AGAIN = {"classes": 4.0, "samples": 2.0}  # each further sweep's rate over the last one's
HALVINGS = 4
PARTS = 0.5, 0.25  # of the way of a sweep that cost too much
LOST = 0.01  # of the unseen samples answered right, a sweep for samples may cost, and what chance explains


class Looked(TypedDict, total=False):
    """What a sweep ended with: what is still known, and whether it is gone (None: there are no samples to look at)."""

    rate: float
    known: float
    gone: bool | None
    right: float  # share of unseen samples answered right
    undone: bool  # the sweep cost too many of those, and was undone
    too_far: bool  # samples are fitted worse than unseen ones
    part: float  # of the way of the last sweep that was kept then


def some_to_forget(task: Task) -> Source | None:
    """What a look takes of the forget set. Of several classes as many each, where they have them: all must be gone, the rarest too."""
    data, generator = task.forget, task.generator(LOOK_ORDER)
    if data is None or len(data) <= LOOK or len(task.classes) < 2:
        return None if data is None else data.at_most(LOOK, generator)
    order = torch.randperm(len(data), generator=generator)
    labels, turn = data.labels()[order], torch.empty_like(order)
    for c in task.classes:
        turn[labels == c] = torch.arange(int((labels == c).sum()))
    return data.subset(order[turn.argsort(stable=True)[:LOOK]].sort().values)


class Run:
    """One run: batches, rate, and what the looks see."""

    def __init__(self, options: SweepOptions, task: Task) -> None:
        self.options, self.task = options, task
        self.own = task.cost.budget is None  # the budget may be extended where it is the run's own
        self.looked = some_to_forget(task)
        self.plan = plan(options, task, 2 * self._look_costs(), 0 if task.classes else len(PARTS) * self._look_costs())
        self.done: list[Looked] = []
        # share of the held unseen samples that the original answers right, where samples are to go
        self.first: float | None = None
        if not self.plan.steps:
            task.cost.stopped_by_budget = True
            return
        assert task.retain is not None
        if not task.classes:
            self.first = self._look()["right"]
        self.form = self._precision()
        # images are learned, and the teacher is asked, while the model is the original
        b, most = self.plan.batch_size, self.plan.steps
        self.kept = Drawn(task, task.retain, kept_size(b), most, RETAIN_ORDER)
        self.unseen = Drawn(task, task.nonmember, b, most, UNSEEN_ORDER) if task.nonmember is not None else None
        self.forget: Drawn | Images
        if task.forget is not None:
            self.forget = Drawn(task, task.forget, forget_size(b), most, FORGET_ORDER)
        else:
            assert self.plan.images is not None
            self.forget = Images(task, self.plan.images)
        self.objective = Objective(options, task, self.kept, self.unseen)
        self.rate = self._found() if options.rate is None else options.rate

    def _drawn(self) -> Iterator[Step]:
        return map(Step._make, zip(self.kept, self.unseen or itertools.repeat(None), self.forget, strict=False))

    def _found(self) -> float:
        """The rate: what the model stands, and no more than experience allows."""
        limit = LIMIT if isinstance(self.forget, Drawn) else BY_IMAGES
        if few_trained(self.task.model):
            limit = FEW
        found = steady(self.task, self.kept, lambda: self.objective.parts(next(self._drawn()))[1], self.objective.strength)
        return min(limit, found)

    def run(self) -> dict[str, Any]:
        if not self.plan.steps:
            return {"chosen": self.plan.receipt(), "measured": {"sweeps": []}}
        task, rate = self.task, self.rate
        for number in range(self.options.sweeps):
            whole = self.plan.steps * self.plan.each + settling(task.model, self.plan.each) + self._look_costs()
            if number and self.own and task.classes and task.cost.left() < whole:
                task.cost.budget = (task.cost.budget or 0) + whole
            if not task.cost.has_room(whole):
                break
            before = _weights.save(task.model)
            self._sweep(rate, number)
            look: Looked = {"rate": rate, **self._look()}
            self.done.append(look)
            if look.get("too_far"):
                self._halfway_back(before)
            costly = self._costly(look)
            if costly:
                self._back(before)
            task.history.append({"phase": "look", **look})
            if costly or look["gone"] is not False or look.get("too_far"):
                break
            rate *= AGAIN["classes" if task.classes else "samples"]
        return {
            "chosen": {"rate": self.rate, "alike": self.objective.alike, **self.plan.receipt(), "form": self.form},
            "measured": {"memorised": self.objective.memory, "sweeps": self.done},
        }

    def _costly(self, look: Looked) -> bool:
        """Whether a sweep for samples cost more of what the model answers right on unseen data than chance explains."""
        if self.first is None:
            return False
        assert self.task.held is not None
        error = math.sqrt(self.first * (1 - self.first) / len(self.task.held))
        return self.first - look["right"] > LOST + MARGIN * error

    def _look_costs(self) -> int:
        """Sample passes of a look."""
        held = self.task.held if not self.task.classes else None
        return -(-(len(self.looked or ()) + len(held or ())) // FORWARD)

    def _halfway_back(self, before: dict[str, Tensor]) -> None:
        """Samples that are fitted worse than unseen ones stand out: goes back towards the weights before the last sweep, half of the way
        left each time, until they don't."""
        after, low, high = _weights.save(self.task.model), 0.0, 1.0
        for _ in range(HALVINGS):
            part = (low + high) / 2
            if not self._at(part, before, after):
                break
            if self.done[-1]["gone"]:
                return
            low, high = (low, part) if self.done[-1].get("too_far") else (part, high)

    def _back(self, before: dict[str, Tensor]) -> None:
        """A sweep that cost too much is kept in part, where a half or a quarter of its way costs no more than chance explains; else it is
        undone. The verdict's ``why`` says so."""
        assert self.task.held is not None and self.first is not None
        after, look = _weights.save(self.task.model), self.done[-1]
        whole = look.copy()
        way = whole.pop("part", 1.0)
        if any(self._at(part, before, after) and not self._costly(look) for part in PARTS):
            look["part"] *= way
            done = f"{percent(look['part'])} of the way of sweep {len(self.done)} was kept"
        else:
            _weights.put_back(self.task.model, before)
            look.update(whole)
            look.pop("part", None)
            look["undone"] = True
            done = f"sweep {len(self.done)} was undone"
        right = f"{percent(whole['right'])} of {len(self.task.held)} unseen samples right, {percent(self.first)} before"
        self.task.remark = f"{done}, as it left {right}"

    def _at(self, part: float, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
        """Puts the model on the way between weights, and looks; False, and as it was, where the budget has no room for that."""
        if not self.task.cost.has_room(self._look_costs()):
            return False
        between = {k: v if not v.is_floating_point() else before[k].lerp(v, part) for k, v in after.items()}
        _weights.put_back(self.task.model, between)
        self.done[-1].update(self._look())
        self.done[-1]["part"] = part
        return True

    def _precision(self) -> dict[str, Any]:
        """Chosen first: the teacher's passes run in it too."""
        assert self.task.retain is not None
        size = min(self.plan.trial, len(self.task.retain))
        trial = self.task.cut(torch.arange(size), size, self.task.retain)
        (inputs, labels), *_ = self.task.retain.at(trial, device=self.task.device)
        return precision.choose(self.task, inputs, labels)

    def _sweep(self, rate: float, number: int) -> None:
        """One sweep from the weights as they are."""
        task, most = self.task, self.plan.steps
        params = trainable(task.model)
        optimizer = TensorwiseAdam(params, [rate * size(p) for p in params])
        total = torch.zeros((), device=task.device)
        counted = steps(task, most, "sweep", each=self.plan.each, label=f"sweep {number + 1}")
        with training(task, "train"):
            for step, drawn in zip(counted, self._drawn(), strict=False):
                optimizer.at(cosine(step, most))
                loss = self.objective(drawn)
                descend(task, optimizer, loss)
                if isinstance(drawn.forget, Images):
                    drawn.forget.move()
                total += loss.detach()
            self._settle()
        mean = must_be_finite(total / most, f"sweep {number + 1}", rate, "Lower rate=")
        task.history.append({"phase": "sweep", "rate": rate, "loss": mean, "steps": most})

    def _settle(self) -> None:
        """Batch norm's statistics lag behind weights that move fast and for few steps: takes them anew from kept and unseen samples, and
        keeps those with which the model answers others of them more as the original did."""
        task = self.task
        if not norms.moving(task.model):
            return
        sets = [first(data, SETTLE + CHECK) for data in (self.kept, self.unseen) if data is not None]
        check = [batch for batches in sets for batch in batches[-CHECK:]]
        before, was = _weights.save(task.model), lost(task, check)
        norms.settle(task, (part for batches in zip(*sets, strict=False) for part in together([batch.inputs for batch in batches])))
        if lost(task, check) > was:
            _weights.put_back(task.model, before)

    def _look(self) -> Looked:
        task = self.task
        if self.looked is None:
            return {"gone": None}
        with task.cost.phase("looks"):
            if task.classes:
                known = max(task.right_by_class(self.looked, task.classes).values())
                return {"known": known, "gone": known <= GONE}
            assert task.held is not None
            others, wanted = task.logits(task.held), task.logits(self.looked)
            auc, error = auc_of(*(membership.membership_scores(*answers).loss for answers in (wanted, others)))
            right = others[0].argmax(1).eq(others[1]).double().mean().item()
            return {"known": auc, "gone": abs(auc - 0.5) <= MARGIN * error, "too_far": auc < 0.5 - MARGIN * error, "right": right}
