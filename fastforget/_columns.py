"""What a pass over a large set keeps of each batch, in one piece of memory.

Small tensors kept one by one lie between the large ones of the batches, and what is freed around them can't be used for the next batch:
a pass over a gigabyte then takes a gigabyte, though hardly anything is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Column:
    """Rows of tensors, joined as they come.

    >>> import torch
    >>> column = Column()
    >>> column.add(torch.tensor([1, 2]))
    >>> column.add(torch.tensor([3]))
    >>> column.joined().tolist(), len(column)
    ([1, 2, 3], 3)
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def add(self, rows: Tensor) -> None:
        """Puts these rows behind the others."""
        rows, wanted = rows.detach(), self._filled + len(rows)
        if self._held is None or wanted > len(self._held):
            larger = torch.empty((max(1024, 2 * wanted), *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
            if self._held is not None:
                larger[: self._filled] = self._held[: self._filled]
            self._held = larger
        self._held[self._filled : wanted] = rows
        self._filled = wanted

    def joined(self) -> Tensor:
        """All rows, as torch.cat would give them.

        Raises:
            RuntimeError: there are none.
        """
        if self._held is None:
            raise RuntimeError("nothing was kept")
        return self._held[: self._filled].clone()
