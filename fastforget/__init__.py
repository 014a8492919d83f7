"""fastforget: erase classes or samples from a trained PyTorch model and prove it.

>>> import fastforget as ff
>>> sorted(ff.ops.__all__)
['mask', 'membership', 'noise', 'update']
"""

from . import _torch_is_here  # says in words what to install where PyTorch is missing

# isort: split
import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import methods, ops, optim
from ._version import __version__
from .auditing import audit
from .backend import BackendError, backends, use_backend
from .journal import Journal, RetrainWarning
from .methods import NotForgottenWarning, UnlearnResult, unlearn

if _TYPE_CHECKING:
    from . import adapters

del _torch_is_here

__all__ = [
    "BackendError",
    "Journal",
    "NotForgottenWarning",
    "RetrainWarning",
    "UnlearnResult",
    "__version__",
    "adapters",
    "audit",
    "backends",
    "methods",
    "ops",
    "optim",
    "unlearn",
    "use_backend",
]


def __getattr__(name: str) -> _Any:
    """``ff.adapters`` is imported when somebody asks for it."""
    if name == "adapters":
        return _importlib.import_module(".adapters", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
