"""UNSIR: unlearning a class by error-maximising noise, impair and repair.

Tarun, Chundawat, Mandal & Kankanhalli, "Fast Yet Effective Machine Unlearning", arXiv 2111.08947, section IV (algorithm 1). No sample
of the forgotten class is needed: noise is learned that the model is as wrong about as it can be, then one pass at a high rate teaches
the model that noise as the class (impair), and one pass over retained data restores the rest (repair).
"""

from __future__ import annotations

from typing import Any

from ..task import Task
from . import auto, samples, train
from .options import Options, adam

__all__ = ["UNSIR", "adam"]

_PROCEDURES = {"auto": auto.run, "samples": samples.run}  # every other preset is a variant of the paper's


class UNSIR(Options):
    """UNSIR with its options. ``UNSIR(preset="paper", noise_steps=80)``: a preset, and what is to differ from it.

    Presets: ``"auto"`` (the default; finds rates and amounts from the model at hand, see ``fastforget/methods/unsir/auto.py``),
    ``"paper"``, ``"notebook"``, ``"ssd"``, ``"supreme"`` (published variants, see ``options.py`` there), ``"samples"`` (single samples,
    see ``samples.py``). ``None`` = found by ``auto``.

    Where inputs are numbers of words, name the layer that embeds them: ``noise_at="embedding"``, see ``noise.py``.

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

    name = "unsir"
    gradients = ("train", "eval")

    @property
    def learns_noise(self) -> bool:
        """Whether the noise takes the inputs' place."""
        return self.noise_at is None

    @property
    def scope(self) -> str:
        """``"samples"`` for the preset of that name: the forget set may be any samples."""
        return "samples" if self.preset == "samples" else "classes"

    def run(self, task: Task) -> dict[str, Any]:
        """Unlearns ``task.classes`` (or ``task.forget``) in ``task.model``; returns what was measured and chosen."""
        if task.retain is None:
            raise ValueError("retain: not given; UNSIR needs data of the classes to keep")
        return _PROCEDURES.get(self.preset, train.run)(self, task)
