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

from .._progress import Progress, progress
from ..ops import noise
from . import _match, _options, _weights
from ._generators import relative
from ._task import Task

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
        tolerance: for whole classes, the distance that must be reached as well.
        check_every: steps between two looks at whether the data is forgotten.
        evidence: samples of the forget set that are looked at.
        finetune_epochs, finetune_lr: of ``direction="interpolate"``.

    >>> from fastforget.methods import Lightweight
    >>> Lightweight(pull=0).direction
    'gradient'
    """

    direction: str = "gradient"
    steps: int = 200
    step_size: float = 0.01
    noise: float = 1e-3
    pull: float = 1.0
    divergence: str = "P||V"
    reference: str = "by_class"
    batch_size: int = 128
    tolerance: float = 0.1
    check_every: int = 4
    evidence: int = 512
    finetune_epochs: int = 2
    finetune_lr: float = 1e-3

    name = "lightweight"
    scope = "samples"
    learns_noise = False

    def __post_init__(self) -> None:
        choices = {
            "direction": ("gradient", "interpolate"),
            "divergence": _match.DIVERGENCES,
            "reference": _match.REFERENCES,
        }
        whole = ("steps", "batch_size", "check_every", "evidence", "finetune_epochs")
        _options.check(self, choices, whole, ("step_size", "noise", "pull", "finetune_lr", "tolerance"))

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able."""
        return dataclasses.asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.forget`` in ``task.model``; returns what was measured."""
        for name, use in (("retain", "a small subset of the data to keep"), ("nonmember", "data the model never saw")):
            if getattr(task, name) is None:
                raise ValueError(f"{name}: not given; Lightweight needs {use}")
        assert task.forget is not None and task.retain is not None
        target = _match.target(task, self.reference, self.divergence)
        seen = _match.at_most(task.forget, self.evidence, task.generator(EVIDENCE))
        towards = self._fine_tuned(task) if self.direction == "interpolate" else None
        forget = _match.cycle(task.forget, self.batch_size, task.generator(FORGET_ORDER), task.device)
        retain = _match.cycle(task.retain, self.batch_size, task.generator(RETAIN_ORDER), task.device)
        params: list[Tensor] = [p for p in task.model.parameters() if p.requires_grad]
        step = 0
        bar: Progress[int]
        with _weights.flags_kept(task.model), torch.enable_grad(), progress(self.steps, "lightweight", task.progress) as bar:
            task.model.eval()  # batch statistics and dropout stay as they are
            while step < self.steps and not _match.unknown(task, seen, target, self.tolerance):
                for _ in range(min(self.check_every, self.steps - step)):
                    step += 1
                    row = self._perturb(task, params, forget, retain, target, towards, step)
                    bar.step()
                task.history.append({"phase": "lightweight", "step": step, **row})
                if not task.classes:
                    # what the steps did to data never seen is part of the comparison
                    target = _match.target(task, self.reference, self.divergence)
        return {"measured": {"steps": step}}

    def _perturb(
        self, task: Task, params: list[Tensor], forget: Any, retain: Any, target: _match.Target, towards: list[Tensor] | None, step: int
    ) -> dict[str, float]:
        """theta <- theta - eta * g + sigma * xi, in one pass over the weights."""
        figures: dict[str, float] = {}
        if towards is None:
            x, y = next(retain)
            loss = F.cross_entropy(task.forward(task.model, x).float(), y)
            grads = _match.gradient(loss, params)
            figures["retain_loss"] = float(loss.detach())
        else:
            grads = [p.detach() - t for p, t in zip(params, towards, strict=True)]
        if self.pull > 0:
            x, y = next(forget)
            away = target.distance(task.forward(task.model, x).float(), y)
            torch._foreach_add_(grads, _match.gradient(away, params), alpha=self.pull)
            figures["distance"] = float(away.detach())
        with torch.no_grad():
            weight = relative(params, grads)
            noise.perturb_step_(params, grads, lr=self.step_size, std=[self.noise * w for w in weight], seed=task.seed, step=step)
        if not all(math.isfinite(v) for v in figures.values()):
            raise FloatingPointError(f"step {step}: a loss became {figures}; the model is unchanged. Lower step_size")
        return figures

    def _fine_tuned(self, task: Task) -> list[Tensor]:
        """Weights of a copy trained on the retain subset."""
        assert task.retain is not None
        copy = _weights.working_copy(task.model)
        copy.train()
        params = [p for p in copy.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(params, lr=self.finetune_lr)
        with torch.enable_grad():
            for epoch in range(self.finetune_epochs):
                order = task.generator(RETAIN_ORDER + 100 + epoch)
                for x, y in task.retain.batches(generator=order, device=task.device, batch_size=self.batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(task.forward(copy, x), y).backward()
                    optimizer.step()
        return [p.detach() for p in params]
