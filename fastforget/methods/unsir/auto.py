"""UNSIR without numbers from the user: the rate is found from the model and the retained data at hand.

No published rate survives another network or request, and the forgotten class's data isn't there to look at. So the search rehearses: a
few *retained* classes are forgotten together with the wanted ones, by the same noise and passes, and the rate rises until

* the rehearsed classes, whose real samples are at hand and weren't trained on in the rehearsal, are gone, and
* the images that the original model is surest to be of the wanted classes (error-minimising noise) are no longer answered so, or the
  rehearsed classes are gone at the next rate too: such images can mislead, in batch-norm nets above all, while real samples of a class
  never did.

Each trial starts from the original weights; the noise is learned once. The run itself then uses ``margin`` times that rate (the higher of
the two rates in the last case), for the wanted classes alone, and repairs until the accuracy on held-back retained samples stops rising,
each pass at half the last one's rate, going back to the best state in which the class had not returned. With ``forget=`` data no rehearsal
is needed: it is looked at directly, and no margin is added.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..._text import percent
from ..task import Task
from .noise import Noise, find_place, learn_noise
from .options import Options
from .train import KEEP, capped, impair, repair

SPLIT, CHOOSE = 11, 12  # purposes of seeds
IMAGE_STREAM = 1 << 20  # noise streams of the error-minimising images
IMAGES_GONE_AT = 0.05  # they are synthetic and hold on longer than real samples do, so they may be forgiven a few
RETRIES = 2
NOISE_SHARE = 1.0  # noise items of a class in an impair epoch, over the samples of a retained class


@dataclasses.dataclass
class Search:
    """What a trial needs: data, noise, and the weights that every trial starts from."""

    options: Options
    task: Task
    train: Source
    held: Source  # never trained on
    start: dict[str, Tensor]
    images: Noise  # error-minimising: what the original model is surest to be of the wanted classes
    before: float  # the original model's accuracy on ``held``
    images_count: bool = True  # whether the images are evidence in this model

    def images_kept(self) -> float:
        """Of the wanted classes' synthetic images, the share still answered so (the worst class)."""
        with _weights.evaluating(self.task.model):
            parts = self.images.images.split(256)
            answers = torch.cat([self.images.place.logits(self.task, part).argmax(1).cpu() for part in parts])
        labels = self.images.labels.cpu()
        right = answers.eq(labels).double()
        return max(right[labels == c].mean().item() for c in self.task.classes)

    def impair(self, rate: float, data: Source, noise: Noise) -> None:
        """Impair at ``rate``, from the original weights."""
        _weights.put_back(self.task.model, self.start)
        impair(dataclasses.replace(self.options, impair_lr=rate), self.task, data, noise)

    def repair(self, rate: float, data: Source) -> None:
        """One epoch of repair."""
        repair(dataclasses.replace(self.options, repair_lr=rate, repair_epochs=1), self.task, data)


def run(options: Options, task: Task) -> dict[str, Any]:
    """Searches, unlearns, and returns what was measured and chosen."""
    assert task.retain is not None
    data = capped(task.retain, options.retain_per_class, task.generator(KEEP))
    train, held = _hold_back(data, options.held_back, task.generator(SPLIT))
    rehearsed = [] if task.forget is not None else _rehearsed(train, options.rehearsal_classes, task)
    place = find_place(task, options.noise_at, train)
    options = _amounts(options, train, place.like)
    noise = learn_noise(options, task, task.classes + rehearsed, place)
    plain = dataclasses.replace(options, label_rule="class", images_used=None)
    images = learn_noise(plain, task, task.classes, place, sign=-1, stream=IMAGE_STREAM)
    search = Search(options, task, train, held, _weights.save(task.model), images, task.right(held))
    rate, trials = _find_rate(search, rehearsed, noise)
    last = trials[-1]
    # "twice": the images misled, and the rehearsed classes were gone at two rates in a row, of which this is the higher one
    exact = task.forget is not None or options.impair_lr is not None or last.get("twice", False)
    search.images_count = not last.get("twice", False)
    final = _final(search, rate if exact else rate * options.margin, _wanted_only(noise, task.classes, rehearsed))
    return {
        "chosen": {
            "impair_lr": final["rate"],
            "repair_lr": options.repair_lr or final["rate"] / 2,
            "repair_epochs": final["epochs"],
            **{name: getattr(options, name) for name in ("l2", "copies", "batch_size")},
            "rehearsed_classes": rehearsed,
        },
        "measured": {
            "trials": trials,
            "rate_found": last["gone"],
            "held_back_samples": len(held),
            "held_back_accuracy_before": search.before,
            "held_back_accuracy": final["held"],
            "images_kept": final["images"],
        },
        "proxy": _proxy(search, rehearsed, last, final),
    }


def _hold_back(data: Source, part: float, generator: torch.Generator) -> tuple[Source, Source]:
    """A share of every class (at least one sample where a class has two), for measuring only."""
    labels = data.labels()
    order = torch.randperm(len(labels), generator=generator)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique().tolist():
        own = order[labels[order] == c]
        held[own[: max(round(part * len(own)), int(len(own) > 1))]] = True
    if not bool(held.any()):
        raise ValueError(f"retain: {len(data)} samples, none of a class twice, are too few to hold any back; give more")
    return data.subset((~held).nonzero()[:, 0]), data.subset(held.nonzero()[:, 0])


def _rehearsed(train: Source, wanted: int, task: Task) -> list[int]:
    """Retained classes to rehearse on: enough samples to measure, right at first, and two others left to train on."""
    counts = torch.bincount(train.labels(), minlength=task.outputs)
    present = int((counts > 0).sum())
    able = [c for c in range(task.outputs) if counts[c] >= 20]
    able = [c for c, right in task.right_by_class(train, able).items() if right > 0.5]
    wanted = max(wanted, len(task.classes)) if wanted else 0  # the hardest of few is easier than that of many
    order = torch.randperm(len(able), generator=task.generator(CHOOSE)).tolist()
    return sorted(able[i] for i in order[: max(min(wanted, present - 2), 0)])


def _amounts(options: Options, train: Source, like: Tensor) -> Options:
    """Numbers that follow from the data's size, where the user gave none."""
    classes = len(train.labels().unique())
    copies = options.copies or max(1, round(NOISE_SHARE * len(train) / classes / options.noise_batch))
    # about fifty steps in an epoch: fewer and one epoch can't impair, many more and it only costs time
    size = options.batch_size or max(32, min(256, 1 << ((len(train) // 50) or 1).bit_length()))
    # the published 0.1 at 32x32x3, and no larger a pull on larger images, where it would drown the error term
    l2 = options.l2 if options.l2 is not None else 0.1 * min(1.0, 3072 / like.numel())
    return dataclasses.replace(options, copies=copies, batch_size=size, l2=l2)


def _wanted_only(noise: Noise, classes: list[int], rehearsed: list[int]) -> Noise:
    """The part of the noise that was learned for the wanted classes (they come first)."""
    n = len(noise.images) // (len(classes) + len(rehearsed)) * len(classes)
    return Noise(noise.images[:n], noise.labels[:n], noise.place)


def _find_rate(search: Search, rehearsed: list[int], noise: Noise) -> tuple[float, list[dict[str, Any]]]:
    """The lowest rate of the search that made the classes go, with one row for each trial."""
    options, task = search.options, search.task
    inside = torch.isin(search.train.labels(), torch.tensor(rehearsed, dtype=torch.int64))
    data = search.train.subset((~inside).nonzero()[:, 0]) if rehearsed else search.train
    # real samples of classes that are to be gone, where there are any
    samples = task.forget or (search.train.subset(inside.nonzero()[:, 0]) if rehearsed else None)
    classes = task.classes if task.forget else rehearsed
    rate, trials = options.impair_lr or options.first_rate, []
    while True:
        row: dict[str, Any] = {"rate": rate}
        trials.append(row)
        try:
            search.impair(rate, data, noise)
            row["kept_after_impair"] = _worst(task, samples, classes)
            if samples is None or row["kept_after_impair"] < 0.9:
                search.repair(rate / 2, data)
                row["kept"] = _worst(task, samples, classes)
                row["images_kept"] = search.images_kept()
            row["gone"] = _gone(search, trials)
        except FloatingPointError as error:
            row |= {"gone": False, "stopped": str(error)}
        task.history.append({"phase": "trial", **row})
        if row["gone"] or "stopped" in row or options.impair_lr:
            return rate, trials
        rate *= 2 if "kept" in row else 4
        if rate > options.last_rate:
            return trials[-1]["rate"], trials


def _worst(task: Task, samples: Source | None, classes: list[int]) -> float | None:
    """The share of a class's samples that is still answered right, of the class that is best remembered."""
    return max(task.right_by_class(samples, classes).values()) if samples is not None else None


def _gone(search: Search, trials: list[dict[str, Any]]) -> bool:
    """Whether the last trial's classes are gone. Adds to its row whether that rests on two trials in a row."""
    row, limit = trials[-1], search.options.gone_at
    if "images_kept" not in row:
        return False
    samples_gone = row["kept"] is None or row["kept"] <= limit
    if search.task.forget is not None or (samples_gone and row["images_kept"] <= IMAGES_GONE_AT):
        return samples_gone
    before = trials[-2].get("kept") if len(trials) > 1 else None
    row["twice"] = row["kept"] is not None and samples_gone and before is not None and before <= limit
    return bool(row["twice"])


def _final(search: Search, rate: float, noise: Noise) -> dict[str, Any]:
    """The run itself: impair, then repair as long as it helps and the class stays away. Returns what it ended with."""
    for retry in range(RETRIES + 1):
        search.impair(rate, search.train, noise)
        best = _repaired(search, rate)
        if not best["back"] or retry == RETRIES or search.options.impair_lr:
            break
        rate *= 2
    return best


def _repaired(search: Search, rate: float) -> dict[str, Any]:
    """Repairs by halving rates and leaves the model in the best state: without the class, accuracy as high as it got (to within its
    standard error, where the later, better settled state is taken).
    """
    task, options = search.task, search.options
    lr, top, stale = options.repair_lr or rate / 2, 0.0, 0
    best, weights = _state(search, rate, 0, 0.0), _weights.save(task.model)
    for epoch in range(1, options.repair_epochs + 1):
        search.repair(lr, search.train)
        row = _state(search, rate, epoch, lr)
        task.history.append({"phase": "repaired", **row})
        stale = 0 if row["held"] > top else stale + 1
        top = max(top, row["held"])
        error = math.sqrt(top * (1 - top) / len(search.held))
        as_good = row["held"] >= top - error and not row["back"]
        if as_good or (best["back"] and not row["back"]) or (best["back"] and row["held"] >= best["held"]):
            best, weights = row, _weights.save(task.model)
        if stale == 2:
            break
        lr /= 2
    _weights.put_back(task.model, weights)
    return best


def _state(search: Search, rate: float, epoch: int, lr: float) -> dict[str, Any]:
    """What the model answers after so many epochs of repair."""
    held, images = search.task.right(search.held), search.images_kept()
    return {"rate": rate, "repair_lr": lr, "epochs": epoch, "held": held, "images": images, "back": _returned(search, images)}


def _returned(search: Search, images: float) -> bool:
    """Whether a wanted class is answered again: its real samples where there are any, else its images (``images``: the share kept)."""
    if search.task.forget is not None:
        return (_worst(search.task, search.task.forget, search.task.classes) or 0.0) > search.options.gone_at
    return search.images_count and images > IMAGES_GONE_AT


def _proxy(search: Search, rehearsed: list[int], trial: dict[str, Any], final: dict[str, Any]) -> dict[str, Any]:
    """The verdict where no data of the classes is at hand, and what it rests on."""
    images = f"of the images that the original model was surest of, {percent(final['images'])} are still answered so"
    if not rehearsed:
        why = f"not shown: {images}, but too few retained classes are left to rehearse on. "
        return {"gone": False, "why": why + "Pass forget= or test= with samples of the classes"}
    if not trial["gone"]:
        why = f"no rate up to {search.options.last_rate:g} made the rehearsed classes {rehearsed} go; {images}"
        return {"gone": False, "why": why}
    twice = " (and at half of it)" if trial.get("twice") else ""
    why = (
        f"no data of the classes was given; by rehearsal: at rate {trial['rate']:g}{twice} the retained classes {rehearsed} went "
        f"({percent(trial['kept'])} of their samples still right), the run used {final['rate']:g}, and {images}"
    )
    return {"gone": not _returned(search, final["images"]), "why": why}
