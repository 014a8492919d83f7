"""Measure what a model still knows: ``ff.audit(models, forget=…, retain=…, test=…)``.

The one call that people need is short, and what else an audit offers hangs on it as attributes (``ff.audit.shadows``).
"""

from __future__ import annotations

from .call import audit as _measure
from .controls import controls
from .measure import oracles
from .measure.quality import forgetting_quality
from .measure.relearn import relearn_time
from .report import AuditReport
from .shadow.state import Shadows
from .shadow.training import shadows

__all__ = ["AuditReport", "Shadows", "audit", "controls", "forgetting_quality", "relearn_time", "shadows"]


class Audit:
    """``ff.audit``: measures what a model still knows."""

    AuditReport = AuditReport
    Shadows = Shadows
    oracles = oracles
    __call__ = staticmethod(_measure)
    controls = staticmethod(controls)
    forgetting_quality = staticmethod(forgetting_quality)
    relearn_time = staticmethod(relearn_time)
    shadows = staticmethod(shadows)


audit = Audit()
