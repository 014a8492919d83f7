"""The packages that recipes are for, imported as they are found here; and nothing may reach for a hub."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest
import torch
from torchvision_here import declared


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        monkeypatch.setitem(os.environ, name, value)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def torchvision_declared() -> Iterator[None]:
    held = declared()
    yield
    del held


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What these packages warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
