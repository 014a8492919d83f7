"""The packages that recipes are for, imported as they are found here; and nothing may reach for a hub."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

OPS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


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
    """Where torchvision was built for a GPU and torch wasn't, its ops are declared by name, so that it can be imported."""
    declared = None
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "FRAGMENT")  # its declarations end with it
        for op in OPS:
            if not hasattr(torch.ops.torchvision, op):
                declared.define(f"{op}() -> ()")
    yield
    del declared


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What these packages warn of is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
