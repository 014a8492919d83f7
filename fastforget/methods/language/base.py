"""What the methods for language models share: a pass over the forget set with a retain batch beside each of its batches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ... import _weights
from ..._causal.answers import scored
from ..._identity import of_state
from ..._tree import describe
from ...ops.mask import unpack_bits
from ..engine.passes import Shuffled
from ..engine.resume import Checkpoint
from ..engine.teacher import forward_only
from ..engine.terms import HOLDS
from ..options import check
from ..pack.base import Cycled, Trained, optimizer_of, set_of
from ..task import Task
from .answers import divergence, log_probs

RETAIN_ORDER = 72  # purpose of a seed
MEANS = ("sequences", "tokens")


@dataclasses.dataclass
class Language(Trained):
    """A method for causal language models, which forgets sequences.

    ``lr``, ``weight_decay`` are AdamW's, ``momentum`` its first beta; ``epochs`` passes over the forget set in batches of ``batch_size``,
    each with as many retain sequences beside it, which are cycled. ``retain_weight`` weighs what holds the model on these: ``hold``
    ``"labels"`` (their cross-entropy) or ``"anchor"`` (KL from the original model's answers to their tokens; a copy of the model stays in
    memory for it). 0: none is needed. ``mean``: of a batch's cross-entropies over its ``"sequences"``, of each the mean over its tokens,
    or over all its ``"tokens"``. ``mask``: by the names of parameters what may change of them (a mask of :mod:`fastforget.optim`); the
    rest of these keeps its bits. Of other parameters all that is trained may change; adapters leave the frozen base as it is.
    ``checkpoint``: a file to which the run's state is written every ``checkpoint_every`` seconds; the same call goes on from it and ends
    with the same bytes, and the file stays. ``None``: the preset's; no file.
    """

    retain_weight: float | None = None
    hold: str = "labels"
    mean: str | None = None
    optimizer: str = "adamw"
    mask: Mapping[str, Tensor] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = 300.0

    scope = "sequences"
    numbers: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay", "retain_weight")
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"hold": HOLDS, "mean": MEANS, "optimizer": ("adamw", "adam", "sgd")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is not None and (not isinstance(self.checkpoint, (str, os.PathLike)) or not os.fspath(self.checkpoint)):
            raise TypeError(f"checkpoint: got {self.checkpoint!r}; accepted is a file's path")
        check(self, numbers=("checkpoint_every",))

    def receipt(self) -> dict[str, Any]:
        """Every option in force; of a mask the share of values that may change. Where a run's state is kept is none of the result."""
        names = (field.name for field in dataclasses.fields(self) if not field.name.startswith("checkpoint"))
        options = {name: getattr(self, name) for name in names}
        if self.mask is not None:
            options["mask"] = {name: _share(mask) for name, mask in self.mask.items()}
        return options

    def stepper(self, task: Task) -> torch.optim.Optimizer:
        """The optimiser of all that is trained."""
        mask = self._masks(task)
        return optimizer_of(self.optimizer, task, self.lr, self.momentum, self.weight_decay, mask or None)

    def saved(self, task: Task, optimizer: torch.optim.Optimizer) -> Checkpoint | None:
        """The run's state on disk, where a file is named."""
        if self.checkpoint is None:
            return None
        call = (self.name, self.receipt(), of_state(self.mask or {}))
        return Checkpoint(self.checkpoint, self.checkpoint_every, task, optimizer, call)

    def _masks(self, task: Task) -> dict[Tensor, Tensor]:
        """The masks by parameter, on its device."""
        if not isinstance(self.mask or {}, Mapping):
            raise TypeError(f"mask: got {type(self.mask).__name__}; accepted is a dict of names of parameters to masks")
        # weights that are tied have several names
        named = {name: p for name, p in task.model.named_parameters(remove_duplicate=False) if p.requires_grad}
        masks: dict[Tensor, Tensor] = {}
        for name, value in (self.mask or {}).items():
            if name not in named:
                raise ValueError(f"mask: {name!r} is no trained parameter; accepted are names of model.named_parameters() that are")
            p = named[name]
            if p in masks:
                raise ValueError(f"mask: {name!r} is tied to another one with a mask; give one mask for both")
            if not isinstance(value, Tensor):
                raise TypeError(f"mask: of {name!r} got {describe(value)}; accepted are those of fastforget.optim: bool {tuple(p.shape)}")
            masks[p] = value.to(task.device)
        return masks

    def needed(self, task: Task) -> tuple[str, ...]:
        """The forget set, and the retain set where it is to hold the model."""
        return self.uses if self.retain_weight else ("forget",)

    @property
    def tried(self) -> int:
        assert self.batch_size is not None
        return self.batch_size

    def tried_loss(self, task: Task, inputs: Any, labels: Tensor) -> Callable[[nn.Module], Tensor]:
        return lambda model: cross_entropy(task, model, inputs, labels, "tokens")

    def train(self, task: Task, of_forget: Callable[[Shuffled], Tensor]) -> None:
        """Descends ``of_forget`` of a forget batch + retain_weight * what holds the model on a retain batch."""
        assert self.batch_size is not None and self.retain_weight is not None
        steps = self.stepper(task)
        saved = self.saved(task, steps)
        if not self.retain_weight:
            for batch in (passes := self.passes(task, set_of(task, "forget"), self.name, checkpoint=saved)):
                passes.descend(steps, of_forget(batch), len(batch))
            return
        retain = Cycled(task, set_of(task, "retain"), self.batch_size, RETAIN_ORDER, saved.step if saved else 0)
        teacher = _weights.working_copy(task.model).eval() if self.hold == "anchor" else None
        beside = retain.size + (forward_only(retain.size) if teacher is not None else 0)
        passes = self.passes(task, set_of(task, "forget"), self.name, beside=beside, checkpoint=saved)
        for batch, (inputs, labels) in zip(passes, retain, strict=False):
            loss = of_forget(batch) + self.retain_weight * self._held(task, teacher, inputs, labels)
            passes.descend(steps, loss, len(batch))

    def _held(self, task: Task, teacher: nn.Module | None, inputs: Any, labels: Tensor) -> Tensor:
        assert self.mean is not None
        if teacher is None:
            return cross_entropy(task, task.model, inputs, labels, self.mean)
        flat = divergence(task, teacher, inputs, labels)
        return mean_of(flat.new_zeros(labels.shape).masked_scatter(scored(labels), flat), labels, self.mean)


def _share(mask: Tensor) -> float:
    """Of what a mask lets change; of packed bits with the ones that fill the last byte up."""
    on = unpack_bits(mask, 8 * mask.numel()) if mask.dtype == torch.uint8 else mask
    return float(on.double().mean())


def mean_of(values: Tensor, labels: Tensor, kind: str) -> Tensor:
    """The mean of what tokens have [N, T] (0 where they aren't scored), over sequences or over tokens."""
    count = scored(labels).sum(dim=1)
    return (values.sum(dim=1) / count).mean() if kind == "sequences" else values.sum() / count.sum()


def cross_entropy(task: Task, model: nn.Module, inputs: Any, labels: Tensor, kind: str) -> Tensor:
    """Minus the mean log-probability of a batch's tokens."""
    return -mean_of(log_probs(task, model, inputs, labels), labels, kind)
