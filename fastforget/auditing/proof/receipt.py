"""The receipt: what was forgotten, by what, and what was measured, in one file that can be checked again.

It is evidence from measurements. Its own hash shows damage and edits that forgot it; who rewrites the whole file can rewrite that hash
too, so keep the hash somewhere else, or sign the file, where that matters. What can't be rewritten without the models is that the hashes
are those of the weights at hand, which ``python -m fastforget verify`` checks.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..._files import jsonable, write_json, write_whole
from ..._machine import processor
from ..._version import __version__
from ..conventions import CONVENTIONS
from ..figures import AuditFigures
from . import hashes

FORMAT = "fastforget receipt 1"
CALLED = "evidence from measurements on the samples named here; not a proof, and no guarantee about other samples or attacks"


def receipt(
    report: AuditFigures,
    result: Any = None,
    *,
    ids: Iterable[Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The receipt of an audit, as plain JSON values. See :meth:`fastforget.audit.AuditReport.receipt`."""
    models = report.settings["models"]
    for name, hashed in (*models.items(), ("the forget set", report.settings["forget_set"])):
        if hashed["reason"]:
            raise ValueError(f"{name}: {hashed['reason']}. A receipt needs hashes: audit dense tensors with plain dtypes")
    body = {
        "format": FORMAT,
        "called": CALLED,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "verdict": {"status": report.verdict, "reasons": report.reasons, "rule": report.settings["rule"]},
        "models": models,
        "forget_set": {**report.settings["forget_set"], "ids": _ids(ids, report.settings["sizes"]["forget"])},
        "sizes": report.settings["sizes"],
        "request": report.settings["request"],
        "forgotten_classes": report.settings["forgotten_classes"],
        "method": _method(result, models),
        "seeds": {"audit": report.settings["seed"], "unlearn": None if result is None else result.receipt["seed"]},
        "versions": versions(),
        "machine": machine(),
        "controls": report.controls,
        "rows": report.rows,
        "control_rows": report.control_rows,
        "settings": {key: value for key, value in report.settings.items() if key not in ("models", "forget_set", "rule")},
        "facts": facts or {},
        "conventions": {**CONVENTIONS, **hashes.SCHEMES},
    }
    # through text and back: what is hashed is what a reader of the file sees
    written = json.loads(json.dumps(jsonable(body), allow_nan=False))
    return {**written, "sha256": own_hash(written)}


def own_hash(receipt: dict[str, Any]) -> str:
    """sha256 over the canonical JSON (sorted keys, no spaces, UTF-8) of all but the entry "sha256"."""
    body = {key: value for key, value in receipt.items() if key != "sha256"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # a name may hold half of a surrogate pair, which strict UTF-8 has no bytes for
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write(path: str | PathLike[str], receipt: dict[str, Any], *, page: bool = True) -> None:
    """Writes a receipt as JSON and, beside it with the suffix .html, as a page; each file whole or not at all (OSError)."""
    from ..show.receipt_page import render

    place = Path(path)
    if page and place.suffix == ".html":
        raise ValueError(f"path: got {os.fspath(path)}; accepted is a name for the JSON file, the page goes beside it as .html")
    write_json(place, receipt)
    if page:
        write_whole(place.with_suffix(".html"), render(receipt, place.name))


def versions() -> dict[str, str]:
    return {"fastforget": __version__, "torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """The processor and system that measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _ids(ids: Iterable[Any] | None, expected: int) -> dict[str, Any] | None:
    if ids is None:
        return None
    if isinstance(ids, str):
        raise TypeError("ids: got a str; accepted is a list with one id a forget sample")
    sha256, count = hashes.of_ids(ids)
    if count != expected:
        raise ValueError(f"ids: got {count}, but the forget set has {expected} samples; accepted is one id a sample")
    return {"sha256": sha256, "count": count}


def _method(result: Any, models: dict[str, Any]) -> dict[str, Any] | None:
    """The unlearning's own record, if its hashes are those of the models that were audited."""
    if result is None:
        return None
    record = result.receipt
    for name, moment in (("original", "before"), (None, "after")):
        weights = record["weights_sha256"][moment]
        among = [name] if name in models else list(models)
        if weights not in (models[one]["weights_sha256"] for one in among):
            which = f"of the model {name!r}" if name in models else "of any model"
            raise ValueError(
                f"result: its weights {moment} unlearning ({weights[:12]}…) are not those {which} in this audit; "
                "accepted is the result whose model was audited, unchanged since"
            )
    return {**record, "seconds": result.seconds}
