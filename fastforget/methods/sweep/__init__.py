"""Sweep: forgetting in one run whose rate falls from high to zero, with everything that pushes and holds in the objective from the start.

A method of our own. What impair and repair do one after the other, a falling rate does at once: the high rate shakes the memory loose, the
fall brings the answers back. Each step takes a batch of data to keep, one of data never seen (if there is any), and one of data to forget:

- **hold**: on kept and unseen data the model answers as the original did (KL to the original's own answers, classes to forget left out);
  a small cross-entropy on the kept data keeps it learning from what is left;
- **push**, classes: on their samples too the model answers as the original would without these classes, and -log(1 - p) of the
  classes; the more of its data the model has memorised, the more the classes' log-odds on their samples are also made like those on
  unseen data, quantile by quantile;
- **push**, classes without samples: images that the model is surest to be of them stand in (:mod:`.images`);
- **push**, samples: the log-odds of their labels are made like those of unseen data, quantile by quantile.

The three go through the model as one batch, of classes half as many samples to forget as of unseen ones: batch norm, in train mode, then
normalises all by much the same statistics as at the end, when it uses the running ones; at the end these are taken anew where that helps.
Steps are small and many, and follow the gradient's direction (:class:`~..engine.tensorwise.TensorwiseAdam`). The rate is found from the
model (:func:`~.rate.steady`), relative to the size of each tensor's weights; after each sweep two-sided evidence decides whether another
one, at a higher rate, is needed.
"""

from __future__ import annotations

from typing import Any

from ..task import Task
from . import images
from .options import SweepOptions
from .run import Run

__all__ = ["Sweep"]


class Sweep(SweepOptions):
    """Options of the sweep.

    Args:
        rate: the first step's size, relative to the weights': root mean squares of every tensor; ``None``: found from the model.
        steps: of a sweep; ``None``: what the budget has room for.
        sweeps: at most so many; each further one starts where the last one ended, at a higher rate.
        batch_size: unseen samples in a step, with half as many more to keep, and half as many to forget (as many where samples go);
            ``None``: 32, 16 or 8, by the budget; 8 without samples of the classes.
        hold: ``"anchor"`` (the original's answers) or ``"labels"`` (cross-entropy; unseen data is held by the anchor anyhow).
        alike: weight of the quantile term; ``None``: 10 for samples, less in batches of less than 32; for classes the more the model has
            memorised, the more: 0.15 to 1 for one, 0 to 2 for several.

    Its own budget, where none is given, is two epochs over ``retain``, and up to four the more of its data the model has memorised, which
    unseen data shows: 15,000 sample passes at most (28 a sample that goes, where that is more), and 2,400 at least. Where a class is still
    known then, up to two more sweeps exceed it; a budget that was given is never exceeded. A sweep that costs more of the right answers on
    unseen data than chance explains is kept in part: for samples three quarters, a half or a quarter of its way, else it is undone; for
    classes three quarters or a half, where they are gone there, else it stays. ``why`` says so.

    The more it has memorised, the harder classes are held and the higher the rate: the hold weighs up to four times as much in batches
    below the largest, where data is little, and up to twice as much for several classes.

    Samples of a few classes are compared with unseen ones of the same classes, as the verdict does, where those are eight or more and less
    than half of all; they are three quarters of the unseen samples in a step then. The fewer they are, the more that costs.

    Needs ``retain``; ``nonmember`` for samples, and for better results with classes. For classes ``forget`` may be missing, where the
    inputs are one floating point tensor: then images that are learned as UNSIR's noise is, but down the error, stand in for their
    samples. That is quicker than UNSIR and less sure: on a net for noisy signals it cost 20 points, UNSIR one. ``method="auto"`` takes
    UNSIR there.

    >>> from fastforget.methods import Sweep
    >>> Sweep(steps=30).hold
    'anchor'
    """

    name = "sweep"
    scope = "samples"
    holds_back = True  # a part of the unseen data that it never trains on, for its looks and the verdict
    needs_forget = False  # of classes
    gradients = ("train",)
    # it learns images where there are no samples of the classes, which the class can't know: whether inputs allow that is asked in the run
    learns_noise = False

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes``, or the samples of ``task.forget``, in ``task.model``; returns what was measured and chosen.

        Raises:
            ValueError: ``retain`` is missing; for samples, ``nonmember`` is missing or has less than four.
            TypeError: there is no data to forget, and no images can be learned in place of inputs such as these.
            FloatingPointError: a loss became NaN or infinite.
        """
        if task.retain is None:
            raise ValueError("retain: not given; the sweep needs data to keep, to hold the model by")
        if not task.classes and task.nonmember is None:
            raise ValueError("nonmember: not given; for samples the sweep needs data the model never saw, to learn how it answers it")
        if not task.classes and task.held is None:
            raise ValueError(
                f"nonmember: got {len(task.nonmember or ())} samples; for samples the sweep trains on some of them and looks at the rest, "
                "so it needs at least 4. Give more, or take method='lightweight'"
            )
        if task.forget is None:
            images.must_be_learnable(task.retain)
        return Run(self, task).run()
