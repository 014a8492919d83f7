"""The sweep's loop: draw, push and hold at a falling rate, look, and once more where what was to be forgotten is still known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._text import percent
from ..attack import of_same_classes
from ..engine import norms, precision
from ..engine.drawn import Drawn, together
from ..engine.loop import cosine, descend, must_be_finite, steps, trainable, training
from ..engine.tensorwise import TensorwiseAdam
from ..task import Task
from .images import Images
from .looks import Looked, Looks
from .objective import SOME, Objective, Step, first, lost
from .options import CHECK, SETTLE, Plan, SweepOptions, forget_size, kept_size, own_budget, plan, settling
from .rate import LESS, LOOSER, few_trained, memorised, size, steady, strength

RETAIN_ORDER, UNSEEN_ORDER, FORGET_ORDER = 61, 62, 63  # purposes of seeds
LIMIT = 0.03  # of the rate
FEW = 0.05  # the same where most weights are frozen (adapters): the few others must move further for the same change
BY_IMAGES = 0.01  # the same without samples of the classes, where no look can say that it was too much
AGAIN = {"classes": 4.0, "samples": 2.0}  # each further sweep's rate over the last one's
HALVINGS = 4
# of the way of a sweep that cost too much, of which the first that costs less is kept: classes must be gone there, too
PARTS = {"classes": (0.75, 0.5), "samples": (0.75, 0.5, 0.25)}


class Run:
    """One run: batches, rate, and what the looks see."""

    def __init__(self, options: SweepOptions, task: Task) -> None:
        self.options, self.task = options, task
        self.own = task.cost.budget is None  # the budget may be extended where it is the run's own
        self.kind = "classes" if task.classes else "samples"
        self.looks, self.done, self.same = Looks(task), list[Looked](), self._same()
        self.plan = self._planned()
        if not self.plan.steps:
            task.cost.stopped_by_budget = True
            return
        assert task.retain is not None
        self.form = self._precision()
        # images are learned, and the teacher is asked, while the model is the original
        self.kept, self.unseen = self._to_hold()
        memory = memorised(self.kept, self.unseen)
        if self.own and self._has_more(memory):
            self.kept, self.unseen = self._to_hold(self.kept, self.unseen)
        b, most = self.plan.batch_size, self.plan.steps
        self.looks.first(self.unseen)
        self.forget: Drawn | Images
        if task.forget is not None:
            self.forget = Drawn(task, task.forget, forget_size(b, bool(task.classes)), most, FORGET_ORDER)
        else:
            assert self.plan.images is not None
            self.forget = Images(task, self.plan.images)
        same = None if task.forget is None or self.same is None else task.forget.labels().unique()
        self.objective = Objective(options, task, self.kept, self.unseen, memory, b, same)
        self.rate = self._found() if options.rate is None else options.rate

    def _planned(self, known: int = 0) -> Plan:
        """``known``: samples whose teacher's answers are there."""
        spare = 0 if self.task.classes else len(PARTS["samples"]) * self.looks.costs
        return plan(self.options, self.task, 2 * self.looks.costs, spare, known)

    def _to_hold(self, kept: Drawn | None = None, unseen: Drawn | None = None) -> tuple[Drawn, Drawn | None]:
        """What the model is held by: drawn for the plan, with the teacher's answers that an earlier draw has."""
        task, b, most = self.task, self.plan.batch_size, self.plan.steps
        assert task.retain is not None
        drawn = Drawn(task, task.retain, kept_size(b), most, RETAIN_ORDER, kept)
        return drawn, None if task.nonmember is None else Drawn(task, task.nonmember, b, most, UNSEEN_ORDER, unseen, self.same)

    def _same(self) -> Tensor | None:
        """Which unseen samples those to be forgotten are to be like, bool[N]; ``None``: all, where most are of the same
        classes, or too few."""
        task = self.task
        if task.classes or task.forget is None or task.nonmember is None:
            return None
        same = of_same_classes(task.forget, task.nonmember, SOME)
        return None if same is None or 2 * int(same.sum()) >= len(same) else same

    def _has_more(self, memory: float) -> bool:
        """Gives the run more passes where unseen data shows that the model has memorised; whether it did."""
        task = self.task
        assert task.retain is not None and task.cost.budget is not None
        told = 0.0 if self.unseen is None or few_trained(task.model) else strength(memory)
        more = own_budget(len(task.retain), 0 if task.classes else len(task.forget or ()), told)
        if more <= task.cost.budget:
            return False
        task.cost.budget = more
        self.plan = self._planned(len(self.kept.used) + len(self.unseen.used if self.unseen else ()))
        return True

    def _drawn(self) -> Iterator[Step]:
        return map(Step._make, zip(self.kept, self.unseen or itertools.repeat(None), self.forget, strict=False))

    def _found(self) -> float:
        """The rate: what the model stands, and no more than experience allows."""
        limit = LIMIT if isinstance(self.forget, Drawn) else BY_IMAGES
        if few_trained(self.task.model):
            limit = FEW
        objective = self.objective
        looser = LOOSER if objective.tighter or not self.task.classes else LESS
        found = steady(self.task, self.kept, lambda: objective.parts(next(self._drawn()))[1], looser * objective.strength**2)
        return min(limit, found)

    def run(self) -> dict[str, Any]:
        if not self.plan.steps:
            return {"chosen": self.plan.receipt(), "measured": {"sweeps": []}}
        task, rate = self.task, self.rate
        for number in range(self.options.sweeps):
            whole = self.plan.steps * self.plan.each + settling(task.model, self.plan.each) + self.looks.costs
            if number and self.own and task.classes and task.cost.left() < whole:
                task.cost.budget = (task.cost.budget or 0) + whole
            if not task.cost.has_room(whole):
                break
            before = _weights.save(task.model)
            self._sweep(rate, number)
            look: Looked = {"rate": rate, **self.looks.take()}
            self.done.append(look)
            if look.get("too_far"):
                self._halfway_back(before)
            costly = look.get("costly", False) and not self._known(look)
            if costly:
                self._back(before)
            task.history.append({"phase": "look", **look})
            if costly or look["gone"] is not False or look.get("too_far"):
                break
            rate *= AGAIN[self.kind]
        return {
            "chosen": {"rate": self.rate, **self.objective.receipt(), **self.plan.receipt(), "form": self.form},
            "measured": {"memorised": self.objective.memory, "sweeps": self.done},
        }

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
        """A sweep that cost too much is kept in part, where a part of its way costs no more than chance explains. Else one for samples is
        undone; one for classes stays, since they must go. The verdict's ``why`` says so."""
        after, look = _weights.save(self.task.model), self.done[-1]
        whole = look.copy()
        way = whole.pop("part", 1.0)
        sweep = f"sweep {len(self.done)}"
        if any(self._at(part, before, after) and not look.get("costly") and not self._known(look) for part in self._parts()):
            look["part"] *= way
            done = f"{percent(look['part'])} of the way of {sweep} was kept"
        else:
            _weights.put_back(self.task.model, after if self.task.classes else before)
            look.update(whole)
            look.pop("part", None)
            look["undone"] = not self.task.classes
            done = f"{sweep} was {'costly' if self.task.classes else 'undone'}"
        right = self.looks.right.double()
        left = f"{percent(whole['right'])} of {len(right)} unseen samples right, {percent(right.mean().item())} before"
        self.task.remark = f"{done}, as it left {left}"

    def _known(self, look: Looked) -> bool:
        """Whether classes are still known, which counts for more than what a sweep costs."""
        return bool(self.task.classes) and look["gone"] is False

    def _parts(self) -> tuple[float, ...]:
        """Where there are no samples to look at, nobody can say that the classes are gone on a part of the way."""
        return () if self.looks.forget is None else PARTS[self.kind]

    def _at(self, part: float, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
        """Puts the model on the way between weights, and looks; False, and as it was, where the budget has no room for that."""
        if not self.task.cost.has_room(self.looks.costs):
            return False
        between = {k: v if not v.is_floating_point() else before[k].lerp(v, part) for k, v in after.items()}
        _weights.put_back(self.task.model, between)
        self.done[-1].pop("costly", None)
        self.done[-1].update(self.looks.take())
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
