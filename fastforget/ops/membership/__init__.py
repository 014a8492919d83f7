"""Membership inference: scores, attacks on them, and what an attack's scores say.

Conventions are named in each function: the field's tools disagree under the same names. Two files begin with an underscore because the
function that they hold has their name.
"""

from . import _lira, _lira_stream, _rmia, quality, roc, scores, tokens
from ._lira import *
from ._lira_stream import *
from ._rmia import *
from .quality import *
from .roc import *
from .scores import *
from .tokens import *

__all__ = []
__all__ += _lira.__all__
__all__ += _lira_stream.__all__
__all__ += _rmia.__all__
__all__ += quality.__all__
__all__ += roc.__all__
__all__ += scores.__all__
__all__ += tokens.__all__
