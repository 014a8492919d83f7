"""The sweep's loop: draw, push and hold at a falling rate, look, and once more where what was to be forgotten is still known."""

from __future__ import annotations

import itertools
import math
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ...ops import membership
from ...optim import MaskedAdam
from ..attack import auc_of
from ..cost import FORWARD
from ..engine import precision
from ..engine.drawn import Batch, Drawn, answers
from ..engine.loop import cosine, descend, must_be_finite, steps, trainable, training
from ..engine.terms import alike, anchor, away_from, confidence, hold, log_odds
from ..task import Task
from ..unsir.noise import Noise, find_place, learn_noise
from .options import SweepOptions, forget_size, kept_size, plan
from .rate import few_trained, memorised, size, steady

HOLD, LABELS = 4.0, 0.3  # weights of the anchor over the push's, and of the cross-entropy on data to keep
RETAIN_ORDER, UNSEEN_ORDER, FORGET_ORDER, LOOK_ORDER = 61, 62, 63, 64  # purposes of seeds
FEW = 0.05  # the rate's limit where most weights are frozen (adapters): the few others must move further for the same change
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
# weight of one class's quantile term where the model has memorised nothing: without it the answers are gone, but log-odds far below zero
# still tell the class (MNIST 5k: AUC .98, retrained .78; with it .87). Of several classes it cost a point there and hid them no better
LEAST_ALIKE = 0.1
LOOK = 512  # samples that a look takes of a set, at most
MARGIN = 1.0  # standard errors that the loss attack's AUC may be from a half
AGAIN = 2.0  # each further sweep's rate over the last one's
HALVINGS = 4
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


class Run:
    """One run: batches, rate, and what the looks see."""

    def __init__(self, options: SweepOptions, task: Task) -> None:
        self.options, self.task = options, task
        self.own = task.cost.budget is None  # the budget may be extended where it is the run's own
        self.classes = torch.tensor(task.classes, dtype=torch.int64, device=task.device)
        self.looked = task.forget.at_most(LOOK, task.generator(LOOK_ORDER)) if task.forget is not None else None
        self.plan = plan(options, task, 2 * self._look_costs())
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
        b, most = self.plan.batch_size, self.plan.steps
        self.kept = Drawn(task, task.retain, kept_size(b), most, RETAIN_ORDER)
        self.unseen = Drawn(task, task.nonmember, b, most, UNSEEN_ORDER) if task.nonmember is not None else None
        self.memory = memorised(self.kept, self.unseen)
        self.rate, self.alike = self._found()
        self.spread = self._spread()
        # the noise is learned, and the teacher asked, while the model is the original
        self.forget = Drawn(task, task.forget, forget_size(b), most, FORGET_ORDER) if task.forget is not None else self._noise()

    def _spread(self) -> Tensor:
        """The original's variance of what the quantile term compares: log-odds of unseen data, or where there is none of kept."""
        others = self.unseen or self.kept
        if self.task.classes:
            return log_odds(others.logits, self.classes).var()
        return confidence(others.logits, others.labels().to(self.task.device)).var()

    def _found(self) -> tuple[float, float]:
        """The rate, and the weight of the quantile term."""
        options, strength = self.options, min(1.0, self.memory / 0.1)
        limit = 0.01 + 0.02 * strength if self.task.classes else 0.03
        if few_trained(self.task.model):
            limit = max(limit, FEW)
        rate = options.rate or min(limit, steady(self.task, self.kept))
        least = LEAST_ALIKE if len(self.task.classes) == 1 else 0.0
        return rate, options.alike if options.alike is not None else (max(strength, least) if self.task.classes else 3.0)

    def run(self) -> dict[str, Any]:
        if not self.plan.steps:
            return {"chosen": self.plan.receipt(), "measured": {"sweeps": []}}
        task, rate = self.task, self.rate
        for number in range(self.options.sweeps):
            whole = self.plan.steps * self.plan.each + self._look_costs()
            if number and self.own and task.classes and task.cost.left() < whole:
                task.cost.budget = (task.cost.budget or 0) + whole
            if not task.cost.has_room(whole):
                break
            before = _weights.save(task.model)
            self._sweep(rate, number)
            self.done.append({"rate": rate, **self._look()})
            if self.done[-1].get("too_far"):
                self._halfway_back(before)
            if self._costly(self.done[-1]):
                _weights.put_back(task.model, before)
                task.history.append({"phase": "look", **self.done[-1]})
                break
            task.history.append({"phase": "look", **self.done[-1]})
            if self.done[-1]["gone"] is not False or self.done[-1].get("too_far"):
                break
            rate *= AGAIN
        return {
            "chosen": {"rate": self.rate, "alike": self.alike, **self.plan.receipt(), "form": self.form},
            "measured": {"memorised": self.memory, "sweeps": self.done},
        }

    def _costly(self, look: Looked) -> bool:
        """Whether a sweep for samples cost more of what the model answers right on unseen data than chance explains: it is undone then."""
        if self.first is None:
            return False
        assert self.task.held is not None
        error = math.sqrt(self.first * (1 - self.first) / len(self.task.held))
        look["undone"] = self.first - look["right"] > LOST + MARGIN * error
        return look["undone"]

    def _look_costs(self) -> int:
        """Sample passes of a look."""
        held = self.task.held if not self.task.classes else None
        return -(-(len(self.looked or ()) + len(held or ())) // FORWARD)

    def _halfway_back(self, before: dict[str, Tensor]) -> None:
        """Samples that are fitted worse than unseen ones stand out: goes back towards the weights before the last sweep, half of the way
        left each time, until they don't."""
        task, look = self.task, self.done[-1]
        after, low, high = _weights.save(task.model), 0.0, 1.0
        for _ in range(HALVINGS):
            if not task.cost.has_room(self._look_costs()):
                break
            part = (low + high) / 2
            _weights.put_back(task.model, {k: v if not v.is_floating_point() else before[k].lerp(v, part) for k, v in after.items()})
            look.update(self._look())
            look["part"] = part
            if look["gone"]:
                return
            low, high = (low, part) if look.get("too_far") else (part, high)

    def _precision(self) -> dict[str, Any]:
        """Chosen first: the teacher's passes run in it too."""
        assert self.task.retain is not None
        (inputs, labels), *_ = self.task.retain.at([torch.arange(min(self.plan.trial, len(self.task.retain)))], device=self.task.device)
        return precision.choose(self.task, inputs, labels)

    def _sweep(self, rate: float, number: int) -> None:
        """One sweep from the weights as they are."""
        task, most = self.task, self.plan.steps
        params = trainable(task.model)
        first = [rate * size(p) for p in params]
        optimizer = MaskedAdam([{"params": [p], "lr": lr} for p, lr in zip(params, first, strict=True)], betas=(0.9, 0.99))
        batches = zip(self.kept, self.unseen or itertools.repeat(None), self.forget, strict=False)
        total = torch.zeros((), device=task.device)
        with training(task, "train"):
            for step, drawn in zip(steps(task, most, "sweep", each=self.plan.each, label=f"sweep {number + 1}"), batches, strict=False):
                for group, lr in zip(optimizer.param_groups, first, strict=True):
                    group["lr"] = lr * cosine(step, most)
                kept, unseen, forget = drawn
                loss = self._loss([kept] if unseen is None else [kept, unseen], forget)
                descend(task, optimizer, loss)
                total += loss.detach()
        mean = must_be_finite(total / most, f"sweep {number + 1}", rate, "Lower rate=")
        task.history.append({"phase": "sweep", "rate": rate, "loss": mean, "steps": most})

    def _loss(self, batches: list[Batch], forget: Batch | Noise) -> Tensor:
        """Hold and push."""
        task = self.task
        logits = answers(task, [*batches, forget] if isinstance(forget, Batch) else batches)
        kept = hold(self.options.hold, logits[0], batches[0].teacher, batches[0].labels)
        if len(batches) > 1:
            kept = (kept + anchor(logits[1], batches[1].teacher)) / 2
        learned = LABELS * F.cross_entropy(logits[0], batches[0].labels)
        if isinstance(forget, Noise):  # the model is taught noise as the classes: UNSIR's impair
            push = F.cross_entropy(forget.place.logits(task, forget.images).float(), forget.labels)
        else:
            push = self._push(logits[-1], forget, logits[len(batches) - 1], batches[-1])
        return HOLD * kept + learned + push

    def _push(self, logits: Tensor, forget: Batch, others: Tensor, unseen: Batch) -> Tensor:
        """The forget samples' term: ``others`` are the answers to what they are to be like."""
        if not self.task.classes:
            return self.alike * alike(confidence(logits, forget.labels), confidence(others, unseen.labels), self.spread)
        push = (anchor(logits, forget.teacher) + away_from(logits, self.classes)) / 2
        if self.alike:
            like = log_odds(others, self.classes)
            push = push + self.alike * alike(log_odds(logits, self.classes), like, torch.maximum(like.detach().var(), self.spread))
        return push

    def _noise(self) -> Any:
        """Noise in the place of the classes' samples, as UNSIR learns it, once a step."""
        task, options = self.task, self.plan.noise
        assert task.retain is not None and options is not None
        with task.cost.phase("noise"):
            noise = learn_noise(options, task, task.classes, find_place(task, None, task.retain))
        return itertools.repeat(noise)

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
