"""The search for UNSIR's rate: short trials of impair and repair from the same weights, and what they left of the classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..cost import FORWARD
from ..engine import norms
from ..engine.drawn import Batch, Drawn
from ..engine.loop import trainable, training
from ..task import Task
from .noise import Noise
from .options import Options
from .train import hold_on, train

LOOK_ORDER, SETTLE_ORDER = 13, 14  # purposes of seeds
LOOK, LOOK_PART = 256, 64  # samples of a class that are looked at: at most, and at a time
IMAGES_GONE_AT = 0.05  # they are synthetic and hold on longer than real samples do, so they may be forgiven a few
TRIAL_REPAIR = 10  # steps
SETTLE = 8  # batches
HOPELESS = 0.9  # a class of which impair leaves more than this doesn't go by repair
FIRST = 2  # of the rates: where the search begins
Tensors = dict[str, Tensor]


@dataclasses.dataclass
class Search:
    """What a trial needs: data, noise, and the weights that every trial starts from."""

    options: Options
    task: Task
    train: Source
    held: Source  # never trained on
    kept: Drawn  # repair's batches, with the original model's answers
    start: dict[str, Tensor]
    images: Noise  # error-minimising: what the original model is surest to be of the wanted classes
    before: float  # the original model's accuracy on ``held``
    images_count: bool = True  # whether the images are evidence in this model

    def images_kept(self) -> float:
        """Of the wanted classes' synthetic images, the share still answered so (the worst class)."""
        with _weights.evaluating(self.task.model), self.task.cost.phase("looks"):
            parts = self.images.images.split(256)
            answers = torch.cat([self.images.place.logits(self.task, part).argmax(1).cpu() for part in parts])
        labels = self.images.labels.cpu()
        right = answers.eq(labels).double()
        return max(right[labels == c].mean().item() for c in self.task.classes)

    def impair(self, rate: float, data: Source, noise: Noise, phase: str, most: int) -> None:
        """So many steps of impair at ``rate``, from the weights as they are."""
        optimizer = self.options.impair_optimizer(trainable(self.task.model), rate)
        done = 0
        while done < most:
            done += train(self.options, self.task, optimizer, data, noise, phase, rate, most - done)

    def repair(self, rate: float, batches: Iterator[Batch], phase: str, most: int) -> None:
        """Repair, at a rate that falls to zero."""
        hold_on(self.options, self.task, batches, most, rate, phase, falling=True)


@dataclasses.dataclass
class Found:
    """The rate that the search ended with, its row among those of the trials, and the weights that its impair left."""

    rate: float
    row: dict[str, Any]
    trials: list[dict[str, Any]]
    impaired: dict[str, Tensor] | None = None


def _rates(options: Options) -> list[float]:
    """What the search may try, from low to high."""
    if options.impair_lr:
        return [options.impair_lr]
    most = max(0, math.floor(math.log2(options.last_rate / options.first_rate) + 1e-9))
    return [options.first_rate * 2**i for i in range(most + 1)]


def find_rate(search: Search, rehearsed: list[int], noise: Noise) -> Found:
    """The lowest rate at which the classes go: halving among the rates, as far as the budget allows."""
    rates, trial = _rates(search.options), Trial(search, rehearsed, noise)
    low, high, at = -1, len(rates), min(FIRST, len(rates) - 1)  # ``low`` is too low; at ``high`` the classes go, or the model breaks
    best: tuple[int, Tensors] | None = None
    while high - low > 1 and (weights := trial.run(rates[at])) is not None:
        row = trial.rows[-1]
        if row["gone"]:
            high, best = at, (at, weights)
        elif "stopped" in row:
            high = at
        else:
            low = at
        at = (low + high) // 2
    if best is None:
        # the next to be tried where the budget ended the search, else the highest that the model bore
        rate = rates[at] if high - low > 1 else rates[max(low, 0)]
        return Found(rate, {"rate": rate, "gone": False}, trial.rows)
    index, weights = best
    row = next(row for row in trial.rows if row["rate"] == rates[index])
    if not trial.misled(row):
        return Found(rates[index], row, trial.rows, weights)
    return _at_twice(trial, rates[index], row)


def _at_twice(trial: Trial, rate: float, row: dict[str, Any]) -> Found:
    """The images are still answered where the rehearsed classes are gone: it rests on the images going, or the classes staying away, at
    twice the rate."""
    above = next((other for other in trial.rows if other["rate"] == 2 * rate), None)
    if above is None and 2 * rate <= trial.search.options.last_rate and trial.run(2 * rate) is not None:
        above = trial.rows[-1]
    if above is None or not above["gone"]:
        row["gone"] = False
        return Found(rate, row, trial.rows)
    above["twice"] = trial.misled(above)
    return Found(2 * rate, above, trial.rows)


class Trial:
    """Tries rates on a prefix. ``rows`` has what each showed."""

    def __init__(self, search: Search, rehearsed: list[int], noise: Noise) -> None:
        task = search.task
        inside = torch.isin(search.train.labels(), torch.tensor(rehearsed, dtype=torch.int64))
        self.search, self.noise, self.rows = search, noise, list[dict[str, Any]]()
        self.data = search.train.subset((~inside).nonzero()[:, 0]) if rehearsed else search.train
        # real samples of classes that are to be gone, where there are any
        self.samples = task.forget or (search.train.subset(inside.nonzero()[:, 0]) if rehearsed else None)
        self.classes = task.classes if task.forget else rehearsed

    def run(self, rate: float) -> Tensors | None:
        """The weights that impair leaves; ``None`` where the budget has no room for a trial."""
        search, options, task = self.search, self.search.options, self.search.task
        assert options.batch_size is not None
        looks = options.noise_batch * len(task.classes) + 2 * LOOK * len(self.classes) + SETTLE * options.batch_size
        if not task.cost.has_room(options.batch_size * (options.impair_steps + TRIAL_REPAIR) + looks // FORWARD):
            return None
        row: dict[str, Any] = {"rate": rate, "gone": False}
        self.rows.append(row)
        weights: Tensors = {}
        try:
            _weights.put_back(task.model, search.start)
            search.impair(rate, self.data, self.noise, "trial impair", options.impair_steps)
            weights = _weights.save(task.model)
            if self.samples is not None:
                row["kept_after_impair"] = known(task, self.samples, self.classes, HOPELESS)
            if row.get("kept_after_impair", 0.0) < HOPELESS:
                self._repair(rate / 2)
                row["kept"] = None if self.samples is None else known(task, self.samples, self.classes, options.gone_at)
                row["images_kept"] = search.images_kept()
                gone, limit = (row["images_kept"], IMAGES_GONE_AT) if row["kept"] is None else (row["kept"], options.gone_at)
                row["gone"] = gone <= limit
        except FloatingPointError as error:
            row["stopped"] = str(error)
        task.history.append({"phase": "trial", **row})
        return weights

    def _repair(self, rate: float) -> None:
        """A short repair, by labels, as nothing need be kept of a model on trial. Batch norm's running statistics, which impair moved
        towards those of noise, are taken anew, or a class would seem gone that a longer repair brings back.
        """
        search = self.search
        optimizer = search.options.repair_optimizer(trainable(search.task.model), rate)
        train(search.options, search.task, optimizer, self.data, None, "trial repair", rate, TRIAL_REPAIR)
        assert search.options.batch_size is not None
        size = min(search.options.batch_size, len(self.data))
        order = torch.randperm(len(self.data), generator=search.task.generator(SETTLE_ORDER))[: SETTLE * size]
        parts = list(order[: len(order) // size * size].split(size))
        batches = search.task.cost.reading(self.data.at(parts, device=search.task.device))
        with training(search.task, "train"), search.task.cost.phase("trial"):
            norms.settle(search.task, (inputs for inputs, _ in batches))

    def misled(self, row: dict[str, Any]) -> bool:
        """Whether the images are still answered as the wanted classes although real samples show that classes are gone."""
        return self.search.task.forget is None and bool(row["images_kept"] > IMAGES_GONE_AT)


def known(task: Task, samples: Source, classes: list[int], limit: float) -> float:
    """The share of a class's samples that is answered right, of the class that is known best. A look at a class ends when it is clear that
    the share is above ``limit``."""
    labels, worst = samples.labels(), 0.0
    with task.cost.phase("looks"):
        for c in classes:
            own = (labels == c).nonzero()[:, 0]
            own = own[torch.randperm(len(own), generator=task.generator(LOOK_ORDER))[:LOOK]]
            right = seen = 0
            for part in own.split(LOOK_PART):
                right += int(task.answers(samples.subset(part)).eq(c).sum())
                seen += len(part)
                if right > limit * len(own):
                    break
            worst = max(worst, right / max(seen, 1))
    return worst
