"""``python -m fastforget verify``: does a receipt hold, and is it this model's?"""

from __future__ import annotations

import argparse
import hashlib
import json
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
from ..figures import ORIGINAL, RETRAINED, ModelRow
from . import hashes
from .receipt import FORMAT, own_hash

NESTED = ("state_dict", "model_state_dict")
WANTED = "accepted is torch.save(model.state_dict(), …)"
# sha256 of the rule's words in receipts of earlier versions, where the checks were the same.
SAME_RULE = frozenset(("ece0c2ed59e9afb6326b1ab26513f856402b15630cb13b9d5caf4033049a4671",))
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
        receipt = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise Unreadable(f"{path}: not whole, or not JSON ({error}); a receipt is written by report.write_receipt(...)") from error
    if not isinstance(receipt, dict) or not str(receipt.get("format", "")).startswith("fastforget receipt"):
        raise Unreadable(f"{path}: not a fastforget receipt")
    if receipt["format"] != FORMAT:
        raise Unreadable(f"{path}: its format is {receipt['format']!r}; this version reads {FORMAT!r}")
    return receipt


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
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise Unreadable(
            f"{path}: can't be read as weights ({_first_line(error)}); accepted is torch.save(model.state_dict(), …)"
        ) from error
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise Unreadable(f"{path}: holds a {type(loaded).__name__}; {WANTED}")
    return dict(loaded)


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
        with np.load(path, allow_pickle=False) as arrays:
            for names in (("inputs", "labels"), ("x", "y")):
                if all(name in arrays for name in names):
                    inputs, labels = (torch.from_numpy(arrays[name]) for name in names)
                    return inputs, labels.long()
            held = ", ".join(arrays.files)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise Unreadable(f"{path}: can't be read as .npz ({_first_line(error)})") from error
    raise Unreadable(f'{path}: holds {held or "nothing"}; accepted are arrays "inputs" and "labels", as they were audited')


# ------------------------------------------------------------------ the checks


def check(
    receipt: dict[str, Any],
    *,
    weights: Mapping[str, Mapping[str, Any]],
    forget: tuple[Tensor, Tensor] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Finding]:
    """Everything that can be checked of a receipt. ``weights``: state_dicts by the models' names in it."""
    missing = [entry for entry in ENTRIES if entry not in receipt]
    if missing:
        return [Finding(entry, "the entry is missing") for entry in missing]
    try:
        return list(_checks(receipt, weights, forget, ids))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        return [Finding("receipt", f"its entries don't fit together ({type(error).__name__}: {_first_line(error)})")]


def _checks(
    receipt: dict[str, Any], weights: Mapping[str, Mapping[str, Any]], forget: tuple[Tensor, Tensor] | None, ids: Sequence[str] | None
) -> Iterator[Finding]:
    yield _same("sha256", receipt["sha256"], own_hash(receipt), "it was changed after it was written")
    for name, state in weights.items():
        stated = receipt["models"].get(name, {}).get("state_dict_sha256")
        yield _same(f"models.{name}.state_dict_sha256", stated, hashes.of_state(state), "these are other weights")
    about = receipt["forget_set"]
    if forget is not None:
        given = hashes.of_samples(source(forget, name="forget"))
        yield _same("forget_set.samples_sha256", about["samples_sha256"], given, "these are other samples")
    if ids is not None:
        digest, _ = hashes.of_ids(ids)
        yield _same("forget_set.ids.sha256", (about["ids"] or {}).get("sha256"), digest, "these are other ids")
    yield from _method(receipt)
    yield from _judged_again(receipt)


def _same(field: str, stated: Any, given: Any, otherwise: str) -> Finding:
    if stated is None:
        return Finding(field, "the receipt doesn't say")
    return Finding(field, "" if stated == given else f"{otherwise}: the receipt says {_short(stated)}, here it is {_short(given)}")


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:16]}…" if len(text) > 40 else text


def _method(receipt: dict[str, Any]) -> Iterator[Finding]:
    """The unlearning's own record speaks of the same models."""
    if not receipt.get("method"):
        return
    stated = receipt["method"]["weights_sha256"]
    hashed = {name: model["weights_sha256"] for name, model in receipt["models"].items()}
    if "original" in hashed:
        yield _same("method.weights_sha256.before", stated["before"], hashed["original"], "it is of another original model")
    after = stated["after"] in hashed.values()
    yield Finding("method.weights_sha256.after", "" if after else "it is of none of the models in this receipt")


def _judged_again(receipt: dict[str, Any]) -> Iterator[Finding]:
    """The figures, judged again, give the verdict that the receipt states."""
    rule = receipt["verdict"]["rule"]
    if rule != verdict.RULE and hashlib.sha256(rule.encode()).hexdigest() not in SAME_RULE:
        yield Finding("verdict.rule", "the rule is another version's; the figures can't be judged again here")
        return
    rows = [ModelRow.from_dict(row, f"{name}[{i}]") for name in ("rows", "control_rows") for i, row in enumerate(receipt[name])]
    judgement = verdict.judge_all(rows)
    for stated, judged in zip(rows, judgement.rows, strict=True):
        yield _same(f"rows.{stated.model}.status", stated.status, judged.status, "its figures give another status")
        if stated.reasons != judged.reasons:
            yield Finding(f"rows.{stated.model}.reasons", "its figures give other reasons")
    names = {row.model for row in rows}
    yield Finding("models", "" if names == set(receipt["models"]) else "the rows are not of the models that were hashed")
    controls = {name: outcome.to_dict() for name, outcome in judgement.controls.items()}
    yield Finding("controls", "" if receipt["controls"] == controls else "the figures give other controls")
    yield _same("verdict.status", receipt["verdict"]["status"], judgement.verdict, "the figures give another verdict")


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
        receipt = load_receipt(args.receipt)
        weights = {_name(receipt, args.name): load_weights(args.model)}
        if args.original:
            weights["original"] = load_weights(args.original)
        forget = load_samples(args.forget) if args.forget else None
        ids = args.ids.read_text(encoding="utf-8").splitlines() if args.ids else None
    except (Unreadable, OSError, UnicodeDecodeError) as error:
        print(f"python -m fastforget verify: {error}", file=sys.stderr)
        return 2
    findings = check(receipt, weights=weights, forget=forget, ids=ids)
    wrong = [one for one in findings if one.why]
    for one in findings:
        print(f"{'MISMATCH' if one.why else 'ok':<9} {one.field}{f': {one.why}' if one.why else ''}")
    for option, what in (("original", "the original's weights"), ("forget", "the forget set"), ("ids", "the ids")):
        if getattr(args, option) is None and not (option == "ids" and not (receipt.get("forget_set") or {}).get("ids")):
            print(f"{'-':<9} {what}: not checked (--{option})")
    if wrong:
        print(f"\nREFUSED: {wrong[0].field}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""))
        return 1
    print(f"\nVERIFIED: {receipt['verdict']['status']}, {receipt['created']}; {receipt['called']}")
    return 0


def _name(receipt: dict[str, Any], given: str | None) -> str:
    apart = (ORIGINAL, RETRAINED, *receipt.get("controls", {}))
    names = [name for name in receipt.get("models", {}) if name not in apart]
    if given is not None:
        if given not in receipt.get("models", {}):
            raise Unreadable(f"--name: {given!r} is not in the receipt; accepted are {', '.join(receipt.get('models', {}))}")
        return given
    if len(names) != 1:
        raise Unreadable(f"--name: the receipt is about {', '.join(names) or 'no model but the original'}; say whose weights --model are")
    return names[0]
