"""``python -m fastforget verify``: does a receipt hold, and is it this model's?"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import _safetensors as safetensors_io
from ..._data import source
from .. import verdict
from ..controls import behaviour, distrust
from . import hashes
from .receipt import FORMAT, own_hash

NESTED = ("state_dict", "model_state_dict")
WANTED = "accepted is torch.save(model.state_dict(), …)"
ENTRIES = ("format", "verdict", "models", "forget_set", "sizes", "rows", "control_rows", "controls", "seeds", "versions", "sha256")


class Unreadable(Exception):
    """A file can't be read, so nothing can be said; the message names it and what would do."""


class Finding(NamedTuple):
    """One thing that was checked; ``why`` is empty where it holds."""

    field: str
    why: str = ""


def load_receipt(path: str | Path) -> dict[str, Any]:
    """A receipt from its file.

    Raises:
        Unreadable: missing, cut off, or not a receipt.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Unreadable(f"{path}: not whole, or not JSON ({error}); a receipt is written by report.write_receipt(...)") from error
    if not isinstance(found, dict) or not str(found.get("format", "")).startswith("fastforget receipt"):
        raise Unreadable(f"{path}: not a fastforget receipt")
    if found["format"] != FORMAT:
        raise Unreadable(f"{path}: its format is {found['format']!r}; this version reads {FORMAT!r}")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not strict JSON")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state_dict from .pt or .pth (torch.save, weights only) or .safetensors.

    Raises:
        Unreadable: missing, cut off, or no state_dict.
    """
    if not Path(path).is_file():
        raise Unreadable(f"{path}: no such file")
    if Path(path).suffix == ".safetensors":
        return _safetensors(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise Unreadable(
            f"{path}: can't be read as weights ({_first_line(error)}); accepted is torch.save(model.state_dict(), …)"
        ) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise Unreadable(f"{path}: holds a {type(found).__name__}; {WANTED}")
    return dict(found)


def _safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return safetensors_io.load(path)[0]
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: can't be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def load_samples(path: str | Path) -> tuple[Tensor, Tensor]:
    """(inputs, labels) from an .npz with "inputs" and "labels" (or "x" and "y").

    Raises:
        Unreadable: missing, cut off, or without these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            for names in (("inputs", "labels"), ("x", "y")):
                if all(name in found for name in names):
                    inputs, labels = (torch.from_numpy(found[name]) for name in names)
                    return inputs, labels.long()
            held = ", ".join(found.files)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise Unreadable(f"{path}: can't be read as .npz ({_first_line(error)})") from error
    raise Unreadable(f'{path}: holds {held or "nothing"}; accepted are arrays "inputs" and "labels", as they were audited')


# ------------------------------------------------------------------ the checks


def check(
    found: dict[str, Any],
    *,
    weights: Mapping[str, Mapping[str, Any]],
    forget: tuple[Tensor, Tensor] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Finding]:
    """Everything that can be checked of a receipt. ``weights``: state_dicts by the models' names in it."""
    missing = [entry for entry in ENTRIES if entry not in found]
    if missing:
        return [Finding(entry, "the entry is missing") for entry in missing]
    try:
        return list(_checks(found, weights, forget, ids))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        return [Finding("receipt", f"its entries don't fit together ({type(error).__name__}: {_first_line(error)})")]


def _checks(
    found: dict[str, Any], weights: Mapping[str, Mapping[str, Any]], forget: tuple[Tensor, Tensor] | None, ids: Sequence[str] | None
) -> Iterator[Finding]:
    yield _same("sha256", found["sha256"], own_hash(found), "it was changed after it was written")
    for name, state in weights.items():
        stated = found["models"].get(name, {}).get("state_dict_sha256")
        yield _same(f"models.{name}.state_dict_sha256", stated, hashes.of_state(state), "these are other weights")
    about = found["forget_set"]
    if forget is not None:
        given = hashes.of_samples(source(forget, name="forget"))
        yield _same("forget_set.samples_sha256", about["samples_sha256"], given, "these are other samples")
    if ids is not None:
        digest, _ = hashes.of_ids(ids)
        yield _same("forget_set.ids.sha256", (about["ids"] or {}).get("sha256"), digest, "these are other ids")
    yield from _method(found)
    yield from _judged_again(found)


def _same(field: str, stated: Any, given: Any, otherwise: str) -> Finding:
    if stated is None:
        return Finding(field, "the receipt doesn't say")
    return Finding(field, "" if stated == given else f"{otherwise}: the receipt says {_short(stated)}, here it is {_short(given)}")


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:16]}…" if len(text) > 40 else text


def _method(found: dict[str, Any]) -> Iterator[Finding]:
    """The unlearning's own record speaks of the same models."""
    if not found.get("method"):
        return
    stated = found["method"]["weights_sha256"]
    hashed = {name: model["weights_sha256"] for name, model in found["models"].items()}
    if "original" in hashed:
        yield _same("method.weights_sha256.before", stated["before"], hashed["original"], "it is of another original model")
    after = stated["after"] in hashed.values()
    yield Finding("method.weights_sha256.after", "" if after else "it is of none of the models in this receipt")


def _judged_again(found: dict[str, Any]) -> Iterator[Finding]:
    """The figures, judged again, give the verdict that the receipt states."""
    if found["verdict"]["rule"] != verdict.RULE:
        yield Finding("verdict.rule", "the rule is another version's; the figures can't be judged again here")
        return
    rows = [_numbers(row) for row in found["rows"] + found["control_rows"]]
    by_name = {row["model"]: row for row in rows}
    original, retrained = by_name.get("original"), by_name.get("retrained")
    for row in rows:
        status, reasons = verdict.judge(row, original, retrained)
        yield _same(f"rows.{row['model']}.status", row["status"], status, "its figures give another status")
        if row["reasons"] != reasons:
            yield Finding(f"rows.{row['model']}.reasons", "its figures give other reasons")
        row["status"] = status
    yield Finding("models", "" if set(by_name) == set(found["models"]) else "the rows are not of the models that were hashed")
    controls = behaviour([row for row in rows if row["control"]], retrained)
    yield Finding("controls", "" if found["controls"] == controls else "the figures give other controls")
    judged = [row for row in rows if not row["control"] and row["model"] not in ("original", "retrained")]
    statuses = [row["status"] for row in judged] if retrained else ["NO REFERENCE"]
    whole = verdict.overall(statuses, trusted=not distrust(controls))
    yield _same("verdict.status", found["verdict"]["status"], whole, "the figures give another verdict")


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was judged: JSON has null where a figure was NaN or infinite."""
    row = copy.deepcopy(row)

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: v if key == "reason" else filled(v) for key, v in value.items()}
        return math.nan if value is None else value

    for key in ("accuracy", "attacks", "probes"):
        if key in row:
            row[key] = filled(row[key])
    return row


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m fastforget verify",
        description="Hash the weights (and samples) again and judge a receipt's figures again; refuse what doesn't fit.",
        epilog="Exit status: 0 everything that was checked holds, 1 something doesn't, 2 a file can't be read.",
    )
    p.add_argument("receipt", type=Path, help="the receipt's JSON file")
    p.add_argument("--model", type=Path, required=True, metavar="FILE", help="weights of the unlearned model: .pt, .pth or .safetensors")
    p.add_argument("--name", help="its name in the receipt (default: the only one beside original and retrained)")
    p.add_argument("--original", type=Path, metavar="FILE", help="weights of the original model")
    p.add_argument("--forget", type=Path, metavar="FILE", help='the forget set: .npz with "inputs" and "labels", as they were audited')
    p.add_argument("--ids", type=Path, metavar="FILE", help="the forget samples' ids, one a line")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        found = load_receipt(args.receipt)
        weights = {_name(found, args.name): load_weights(args.model)}
        if args.original:
            weights["original"] = load_weights(args.original)
        forget = load_samples(args.forget) if args.forget else None
        ids = args.ids.read_text(encoding="utf-8").splitlines() if args.ids else None
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        print(f"python -m fastforget verify: {error}", file=sys.stderr)
        return 2
    findings = check(found, weights=weights, forget=forget, ids=ids)
    wrong = [one for one in findings if one.why]
    for one in findings:
        print(f"{'MISMATCH' if one.why else 'ok':<9} {one.field}{f': {one.why}' if one.why else ''}")
    for option, what in (("original", "the original's weights"), ("forget", "the forget set"), ("ids", "the ids")):
        if getattr(args, option) is None and not (option == "ids" and not (found.get("forget_set") or {}).get("ids")):
            print(f"{'-':<9} {what}: not checked (--{option})")
    if wrong:
        print(f"\nREFUSED: {wrong[0].field}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""))
        return 1
    print(f"\nVERIFIED: {found['verdict']['status']}, {found['created']}; {found['called']}")
    return 0


def _name(found: dict[str, Any], given: str | None) -> str:
    names = [name for name in found.get("models", {}) if name not in ("original", "retrained") and name not in found.get("controls", {})]
    if given is not None:
        if given not in found.get("models", {}):
            raise Unreadable(f"--name: {given!r} is not in the receipt; accepted are {', '.join(found.get('models', {}))}")
        return given
    if len(names) != 1:
        raise Unreadable(f"--name: the receipt is about {', '.join(names) or 'no model but the original'}; say whose weights --model are")
    return names[0]
