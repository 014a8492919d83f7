"""Lightweight unlearning: small perturbations of the weights towards the model of the remaining data.

Chen, Wang & Huang, "Lightweight machine unlearning in neural network", arXiv 2111.05528: a small perturbation of the weights is repeated in
the direction of the model trained on the remaining data until the contribution of the forgotten data is eliminated; and its successor
"Fast yet versatile machine unlearning for deep neural networks", Neural Networks 190 (2025): until the model's predictions on the forgotten
data are distributed as on unseen third-party data.

A reconstruction from the two abstracts: no formula or constant of either is public. With ``pull=0`` only the first text's direction is
left; the default adds the second's. Gradients are scaled to the weights of their layer, so that one step size fits all nets.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import _weights
from ...ops import noise
from ..cost import FORWARD
from ..engine.loop import descend, gradients, steps, trainable, training
from ..options import check
from ..task import Task
from .generators import relative
from .held import KINDS, Hold, kind_of
from .match import DIVERGENCES, REFERENCES, Evidence, accuracy, forget_batch

STUCK = 0.05  # of the first step size: smaller steps don't move anything any more
LOOK_AT = 0.05  # a class of which the last batches show no more than this may be gone
FORGET_ORDER, RETAIN_ORDER, EVIDENCE = 31, 32, 33  # purposes of seeds


@dataclasses.dataclass
class Lightweight:
    """Options of Lightweight.

    Args:
        direction: ``"gradient"`` (of the loss that holds the model) or ``"interpolate"`` (towards a copy fine-tuned on the retain subset).
        steps: at most so many perturbations.
        hold: the loss whose gradient that is: ``"anchor"`` (KL to the original model's own answers, on retain and unseen data) or
            ``"labels"`` (cross-entropy on retain data) or ``"auto"``: the anchor for classes, labels for samples. The fine-tuned copy is
            trained on labels.
        step_size: relative to the root mean square of each layer's weights.
        noise: sigma of the Gaussian part of a perturbation, relative likewise.
        pull: weight of the gradient that pulls the forget data's answers towards those on unseen data (the 2025 text); 0 leaves it out.
        divergence, reference: of that pull, as in :class:`Forsaken`.
        batch_size: retain samples in a step, with the anchor as many unseen ones; as many of the forgotten classes, or twice as many of
            the forgotten samples.
        check_every: steps between two looks at whether the data is forgotten.
        decay: of the step size, after a block of steps that didn't lower the objective.
        evidence: samples of the forget set, and of the non-members, that are looked at.
        margin: samples are forgotten when the loss attack's AUC is at most so many standard errors above 0.5; classes, when at most 0.5 %
            of their samples are answered right.
        give: what may be missing of the accuracy on the retain data at the end; until then the run goes on with the retain loss alone.
        finetune_epochs, finetune_lr: of ``direction="interpolate"``; enough of both that the copy, which sees no forget data, forgets a
            class by itself. Then ``pull=0`` serves as well, and keeps the rest better.

    >>> from fastforget.methods import Lightweight
    >>> Lightweight(pull=0).direction
    'gradient'
    """

    direction: str = "gradient"
    hold: str = "auto"
    steps: int = 100
    step_size: float = 0.02
    noise: float = 1e-3
    pull: float = 1.0
    divergence: str = "P||V"
    reference: str = "by_class"
    batch_size: int = 64
    check_every: int = 4
    evidence: int = 512
    finetune_epochs: int = 10
    decay: float = 0.7
    margin: float = 0.5
    give: float = 0.02
    finetune_lr: float = 1e-2

    name = "lightweight"
    scope = "samples"
    learns_noise = False

    @property
    def gradients(self) -> tuple[str, ...]:
        """Where the steps are taken: the copy to go towards is trained, the model itself stays in eval mode."""
        return ("train", "eval") if self.direction == "interpolate" else ("eval",)

    def __post_init__(self) -> None:
        choices = {
            "direction": ("gradient", "interpolate"),
            "hold": KINDS,
            "divergence": DIVERGENCES,
            "reference": REFERENCES,
        }
        whole = ("steps", "batch_size", "check_every", "evidence", "finetune_epochs")
        check(self, choices, whole, ("step_size", "noise", "pull", "finetune_lr", "decay", "margin", "give"))

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able."""
        return dataclasses.asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.forget`` in ``task.model``; returns what was measured."""
        for name, use in (("retain", "a small subset of the data to keep"), ("nonmember", "data the model never saw")):
            if getattr(task, name) is None:
                raise ValueError(f"{name}: not given; Lightweight needs {use}")
        assert task.forget is not None and task.retain is not None
        run = _Run(self, task)
        with training(task, "eval"):  # batch statistics and dropout stay as they are
            run.loop()
        return {"measured": {"steps": run.step}}


class _Run:
    """One run: data order, step size, and what the last look saw."""

    def __init__(self, options: Lightweight, task: Task) -> None:
        assert task.forget is not None and task.retain is not None
        self.options, self.task = options, task
        self.evidence = Evidence(task, options.evidence, options.margin, options.reference, options.divergence, EVIDENCE)
        size = forget_batch(task, options.batch_size)
        self.forget = task.forget.cycle(size, task.generator(FORGET_ORDER), task.device)
        # on the way to a copy the hold's loss only measures
        kind = kind_of(options.hold, task) if options.direction == "gradient" else "labels"
        self.hold = Hold(task, kind, options.batch_size, RETAIN_ORDER)
        self.params: list[Tensor] = list(trainable(task.model))
        self.towards: list[Tensor] | None = None
        self.step, self.eta, self.best, self.first = 0, options.step_size, math.inf, 1.0
        self.each = self.hold.each + (min(size, len(task.forget)) if options.pull > 0 else 0)

    def loop(self) -> None:
        """Perturb, look: until the forget data is unknown and the kept data is answered about as well as before."""
        options, task = self.options, self.task
        assert task.retain is not None
        kept = None if self.hold.kind == "anchor" else task.retain.at_most(options.evidence, task.generator(EVIDENCE))
        looks = self.evidence.others_passes + -(-(self.evidence.least + len(kept or ())) // FORWARD)
        if not task.cost.has_room(self.each + looks):
            return
        self.look = self.evidence.look()
        if kept is not None:
            with task.cost.phase("looks"):
                self.first = accuracy(*task.logits(kept))
        if options.direction == "interpolate":
            self.towards = _fine_tuned(options, task)
        block: list[dict[str, float]] = []
        if self.look.unknown:
            return
        for step in steps(task, options.steps, "lightweight", each=self.each):
            self.step = step + 1
            block.append(self._perturb())
            if len(block) == options.check_every or self.step == options.steps:
                recovered = self._judge(block)
                block = []
                if self.eta <= STUCK * options.step_size or (self.look.unknown and recovered):
                    break

    def _judge(self, block: list[dict[str, float]]) -> bool:
        """A look, and the next step size, after a block of steps; whether the kept data is answered about as well as before."""
        options = self.options
        row = {k: sum(r[k] for r in block) / len(block) for k in block[0]}
        recovered = row.get("lost", self.first - row["retain_accuracy"]) <= options.give
        # while the classes' own batches still show them, a look at the evidence would only cost time
        shown = self.task.classes and row.get("forget_accuracy", 0.0) > LOOK_AT
        if not shown and self.task.cost.left() >= -(-self.evidence.least // FORWARD):
            self.look = self.evidence.look()
        row |= {"known": self.look.known, "step_size": self.eta}
        self.task.history.append({"phase": "lightweight", "step": self.step, **row})
        objective = row["retain_loss"] + options.pull * row.get("distance", 0.0)
        if objective > self.best:
            self.eta *= options.decay
        self.best = min(self.best, objective)
        return recovered

    def _perturb(self) -> dict[str, float]:
        """theta <- theta - eta * g + sigma * xi, in one pass over the weights."""
        figures, grads = self._direction()
        with torch.no_grad(), self.task.cost.at("ops"):
            weight = relative(self.params, grads)
            std = [self.options.noise * w for w in weight]
            noise.perturb_step_(self.params, grads, lr=self.eta, std=std, seed=self.task.seed, step=self.step)
        if not all(math.isfinite(v) for v in figures.values()):
            raise FloatingPointError(f"step {self.step}: a loss became {figures}; the model is unchanged. Lower step_size")
        return figures

    def _direction(self) -> tuple[dict[str, float], list[Tensor]]:
        """What the step goes against: the hold's gradient or the way from the fine-tuned copy, and the pull's gradient."""
        options, task = self.options, self.task
        with torch.set_grad_enabled(self.towards is None):
            held = self.hold.step()
        loss = held.loss
        figures = {"retain_loss": float(loss.detach()), "retain_accuracy": held.right}
        if held.lost is not None:
            figures["lost"] = held.lost
        if options.pull > 0 and not self.look.unknown:  # once it is unknown, only the kept data needs more steps
            x, y = next(self.forget)
            logits = task.forward(task.model, x).float()
            away = self.look.target.distance(logits, y)
            figures |= {"distance": float(away.detach()), "forget_accuracy": accuracy(logits.detach(), y)}
            loss = (loss if self.towards is None else 0.0) + options.pull * away
        grads = gradients(task, loss, self.params) if loss.requires_grad else [torch.zeros_like(p) for p in self.params]
        if self.towards is not None:
            way = [p.detach() - t for p, t in zip(self.params, self.towards, strict=True)]
            torch._foreach_add_(grads, way, alpha=1.0)
        return figures, grads


def _fine_tuned(options: Lightweight, task: Task) -> list[Tensor]:
    """Weights of a copy trained on the retain subset."""
    assert task.retain is not None
    copy = _weights.working_copy(task.model)
    _weights.training_mode(copy, task.model if task.original is None else task.original)
    params = trainable(copy)
    optimizer = torch.optim.Adam(params, lr=options.finetune_lr)
    orders = [torch.randperm(len(task.retain), generator=task.generator(RETAIN_ORDER + 100 + e)) for e in range(options.finetune_epochs)]
    cut = [batch for order in orders for batch in task.cut(order, options.batch_size, task.retain)]
    batches = iter(task.cost.reading(task.retain.at(cut, device=task.device)))
    with torch.enable_grad():
        for _ in steps(task, len(cut), "fine-tune", each=max(map(len, cut))):
            x, y = next(batches)
            descend(task, optimizer, F.cross_entropy(task.forward(copy, x), y))
    return [p.detach() for p in params]
