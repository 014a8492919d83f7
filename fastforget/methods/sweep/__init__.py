"""Sweep: forgetting in one run whose rate falls from high to zero, with everything that pushes and holds in the objective from the start.

A method of our own. What impair and repair do one after the other, a falling rate does at once: the high rate shakes the memory loose, the
fall brings the answers back. Each step takes a batch of data to keep, one of data never seen (if there is any), and one of data to forget:

- **hold**: on kept and unseen data the model answers as the original did (KL to the original's own answers, classes to forget left out);
- **push**, classes: on their samples too the model answers as the original would without these classes, and -log(1 - p) of the
  classes; where the model has memorised its data, the classes' log-odds on their samples are also made like those on unseen data,
  quantile by quantile;
- **push**, samples: the log-odds of their labels are made like those of unseen data, quantile by quantile.

The three go through the model as one batch, half as many samples to forget as of each of the others: batch norm, in train mode, then
normalises all by much the same statistics as at the end, when it uses the running ones. The rate is found from the model
(:func:`memorised`, :func:`steady`), relative to the size of each tensor's weights; after each sweep two-sided evidence decides whether
another one, at a higher rate, is needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ...ops import membership
from ...optim import MaskedAdam
from ..attack import attack_auc, auc_of
from ..engine import precision
from ..engine.drawn import Batch, Drawn, joined
from ..engine.loop import backward, cosine, must_be_finite, steps, trainable, training
from ..engine.terms import HOLDS, alike, anchor, away_from, confidence, hold, log_odds
from ..options import check, given
from ..task import Task
from ..unsir.noise import Noise, find_place, learn_noise
from ..unsir.options import Options as NoiseOptions

BUDGET, EPOCHS = 15_000, 2.0  # sample passes of a run without a budget of its own: at most, and epochs over the data to keep
HOLD = 4.0  # weight of the hold over the push's
STEADY = 5e-4  # nats by which the answers may change when all weights move by the first step's size, at random
RETAIN_ORDER, UNSEEN_ORDER, FORGET_ORDER, LOOK_ORDER, TRIAL = 61, 62, 63, 64, 65  # purposes of seeds
GONE = 0.005  # a class is gone when at most this share of its samples is answered right: half of what the verdict allows
LOOK = 512  # samples that a look takes of a set, at most
MARGIN = 1.0  # standard errors that the loss attack's AUC may be from a half
AGAIN = 2.0  # each further sweep's rate over the last one's


class Looked(TypedDict, total=False):
    """What a sweep ended with: what is still known, and whether it is gone (None: there are no samples to look at)."""

    rate: float
    steps: int
    known: float
    gone: bool | None


@dataclasses.dataclass
class Sweep:
    """Options of the sweep.

    Args:
        rate: the first step's size of every weight, relative to the root mean square of its tensor; ``None``: found from the model.
        steps: of the first sweep; ``None``: what two thirds of the budget have room for.
        sweeps: at most so many; each further one is half as long, at twice the rate, and starts where the last one ended.
        batch_size: samples of each of the sets in a step; ``None``: 64, or 32 where the budget is small.
        hold: ``"anchor"`` (the original's answers) or ``"labels"`` (cross-entropy; unseen data is held by the anchor anyhow).
        alike: weight of the quantile term; ``None``: 1 for samples; for classes by how much the model has memorised.

    Needs ``retain``; ``nonmember`` for samples, and for better results with classes. For classes ``forget`` may be missing: then noise
    as UNSIR learns it stands in for their samples.

    >>> from fastforget.methods import Sweep
    >>> Sweep(steps=30).hold
    'anchor'
    """

    rate: float | None = None
    steps: int | None = None
    sweeps: int = 3
    batch_size: int | None = None
    hold: str = "anchor"
    alike: float | None = None

    name = "sweep"
    scope = "samples"
    needs_forget = False  # of classes
    gradients = ("train",)

    @property
    def learns_noise(self) -> bool:
        """Only where there are no samples of the classes; whether inputs can be learned is found out then."""
        return False

    def __post_init__(self) -> None:
        check(self, {"hold": HOLDS}, ("sweeps", *given(self, ("steps", "batch_size"))), given(self, ("rate", "alike")))

    def receipt(self) -> dict[str, Any]:
        """Every option as given, JSON-able; what was found instead of ``None`` is the receipt's ``chosen``."""
        return dataclasses.asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes``, or the samples of ``task.forget``, in ``task.model``; returns what was measured and chosen."""
        if task.retain is None:
            raise ValueError("retain: not given; the sweep needs data to keep, to hold the model by")
        if not task.classes and task.nonmember is None:
            raise ValueError("nonmember: not given; for samples the sweep needs data the model never saw, to learn how it answers it")
        if task.cost.budget is None:
            task.cost.budget = round(min(BUDGET, EPOCHS * len(task.retain)))
        return _Run(self, task).run()


class _Run:
    """One run: batches, rate, and what the looks see."""

    def __init__(self, options: Sweep, task: Task) -> None:
        assert task.retain is not None and task.cost.budget is not None
        self.options, self.task = options, task
        self.size = options.batch_size or (64 if task.cost.budget >= 9_000 else 32)
        self.each = self.size * (1 + (task.nonmember is not None)) + self.size // 2
        # the rest of the budget is for the teacher, looks, and a second sweep
        self.steps = options.steps or max(2, round(0.7 * task.cost.budget / self.each))
        self.classes = torch.tensor(task.classes, dtype=torch.int64, device=task.device)
        most = self.steps
        self.kept = Drawn(task, task.retain, self.size, most, RETAIN_ORDER)
        self.unseen = Drawn(task, task.nonmember, self.size, most, UNSEEN_ORDER) if task.nonmember is not None else None
        self.memory = memorised(self.kept, self.unseen)
        self.rate, self.alike = self._found()
        self.looked = task.forget.at_most(LOOK, task.generator(LOOK_ORDER)) if task.forget is not None else None
        self.done: list[Looked] = []

    def _found(self) -> tuple[float, float]:
        """The rate, and the weight of the quantile term."""
        options, strength = self.options, min(1.0, self.memory / 0.1)
        rate = options.rate or min(0.01 + 0.02 * strength, steady(self.task, self.kept))
        return rate, options.alike if options.alike is not None else (0.3 * strength if self.task.classes else 1.0)

    def run(self) -> dict[str, Any]:
        task, rate, most = self.task, self.rate, self.steps
        form = self._precision()
        for number in range(self.options.sweeps):
            if number:
                rate, most = rate * AGAIN, max(1, most // 2)
            if not self._sweep(rate, most, number):
                break
            self.done.append({"rate": rate, "steps": most, **self._look()})
            task.history.append({"phase": "look", **self.done[-1]})
            if self.done[-1]["gone"] is not False:
                break
        return {
            "chosen": {"rate": self.rate, "alike": self.alike, "steps": self.steps, "batch_size": self.size, "form": form},
            "measured": {"memorised": self.memory, "sweeps": self.done},
        }

    def _precision(self) -> dict[str, Any]:
        batch = next(iter(self.kept))
        return precision.choose(self.task, batch.inputs, batch.labels)

    def _sweep(self, rate: float, most: int, number: int) -> bool:
        """One sweep from the weights as they are; whether the budget had room for a step of it."""
        task = self.task
        params = trainable(task.model)
        first = [rate * size(p) for p in params]
        optimizer = MaskedAdam([{"params": [p], "lr": lr} for p, lr in zip(params, first, strict=True)], betas=(0.9, 0.99))
        kept, unseen, forget = iter(self.kept), iter(self.unseen or ()), self._to_forget(most, number)
        total, step = torch.zeros((), device=task.device), -1
        with training(task, "train"):
            for step in steps(task, most, "sweep", each=self.each, label=f"sweep {number + 1}"):
                for group, lr in zip(optimizer.param_groups, first, strict=True):
                    group["lr"] = lr * cosine(step, most)
                batches = [next(kept), *([next(unseen)] if self.unseen is not None else [])]
                loss = self._loss(batches, next(forget))
                optimizer.zero_grad(set_to_none=True)
                backward(task, loss)
                with task.cost.at("ops"):
                    optimizer.step()
                total += loss.detach()
        if step >= 0:
            mean = must_be_finite(total / (step + 1), f"sweep {number + 1}", rate, "Lower rate=")
            task.history.append({"phase": "sweep", "rate": rate, "loss": mean, "steps": step + 1})
        return step >= 0

    def _loss(self, batches: list[Batch], forget: Batch | Noise) -> Tensor:
        """Hold and push."""
        task = self.task
        logits = self._logits([*batches, forget] if isinstance(forget, Batch) else batches)
        kept = hold(self.options.hold, logits[0], batches[0].teacher, batches[0].labels)
        if len(batches) > 1:
            kept = (kept + anchor(logits[1], batches[1].teacher)) / 2
        if isinstance(forget, Noise):  # the model is taught noise as the classes: UNSIR's impair
            push = F.cross_entropy(forget.place.logits(task, forget.images).float(), forget.labels)
        else:
            push = self._push(logits[-1], forget, logits[len(batches) - 1], batches[-1])
        return HOLD * kept + push

    def _push(self, logits: Tensor, forget: Batch, others: Tensor, unseen: Batch) -> Tensor:
        """The forget samples' term: ``others`` are the answers to what they are to be like."""
        if not self.task.classes:
            return self.alike * alike(confidence(logits, forget.labels), confidence(others, unseen.labels), self.spread)
        push = (anchor(logits, forget.teacher) + away_from(logits, self.classes)) / 2
        if self.alike:
            like = log_odds(others, self.classes)
            push = push + self.alike * alike(log_odds(logits, self.classes), like, like.detach().var())
        return push

    def _logits(self, batches: list[Batch]) -> list[Tensor]:
        """The model's answers: in one pass where the batches can be joined."""
        task = self.task
        whole = joined([batch.inputs for batch in batches]) if len(batches) > 1 else batches[0].inputs
        if whole is None:
            return [task.forward(task.model, batch.inputs).float() for batch in batches]
        return list(task.forward(task.model, whole).float().split([len(batch) for batch in batches]))

    def _to_forget(self, most: int, number: int) -> Any:
        """Batches to forget: of the samples where there are any, else of noise in their place."""
        task = self.task
        if task.forget is not None:
            drawn = Drawn(task, task.forget, max(1, self.size // 2), most, FORGET_ORDER + 10 * number)
            if not task.classes and self.unseen is not None:
                self.spread = confidence(self.unseen.logits, self.unseen.labels().to(task.device)).var()
            return iter(drawn)
        assert task.retain is not None
        own = NoiseOptions(preset="auto", noise_batch=max(1, self.size // len(task.classes)), l2=0.1)
        with task.cost.phase("noise"):
            noise = learn_noise(own, task, task.classes, find_place(task, None, task.retain))
        return itertools.repeat(noise)

    def _look(self) -> Looked:
        task = self.task
        if self.looked is None:
            return {"gone": None}
        with task.cost.phase("looks"):
            if task.classes:
                known = max(task.right_by_class(self.looked, task.classes).values())
                return {"known": known, "gone": known <= GONE}
            assert task.nonmember is not None
            auc, error = attack_auc(task, self.looked, task.nonmember.at_most(LOOK, task.generator(LOOK_ORDER)))
            return {"known": auc, "gone": abs(auc - 0.5) <= MARGIN * error}


def size(weight: Tensor) -> float:
    """The root mean square of a tensor's weights, by which its steps are scaled; biases that start at zero have a floor."""
    least = 1e-3 if weight.dim() > 1 else 0.02
    return max(float(weight.detach().float().square().mean().sqrt()), least)


def steady(task: Task, kept: Drawn) -> float:
    """The largest rate at which the model is steady: when every weight moves up or down by it, at random, the answers to kept samples
    change by :data:`STEADY` nats (KL). Small changes do so by the square of the rate, so one trial tells."""
    inputs, _ = next(kept.task.cost.reading(kept.data.at(kept.order[:1], device=task.device)))
    params = trainable(task.model)
    before, generator, trial = _weights.save(task.model), task.generator(TRIAL), 0.003
    with _weights.evaluating(task.model), task.cost.phase("trial"):
        teacher = task.forward(task.model, inputs).float().log_softmax(dim=1)
        for p in params:
            signs = torch.randint(0, 2, p.shape, generator=generator).to(p.device, p.dtype).mul_(2).sub_(1)
            p.add_(signs, alpha=trial * size(p))
        changed = float(anchor(task.forward(task.model, inputs).float(), teacher))
        _weights.put_back(task.model, before)
    if not math.isfinite(changed):
        return trial / 3
    return trial * math.sqrt(STEADY / max(changed, 1e-12))


def memorised(kept: Drawn, unseen: Drawn | None) -> float:
    """How far the original model's losses tell data it was trained on from data it never saw: the loss attack's AUC above a half, less one
    standard error; 0.05 where there is no unseen data to tell."""
    if unseen is None:
        return 0.05
    losses = [membership.membership_scores(d.logits, d.labels().to(d.logits.device)).loss for d in (kept, unseen)]
    auc, error = auc_of(*losses)
    return max(0.0, auc - 0.5 - error)
