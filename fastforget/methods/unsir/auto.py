"""UNSIR without numbers from the user, at no more than twice the sample passes of the published procedure on the same data.

No published rate survives another network or request, and the forgotten class's data isn't there to look at. So the search rehearses: a
few *retained* classes are forgotten together with the wanted ones, by the same noise. A rate is tried on a prefix, always from the original
weights: ``impair_steps`` steps of impair and a short repair, after which batch norm's statistics are taken anew. Looked for, by halving on
a log scale between ``first_rate`` and ``last_rate``, is the lowest rate at which

* the rehearsed classes, whose real samples are at hand and weren't trained on in the rehearsal, are gone, and
* the images that the original model is surest to be of the wanted classes (error-minimising noise) are no longer answered so, or the
  rehearsed classes are gone at twice that rate too: such images can mislead, in batch-norm nets above all, while real samples of a class
  never did.

What is learned is learned once: the noise, the images, and the original model's answers on the samples that repair will use. A look stops
as soon as its samples have decided it.

The run itself is one impair, as long as those on trial, at ``margin`` times the rate found, for the wanted classes alone, and one repair,
whose rate falls to zero and which holds the model by the original's own answers without the wanted classes (``hold="anchor"``). Where a
wanted class comes back, half as much impair at twice the rate and another repair go on from there, while the budget has room. With
``forget=`` data no rehearsal is needed: it is looked at directly, no margin is added, and the weights that the rate left on trial are kept.

The budget, if none is given, is twice the passes of ``paper``; the search may use what the run itself doesn't need. Where no rate makes the
classes go, a warning says so before the run, which is then made at the highest rate that the model bore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ..._data import Source
from ..._text import percent
from ..cost import FORWARD
from ..engine.drawn import Drawn
from ..result import NotForgottenWarning
from ..task import Task
from .noise import Noise, find_place, learn_noise
from .options import Options
from .search import IMAGES_GONE_AT, LOOK, Found, Search, find_rate, known
from .train import KEEP, capped, to_hold

SPLIT, CHOOSE = 11, 12  # purposes of seeds
IMAGE_STREAM = 1 << 20  # noise streams of the error-minimising images
RETRIES = 2
NOISE_SHARE = 1.0  # noise items of a class in an impair epoch, over the samples of a retained class
REPAIR_SHARE = 0.3  # of the budget, at most
NOISE_BUDGET = 0.4  # of the budget, at most
BUDGET = 2  # times the passes of "paper"


def run(options: Options, task: Task) -> dict[str, Any]:
    """Searches, unlearns, and returns what was measured and chosen."""
    assert task.retain is not None
    data = capped(task.retain, options.retain_per_class, task.generator(KEEP))
    if task.cost.budget is None:
        task.cost.budget = BUDGET * paper_passes(task)
    train_set, held = _hold_back(data, options.held_back, task.generator(SPLIT))
    if not task.cost.has_room(2 * _look_passes(options, task, held)):  # before and after: without looks no rate can be found
        return {"measured": {"trials": []}}
    with task.cost.phase("looks"):
        rehearsed = [] if task.forget is not None else _rehearsed(train_set, options.rehearsal_classes, task)
    place = find_place(task, options.noise_at, train_set)
    options = _amounts(_affordable(options, task, len(rehearsed)), train_set, place.like)
    kept = to_hold(options, task, train_set, round(REPAIR_SHARE * task.cost.budget))
    with _reserved(task, _final_passes(options, kept) + _look_passes(options, task, held)):
        noise = learn_noise(options, task, task.classes + rehearsed, place)
        plain = dataclasses.replace(options, label_rule="class", images_used=None)
        images = learn_noise(plain, task, task.classes, place, sign=-1, stream=IMAGE_STREAM)
        with task.cost.phase("looks"):
            before = task.right(held)
        search = Search(options, task, train_set, held, kept, _weights.save(task.model), images, before)
        found = find_rate(search, rehearsed, noise)
    last = found.row
    # "twice": the images misled, and the rehearsed classes were gone at two rates in a row, of which this is the higher one
    exact = task.forget is not None or options.impair_lr is not None or last.get("twice", False)
    search.images_count = not last.get("twice", False)
    if not last["gone"]:
        warnings.warn(f"fastforget: UNSIR: {_not_found(search, rehearsed, found)}", NotForgottenWarning, stacklevel=2)
    final = _final(search, found, found.rate if exact else found.rate * options.margin, _wanted_only(noise, task.classes, rehearsed))
    return {
        "chosen": {
            "impair_lr": final["rate"],
            "repair_lr": options.repair_lr or final["rate"] / 2,
            "impair_steps": options.impair_steps,
            "repair_steps": len(kept.order),
            **{name: getattr(options, name) for name in ("l2", "copies", "batch_size")},
            "rehearsed_classes": rehearsed,
        },
        "measured": {
            "trials": found.trials,
            "rate_found": last["gone"],
            "held_back_samples": len(held),
            "held_back_accuracy_before": search.before,
            "held_back_accuracy": final["held"],
            "images_kept": final["images"],
        },
        "proxy": _proxy(search, rehearsed, found, final),
    }


def paper_passes(task: Task) -> int:
    """Sample passes of preset "paper" on the task's data: noise, and an epoch each of impair and repair."""
    assert task.retain is not None
    paper = Options("paper")
    counts = torch.bincount(task.retain.labels())
    retain = int(counts.clamp_max(paper.retain_per_class or len(task.retain)).sum())
    noise = paper.noise_batch * len(task.classes)
    return noise * (paper.noise_steps + (paper.copies or 1)) + 2 * retain


@contextlib.contextmanager
def _reserved(task: Task, passes: int) -> Iterator[None]:
    """Inside, the budget has no room for the last ``passes``; but for half of it always."""
    whole = task.cost.budget
    assert whole is not None
    task.cost.budget = max(whole - passes, whole // 2)
    try:
        yield
    finally:
        task.cost.budget = whole


def _final_passes(options: Options, kept: Drawn) -> int:
    """Sample passes of the run itself."""
    assert options.batch_size is not None
    return options.batch_size * options.impair_steps + kept.size * len(kept.order)


def _look_passes(options: Options, task: Task, held: Source) -> int:
    """Sample passes of a look at images, held-back samples and, where there are any, samples of the classes; at most."""
    samples = LOOK if task.forget is not None else 0
    return -(-(len(held) + (options.noise_batch + samples) * len(task.classes)) // FORWARD) + 3  # each part is rounded up


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


def _rehearsed(train_set: Source, wanted: int, task: Task) -> list[int]:
    """Retained classes to rehearse on: enough samples to measure, right at first, and two others left to train on."""
    counts = torch.bincount(train_set.labels(), minlength=task.outputs)
    present = int((counts > 0).sum())
    able = [c for c in range(task.outputs) if counts[c] >= 20]
    wanted = max(wanted, len(task.classes)) if wanted else 0  # the hardest of few is easier than that of many
    wanted = max(min(wanted, present - 2), 0)
    order = torch.randperm(len(able), generator=task.generator(CHOOSE)).tolist()
    chosen: list[int] = []
    for c in (able[i] for i in order):
        if len(chosen) == wanted or not task.cost.has_room(LOOK):
            break
        if known(task, train_set, [c], limit=0.5) > 0.5:
            chosen.append(c)
    return sorted(chosen)


def _affordable(options: Options, task: Task, rehearsed: int) -> Options:
    """As much noise as a share of the budget has room for: for the wanted classes twice, as there are images of them as well."""
    assert task.cost.budget is not None
    room = round(NOISE_BUDGET * task.cost.budget) // (options.noise_steps * (2 * len(task.classes) + rehearsed))
    return dataclasses.replace(options, noise_batch=max(1, min(options.noise_batch, room)))


def _amounts(options: Options, train_set: Source, like: Tensor) -> Options:
    """Numbers that follow from the data's size, where the user gave none."""
    classes = len(train_set.labels().unique())
    copies = options.copies or max(1, round(NOISE_SHARE * len(train_set) / classes / options.noise_batch))
    size = options.batch_size or max(32, min(64, 1 << ((len(train_set) // 50) or 1).bit_length()))
    # the published 0.1 at 32x32x3, and no larger a pull on larger images, where it would drown the error term
    l2 = options.l2 if options.l2 is not None else 0.1 * min(1.0, 3072 / like.numel())
    return dataclasses.replace(options, copies=copies, batch_size=size, l2=l2)


def _wanted_only(noise: Noise, classes: list[int], rehearsed: list[int]) -> Noise:
    """The part of the noise that was learned for the wanted classes (they come first)."""
    n = len(noise.images) // (len(classes) + len(rehearsed)) * len(classes)
    return Noise(noise.images[:n], noise.labels[:n], noise.place)


def _final(search: Search, found: Found, rate: float, noise: Noise) -> dict[str, Any]:
    """The run itself: impair, repair; and again from there, while a class comes back. Returns what it ended with."""
    task, options = search.task, search.options
    impair, repair, first = options.impair_steps, len(search.kept.order), rate
    look = _look_passes(options, task, search.held)
    if found.impaired is not None and rate == found.rate and task.forget is not None:
        _weights.put_back(task.model, found.impaired)  # the trial was this very impair
    else:
        _weights.put_back(task.model, search.start)
        with _reserved(task, look + search.kept.size * repair):
            search.impair(rate, search.train, noise, "impair 1", impair)
    for number in range(1, RETRIES + 2):
        with _reserved(task, look):
            search.repair(options.repair_lr or first / 2, iter(search.kept), f"repair {number}", repair)
        state = _state(search, rate)
        task.history.append({"phase": "repaired", **state})
        impair = max(1, impair // 2)
        again = (options.batch_size or 1) * impair + search.kept.size * repair + look
        if not state["back"] or number > RETRIES or options.impair_lr or not task.cost.has_room(again):
            break
        rate *= 2
        search.impair(rate, search.train, noise, f"impair {number + 1}", impair)
    return state


def _state(search: Search, rate: float) -> dict[str, Any]:
    """What the model answers after repair."""
    images = search.images_kept()
    with search.task.cost.phase("looks"):
        held = search.task.right(search.held)
    return {"rate": rate, "held": held, "images": images, "back": _returned(search, images)}


def _returned(search: Search, images: float) -> bool:
    """Whether a wanted class is answered again: its real samples where there are any, else its images (``images``: the share kept)."""
    task, limit = search.task, search.options.gone_at
    if task.forget is not None:
        return known(task, task.forget, task.classes, limit) > limit
    return search.images_count and images > IMAGES_GONE_AT


def _not_found(search: Search, rehearsed: list[int], found: Found) -> str:
    """That no rate made the classes go, and which were tried."""
    what = f"the rehearsed classes {rehearsed}" if rehearsed else f"the classes {search.task.classes}"
    if search.task.cost.stopped_by_budget:
        return f"not found by rehearsal: the budget had room for {len(found.trials)} trial rates, and none of them made {what} go"
    return f"no rate up to {found.rate:g} made {what} go"


def _proxy(search: Search, rehearsed: list[int], found: Found, final: dict[str, Any]) -> dict[str, Any]:
    """The verdict where no data of the classes is at hand, and what it rests on."""
    trial = found.row
    images = f"of the images that the original model was surest of, {percent(final['images'])} are still answered so"
    if not rehearsed:
        why = f"not shown: {images}, but too few retained classes are left to rehearse on. "
        return {"gone": False, "why": why + "Pass forget= or test= with samples of the classes"}
    if not trial["gone"]:
        return {"gone": False, "why": f"{_not_found(search, rehearsed, found)}; {images}"}
    twice = " (and at half of it)" if trial.get("twice") else ""
    why = (
        f"no data of the classes was given; by rehearsal: at rate {trial['rate']:g}{twice} the retained classes {rehearsed} went "
        f"({percent(trial['kept'])} of their samples still right), the run used {final['rate']:g}, and {images}"
    )
    return {"gone": not _returned(search, final["images"]), "why": why}
