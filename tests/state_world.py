"""A small network and made-up data, and what belongs to the caller as a value, for the tests of state."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from digits_world import quiet, trace
from torch import nn
from torch.nn import functional as F

import fastforget as ff
from fastforget import _random

METHODS = {
    "unsir paper": ("unsir", {"preset": "paper", "noise_batch": 6, "noise_steps": 2, "copies": 2}),
    "unsir train": ("unsir", {"preset": "paper", "noise_batch": 6, "noise_steps": 2, "copies": 2, "noise_mode": "train"}),
    "unsir auto": ("unsir", {"noise_batch": 6, "noise_steps": 2, "repair_epochs": 1}),
    "unsir samples": ("unsir", {"preset": "samples", "noise_steps": 2}),
    "forsaken": ("forsaken", {"steps": 5}),
    "forsaken coordinate": ("forsaken", {"steps": 5, "generator": "coordinate"}),
    "forsaken dense": ("forsaken", {"steps": 5, "generator": "dense"}),
    "lightweight": ("lightweight", {"steps": 5}),
    "interpolate": ("lightweight", {"steps": 5, "direction": "interpolate", "finetune_epochs": 1}),
    "none": ("none", {}),
}


class Net(nn.Module):
    """With everything that a run could leave moved: batch norm, dropout, a buffer that counts, one outside the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 4)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.last(self.drop(F.relu(self.norm(self.first(x))))) * self.scale


def made(seed: int = 0, make=Net) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class Blobs:
    """Four classes in eight dimensions, and a net that knows them."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(400, 8, generator=g), torch.arange(400) % 4
        self.x[torch.arange(400), self.y] += 4
        self.first = torch.arange(300) < 30
        self.net = made()
        optimiser = torch.optim.Adam(self.net.parameters(), 1e-2)
        with torch.random.fork_rng():
            for _ in range(60):
                optimiser.zero_grad()
                F.cross_entropy(self.net(self.x[:300]), self.y[:300]).backward()
                optimiser.step()
        for p in self.net.parameters():
            p.grad = None
        self.net.eval()

    def sets(self, name: str = "", load=lambda x, y: (x, y)) -> dict:
        x, y = self.x, self.y
        wanted = self.first if name == "unsir samples" else y[:300] == 1
        unseen = load(x[300:], y[300:])
        parts = {"forget": load(x[:300][wanted], y[:300][wanted]), "retain": load(x[:300][~wanted], y[:300][~wanted])}
        return parts | {"nonmember": unseen, "test": unseen}

    def unlearn(self, name: str, model: nn.Module | None = None, load=lambda x, y: (x, y), **options):
        method, own = METHODS[name]
        classes = None if name == "unsir samples" else [1]
        given = {"classes": classes, "seed": 3, "progress": False, **self.sets(name, load), **own, **options}
        return quiet(copy.deepcopy(self.net) if model is None else model, method, **given)

    def audit(self, models: dict[str, nn.Module], load=lambda x, y: (x, y), **options):
        sets = self.sets(load=load)
        del sets["nonmember"]
        return ff.audit(models, **sets, progress=False, **options)


def marked(model: nn.Module) -> nn.Module:
    """Mixed flags, a gradient and a hook, so that "as before" means something."""
    model = copy.deepcopy(model)
    model.train()
    model.norm.eval()
    model.last.bias.requires_grad_(False)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    model.first.register_forward_hook(lambda *_: None)
    return model


def state_of(model: nn.Module) -> dict:
    """All that belongs to the caller."""
    weights, training, gradients, grads = trace(model)
    return {
        "weights": weights,
        "training": training,
        "requires_grad": gradients,
        "grads": [None if g is None else g.tolist() for g in grads],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "tensors": [(id(p), p.data_ptr()) for p in (*model.parameters(), *model.buffers())],
        **surroundings(),
    }


def surroundings() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state(legacy=False)),
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "device": torch.get_default_device(),
        "dtype": torch.get_default_dtype(),
        "turn": _random.holds_turn(),
    }


def changed(before: dict, after: dict, but: tuple[str, ...] = ()) -> list[str]:
    return [name for name in before if before[name] != after[name] and name not in but]
