"""What the standard methods share: presets, checks of the data up front, and what the receipt says of a method.

Each is a published method, as its paper (``preset="paper"``) or its authors' code (``preset="code"``) has it, with the constants of their
nets and data. They are not tuned to the model at hand; :class:`fastforget.methods.Sweep` is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._data import Source
from ...optim import MaskedAdam, MaskedAdamW, MaskedSGD
from ..engine import precision
from ..engine.loop import trainable, training
from ..engine.passes import EPOCHS, Passes, Shuffled
from ..engine.resume import Checkpoint
from ..options import check, given
from ..task import Task

USES = {"forget": "the data to forget", "retain": "data to keep", "nonmember": "data the model never saw"}
TRIED, TRIALS = 64, 6  # samples, and steps at most, by which precision is chosen
Presets = Mapping[str, Mapping[str, Any]]


def published(**presets: Mapping[str, Any]) -> Presets:
    """Values of a method's options by preset; ``code`` has those of ``paper`` where it doesn't say otherwise."""
    named: dict[str, Mapping[str, Any]] = {"paper": {}, "code": {}} | presets
    return MappingProxyType({name: MappingProxyType({**presets["paper"], **values}) for name, values in named.items()})


@dataclasses.dataclass
class Standard:
    """A standard method. Options that are ``None`` are the preset's.

    A method sets ``name``, ``source`` (paper; code), ``presets``, ``uses`` (the sets it trains on), ``reads_labels`` (of the forget set)
    and :meth:`loop`.
    """

    preset: str = "paper"

    name: ClassVar[str]
    source: ClassVar[str]
    presets: ClassVar[Presets] = published(paper={})
    scope: ClassVar[str] = "samples"  # "classes": these alone
    uses: ClassVar[tuple[str, ...]] = ("forget", "retain")
    reads_labels: ClassVar[bool] = True  # of the forget set
    learns_noise: ClassVar[bool] = False
    weighs: ClassVar[bool] = False  # the weights by their gradients in eval mode, before it trains
    weak: ClassVar[str | None] = None  # what the method is known not to do
    whole: ClassVar[tuple[str, ...]] = ()  # options that are ints >= 1
    numbers: ClassVar[tuple[str, ...]] = ()  # options that are finite numbers >= 0
    shares: ClassVar[tuple[str, ...]] = ()  # those of them that are at most 1
    positive: ClassVar[tuple[str, ...]] = ()  # those of them that are above 0
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})  # options that are one of some words

    def __post_init__(self) -> None:
        check(self, {"preset": tuple(self.presets)})
        for option, value in self.presets[self.preset].items():
            if getattr(self, option) is None:
                setattr(self, option, value)
        limits = (given(self, names) for names in (self.whole, self.numbers, self.shares, self.positive))
        check(self, self.choices, *limits)

    @property
    def needs_forget(self) -> bool:
        """Whether the method needs samples to forget; whole classes can be named without."""
        return "forget" in self.uses

    @property
    def trains_in(self) -> str:
        """The model's mode while it is trained, ``"train"`` (batch norm moves) or ``"eval"``."""
        return "train"

    @property
    def gradients(self) -> tuple[str, ...]:
        """The modes of a first step on a copy."""
        return (self.trains_in, "eval") if self.weighs and self.trains_in == "train" else (self.trains_in,)

    def needed(self, task: Task) -> tuple[str, ...]:
        """The sets that this request needs: ``uses``, or fewer."""
        return self.uses

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able."""
        return dataclasses.asdict(self)

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes``, or the samples of ``task.forget``, in ``task.model``; returns what the receipt says of the method.

        Raises:
            ValueError: a set is missing that the method trains on.
        """
        used = self.needed(task)
        for name in used:
            if getattr(task, name) is None:
                raise ValueError(f"{name}: not given; {self.name} needs {USES[name]}")
        form = self._precision(task, used)
        with training(task, self.trains_in):
            measured = self.loop(task)
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.model.modules())
        about = {
            "source": self.source,
            "trained_on": list(used),
            "forget_labels_read": self.reads_labels and "forget" in used,
            "batch_norm": ("statistics of the batch" if self.trains_in == "train" else "running statistics") if norms else "none",
            **({"weak": self.weak} if self.weak else {}),
        }
        return {"standard": about | ({"form": form} if form else {}), **({"measured": measured} if measured else {})}

    def _precision(self, task: Task, used: tuple[str, ...]) -> dict[str, Any] | None:
        """What training passes are computed in, where the user asked for anything but float32: chosen on a first batch."""
        if task.precision == "float32":
            return None
        data = set_of(task, used[0])
        tried = min(self.tried, len(data))
        if task.precision == "auto" and not task.cost.has_room(TRIALS * tried):
            return None
        (inputs, labels), *_ = data.at([torch.arange(tried)], device=task.device)
        return precision.choose(task, inputs, labels, loss=self.tried_loss(task, inputs, labels))

    @property
    def tried(self) -> int:
        """Samples by which precision is chosen, at most."""
        return TRIED

    def tried_loss(self, task: Task, inputs: Any, labels: Tensor) -> Callable[[nn.Module], Tensor] | None:
        """The loss of a model by which precision is chosen; None: the cross-entropy of its logits."""
        return None

    def loop(self, task: Task) -> dict[str, Any] | None:
        """The method's own loop; returns what it measured."""
        raise NotImplementedError


@dataclasses.dataclass
class Trained(Standard):
    """A standard method that trains in passes over a set.

    ``lr``, ``momentum``, ``weight_decay`` are its optimiser's; ``epochs`` passes in batches of ``batch_size``. ``None``: the preset's.
    """

    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    batch_size: int | None = None

    whole: ClassVar[tuple[str, ...]] = ("epochs", "batch_size")
    numbers: ClassVar[tuple[str, ...]] = ("lr", "momentum", "weight_decay")

    def sgd(self, task: Task, mask: Mapping[Any, Tensor] | None = None) -> MaskedSGD:
        """SGD over all trainable weights; what is masked out keeps its bits."""
        assert self.lr is not None and self.momentum is not None and self.weight_decay is not None
        return MaskedSGD(trainable(task.model), self.lr, self.momentum, weight_decay=self.weight_decay, mask=mask)

    def passes(
        self,
        task: Task,
        data: Source,
        phase: str,
        *,
        epochs: int | None = None,
        beside: int = 0,
        purpose: int = EPOCHS,
        first: int = 1,
        checkpoint: Checkpoint | None = None,
    ) -> Passes:
        """The method's passes over a set, or so many ``epochs`` of them."""
        assert self.batch_size is not None and self.epochs is not None
        number = self.epochs if epochs is None else epochs
        return Passes(task, phase, data, self.batch_size, number, beside=beside, purpose=purpose, first=first, checkpoint=checkpoint)


def optimizer_of(
    kind: str | None,
    task: Task,
    lr: float | None,
    momentum: float | None,
    weight_decay: float | None,
    mask: Mapping[Any, Tensor] | None = None,
) -> torch.optim.Optimizer:
    """``"sgd"``, ``"adam"`` or ``"adamw"`` over all trainable weights; ``momentum`` is the first beta of Adam's two. What ``mask`` leaves
    out keeps its bits."""
    assert lr is not None and momentum is not None and weight_decay is not None
    params = trainable(task.model)
    if kind == "sgd":
        return MaskedSGD(params, lr, momentum, weight_decay=weight_decay, mask=mask)
    return (MaskedAdamW if kind == "adamw" else MaskedAdam)(params, lr, (momentum, 0.999), weight_decay=weight_decay, mask=mask)


def cross_entropy(task: Task, batch: Shuffled, labels: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of a batch, with its own labels or others."""
    return F.cross_entropy(task.forward(task.model, batch.inputs), batch.labels if labels is None else labels)


def set_of(task: Task, name: str) -> Source:
    """A set that :meth:`Standard.run` found given."""
    data: Source | None = getattr(task, name)
    assert data is not None
    return data


def random_labels(labels: Tensor, outputs: int, generator: torch.Generator) -> Tensor:
    """As many labels drawn evenly from all classes: the true one may be drawn too."""
    return torch.randint(0, outputs, labels.shape, generator=generator).to(labels.device)


class Cycled:
    """Shuffled batches of a set without end, beside another set's passes; ``size`` is the largest batch, ``skip`` batches come before the
    first, in a run that goes on."""

    def __init__(self, task: Task, data: Source, size: int, purpose: int, skip: int = 0) -> None:
        self.skip, self.task, self.data, self.size, self.purpose = skip, task, data, min(size, len(data)), purpose

    def __len__(self) -> int:
        """Batches in which every sample comes once."""
        return len(self.task.cut(torch.arange(len(self.data)), self.size, self.data))

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        task, generator, skip = self.task, self.task.generator(self.purpose), self.skip
        while True:
            cut = task.cut(torch.randperm(len(self.data), generator=generator), self.size, self.data)
            yield from task.cost.reading(self.data.at(cut[skip:], device=task.device))
            skip = max(0, skip - len(cut))
