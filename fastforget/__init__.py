"""fastforget: erase classes or samples from a trained PyTorch model and prove it.

>>> import fastforget as ff
>>> sorted(ff.ops.__all__)
['mask', 'membership', 'noise', 'update']
"""

from . import audit, ops
from .backend import BackendError, backends, use_backend

__version__ = "0.1.0"

__all__ = ["BackendError", "__version__", "audit", "backends", "ops", "use_backend"]
