"""fastforget: erase classes or samples from a trained PyTorch model and prove it.

>>> import fastforget as ff
>>> sorted(ff.ops.__all__)
['mask', 'membership', 'noise', 'update']
"""

from typing import TYPE_CHECKING

from . import methods, ops, optim
from .backend import BackendError, backends, use_backend
from .methods import NotForgottenWarning, UnlearnResult, unlearn

if TYPE_CHECKING:  # a package that can be called, which type checkers don't know
    from .audit.run import audit
else:
    from . import audit

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "NotForgottenWarning",
    "UnlearnResult",
    "__version__",
    "audit",
    "backends",
    "methods",
    "ops",
    "optim",
    "unlearn",
    "use_backend",
]
