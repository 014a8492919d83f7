"""The original model as a teacher: a frozen copy in eval mode, whose answers come without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._modules import copy_of
from ..task import Task


class Teacher:
    """The task's model as it is now; called with a batch's inputs it gives the logits [B, K], counted as passes forward alone.

    It sees the very inputs that the model is trained on, augmented or not: its answers aren't kept.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = copy_of(task.model).eval().requires_grad_(False)

    def __call__(self, inputs: Any) -> Tensor:
        self.task.teaching = True
        try:
            with torch.no_grad():
                return self.task.forward(self.model, inputs)
        finally:
            self.task.teaching = False
