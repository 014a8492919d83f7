"""Forsaken: unlearning by a trained mask gradient.

Liu, Ma, Liu, Liu, Jiang, Ma, Yu & Ren, "Learn to Forget: Machine Unlearning via Neuron Masking", arXiv 2003.10933 (v1: user-level, v2:
inadvertently uploaded out-of-distribution samples, v3: neuron masking; TDSC 20(4), 2023). From its abstracts and what is written about it:
small changes -eta * delta of the weights are repeated, delta being the output of a trainable generator, until the model's output
distribution on the forget data is that on non-member data; an l1 term keeps the changes few; a change that doesn't help is undone.

A reconstruction: generator architecture, step sizes and constants of the paper aren't public in full. What is ours: gradients are scaled
to the weights of their layer (one step size for all nets), distributions are compared class by class (for whole classes, that of a model
which doesn't know them), the retain loss is part of the objective where retain data is given, changes are accepted or undone in blocks of
``check_every``, and after the data is unknown the run goes on until the kept data has recovered.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ... import _weights
from ...ops import mask
from ..cost import FORWARD
from ..engine.loop import gradients, steps, trainable, training
from ..options import check, given
from ..task import Task
from .generators import GENERATORS, Context, Generator, rows
from .held import KINDS, Hold, Kept, kind_of
from .match import DIVERGENCES, REFERENCES, Evidence, Look, forget_batch

COSTLY = 0.2  # changes that cost more than this of the accuracy on the retain data are undone whatever they bring
STUCK = 0.02  # of the first step size
FORGET_ORDER, RETAIN_ORDER, EVIDENCE = 21, 22, 23  # purposes of seeds


@dataclasses.dataclass
class Forsaken:
    """Options of Forsaken.

    Args:
        generator: ``"neuron"`` (one factor an output neuron, from a small shared net), ``"coordinate"`` (one a weight), ``"dense"`` (as
            described in the paper; small nets only), ``"direct"`` (no net: sparse mask by proximal steps).
        steps: at most so many changes.
        step_size: eta, relative to the root mean square of each layer's weights; halved when a block of changes is undone.
        l1: lambda of the l1 term; multiplied by omega, the mean loss of the hold over the evidence batches' number (1 without one).
        hold: what keeps the model where it was: ``"anchor"`` (its own answers before, on retain and non-member data; without retain data on
            non-member data alone), ``"labels"`` (cross-entropy on retain data, as in the description) or ``"auto"``: the anchor for
            classes, labels for samples.
        utility: weight of that hold in the objective (0: only omega looks at it, as in the description).
        divergence: ``"P||V"``, ``"V||P"`` or ``"JS"``, of the reference distribution P and the forget data's V.
        reference: see ``fastforget/methods/perturb/match.py``.
        stop: ``"unknown"`` (the loss attack's AUC, forget against non-member data, is at most ``margin`` standard errors above 0.5; for
            whole classes, at most 0.5 % of their samples are answered right), ``"divergence"`` (distance at most ``tolerance``) or
            ``"steps"``. Before it stops, at most ``give`` of the accuracy on the retain data may be missing, and ``patience`` blocks of
            changes must have brought less than 2 % each.
        batch_size, check_every, evidence_batches: samples a step, steps in a block, batches that decide whether a block is kept.
        generator_lr, hidden: of the generator's net (default: 0.01, "dense" 0.1, and 16 hidden units, "dense" 64).
        undo_limit: ends the run after so many blocks undone in a row.

    >>> from fastforget.methods import Forsaken
    >>> Forsaken(generator="direct").step_size
    0.02
    """

    generator: str = "neuron"
    steps: int = 120
    step_size: float = 0.02
    l1: float = 0.01
    hold: str = "auto"
    utility: float = 1.0
    divergence: str = "P||V"
    reference: str = "by_class"
    stop: str = "unknown"
    tolerance: float = 0.05
    batch_size: int = 64
    check_every: int = 5
    evidence_batches: int = 10
    generator_lr: float | None = None
    hidden: int | None = None
    undo_limit: int = 6
    margin: float = 0.5
    give: float = 0.02
    patience: int = 2

    name = "forsaken"
    scope = "samples"
    learns_noise = False
    gradients = ("eval",)

    def __post_init__(self) -> None:
        choices = {
            "generator": tuple(GENERATORS),
            "hold": KINDS,
            "divergence": DIVERGENCES,
            "reference": REFERENCES,
            "stop": ("unknown", "divergence", "steps"),
        }
        whole = ("steps", "batch_size", "check_every", "evidence_batches", *given(self, ("hidden",)))
        numbers = ("step_size", "l1", "utility", "tolerance", "margin", "give", *given(self, ("generator_lr",)))
        check(self, choices, whole, numbers)

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able."""
        return dataclasses.asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.forget`` in ``task.model``; returns what was measured."""
        if task.nonmember is None:
            raise ValueError("nonmember: not given; Forsaken needs data the model never saw, to learn how it answers such data")
        assert task.forget is not None
        run = _Run(self, task)
        with training(task, "eval"):  # batch statistics and dropout stay as they are
            run.loop()
        return {"measured": run.measured()}


class _Run:
    """One run: data order, generator, and the last accepted weights."""

    def __init__(self, options: Forsaken, task: Task) -> None:
        assert task.forget is not None and task.nonmember is not None
        self.options, self.task = options, task
        self.params: list[Tensor] = list(trainable(task.model))
        self.generator: Generator = GENERATORS[options.generator](task, self.params, options)
        size = forget_batch(task, options.batch_size)
        self.forget = task.forget.cycle(size, task.generator(FORGET_ORDER), task.device)
        self.hold = Hold(task, kind_of(options.hold, task), options.batch_size, RETAIN_ORDER)
        self.eta, self.undone, self.step, self.idle = options.step_size, 0, 0, 0
        self.first = self.distance = 0.0
        self.evidence = Evidence(
            task, options.evidence_batches * options.batch_size, options.margin, options.reference, options.divergence, EVIDENCE,
            whole=options.stop == "divergence",
        )  # fmt: skip
        anchors = task.nonmember if self.hold.kind == "anchor" else None
        most = options.evidence_batches * options.batch_size
        self.kept = [Kept(self.hold, data, most, EVIDENCE) for data in (task.retain, anchors) if data is not None]
        # a step, and the look that decides whether it is kept
        self.look_passes = -(-(self.evidence.least + sum(kept.least for kept in self.kept)) // FORWARD)
        self.each = min(size, len(task.forget)) + (self.hold.each if options.utility > 0 else 0) + self.look_passes

    def loop(self) -> None:
        """Change, look, keep or undo: until the forget data is unknown."""
        options, task, figures, since = self.options, self.task, None, 0
        # the first look, and the teacher's answers that looks compare with
        if not task.cost.has_room(self.each + 3 * self.look_passes + self.evidence.others_passes):
            return
        self.look = self.evidence.look()
        self.target, self.first = self.look.target, self.look.distance
        self.distance = self.first
        self.loss, self.lost = self._held()
        self.accepted = _weights.save(task.model)
        if self._settled():
            return
        for step in steps(task, options.steps, "forsaken", each=self.each):
            figures, self.step, since = self._change(), step + 1, since + 1
            if since == options.check_every:
                self._keep_or_undo(figures)
                since = 0
                if self._stuck() or self._settled():
                    break
        if since and figures is not None:  # the last steps, where the budget or the number of steps cut a block short
            with task.cost.phase("forsaken"):
                self._keep_or_undo(figures)
        _weights.put_back(task.model, self.accepted)

    def _held(self) -> tuple[float, float]:
        """The hold's mean loss, and the share of right answers lost, on the data that holds the model."""
        if not self.kept:
            return 0.0, 0.0
        losses, lost = zip(*(kept.look(self.options.give if self._unknown(self.look) else COSTLY) for kept in self.kept), strict=True)
        return sum(losses) / len(losses), max(lost)

    def _change(self) -> dict[str, float]:
        """One step of the generator: theta <- theta - eta * delta."""
        options, task = self.options, self.task
        importance: list[Tensor] = []
        x, y = next(self.forget)
        logits = task.forward(task.model, x).float()
        away = self.target.distance(logits, y)
        difference = self.target.table[y].mean(dim=0) - logits.detach().softmax(dim=1).mean(dim=0)
        grads = gradients(task, away, self.params)
        if self.hold.batches and options.utility > 0:
            kept = gradients(task, self.hold.step().loss, self.params)
            with task.cost.at("ops"):
                importance = list(mask.neuron_stats([rows(g) for g in kept]).mean_abs)
                torch._foreach_add_(grads, kept, alpha=options.utility)
        omega = self.loss / options.evidence_batches if self.kept else 1.0
        with task.cost.at("ops"):
            self.generator.learn(grads)
            with torch.no_grad():
                return self.generator.apply(
                    self.params, grads, Context(self.eta, options.l1 * omega, float(away.detach()), difference, importance)
                )

    def _keep_or_undo(self, figures: dict[str, float]) -> None:
        look, before = self.evidence.look(), self.look
        self.look = look  # what the kept data is looked at for depends on whether the data is unknown now
        loss, lost = self._held()
        self.look = before
        distance = float(self.target.distance(look.logits, look.labels))
        row = {"phase": "forsaken", "step": self.step, "distance": distance, "retain_loss": loss, "eta": self.eta, **figures}
        kept = lost <= COSTLY and self._helps(look, distance, loss)
        self.task.history.append(row | {"known": look.known, "kept": kept})
        better = loss < 0.98 * self.loss if self.look.unknown else distance < 0.98 * self.distance
        self.idle = 0 if kept and better else self.idle + 1
        if kept:
            self.accepted, self.undone = _weights.save(self.task.model), 0
            # from here on compared with what the changed model answers data never seen
            self.look, self.target, self.distance = look, look.target, look.distance
            self.loss, self.lost = loss, lost
        else:
            _weights.put_back(self.task.model, self.accepted)
            self.eta /= 2
            self.undone += 1

    def _helps(self, look: Look, distance: float, loss: float) -> bool:
        """Objective lower, or the attack knows less; once the data is unknown: still so, and better on the retain data."""
        if not math.isfinite(distance + loss):
            return False
        if self._unknown(self.look):
            return self._unknown(look) and loss <= self.loss
        if self._unknown(look) or distance + self.options.utility * loss <= self.distance + self.options.utility * self.loss:
            return True
        return not self.task.classes and look.known < self.look.known  # forgetting what was learned by heart costs retain loss

    def _stuck(self) -> bool:
        """Undone again and again, or the steps have become too small to move anything."""
        return self.undone > self.options.undo_limit or self.eta < STUCK * self.options.step_size

    def _settled(self) -> bool:
        """Forgotten, and the kept data has recovered as far as the last changes could bring it."""
        if not self._unknown(self.look):
            return False
        return not self.kept or (self.idle >= self.options.patience and self.lost <= self.options.give)

    def _unknown(self, look: Look) -> bool:
        if self.options.stop == "steps":
            return False
        if self.options.stop == "divergence":
            return look.distance <= self.options.tolerance
        return look.unknown

    def measured(self) -> dict[str, Any]:
        if not self.step:
            return {"steps": 0}
        return {"steps": self.step, "distance_before": self.first, "distance": self.distance, "step_size_at_end": self.eta}
