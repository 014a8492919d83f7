"""UNSIR's options, and its published variants by name: each differs from the others in ways its paper or code doesn't name; here they
are named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..engine.terms import HOLDS
from ..options import check, given, known

OptimizerFactory = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
FOUND_BY_AUTO = ("l2", "copies", "batch_size", "impair_lr", "repair_lr")

# As the paper describes it: all 256 learned images of a class, under their own label, weights and statistics frozen.
_PAPER: dict[str, Any] = {"retain_per_class": 1000}

# The paper's published notebook: 3 of the 256 images are used, all labelled class 0, one class after another in train mode, so that
# batch-norm statistics drift towards the noise's and stay so.
_NOTEBOOK: dict[str, Any] = {
    "retain_per_class": 1000,
    "images_used": 3,
    "label_rule": "zero",
    "noise_mode": "train",
    "noise_statistics": "drift",
    "classes_per_batch": 1,
}

# The re-implementation inside the code of SSD (and of bad teaching): small noise batch, few steps, rates 200 times smaller.
_SSD: dict[str, Any] = {
    "retain_per_class": 500,
    "noise_batch": 32,
    "noise_steps": 25,
    "images_used": 3,
    "copies": 80,
    "noise_mode": "as_is",
    "noise_statistics": "drift",
    "classes_per_batch": 1,
    "impair_lr": 1e-4,
    "repair_lr": 1e-4,
}

# The one inside SUPREME: as SSD's, but all 32 images and eval mode.
_SUPREME: dict[str, Any] = {
    "noise_batch": 32,
    "noise_steps": 25,
    "copies": 80,
    "impair_lr": 1e-4,
    "repair_lr": 1e-4,
}

# Rates, copies, batch size and regularisation are found from the model and data at hand: see auto.py.
_AUTO: dict[str, Any] = {
    "noise_batch": 32,
    "retain_per_class": 1000,
    "l2": None,
    "copies": None,
    "batch_size": None,
    "impair_lr": None,
    "repair_lr": None,
    "repair_epochs": 2,
    "hold": "anchor",
}

# Single samples, by noise paired with the forget set's batches: see samples.py.
_SAMPLES: dict[str, Any] = {
    "noise_steps": 5,
    "batch_size": 64,
    "impair_lr": 1e-3,
    "repair_lr": 1e-3,
}

PRESETS = {"auto": _AUTO, "paper": _PAPER, "notebook": _NOTEBOOK, "ssd": _SSD, "supreme": _SUPREME, "samples": _SAMPLES}


def adam(params: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """The published optimiser of impair and repair: plain Adam."""
    return torch.optim.Adam(params, lr=lr)


adam.__module__ = __package__  # the name that receipts have for it: where it is imported from, not where it is defined


@dataclasses.dataclass(init=False)
class Options:
    """Every option of :class:`fastforget.methods.UNSIR`: a preset's value, or the one given."""

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
    repair_epochs: int = 1
    hold: str = "labels"  # what repair holds the model by: "labels", or "anchor", the original's own answers without the wanted classes
    batch_size: int | None = 256
    impair_optimizer: OptimizerFactory = adam
    repair_optimizer: OptimizerFactory = adam
    # auto only
    impair_steps: int = 30  # of impair, on trial as in the run itself
    held_back: float = 0.1  # share of the retain set that is never trained on
    # retained classes forgotten on trial, to see on real data which rate forgets (more, if more are to be forgotten)
    rehearsal_classes: int = 3
    first_rate: float = 5e-4
    last_rate: float = 0.05
    margin: float = 2.0  # impair rate of the run itself over the lowest one that forgot on trial
    gone_at: float = 0.01  # a class is gone when at most this share of its samples is answered with it

    def __init__(self, preset: str = "auto", **options: Any) -> None:
        if preset not in PRESETS:
            raise ValueError(f"preset: got {preset!r}; accepted are {', '.join(map(repr, PRESETS))}")
        known("UNSIR", options, [field.name for field in dataclasses.fields(self)])
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in {**defaults, **PRESETS[preset], **options, "preset": preset}.items():
            setattr(self, name, value)
        self._check()

    def _check(self) -> None:
        if not (self.noise_at is None or isinstance(self.noise_at, str)):
            raise TypeError(f"noise_at: got {self.noise_at!r}; accepted is the name of a layer of the model, or None for its input")
        choices = {
            "l2_reduction": ("sum", "mean"),
            "noise_lr_decay": ("none", "linear"),
            "label_rule": ("class", "zero"),
            "noise_mode": ("eval", "train", "as_is"),
            "noise_statistics": ("restore", "drift"),
            "hold": HOLDS,
        }
        steps = ("noise_steps", "impair_steps")
        whole = (*steps, "noise_batch", "classes_per_batch", "images_used", "copies", "retain_per_class", "batch_size")
        numbers = ("noise_lr", "l2", "impair_lr", "repair_lr", "first_rate", "last_rate", "margin", "gone_at")
        check(self, choices, given(self, whole))
        for name in ("impair_epochs", "repair_epochs", "rehearsal_classes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; accepted is an int >= 0")
        check(self, numbers=given(self, numbers))
        if not 0 < self.held_back < 1:
            raise ValueError(f"held_back: got {self.held_back!r}; accepted is a share between 0 and 1")
        if self.preset != "auto":
            for name in FOUND_BY_AUTO:
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: only preset='auto' finds it; give a number for preset={self.preset!r}")

    def receipt(self) -> dict[str, Any]:
        """Every option in force, JSON-able; optimiser factories by their name."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: f"{v.__module__}.{v.__qualname__}" if callable(v) and hasattr(v, "__qualname__") else v for k, v in plain.items()}
