"""UNSIR's published variants by name. Each differs from the others in ways its paper or code doesn't name;
here they are named.
"""

from __future__ import annotations

from typing import Any

# As the paper describes it: all 256 learned images of a class, under their own label, weights and
# statistics frozen.
_PAPER: dict[str, Any] = {"retain_per_class": 1000}

# The paper's published notebook: 3 of the 256 images are used, all labelled class 0, one class after
# another in train mode, so
# that batch-norm statistics drift towards the noise's and stay so.
_NOTEBOOK: dict[str, Any] = {
    "retain_per_class": 1000,
    "images_used": 3,
    "label_rule": "zero",
    "noise_mode": "train",
    "noise_statistics": "drift",
    "classes_per_batch": 1,
}

# The re-implementation inside the code of SSD (and of bad teaching): small noise batch, few steps, rates
# 200 times smaller.
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

# Rates, copies, batch size and regularisation are found from the model and data at hand: see _auto.py.
_AUTO: dict[str, Any] = {
    "noise_batch": 64,
    "retain_per_class": 1000,
    "l2": None,
    "copies": None,
    "batch_size": None,
    "impair_lr": None,
    "repair_lr": None,
    "repair_epochs": 6,
}

# Single samples, by noise paired with the forget set's batches: see _unsir_samples.py.
_SAMPLES: dict[str, Any] = {
    "noise_steps": 5,
    "batch_size": 64,
    "impair_lr": 1e-3,
    "repair_lr": 1e-3,
}

PRESETS = {"auto": _AUTO, "paper": _PAPER, "notebook": _NOTEBOOK, "ssd": _SSD, "supreme": _SUPREME, "samples": _SAMPLES}
