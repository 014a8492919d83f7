"""What :func:`fastforget.unlearn` returns, and the warning where nothing was shown to be forgotten."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._version import __version__


@dataclass
class UnlearnResult:
    """What :func:`fastforget.unlearn` returns."""

    model: nn.Module
    history: list[dict[str, Any]]
    seconds: float
    receipt: dict[str, Any]
    forgot: bool
    why: str

    def __repr__(self) -> str:
        return f"UnlearnResult(forgot={self.forgot}, seconds={self.seconds:.1f}, why={self.why!r})"


class NotForgottenWarning(UserWarning):
    """The classes are still there, or nothing shows that they are gone."""


def versions() -> dict[str, str]:
    """What a run depends on besides its arguments."""
    return {"fastforget": __version__, "torch": torch.__version__, "python": platform.python_version()}
