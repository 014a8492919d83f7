"""What a report says of how it came about: the request, the sets, the models' hashes, and what each figure means."""

from __future__ import annotations

from typing import Any

from .figures import RETRAINED
from .measure import below, intervals
from .measure.class_rule import CONVENTION as CLASS_THRESHOLDS
from .measured import Measured
from .proof import hashes
from .request import Request
from .shadow import attacks as shadow_attacks


def settings_of(request: Request, measured: Measured) -> dict[str, Any]:
    """``AuditReport.settings``, but for what only the call knows (how long it took)."""
    models = request.everyone()
    return {
        "request": measured.request,
        "forgotten_classes": measured.forgotten.tolist(),
        "sizes": measured.sizes,
        "attacks": list(request.attacks),
        "seed": request.seed,
        "intervals": bool(request.intervals),
        "frozen_body": request.frozen_body,
        "near_classes": list(measured.near),
        "overlap": request.overlap,
        "reference": RETRAINED if RETRAINED in models else None,
        "oracle_threshold": measured.oracle.threshold,
        "oracle_reason": measured.oracle.reason,
        "comparisons": {comparison.name: comparison.convention for comparison in measured.comparisons},
        "conventions_used": _conventions(request, measured),
        "exposed_by": measured.exposed_by,
        "rule": request.kind.rule.text,
        "models": {name: hashes.of_model(model) for name, model in models.items()},
        "forget_set": hashes.of_set(request.sets["forget"], request.seed),
    }


def _conventions(request: Request, measured: Measured) -> dict[str, str]:
    """What each figure of this report means, by the figure's name."""
    used = {
        name: shadow_attacks.convention(request.shadows, name) if name in shadow_attacks.NAMES else request.kind.attacks[name]
        for name in request.attacks
    }
    used |= {"class_thresholds": CLASS_THRESHOLDS} if any(measured.rows[0].class_thresholds.values()) else {}
    used |= below.CONVENTIONS if measured.rows[0].below is not None else {}
    used |= {name: probe.convention for name, probe in measured.rows[0].probes.items()}
    return used | ({"intervals": intervals.CONVENTION} if request.intervals else {})
