"""A task's next-token answers (``fastforget/_causal/answers.py``): training passes and the teacher's go through its ``forward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..._causal import answers
from ..._causal.answers import Outputs
from ...ops import membership
from ..task import Task


def outputs(task: Task, model: nn.Module, inputs: Any) -> Outputs:
    """Of a batch, without the head where it is found."""
    return answers.outputs(model, task.head, task.forward, inputs)


def log_probs(task: Task, model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[N, T]: log p of each label, with a gradient; 0 where it isn't scored."""
    return answers.log_probs(answers.of_labels(outputs(task, model, inputs), labels), labels)


def scores(task: Task, inputs: Any, labels: Tensor) -> membership.TokenScores:
    """Of the task's model, without a gradient."""
    return answers.of_labels(outputs(task, task.model, inputs), labels).scores(labels)


def divergence(task: Task, teacher: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """[R]: KL(teacher || model) of each scored token, in nats."""
    task.teaching = True
    try:
        with torch.no_grad():
            theirs = answers.of_labels(outputs(task, teacher, inputs), labels)
    finally:
        task.teaching = False
    return answers.divergence(answers.of_labels(outputs(task, task.model, inputs), labels), theirs, labels)
