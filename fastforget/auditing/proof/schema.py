"""Whether a receipt has the entries that its JSON schema describes: none missing, none unknown, each of its kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


@cache
def schema(name: str) -> dict[str, Any]:
    """One of the package's schemas: "receipt", "unlearning" or "figures"."""
    return json.loads(files("fastforget.auditing").joinpath("schema").joinpath(f"{name}.json").read_text(encoding="utf-8"))


def required() -> list[str]:
    """The entries that every receipt has."""
    return list(schema("receipt")["required"])


def violations(receipt: dict[str, Any]) -> Iterator[str]:
    """What the schema says against a receipt; each begins with the entry's path.

    >>> next(violations({"format": "fastforget receipt 1"}))
    'called: the entry is missing'
    """
    yield from _against(receipt, schema("receipt"), "", "receipt")


def _against(value: Any, rule: dict[str, Any], where: str, document: str) -> Iterator[str]:
    if "$ref" in rule:
        name, _, path = rule["$ref"].partition("#")
        document = name.removesuffix(".json") or document
        target: Any = schema(document)
        for part in filter(None, path.split("/")):
            target = target[part]
        yield from _against(value, target, where, document)
    if "oneOf" in rule and all(next(_against(value, one, where, document), None) is not None for one in rule["oneOf"]):
        yield f"{where}: it is none of what it may be"
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{where}: it is of another kind; accepted is {' or '.join(kinds)}"
        return
    if ("const" in rule and value != rule["const"]) or ("enum" in rule and value not in rule["enum"]):
        yield f"{where}: it is not among what it may be"
    if isinstance(value, str) and not _fits(value, rule):
        yield f"{where}: it is of another form"
    if _is(value, "number") and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        yield f"{where}: {value} is out of range"
    if isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            yield f"{where}: it has {len(value)} entries"
        for place, one in enumerate(value):
            yield from _against(one, rule.get("items", {}), f"{where}[{place}]", document)
    if isinstance(value, dict):
        yield from _object(value, rule, where, document)


def _object(value: dict[str, Any], rule: dict[str, Any], where: str, document: str) -> Iterator[str]:
    inside = f"{where}." if where else ""
    for name in rule.get("required", ()):
        if name not in value:
            yield f"{inside}{name}: the entry is missing"
    known, more = rule.get("properties", {}), rule.get("additionalProperties", True)
    for name, entry in value.items():
        if not _fits(name, rule.get("propertyNames", {})):
            yield f"{inside}{name}: a name of another form"
        if name in known:
            yield from _against(entry, known[name], f"{inside}{name}", document)
        elif more is False:
            yield f"{inside}{name}: an entry that this version doesn't know"
        elif isinstance(more, dict):
            yield from _against(entry, more, f"{inside}{name}", document)


def _fits(text: str, rule: dict[str, Any]) -> bool:
    return re.search(rule.get("pattern", "").replace("$", r"\Z"), text) is not None


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind in ("boolean",) or not isinstance(value, bool))
