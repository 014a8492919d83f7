"""CT, convolution transpose: turns every kernel, and lets fine-tuning on the retain set put the net right again.

Of NeurIPS'23's unlearning challenge; named, and found best beside MSG, by Cadet, Borovykh, Malekzadeh, Ahmadi-Abhari & Haddadi, "Deep
Unlearn", arXiv 2410.01276. Constants: xcadet/deepunlearn@6830ff6, ``munl/unlearning/kgltop5.py``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..engine.loop import cosine
from ..engine.reinit import transpose_kernels_
from ..task import Task
from .base import Trained, cross_entropy, published, set_of


@dataclasses.dataclass
class CT(Trained):
    """CT, meant for samples; classes can be asked as well. Never looks at the forget set: it forgets what a few epochs on the retain set
    don't bring back.

    Serves nets with square 2-d convolution kernels alone, and of these those larger than 1x1; others are left as they are.

    Args:
        lr: of SGD in the first epoch; it falls by a cosine from epoch to epoch.
        momentum, weight_decay: of SGD.
        epochs, batch_size: over the retain set.

    >>> from fastforget.methods import CT
    >>> CT().epochs, CT().batch_size
    (3, 64)
    """

    name = "ct"
    source = "Cadet et al., arXiv 2410.01276; xcadet/deepunlearn@6830ff6 kgltop5"
    uses = ("retain",)
    presets = published(paper={"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 3, "batch_size": 64})

    def loop(self, task: Task) -> dict[str, Any]:
        """Transposes, then descends CE(retain)."""
        assert self.lr is not None and self.epochs is not None
        passes = self.passes(task, set_of(task, "retain"), self.name)
        if not task.cost.has_room(passes.each):
            return {"transposed": 0}
        turned = transpose_kernels_(task.model)
        if not turned:
            raise ValueError(
                "model: has no square 2-d convolution kernel larger than 1x1 that may be trained, and ct transposes these; nothing was "
                "changed. Take another method, e.g. 'msg' or 'neggrad_plus'"
            )
        optimizer = self.sgd(task)
        for batch in passes:
            optimizer.param_groups[0]["lr"] = self.lr * cosine(batch.epoch, self.epochs)
            passes.descend(optimizer, cross_entropy(task, batch), len(batch))
        return {"transposed": turned}
