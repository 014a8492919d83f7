"""Every op on every implementation against float64, by the table of ops. What is special to an op is in its family's tests."""

from __future__ import annotations

import op_table
import pytest
import torch
from tolerance import FLOATS

from fastforget import _schema, backend

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")


def test_the_table_has_every_op() -> None:
    assert set(op_table.TABLE) == set(_schema.SCHEMAS)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", op_table.TABLE)
def test_the_op_is_right(implementation: str, op: str, dtype: torch.dtype) -> None:
    def run(*args: object) -> None:
        if backend.forced is not None:
            backend.call_forced(op, "cpu", args)
        else:
            _schema.overload(op)(*args)

    op_table.check(op, run, dtype)
