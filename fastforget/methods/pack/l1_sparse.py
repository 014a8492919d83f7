"""l1-sparse: fine-tuning on the retain set with an l1 penalty on all weights that falls to zero.

Jia, Liu, Ram, Yao, Liu, Liu, Sharma & Liu, "Model Sparsity Can Simplify Machine Unlearning", NeurIPS'23, section 4 (equation 4).
Constants: OPTML-Group/Unlearn-Sparse@80ba55d; the penalty's 5e-4 is that of Ali-E/AMUN@9e341a9 (the code's own default, .2, is another
method's).
"""

from __future__ import annotations

import dataclasses

import torch

from ...ops import mask
from ..engine.loop import trainable
from ..task import Task
from .base import Trained, cross_entropy, published, set_of


@dataclasses.dataclass
class L1Sparse(Trained):
    """l1-sparse fine-tuning. Never looks at the forget set: like fine-tuning, it forgets what the net has no room to keep.

    Args:
        alpha: weight of the l1 norm in the first epoch; it falls linearly to zero.
        proximal: soft-thresholds the weights after each step instead, which makes real zeros: another method than the published one.
        lr, momentum, weight_decay: of SGD.
        epochs, batch_size: over the retain set.

    >>> from fastforget.methods import L1Sparse
    >>> L1Sparse().alpha, L1Sparse().proximal
    (0.0005, False)
    """

    alpha: float | None = None
    proximal: bool = False

    name = "l1_sparse"
    source = "Jia et al., NeurIPS'23, eq. 4; OPTML-Group/Unlearn-Sparse@80ba55d"
    uses = ("retain",)
    numbers = ("lr", "momentum", "weight_decay", "alpha")
    presets = published(paper={"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 10, "batch_size": 256, "alpha": 5e-4})

    def loop(self, task: Task) -> None:
        """Descends CE(retain) + alpha * (1 - epoch / epochs) * |theta|_1."""
        assert self.alpha is not None and self.epochs is not None and self.lr is not None
        optimizer, params = self.sgd(task), trainable(task.model)
        for batch in (passes := self.passes(task, set_of(task, "retain"), self.name)):
            alpha = self.alpha * (1 - batch.epoch / self.epochs)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(task, batch)
            passes.backward(loss, len(batch))
            with task.cost.at("ops"), torch.no_grad():
                if not self.proximal:
                    for p in params:
                        p.grad = p.sign().mul_(alpha) if p.grad is None else p.grad.add_(p.sign(), alpha=alpha)
                optimizer.step()
                if self.proximal:
                    mask.soft_threshold_(params, self.lr * alpha)
