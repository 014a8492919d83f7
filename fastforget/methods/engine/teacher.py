"""What a frozen model answers the samples that a method trains on: the original model, or another teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import _weights
from ..._columns import Column
from ..._data import Source
from ..cost import FORWARD
from ..task import Task
from .joint import in_memory

TABLE = 2**28  # numbers that are kept at most: a gibibyte in float32


class Answers:
    """A teacher's logits for the samples of a set: computed once a sample where the set lies in memory and is passed over more than once,
    else batch by batch, as a data set may augment its samples anew whenever they are read.

    Args:
        task: whose cost is counted.
        data: the set.
        epochs: passes that will be made over it.
        teacher: the model to ask; ``None``: the task's, as it is now.
    """

    def __init__(self, task: Task, data: Source, epochs: int, teacher: nn.Module | None = None) -> None:
        self.task, self.data = task, data
        self._table: Tensor | None = None
        self.ahead = epochs > 1 and in_memory(data) and len(data) * task.outputs <= TABLE
        if teacher is None:
            teacher = task.model if self.ahead else _weights.working_copy(task.model)
        self.teacher = teacher

    def beside(self, samples: int) -> int:
        """Sample passes that the answers for a batch of so many samples cost, beside the step itself."""
        return 0 if self.ahead else forward_only(min(samples, len(self.data)))

    def ready(self) -> bool:
        """Whether the budget has room for what is computed in advance, which is done then."""
        if not self.ahead:
            return True
        if not self.task.cost.has_room(forward_only(len(self.data))):
            return False
        table = Column()
        with self.task.cost.phase("teacher"):
            for inputs, _ in self.task.cost.reading(self.data.batches(device=self.task.device)):
                table.add(self._ask(inputs))
        self._table = table.joined()
        return True

    def of(self, inputs: Any, rows: Tensor) -> Tensor:
        """Logits [B, K], float32 or float64, of a batch.

        Args:
            inputs: the batch's inputs.
            rows: positions of its samples in the set, int64[B].
        """
        return self._ask(inputs) if self._table is None else self._table[rows.to(self._table.device)]

    def _ask(self, inputs: Any) -> Tensor:
        self.task.teaching = True
        try:
            with _weights.evaluating(self.teacher):
                logits = self.task.forward(self.teacher, inputs)
        finally:
            self.task.teaching = False
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def forward_only(samples: int) -> int:
    """Sample passes of so many samples that only go forward."""
    return -(-samples // FORWARD)
