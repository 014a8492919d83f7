from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def few() -> dict:
    """Fourteen samples of three numbers in three classes, five of them to forget: for a step by hand on :data:`pack_world.W0`."""
    x = torch.randn(14, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = torch.arange(14) % 3
    return {"forget": (x[:5], y[:5]), "retain": (x[5:], y[5:]), "check_overlap": False}
