"""Values as strict JSON: what is not a finite number is null."""

from __future__ import annotations

import json
import math
from os import PathLike
from typing import Any

from .._files import write_whole


def jsonable(value: Any) -> Any:
    """The value with null for NaN and infinity, strings for names and lists for tuples.

    >>> jsonable({1: (0.5, float("nan"))})
    {'1': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_json(path: str | PathLike[str], value: Any) -> None:
    """``value`` as strict JSON (no NaN), whole or not at all."""
    write_whole(path, json.dumps(jsonable(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
