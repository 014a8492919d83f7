"""UNSIR's noise phase as published, restated in our own words, and timed against ours.

Published (arXiv 2111.08947 and its notebook): one class after another; the model's parameters keep their
gradients, so every step also computes all weight gradients, which nothing reads; the objective and its L2
term go through autograd; Adam on the noise.
Both run in eval mode here: that is where both are defined alike (in train mode the batch an image is in
changes its result).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastforget.methods import UNSIR
from fastforget.methods.task import Task
from fastforget.methods.unsir.noise import Noise, Place, learn_noise
from fastforget.ops import noise as noise_ops

from .nets import ResNet18, lived_in

CLASSES = [0, 1, 2]
IMAGE = (3, 32, 32)


def published_noise(
    model: nn.Module,
    classes: list[int],
    *,
    batch: int = 256,
    steps: int = 40,
    lr: float = 0.1,
    l2: float = 0.1,
    seed: int = 0,
    image: tuple[int, ...] = IMAGE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The learned images [classes * batch, ...], from the same starting noise as ours."""
    learned = []
    model.eval()
    for c in classes:
        start = noise_ops.normal_(torch.empty(batch, *image), seed=seed, stream=c)
        noise = nn.Parameter(start.to(dtype))
        labels = torch.full((batch,), c)
        optimizer = torch.optim.Adam([noise], lr=lr)
        for _ in range(steps):
            penalty = noise.square().flatten(1).sum(1).mean()
            objective = -F.cross_entropy(model(noise), labels) + l2 * penalty
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
        learned.append(noise.detach())
    for parameter in model.parameters():
        parameter.grad = None
    return torch.cat(learned)


def our_noise(
    model: nn.Module, classes: list[int], *, images_used: int | None = None, **options: Any
) -> Tensor:
    """The same by fastforget: all classes in one batch, gradients of the noise alone, fused steps."""
    image = options.pop("image", IMAGE)
    chosen = UNSIR(
        preset="paper",
        noise_batch=options.pop("batch", 256),
        noise_steps=options.pop("steps", 40),
        images_used=images_used,
    )
    task = Task(
        model,
        lambda m, x: m(x),
        classes,
        10,
        torch.device("cpu"),
        options.pop("seed", 0),
        False,
        None,
        None,
        None,
    )
    learned: Noise = learn_noise(chosen, task, classes, Place(torch.empty(image)))
    return learned.images


def _seconds(call: Any, rounds: int, threads: int) -> list[float]:
    clock = time.thread_time if threads == 1 else time.perf_counter
    taken = []
    for _ in range(rounds):
        began = clock()
        call()
        taken.append(clock() - began)
    return taken


def noise_phase_rows(
    *, steps: int = 40, rounds: int = 3, batch: int = 256, stem: str = "imagenet", threads: int = 1
) -> list[dict[str, Any]]:
    """Times the phase on ResNet-18 at 32x32 with three classes, variants in turn; one row for each use of
    the images.

    Args:
        steps: noise steps a class (published: 40; the time is proportional to them, so fewer give the same
            ratio).
        rounds: repetitions of each; the medians count.
        batch: noise images a class.
        stem: the network's first layers, see :class:`benchmarks.nets.ResNet18`.
        threads: 1 counts thread CPU time, more count wall clock.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        model = lived_in(ResNet18(stem=stem))
        settings = {"batch": batch, "steps": steps}
        times: dict[str, list[float]] = {"published": [], "all": [], "three": []}
        for _ in range(rounds):
            times["published"] += _seconds(lambda: published_noise(model, CLASSES, **settings), 1, threads)
            times["all"] += _seconds(lambda: our_noise(model, CLASSES, **settings), 1, threads)
            times["three"] += _seconds(
                lambda: our_noise(model, CLASSES, images_used=3, **settings), 1, threads
            )
        return [
            _row("all images used", "all", None, model, settings, times, stem, threads),
            _row(
                "3 images a class used, as in the published code",
                "three",
                3,
                model,
                settings,
                times,
                stem,
                threads,
            ),
        ]
    finally:
        torch.set_num_threads(before)


def _row(
    case: str,
    ours: str,
    used: int | None,
    model: nn.Module,
    settings: dict[str, int],
    times: dict[str, list[float]],
    stem: str,
    threads: int,
) -> dict[str, Any]:
    published, mine = statistics.median(times["published"]), statistics.median(times[ours])
    error_published, error_ours = rounding_errors(model, used)
    return {
        "op": "unsir noise phase",
        "case": case,
        "model": f"ResNet-18, {stem} stem, eval batch norm",
        "shape": f"{len(CLASSES)} classes x {settings['batch']} x 3x32x32, {settings['steps']} steps",
        "dtype": "float32",
        "device": "cpu",
        "threads": threads,
        "clock": "thread CPU seconds" if threads == 1 else "wall seconds",
        "published_s": published,
        "ours_s": mine,
        "ratio": published / mine,
        "error_published": error_published,
        "error_ours": error_ours,
    }


def rounding_errors(
    model: nn.Module, used: int | None, *, batch: int = 4, steps: int = 3
) -> tuple[float, float]:
    """Largest distance from the same procedure in float64, of the published one and of ours, on the images
    used.
    """
    import copy

    small = {"batch": batch, "steps": steps}
    exact = published_noise(copy.deepcopy(model).double(), CLASSES, dtype=torch.float64, **small)
    first = torch.arange(len(exact)) % batch < (used or batch)
    published = published_noise(model, CLASSES, **small)
    ours = our_noise(model, CLASSES, images_used=used, **small)
    return tuple(float((x.double() - exact[first]).abs().max()) for x in (published[first], ours))  # type: ignore[return-value]


if __name__ == "__main__":
    for row in noise_phase_rows(steps=4):
        print({k: round(v, 7) if isinstance(v, float) else v for k, v in row.items()})
