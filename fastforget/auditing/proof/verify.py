"""``python -m fastforget verify``: does a receipt hold, and is it this model's?

What it prints are its own words, with names and numbers from the file made visible; never the file's own sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._command import Parser, unusable
from ..._text import visible
from ..figures import ORIGINAL, RETRAINED
from ..names import SEQUENCE_WISE
from .again import Again
from .check import ON_TRUST, check
from .finding import Finding, Unreadable
from .reading import builder, load_ids, load_receipt, load_samples, load_weights
from .receipt import CALLED
from .texts import Texts

__all__ = ["Finding", "Unreadable", "check", "load_receipt", "load_weights", "main", "parser"]

WEIGHTS = "weights of the unlearned model: .pt, .pth, .safetensors, an index of several, or a folder as save_pretrained writes it"
SETS = ("forget", "retain", "test")
OPTIONS = {
    ORIGINAL: "the original's weights",
    RETRAINED: "the retrained model's weights",
    "forget": "the forget set",
    "ids": "the ids",
}
HELP = """With --forget, --retain, --test and --build the figures of every model whose weights are given are measured again and
compared within rounding; --build runs the code it names. Without, they are judged again and compared with each other.

  python -m fastforget verify receipt.json --model unlearned.pt
  python -m fastforget verify receipt.json --model unlearned.pt --original original.pt --build nets.py:make \\
      --forget forget.npz --retain retain.npz --test test.npz

Exit status: 0 everything that was checked holds, 1 something doesn't, 2 a file can't be read."""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m fastforget verify",
        description="Hash the weights (and samples) again and judge a receipt's figures again; refuse what doesn't fit.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("receipt", type=Path, help="the receipt's JSON file")
    p.add_argument("--model", type=Path, required=True, metavar="PATH", help=WEIGHTS)
    p.add_argument("--name", help="its name in the receipt (default: the only one beside original and retrained)")
    p.add_argument("--original", type=Path, metavar="PATH", help="weights of the original model")
    p.add_argument("--retrained", type=Path, metavar="PATH", help="weights of the retrained model")
    p.add_argument("--key", help='where in these files the weights lie, such as "net" (default: the only place, or a usual one)')
    p.add_argument("--forget", type=Path, metavar="FILE", help='the forget set: .npz with "inputs" and "labels", as they were audited')
    p.add_argument("--retain", type=Path, metavar="FILE", help="the retain set, likewise")
    p.add_argument("--test", type=Path, metavar="FILE", help="the test set, likewise")
    p.add_argument("--build", metavar="MODULE:FUNCTION", help="a function that returns the model without weights; also FILE.py:FUNCTION")
    p.add_argument("--ids", type=Path, metavar="FILE", help="the forget samples' ids, one a line")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        receipt = load_receipt(args.receipt)
        weights = {_name(receipt, args.name): load_weights(args.model, args.key)}
        for name in (ORIGINAL, RETRAINED):
            if getattr(args, name):
                weights[name] = load_weights(getattr(args, name), args.key)
        sets = {name: load_samples(getattr(args, name)) for name in SETS if getattr(args, name)}
        _must_fit(args, receipt, sets)
        ids = load_ids(args.ids) if args.ids else None
        again = _again(args, sets)
        findings = check(receipt, weights=weights, forget=sets.get("forget"), ids=ids, again=again)
    except (Unreadable, OSError) as error:
        return unusable("verify", error)
    wrong = [one for one in findings if one.why]
    for one in findings:
        word, text = ("MISMATCH", one.why) if one.why else ("-", one.unchecked) if one.unchecked else ("ok", "")
        print(visible(f"{word:<9} {one.field}{f': {text}' if text else ''}"))
    for line in _not_checked(args, receipt, again):
        print(visible(f"{'-':<9} {line}"))
    if wrong:
        print(visible(f"\nREFUSED: {wrong[0].field}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""), keep="\n"))
        return 1
    measured = f"figures of {', '.join(weights)} measured again" if again else "figures not measured again"
    print(f"\nVERIFIED: {visible(receipt['verdict']['status'])}, {visible(receipt['created'])}; {visible(measured)}; {CALLED}")
    return 0


def _must_fit(args: argparse.Namespace, receipt: dict[str, Any], sets: dict[str, Any]) -> None:
    """Class ids for a receipt about samples, token ids for one about sequences."""
    of_texts = receipt.get("request") == SEQUENCE_WISE
    for name, samples in sets.items():
        if (isinstance(samples, Texts) or samples[1].dim() == 2) != of_texts:
            wanted = "token ids [N, T]" if of_texts else "class ids [N]"
            given = f"--{name} {getattr(args, name)}"
            raise Unreadable(f"{given}: its labels are {'no ' if of_texts else ''}token ids; this receipt's sets have {wanted}")


def _again(args: argparse.Namespace, sets: dict[str, Any]) -> Again | None:
    """What is needed to measure again, if all of it was given."""
    if args.build is None or len(sets) < len(SETS):
        if args.build is not None:
            lacking = ", ".join(f"--{name}" for name in SETS if name not in sets)
            raise Unreadable(f"--build: to measure again takes {lacking} too")
        return None
    return Again(sets, builder(args.build))


def _not_checked(args: argparse.Namespace, receipt: dict[str, Any], again: Again | None) -> list[str]:
    lines = []
    held = {ORIGINAL, RETRAINED} & set(_entries(receipt, "models"))
    held |= {"forget", *(["ids"] if _entries(receipt, "forget_set").get("ids") else [])}
    for option, what in OPTIONS.items():
        if getattr(args, option) is None and option in held:
            lines.append(f"{what}: not checked (--{option})")
    if again is None:
        lacking = [f"--{name}" for name in (*SETS, "build") if getattr(args, name) is None]
        lines.append(f"the figures: not measured again ({', '.join(lacking)})")
    elif again.left_out:
        shown = ", ".join(dict.fromkeys(again.left_out[:6]))
        lines.append(f"not measured again, for want of models or data: {shown}{' and others' if len(again.left_out) > 6 else ''}")
    lines.append(f"on trust, as the file has them: {ON_TRUST}")
    return lines


def _entries(receipt: dict[str, Any], name: str) -> dict[str, Any]:
    """An object of a receipt; empty where it is missing or something else."""
    value = receipt.get(name)
    return value if isinstance(value, dict) else {}


def _name(receipt: dict[str, Any], given: str | None) -> str:
    models, controls = _entries(receipt, "models"), _entries(receipt, "controls")
    apart = (ORIGINAL, RETRAINED, *controls)
    names = [name for name in models if name not in apart]
    if given is not None:
        if given not in models:
            raise Unreadable(f"--name: {given!r} is not in the receipt; accepted are {', '.join(models)}")
        return given
    if len(names) != 1:
        raise Unreadable(f"--name: the receipt is about {', '.join(names) or 'no model but the original'}; say whose weights --model are")
    return names[0]
