"""Masking of weights by importance: elementwise, statistics of rows, selection, and optimiser steps under a mask."""

from . import elementwise, optim, rows, select
from .elementwise import *
from .optim import *
from .rows import *
from .select import *

__all__ = []
__all__ += elementwise.__all__
__all__ += optim.__all__
__all__ += rows.__all__
__all__ += select.__all__
