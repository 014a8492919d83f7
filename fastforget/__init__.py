"""fastforget: erase classes or samples from a trained PyTorch model and prove it.

>>> import fastforget as ff
>>> sorted(ff.ops.__all__)
['mask', 'membership', 'noise', 'update']
"""

from . import _torch_is_here  # says in words what to install where PyTorch is missing

# isort: split
from . import methods, ops, optim
from ._version import __version__
from .auditing import audit
from .backend import BackendError, backends, use_backend
from .journal import Journal, RetrainWarning
from .methods import NotForgottenWarning, UnlearnResult, unlearn

del _torch_is_here

__all__ = [
    "BackendError",
    "Journal",
    "NotForgottenWarning",
    "RetrainWarning",
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
