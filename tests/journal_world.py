"""What the tests of the journal share: a small net and set, methods that cost nothing, and a folder's bytes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import fastforget as ff


@dataclass
class Shift:
    """A method for tests: moves every weight at random by ``size``, and makes the classes' logits so low that they are forgotten."""

    size: float = 1e-4
    name: str = "shift"
    scope: str = "samples"
    learns_noise: bool = False
    gradients: tuple = ()
    needs_forget: bool = False
    runs: list = field(default_factory=list)

    def receipt(self):
        return {"size": self.size}

    def run(self, task):
        self.runs.append(task)
        generator = task.generator(99)
        with torch.no_grad():
            for p in task.model.parameters():
                p.add_(torch.randn(p.shape, generator=generator), alpha=self.size)
            *_, last = task.model.parameters()
            last[task.classes] -= 1e3
        return {}


def net(seed: int = 0) -> nn.Module:
    """With buffers: batch norm's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)).eval()


def points(n: int = 100, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.arange(n) % 5


def without(data, *classes: int):
    keep = ~torch.isin(data[1], torch.tensor(classes))
    return data[0][keep], data[1][keep]


def ask(journal: ff.Journal, id: str, model: nn.Module, method=None, **given):
    """A request without the warnings of a method that forgets nothing in particular."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        warnings.simplefilter("ignore", ff.RetrainWarning)
        return journal.unlearn(id, model, method or Shift(), progress=False, **given)


def ask_class(journal: ff.Journal, c: int, model: nn.Module, **given):
    """The request ``"class <c>"`` of classes asked in rising order."""
    data = points()
    given = {"classes": [c], "forget": data, "retain": without(data, *range(c + 1)), "test": points(60, 2), "seed": c, **given}
    return ask(journal, f"class {c}", model, **given)


def two_done(path: Path) -> tuple[ff.Journal, nn.Module]:
    """A journal that forgot classes 0 and 1 of a small net, and the net as it was before."""
    journal, model = ff.Journal(path), net()
    ask_class(journal, 1, ask_class(journal, 0, model).model)
    return journal, model


def tree(path: Path) -> dict[str, bytes]:
    """Every file of a journal but its lock."""
    return {
        str((Path(folder) / name).relative_to(path)): (Path(folder) / name).read_bytes()
        for folder, _, names in os.walk(path)
        for name in names
        if name != "lock"
    }


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
