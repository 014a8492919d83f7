"""UNSIR: unlearning a class by error-maximising noise, impair and repair.

Tarun, Chundawat, Mandal & Kankanhalli, "Fast Yet Effective Machine Unlearning", arXiv 2111.08947, section
IV (algorithm 1). No sample
of the forgotten class is needed: noise is learned that the model is as wrong about as it can be, then one
pass at a high rate teaches the model that noise as the class (impair), and one pass over retained data
restores the rest (repair).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import _weights
from ..._data import Source
from ..._progress import Progress, progress
from ...ops import noise as noise_ops
from ...ops import update
from ..task import Task
from . import auto as _auto
from . import samples as _unsir_samples
from .place import Place, place
from .presets import PRESETS

OptimizerFactory = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
CPU_PART = 256  # images in one pass of the model while noise is learned on a CPU
SHUFFLE, KEEP = 1, 2  # purposes of seeds
_CHOICES = {
    "l2_reduction": ("sum", "mean"),
    "noise_lr_decay": ("none", "linear"),
    "label_rule": ("class", "zero"),
    "noise_mode": ("eval", "train", "as_is"),
    "noise_statistics": ("restore", "drift"),
}


def adam(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The published optimiser of impair and repair: plain Adam."""
    return torch.optim.Adam(params, lr=lr)


@dataclasses.dataclass(init=False)
class UNSIR:
    """Options of UNSIR. ``UNSIR(preset="paper", noise_steps=80)``: a preset, and what is to differ from it.

    Presets: ``"auto"`` (the default; finds rates and amounts from the model at hand, see
    ``fastforget/methods/unsir/auto.py``), ``"paper"``, ``"notebook"``, ``"ssd"``, ``"supreme"`` (published
    variants, see ``_presets.py``), ``"samples"`` (single samples, see ``_unsir_samples.py``). ``None`` = found by ``auto``.

    Where inputs are numbers of words, name the layer that embeds them: ``noise_at="embedding"``, see ``_place.py``.

    >>> from fastforget.methods import UNSIR
    >>> UNSIR(preset="notebook").images_used, UNSIR(preset="paper", copies=15).copies
    (3, 15)
    >>> import torch, fastforget as ff
    >>> words, topic = torch.randint(0, 50, (120, 8)), torch.arange(120) % 4
    >>> net, keep = torch.nn.Sequential(torch.nn.EmbeddingBag(50, 16), torch.nn.Linear(16, 4)), topic != 0
    >>> options = {"preset": "paper", "noise_batch": 8, "noise_steps": 2, "noise_at": "0"}
    >>> ff.unlearn(net, classes=[0], retain=(words[keep], topic[keep]), forget=(words, topic), **options).receipt["options"]["noise_at"]
    '0'
    """

    preset: str = "auto"
    # noise
    noise_batch: int = 256  # images learned for each class
    noise_steps: int = 40
    noise_lr: float = 0.1
    noise_lr_decay: str = "none"  # "linear": to zero over the steps
    l2: float | None = 0.1  # lambda, on the squared norm
    l2_reduction: str = "sum"  # over an image's pixels: "sum" as published; "mean" keeps lambda's meaning at any image size
    noise_clamp: tuple[float | None, float | None] | None = None
    noise_mode: str = "eval"  # model's mode while noise is learned: "eval", "train", "as_is"
    noise_at: str | None = None  # a layer by name: noise in its output's place (word inputs: the embedding); None: in the input's
    noise_statistics: str = "restore"  # batch-norm statistics moved by noise_mode="train": "restore" them or let them "drift"
    classes_per_batch: int | None = None  # None: all classes learn in one batch; 1: the published loop
    # impair and repair
    images_used: int | None = None  # of noise_batch, for each class; None: all
    copies: int | None = 20  # how often each noise image is seen in an impair epoch (by index, nothing is copied)
    label_rule: str = "class"  # label of the noise: its "class", or "zero" as in the published notebook
    retain_per_class: int | None = None  # cap, drawn at random
    impair_lr: float | None = 0.02
    repair_lr: float | None = 0.01
    impair_epochs: int = 1
    repair_epochs: int = 1  # auto: at most
    batch_size: int | None = 256
    impair_optimizer: OptimizerFactory = adam
    repair_optimizer: OptimizerFactory = adam
    # auto only
    held_back: float = 0.1  # share of the retain set that is never trained on
    # retained classes forgotten on trial, to see on real data which rate forgets (more, if more are to be forgotten)
    rehearsal_classes: int = 3
    first_rate: float = 5e-4
    last_rate: float = 0.05
    margin: float = 2.0  # final impair rate over the lowest one that forgot on trial
    gone_at: float = 0.01  # a class is gone when at most this share of its samples is answered with it

    def __init__(self, preset: str = "auto", **options: Any) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset: got {preset!r}; accepted are {', '.join(map(repr, PRESETS))}")
        names = [f.name for f in dataclasses.fields(self)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                raise TypeError(f"UNSIR: unknown option {name!r}{f', did you mean {near[0]!r}?' if near else ''} Known: {', '.join(names)}")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name, value in {**defaults, **PRESETS[preset], **options, "preset": preset}.items():
            setattr(self, name, value)
        self._check()

    def _check(self) -> None:
        if not (self.noise_at is None or isinstance(self.noise_at, str)):
            raise TypeError(f"noise_at: got {self.noise_at!r}; accepted is the name of a layer of the model, or None for its input")
        for name, accepted in _CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; accepted are {', '.join(map(repr, accepted))}")
        for name in (
            "noise_batch",
            "noise_steps",
            "classes_per_batch",
            "images_used",
            "copies",
            "retain_per_class",
            "batch_size",
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: got {value!r}; accepted is an int >= 1")
        for name in ("impair_epochs", "repair_epochs", "rehearsal_classes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; accepted is an int >= 0")
        for name in (
            "noise_lr",
            "l2",
            "impair_lr",
            "repair_lr",
            "first_rate",
            "last_rate",
            "margin",
            "gone_at",
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: got {value!r}; accepted is a finite number >= 0")
        if not 0 < self.held_back < 1:
            raise ValueError(f"held_back: got {self.held_back!r}; accepted is a share between 0 and 1")
        if self.preset != "auto":
            for name in ("l2", "copies", "batch_size", "impair_lr", "repair_lr"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: only preset='auto' finds it; give a number for preset={self.preset!r}")

    name = "unsir"

    @property
    def learns_noise(self) -> bool:
        """Whether the noise takes the inputs' place."""
        return self.noise_at is None

    @property
    def scope(self) -> str:
        """``"samples"`` for the preset of that name: the forget set may be any samples."""
        return "samples" if self.preset == "samples" else "classes"

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able; optimiser factories by their name."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: f"{v.__module__}.{v.__qualname__}" if callable(v) and hasattr(v, "__qualname__") else v for k, v in plain.items()}

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes`` in ``task.model``; returns what was measured and chosen."""
        if task.retain is None:
            raise ValueError("retain: not given; UNSIR needs data of the classes to keep")
        if self.preset == "auto":
            return _auto.run(self, task)
        if self.preset == "samples":
            return _unsir_samples.run(self, task)
        retain = capped(task.retain, self.retain_per_class, task.generator(KEEP))
        noise = learn_noise(self, task, task.classes, place(task, self.noise_at, retain))
        impair(self, task, retain, noise)
        repair(self, task, retain)
        return {}


def _answers_alone(model: nn.Module) -> bool:
    """Whether, in eval mode, no image's answer depends on the others in its batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    return all(m.running_mean is not None for m in norms)


@dataclasses.dataclass
class Noise:
    """Learned images [classes * per class, ...], the label of each, and where they enter the model."""

    images: Tensor
    labels: Tensor
    place: Place


def capped(retain: Source, per_class: int | None, generator: torch.Generator) -> Source:
    """At most ``per_class`` samples of each class, drawn at random, in the set's order."""
    if per_class is None:
        return retain
    labels = retain.labels()
    order = torch.randperm(len(labels), generator=generator)
    kept = [order[labels[order] == c][:per_class] for c in labels.unique().tolist()]
    return retain.subset(torch.cat(kept).sort().values)


def learn_noise(options: UNSIR, task: Task, classes: list[int], at: Place, *, sign: float = 1.0, stream: int = 0) -> Noise:
    """Error-maximising noise for ``classes`` (paper, equation 4); with ``sign=-1`` error-minimising: images
    of what a class looks like.

    A class's noise is the same whichever classes learn beside it (up to rounding, where the model answers
    each image on its own).
    """
    # an image that is never used needn't be learned, where the model answers each image on its own
    lean = options.images_used is not None and options.noise_mode == "eval" and _answers_alone(task.model)
    batch = min(options.noise_batch, options.images_used or options.noise_batch) if lean else options.noise_batch
    group = options.classes_per_batch or len(classes)
    images = torch.empty(len(classes) * batch, *at.like.shape, dtype=at.like.dtype, device=task.device)
    for i, c in enumerate(classes):
        noise_ops.normal_(images[i * batch : (i + 1) * batch], seed=task.seed, stream=stream + c)
    labels = torch.tensor(classes, device=task.device).repeat_interleave(batch)
    statistics = _weights.save(task.model) if options.noise_mode != "eval" else None
    with _weights.flags_kept(task.model), torch.enable_grad():
        if options.noise_mode != "as_is":
            task.model.train(options.noise_mode == "train")
        for parameter in task.model.parameters():
            parameter.requires_grad_(False)
        for part in torch.arange(len(classes)).split(group):
            rows = slice(int(part[0]) * batch, (int(part[-1]) + 1) * batch)
            label = "learning noise" if sign > 0 else "learning images"
            bar: Progress[int]
            with progress(options.noise_steps, label, task.progress) as bar:
                _learn(options, task, Noise(images[rows], labels[rows], at), sign, bar)
    if statistics is not None and options.noise_statistics == "restore":
        _weights.put_back(task.model, statistics)
    if options.label_rule == "zero":
        labels = torch.zeros_like(labels)
    if options.images_used is not None:
        first = torch.arange(len(images), device=task.device) % batch < options.images_used
        images, labels = images[first], labels[first]
    return Noise(images, labels, at)


def _learn(options: UNSIR, task: Task, noise: Noise, sign: float, bar: Any) -> None:
    x = noise.images
    exp_avg, exp_avg_sq = torch.zeros_like(x), torch.zeros_like(x)
    assert options.l2 is not None
    l2 = options.l2 / (x[0].numel() if options.l2_reduction == "mean" else 1)
    # l2 is a mean over one class's noise_batch images; the kernel divides by all the images in x
    scale = len(x) / options.noise_batch
    rows = []
    for step in range(1, options.noise_steps + 1):
        loss, gradient = _error_and_gradient(options, task, noise, sign)
        lr = options.noise_lr * (1 - (step - 1) / options.noise_steps if options.noise_lr_decay == "linear" else 1)
        sum_sq = update.error_max_step_(x, gradient, exp_avg, exp_avg_sq, step=step, lr=lr, l2=l2 * scale, clamp=options.noise_clamp)
        rows.append((step, sign * loss.mean() + l2 * sum_sq / len(x), -loss.mean()))
        bar.step()
    phase = "noise" if sign > 0 else "images"
    task.history += [{"phase": phase, "step": s, "objective": float(j), "error": float(e)} for s, j, e in rows]
    if not all(math.isfinite(float(j)) for _, j, _ in rows):
        raise RuntimeError(f"learning {phase} gave NaN or inf; the model is unchanged. Lower noise_lr, or check the model's logits")


def _error_and_gradient(options: UNSIR, task: Task, noise: Noise, sign: float) -> tuple[Tensor, Tensor]:
    """-CE of every image, and its gradient as the mean over one class's ``noise_batch`` images has it."""
    x = noise.images
    # where an image's answer doesn't depend on its neighbours, a CPU's caches prefer fewer at a time
    part = CPU_PART if options.noise_mode == "eval" and x.device.type == "cpu" else len(x)
    losses, gradient = [], torch.empty_like(x)
    for images, classes, out in zip(x.split(part), noise.labels.split(part), gradient.split(part), strict=True):
        leaf = images.detach().requires_grad_()
        logits = noise.place.logits(task, leaf)
        loss, dlogits = update.error_max_loss(logits.detach(), classes)
        dlogits.mul_(sign * len(images) / options.noise_batch)
        out.copy_(torch.autograd.grad(logits, leaf, dlogits)[0])
        losses.append(loss)
    return torch.cat(losses), gradient


def impair(options: UNSIR, task: Task, retain: Source, noise: Noise) -> None:
    """One pass (or more) at a high rate over retained data and noise, shuffled together."""
    assert options.impair_lr is not None
    optimizer = options.impair_optimizer(trainable(task.model), options.impair_lr)
    for epoch in range(options.impair_epochs):
        train(options, task, optimizer, retain, noise, f"impair {epoch + 1}", options.impair_lr)


def repair(options: UNSIR, task: Task, retain: Source) -> None:
    """One pass (or more) over retained data alone, with a fresh optimiser."""
    assert options.repair_lr is not None
    optimizer = options.repair_optimizer(trainable(task.model), options.repair_lr)
    for epoch in range(options.repair_epochs):
        train(options, task, optimizer, retain, None, f"repair {epoch + 1}", options.repair_lr)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def train(
    options: UNSIR,
    task: Task,
    optimizer: torch.optim.Optimizer,
    retain: Source,
    noise: Noise | None,
    phase: str,
    lr: float,
) -> None:
    """One epoch of cross-entropy in train mode; a loss that isn't finite ends the run."""
    assert options.batch_size is not None
    copies = options.copies or 1
    order = _order(len(retain), len(noise.images) * copies if noise else 0, options.batch_size, task)
    total, seen = torch.zeros((), device=task.device), 0
    bar: Progress[int]
    with (
        _weights.flags_kept(task.model),
        torch.enable_grad(),
        progress(len(order), phase, task.progress) as bar,
    ):
        task.model.train()
        for logits, y in _answers(task, retain, noise, order):
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(y)
            seen += len(y)
            bar.step()
    mean = float(total) / seen
    task.history.append({"phase": phase, "lr": lr, "loss": mean, "samples": seen})
    if not math.isfinite(mean):
        raise FloatingPointError(f"{phase}: the loss became {mean} at rate {lr:g}; the model is unchanged. Lower the rate")


def _order(retained: int, noisy: int, size: int, task: Task) -> list[Tensor]:
    # a new shuffle each epoch: the number of epochs so far makes its seed
    purpose = SHUFFLE + 1000 * (1 + len(task.history))
    batches = list(torch.randperm(retained + noisy, generator=task.generator(purpose)).split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # batch norm can't train on a single sample
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _answers(task: Task, retain: Source, noise: Noise | None, order: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of the batches of ``order``: numbers below ``len(retain)`` are retained samples, those above go round
    the noise, by index.
    """
    held = [batch[batch < len(retain)] for batch in order]
    samples = retain.at([h for h in held if len(h)], device=task.device)
    for batch, kept in zip(order, held, strict=True):
        x, y = next(samples) if len(kept) else (None, None)
        if noise is None or len(kept) == len(batch):
            assert y is not None
            yield task.forward(task.model, x), y
            continue
        index = (batch[batch >= len(retain)] - len(retain)).remainder(len(noise.images)).to(task.device)
        labels = noise.labels[index]
        yield noise.place.logits(task, noise.images[index], x), labels if y is None else torch.cat((y, labels))
