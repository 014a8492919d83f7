"""``python -m fastforget compare`` and ``ff.audit.compare``: several receipts side by side, those alone that may be compared."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..._command import Parser, unusable
from ..._files import write_whole
from ..._text import visible
from ..figures import ORIGINAL, RETRAINED, ModelRow, is_reference
from ..show import compare_page
from ..show.compare_text import report_text
from ..show.compared import Cost, Entry, Group
from ..show.receipt_page import forgotten
from .check import check
from .finding import Unreadable
from .reading import load_receipt
from .schema import required, violations

# Of two originals with the same weights over the same samples: machines and batch sizes round otherwise.
SHARE, SAMPLES, RELATIVE = 5e-3, 1.5, 1e-2
ADVICE = "leave it out, or write it again with report.write_receipt(...)"
HELP = """Every receipt is checked in itself first, as verify does without weights. Receipts are grouped by original model, forget set and
sizes; those of different groups are not compared.

  python -m fastforget compare unsir.json sweep.json --html page.html
  python -m fastforget compare receipts/*.json --html page.html --title "Class 3, four methods"

Exit status: 0 every receipt holds in itself, 1 one doesn't (the page says which and why), 2 a file can't be used (no page is written)."""


@dataclass(repr=False)
class Comparison:
    """Receipts side by side: ``print()`` it, or write it with :meth:`to_html`. ``groups`` holds what may be compared with each other."""

    groups: list[Group]

    @property
    def entries(self) -> list[Entry]:
        """All judged models, in the order of the page."""
        return [entry for group in self.groups for entry in group.entries]

    def to_html(self, path: str | PathLike[str], *, title: str | None = None) -> None:
        """Writes the comparison as one self-contained page (no network; a script that sorts the table), whole or not at all (OSError).

        Args:
            path: the file; its folder must exist.
            title: the page's headline.
        """
        write_whole(path, compare_page.render(self.groups, title=title))

    def __str__(self) -> str:
        return report_text(self.groups)


def compare(receipts: Sequence[Any]) -> Comparison:
    """See :meth:`fastforget.audit.Audit.compare`."""
    if isinstance(receipts, (str, PathLike, Mapping)):
        raise TypeError(f"receipts: got one {type(receipts).__name__}; accepted is a list of files, or of what report.receipt() returned")
    read: list[tuple[str, dict[str, Any]]] = []
    for i, one in enumerate(receipts):
        if not isinstance(one, (str, PathLike, Mapping)):
            raise TypeError(f"receipts[{i}]: got {type(one).__name__}; accepted is a file's path, or what report.receipt() returned")
        try:
            read.append((f"receipts[{i}]", dict(one)) if isinstance(one, Mapping) else (Path(one).name, load_receipt(Path(one))))
            _refuse_other_entries(os.fspath(one) if not isinstance(one, Mapping) else f"receipts[{i}]", read[-1][1])
        except Unreadable as error:
            raise ValueError(str(error)) from error
    if not read:
        raise ValueError("receipts: got none; accepted is at least one")
    groups: list[Group] = []
    for file, receipt in read:
        for entry in _entries(file, receipt):
            _into(groups, entry, receipt)
    numbered = 0
    for letter, group in enumerate(groups):
        group.letter = _letter(letter)
        for entry in group.entries:
            numbered += 1
            entry.number = numbered
    return Comparison(groups)


def _refuse_other_entries(file: str, receipt: dict[str, Any]) -> None:
    missing = [entry for entry in required() if entry not in receipt]
    wrong = f"{missing[0]}: the entry is missing" if missing else next(violations(receipt), "")
    if wrong:
        raise Unreadable(f"{file}: it can't be compared ({wrong}); {ADVICE}")


def _entries(file: str, receipt: dict[str, Any]) -> Iterator[Entry]:
    """One entry a judged model."""
    findings = check(receipt, weights={})
    wrong = [f"{one.field}: {one.why}" for one in findings if one.why]
    notes = [f"{one.field}: {one.unchecked}" for one in findings if one.unchecked]
    try:
        rows = {row.model: row for row in (ModelRow.from_dict(row, f"rows[{i}]") for i, row in enumerate(receipt["rows"]))}
    except ValueError as error:
        raise ValueError(f"{file}: it can't be compared ({error}); {ADVICE}") from error
    judged = [row for name, row in rows.items() if name != ORIGINAL and not is_reference(name)]
    if not judged:
        raise ValueError(f"{file}: it is about no model but the original and retrained ones; {ADVICE} of an audit with an unlearned model")
    method, alone = receipt["method"] or {}, len(judged) == 1
    retrained = rows.get(RETRAINED) or next((row for name, row in rows.items() if is_reference(name)), None)
    before, after = (method.get("weights_sha256", {}).get(moment, "") for moment in ("before", "after"))
    for row in judged:
        weights = _weights(receipt, row.model)
        made = alone or weights == after
        verdict = receipt["verdict"]["status"] if alone else row.status
        whole = [text for text in receipt["verdict"]["reasons"] if not text.startswith(tuple(f"{name}: " for name in rows))]
        hashes = {"weights": weights, f"weights, {row.model}": weights, "weights, original": _weights(receipt, ORIGINAL) or before}
        hashes |= {"weights, retrained": _weights(receipt, retrained.model)} if retrained else {}
        hashes |= {"forget set": receipt["forget_set"]["samples_sha256"] or "", "this receipt": receipt["sha256"]}
        yield Entry(
            number=0,
            file=file if alone else f"{file}: {row.model}",
            created=receipt["created"],
            method=str(method.get("method", "")) if made else row.model,
            request=forgotten(receipt),
            row=row,
            original=rows.get(ORIGINAL),
            retrained=retrained,
            status=verdict,
            # words of a file whose figures don't give them are not shown
            reasons=[] if wrong else [f"{verdict}: {text}" for text in whole] + row.reasons,
            wrong=wrong,
            notes=notes,
            cost=_cost(method.get("seconds"), method.get("cost", {}).get("passes")) if made else Cost(),
            retraining=_retraining(receipt["facts"]),
            hashes=hashes,
        )


def _weights(receipt: dict[str, Any], model: str) -> str:
    return str(receipt["models"].get(model, {}).get("weights_sha256") or "")


def _retraining(facts: dict[str, Any]) -> Cost:
    """What the caller put down of training anew: ``facts={"retraining": {"seconds": 31.0, "passes": 45_000}}``."""
    said = facts.get("retraining")
    return _cost(said.get("seconds"), said.get("passes")) if isinstance(said, dict) else Cost()


def _cost(seconds: Any, passes: Any) -> Cost:
    def read(value: Any) -> float:
        known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
        return float(value) if known else math.nan

    return Cost(read(seconds), read(passes))


# ------------------------------------------------------------------ what may be compared


def _into(groups: list[Group], entry: Entry, receipt: dict[str, Any]) -> None:
    """Puts an entry beside those that share its original and data, or opens a group."""
    sizes = receipt["sizes"]
    shared = {"original": entry.hashes["weights, original"] or "unknown", "forget set": entry.hashes["forget set"] or "unknown"}
    shared["sizes"] = f"{sizes['forget']:,} to forget, {sizes['retain']:,} to keep, {sizes['test']:,} unseen"
    same = [group for group in groups if group.shared == shared and group.request == entry.request]
    for group in same:
        if "unknown" not in shared.values() and _same_sets(group.entries[0].original, entry.original):
            group.entries.append(entry)
            return
    if "unknown" in shared.values():
        apart = "its original or forget set is unknown: not compared with others"
    else:
        apart = "the original's own figures are others than above: other samples to keep or unseen ones" if same else ""
    groups.append(Group("", entry.request, shared, [entry], apart))


def _same_sets(one: ModelRow | None, other: ModelRow | None) -> bool:
    """Whether the original, measured twice, gives the same figures: what to keep and the unseen samples have no hash in a receipt."""
    if one is None or other is None:
        return one is other
    for part, figure in one.accuracy.items():
        beside, count = other.accuracy.get(part), one.counts.get(part, 0)
        if beside is None or figure.known != beside.known or other.counts.get(part, 0) != count:
            return False
        if figure.known and abs(figure.value - beside.value) > max(SHARE, SAMPLES / max(count, 1)):
            return False
    losses = [(figure.value, other.mean_loss[part].value) for part, figure in one.mean_loss.items() if part in other.mean_loss]
    return all(math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b)) for a, b in losses)


def _letter(place: int) -> str:
    """A, B, …, Z, AA, AB, …

    >>> [_letter(place) for place in (0, 25, 26, 27)]
    ['A', 'Z', 'AA', 'AB']
    """
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


# ------------------------------------------------------------------ the command


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="python -m fastforget compare",
        description="Several receipts side by side, those alone that share an original model and its data.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("receipts", nargs="+", metavar="RECEIPT", help="a receipt's JSON file")
    p.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as one self-contained page")
    p.add_argument("--title", help="the page's headline")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parser().parse_args(argv)
    try:
        compared = compare(args.receipts)
        if args.html:
            compared.to_html(args.html, title=args.title)
    except (OSError, ValueError) as error:
        return unusable("compare", error)
    print(visible(compared, keep="\n"))
    if args.html:
        print(visible(f"\npage: {args.html}", keep="\n"))
    wrong = [entry for entry in compared.entries if not entry.holds]
    for entry in wrong:
        print(visible(f"doesn't hold: {entry.file}: {entry.wrong[0]}"), file=sys.stderr)
    return 1 if wrong else 0
