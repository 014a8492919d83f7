"""What :func:`fastforget.unlearn` returns, and the warning where nothing was shown to be forgotten."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._version import __version__
from .cost import Cost


@dataclass
class UnlearnResult:
    """What :func:`fastforget.unlearn` returns.

    ``cost`` has the run's sample passes and seconds, by phase: ``cost.passes``, ``cost.receipt()``, ``cost.table()``.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    seconds: float
    receipt: dict[str, Any]
    forgot: bool
    why: str
    cost: Cost = field(default_factory=Cost)

    def __repr__(self) -> str:
        return f"UnlearnResult(forgot={self.forgot}, passes={self.cost.passes}, seconds={self.seconds:.1f}, why={self.why!r})"


class NotForgottenWarning(UserWarning):
    """The classes are still there, or nothing shows that they are gone."""


def versions() -> dict[str, str]:
    """What a run depends on besides its arguments."""
    # torch's own class of text is none that torch.load(weights_only=True) takes
    return {"fastforget": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
