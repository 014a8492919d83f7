"""The receipt as one page for people: its data, gathered for the template."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..._text import number, percent
from ..figures import FORGET, ModelRow
from . import layout
from .shown import tone
from .text import shared_with

# What the table shows of a model.
FIGURES: dict[str, Callable[[ModelRow], str]] = {
    "forget set": lambda model: percent(model.accuracy["forget"].value),
    "unseen, forgotten": lambda model: percent(model.accuracy["test_forget"].value),
    "unseen, kept": lambda model: percent(model.accuracy["test_retain"].value),
    "attack AUC": lambda model: number(model.attacks[FORGET]["loss"].auc.value),
    "forgetting rate": lambda model: percent(model.forgetting_rate.value),
}


@dataclass
class Line:
    """One model's figures."""

    label: str
    status: str
    tone: str
    figures: list[str]


def render(receipt: dict[str, Any], file_name: str) -> str:
    """The page of a receipt that lies in a file of this name."""
    verdict = receipt["verdict"]
    return layout.render(
        "receipt.html",
        file_name=file_name,
        forgotten=forgotten(receipt),
        created=receipt["created"].replace("T", " ").replace("+00:00", " UTC"),
        called=receipt["called"],
        status=verdict["status"],
        tone=tone(verdict["status"]),
        reasons=verdict["reasons"],
        rule=verdict["rule"],
        measured=list(FIGURES),
        lines=[_line(ModelRow.from_dict(row)) for row in receipt["rows"] + receipt["control_rows"]],
        hashes=_hashes(receipt),
        made=_made(receipt),
    )


def forgotten(receipt: dict[str, Any]) -> str:
    """What was to be forgotten: "class 3", or how many samples."""
    classes = receipt["forgotten_classes"]
    if not classes:
        return f"{receipt['forget_set']['samples']} {'sequences' if receipt['request'] == 'sequence-wise' else 'samples'}"
    return f"class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"


def _line(model: ModelRow) -> Line:
    label = f"control: {model.model}" if model.control else model.model
    return Line(label, model.status, tone(model.status), [text(model) for text in FIGURES.values()])


def _hashes(receipt: dict[str, Any]) -> dict[str, str]:
    forget_set = receipt["forget_set"]
    entries = {f"weights, {name}": model["weights_sha256"] for name, model in receipt["models"].items()}
    entries["forget set"] = forget_set["samples_sha256"]
    if forget_set["ids"]:
        entries["forget set, ids"] = forget_set["ids"]["sha256"]
    return {**entries, "this receipt": receipt["sha256"]}


def _made(receipt: dict[str, Any]) -> dict[str, str]:
    method = receipt["method"]
    entries = {"request": receipt["request"], **{f"samples, {name}": str(size) for name, size in receipt["sizes"].items()}}
    entries |= shared_with(receipt["settings"].get("overlap", {}), receipt["request"])
    if method:
        entries["method"] = method["method"]
        entries["options"] = _as_text(method["options"])
        entries["unlearning says"] = str(method["verdict"]["why"])
    entries |= {f"seed, {step}": str(seed) for step, seed in receipt["seeds"].items() if seed is not None}
    rest = {**receipt["machine"], **receipt["versions"], **receipt["facts"]}
    return entries | {name: _as_text(value) for name, value in rest.items() if value is not None}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
