"""SalUn: random labels, taught to the weights that matter most for the forget set alone.

Fan, Liu, Zhang, Wong, Wei & Liu, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification
and Generation", ICLR'24, equations 3 and 5. Constants: OPTML-Group/Unlearn-Saliency@a6e89fd, ``Classification/``.
"""

from __future__ import annotations

import dataclasses

from ...ops import mask
from ..engine.gradmask import scaled
from ..engine.importance import SUM, importance
from ..engine.loop import trainable
from ..task import Task
from .base import Trained, published, set_of
from .plain import relabel


@dataclasses.dataclass
class SalUn(Trained):
    """SalUn, for classes and for samples. Weights outside of the mask keep their bits, batch norm's statistics move.

    Args:
        preset: ``"paper"``, or ``"code"`` (the code as it was when the paper's figures were made: it multiplied gradients by the mask, so
            weight decay and momentum moved the weights outside of it too).
        keep: share of all weights in the mask, chosen over the whole net.
        freeze: whether what is outside of the mask keeps its bits (equation 5), or has its gradient set to zero alone.
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: of a pass over the forget set with labels drawn at random, and one over the retain set.

    The labels of the forget set are read for the mask alone.

    >>> from fastforget.methods import SalUn
    >>> SalUn().freeze, SalUn(preset="code").freeze
    (True, False)
    """

    keep: float | None = None
    freeze: bool | None = None

    name = "salun"
    weighs = True
    source = "Fan et al., ICLR'24, eq. 3 and 5; OPTML-Group/Unlearn-Saliency@a6e89fd"
    numbers = ("lr", "momentum", "weight_decay", "keep")
    shares = ("keep",)
    presets = published(
        paper={"lr": 0.013, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256, "keep": 0.5, "freeze": True},
        code={"freeze": False},
    )

    def loop(self, task: Task) -> None:
        """The mask, then random labels for the forget set and the retain set's own, in turns."""
        assert self.keep is not None and self.batch_size is not None
        if not task.cost.has_room(len(set_of(task, "forget"))):
            return
        params = trainable(task.model)
        summed = importance(task, [set_of(task, "forget")], self.batch_size, SUM, phase="mask")  # magnitudes after the sum: equation 3
        masks, _ = mask.saliency_mask(summed, self.keep)
        by_parameter = dict(zip(params, masks, strict=True))
        if self.freeze:
            relabel(self, task, self.sgd(task, by_parameter))
        else:
            with scaled(by_parameter):
                relabel(self, task, self.sgd(task))
