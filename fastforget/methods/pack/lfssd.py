"""Label-free selective synaptic dampening: SSD whose importance needs neither labels nor a loss.

Foster, Schoepf & Brintrup, "Loss-Free Machine Unlearning", arXiv 2402.19308. Constants: jwf40/Zeroshot-Unlearning-At-Scale@f7e3f20,
whose own import of the method is missing from it; the pass is that of its ``src/lipschitz.py``.
"""

from __future__ import annotations

import dataclasses

from ..engine.importance import MAGNITUDES, Loss, squared_norm
from .base import published
from .ssd import SSD


@dataclasses.dataclass
class LFSSD(SSD):
    """Label-free SSD: a weight's importance is the magnitude of the gradient of the answers' mean squared l2 norm, averaged over batches.

    Reads no labels. Serves classes, and hardly does anything for samples drawn at random, as :class:`SSD`.

    Args:
        preset: ``"paper"`` (VGG-16), ``"code"`` (the data's order too) or ``"vit"``.
        alpha, lam, batch_size, order: as for :class:`SSD`.

    >>> from fastforget.methods import LFSSD
    >>> LFSSD().lam, LFSSD(preset="vit").alpha
    (4.0, 3.5)
    """

    name = "lfssd"
    source = "Foster et al., arXiv 2402.19308; jwf40/Zeroshot-Unlearning-At-Scale@f7e3f20"
    reads_labels = False
    presets = published(
        paper={"alpha": 10.0, "lam": 4.0, "batch_size": 128, "order": "mixed"},
        code={"order": "in turn"},
        vit={"alpha": 3.5, "lam": 1.0, "order": "in turn"},
    )
    power = MAGNITUDES

    @property
    def loss(self) -> Loss:
        """The answers' squared norm."""
        return squared_norm
