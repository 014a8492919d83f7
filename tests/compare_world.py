"""Receipts to compare: of one request by three ways, of another request, over other test samples, and one that was changed by hand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from audit_world import FORGOTTEN, World, blobs, fit

import fastforget as ff

RETRAINING = {"seconds": 50.0, "passes": 36_000}


def write(folder: Path) -> Path:
    """``again``, ``finetune``, ``sweep``: class 2; ``other_class``: class 1; ``other_test``: ``again`` over other unseen samples;
    ``no_reference``: ``again`` without a retrained model; ``changed``: ``sweep`` with one figure changed."""
    world = World()
    x, y = (t for t in blobs(400, 1))

    def audit(unlearned: Any, name: str, result: Any = None, facts: dict[str, Any] | None = None, **sets: Any) -> None:
        report = world.audit(unlearned=unlearned, **sets)
        report.write_receipt(folder / f"{name}.json", result, facts=facts or {})

    audit(world.retrained_again, "again", facts={"retraining": RETRAINING})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.NotForgottenWarning)
        for method in ("finetune", "sweep"):
            more = {} if method == "finetune" else {"forget": world.forget}
            result = ff.unlearn(world.original, method, classes=[FORGOTTEN], retain=world.retain, progress=False, **more)
            audit(result.model, method, result, {"retraining": RETRAINING})
    audit(world.retrained_again, "other_test", test=blobs(400, 3))
    audit(world.retrained_again, "no_reference", reference=False)
    gone = y == 1
    world.retrained = fit((x[~gone], y[~gone]), 0)
    sets = {"forget": (x[gone], y[gone]), "retain": (x[~gone], y[~gone])}
    audit(fit((x[~gone], y[~gone]), 1), "other_class", **sets)
    changed = json.loads((folder / "sweep.json").read_text())
    changed["rows"][1]["accuracy"]["forget"] = 0.5
    (folder / "changed.json").write_text(json.dumps(changed))
    return folder
