"""torchvision as transformers imports it: where it was built for a GPU and torch wasn't, its ops are declared by name."""

from __future__ import annotations

import sys
from typing import Any

import torch

OPS = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")


def declared() -> Any:
    """The declarations, which end with what is returned; ``None`` where none are needed."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for op in OPS:
            if not hasattr(torch.ops.torchvision, op):
                library.define(f"{op}() -> ()")
        return library
    return None
