"""Measure what a model still knows: ``ff.audit(models, forget=…, retain=…, test=…)``.

The package is callable, so that the one call people need is short and further tools can live below it.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .controls import controls
from .quality import forgetting_quality
from .relearn import relearn_time
from .report import AuditReport
from .run import audit as _audit
from .shadow_state import Shadows
from .shadow_training import shadows

__all__ = ["AuditReport", "Shadows", "controls", "forgetting_quality", "relearn_time", "shadows"]


class _CallableModule(ModuleType):
    """A module whose call is the audit; Python looks ``__call__`` up on the type, hence the subclass."""

    __call__ = staticmethod(_audit)


sys.modules[__name__].__class__ = _CallableModule
