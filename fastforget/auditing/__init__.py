"""Measure what a model still knows. People reach all of it as ``fastforget.audit``, an :class:`Audit`; here are its types.

>>> import fastforget as ff
>>> isinstance(ff.audit, Audit)
True
"""

from __future__ import annotations

from .call import Audit
from .report import AuditReport
from .shadow.state import Shadows

__all__ = ["Audit", "AuditReport", "Shadows", "audit"]

audit = Audit()
