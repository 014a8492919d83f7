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
from ..._progress import Progress, progress
from ...ops import noise
from ..options import check
from ..task import Task
from .generators import relative
from .match import DIVERGENCES, REFERENCES, Evidence, accuracy, forget_batch, gradient

STUCK = 0.05  # of the first step size: smaller steps don't move anything any more
LOOK_AT = 0.05  # a class of which the last batches show no more than this may be gone
FORGET_ORDER, RETAIN_ORDER, EVIDENCE = 31, 32, 33  # purposes of seeds


@dataclasses.dataclass
class Lightweight:
    """Options of Lightweight.

    Args:
        direction: ``"gradient"`` (of the retain loss) or ``"interpolate"`` (towards a copy fine-tuned on the retain subset).
        steps: at most so many perturbations.
        step_size: relative to the root mean square of each layer's weights.
        noise: sigma of the Gaussian part of a perturbation, relative likewise.
        pull: weight of the gradient that pulls the forget data's answers towards those on unseen data (the 2025 text); 0 leaves it out.
        divergence, reference: of that pull, as in :class:`Forsaken`.
        batch_size: retain samples in a step; as many of the forgotten classes, or twice as many of the forgotten samples.
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
        bar: Progress[int]
        with _weights.flags_kept(task.model), torch.enable_grad(), progress(self.steps, "lightweight", task.progress) as bar:
            task.model.eval()  # batch statistics and dropout stay as they are
            run.loop(bar)
        return {"measured": {"steps": run.step}}


class _Run:
    """One run: data order, step size, and what the last look saw."""

    def __init__(self, options: Lightweight, task: Task) -> None:
        assert task.forget is not None and task.retain is not None
        self.options, self.task = options, task
        self.evidence = Evidence(task, options.evidence, options.margin, options.reference, options.divergence, EVIDENCE)
        kept = task.retain.at_most(options.evidence, task.generator(EVIDENCE))
        self.first = accuracy(*task.logits(kept))
        self.towards = _fine_tuned(options, task) if options.direction == "interpolate" else None
        self.forget = task.forget.cycle(forget_batch(task, options.batch_size), task.generator(FORGET_ORDER), task.device)
        self.retain = task.retain.cycle(options.batch_size, task.generator(RETAIN_ORDER), task.device)
        self.params: list[Tensor] = [p for p in task.model.parameters() if p.requires_grad]
        self.step, self.eta, self.best = 0, options.step_size, math.inf
        self.look = self.evidence.look()

    def loop(self, bar: Any) -> None:
        """Perturb, look: until the forget data is unknown and the kept data is answered about as well as before."""
        options, recovered = self.options, True
        while self.step < options.steps and self.eta > STUCK * options.step_size and not (self.look.unknown and recovered):
            block = []
            for _ in range(min(options.check_every, options.steps - self.step)):
                self.step += 1
                block.append(self._perturb())
                bar.step()
            row = {k: sum(r[k] for r in block) / len(block) for k in block[0]}
            recovered = row["retain_accuracy"] >= self.first - options.give
            # while the classes' own batches still show them, a look at the evidence would only cost time
            if not self.task.classes or row.get("forget_accuracy", 0.0) <= LOOK_AT:
                self.look = self.evidence.look()
            row |= {"known": self.look.known, "step_size": self.eta}
            self.task.history.append({"phase": "lightweight", "step": self.step, **row})
            objective = row["retain_loss"] + options.pull * row.get("distance", 0.0)
            if objective > self.best:
                self.eta *= options.decay
            self.best = min(self.best, objective)

    def _perturb(self) -> dict[str, float]:
        """theta <- theta - eta * g + sigma * xi, in one pass over the weights."""
        figures, grads = self._direction()
        with torch.no_grad():
            weight = relative(self.params, grads)
            std = [self.options.noise * w for w in weight]
            noise.perturb_step_(self.params, grads, lr=self.eta, std=std, seed=self.task.seed, step=self.step)
        if not all(math.isfinite(v) for v in figures.values()):
            raise FloatingPointError(f"step {self.step}: a loss became {figures}; the model is unchanged. Lower step_size")
        return figures

    def _direction(self) -> tuple[dict[str, float], list[Tensor]]:
        """What the step goes against: the retain loss's gradient or the way from the fine-tuned copy, and the pull's gradient."""
        options, task = self.options, self.task
        x, y = next(self.retain)
        with torch.set_grad_enabled(self.towards is None):
            logits = task.forward(task.model, x).float()
            loss = F.cross_entropy(logits, y)
        figures = {"retain_loss": float(loss.detach()), "retain_accuracy": accuracy(logits.detach(), y)}
        if options.pull > 0 and not self.look.unknown:  # once it is unknown, only the kept data needs more steps
            x, y = next(self.forget)
            logits = task.forward(task.model, x).float()
            away = self.look.target.distance(logits, y)
            figures |= {"distance": float(away.detach()), "forget_accuracy": accuracy(logits.detach(), y)}
            loss = (loss if self.towards is None else 0.0) + options.pull * away
        grads = gradient(loss, self.params) if loss.requires_grad else [torch.zeros_like(p) for p in self.params]
        if self.towards is not None:
            way = [p.detach() - t for p, t in zip(self.params, self.towards, strict=True)]
            torch._foreach_add_(grads, way, alpha=1.0)
        return figures, grads


def _fine_tuned(options: Lightweight, task: Task) -> list[Tensor]:
    """Weights of a copy trained on the retain subset."""
    assert task.retain is not None
    copy = _weights.working_copy(task.model)
    _weights.training_mode(copy, task.original or task.model)
    params = [p for p in copy.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=options.finetune_lr)
    with torch.enable_grad():
        for epoch in range(options.finetune_epochs):
            order = torch.randperm(len(task.retain), generator=task.generator(RETAIN_ORDER + 100 + epoch))
            for x, y in task.retain.at(task.cut(order, options.batch_size, task.retain), device=task.device):
                optimizer.zero_grad()
                F.cross_entropy(task.forward(copy, x), y).backward()
                optimizer.step()
    return [p.detach() for p in params]
