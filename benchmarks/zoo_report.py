"""What the rule makes of the zoo's rows: its two error rates, with one, two and three retrained models given, and tables of every kind."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fastforget._files import jsonable
from fastforget.auditing import limits, verdict
from fastforget.auditing.figures import Below
from fastforget.auditing.verdict import ORDER

Row = dict[str, Any]


class World:
    """One world's rows, judged."""

    def __init__(self, measured: Row) -> None:
        self.name, self.part, self.class_wise = measured["world"], measured["part"], bool(measured["classes"])
        self.rows = measured["rows"]
        self.figures = [Below.from_dict(row["below"]) for row in self.rows]
        self.original = self.figures[0]
        self.references = [f for f, row in zip(self.figures, self.rows, strict=True) if row["group"] == "reference"]
        self.failed = measured["failed"]

    def of(self, group: str) -> Iterable[tuple[Row, Below]]:
        return ((row, f) for row, f in zip(self.rows, self.figures, strict=True) if row["group"] == group)

    def beside(self, row: Row, given: tuple[int, ...], use: bool = True, power: bool = True) -> list[tuple[int, list[verdict.Findings]]]:
        """What the checks above the features find beside each of the references given.

        ``use``: count a loss of accuracy on what is kept. ``power``: count that these checks can't tell the original.
        """
        left_out = {"use": not use, "power": not power}
        return [(i, [[(s, kind) for s, kind in row["findings"][i] if not left_out.get(kind)]]) for i in given]

    def base(self, row: Row, given: tuple[int, ...], use: bool = True) -> str:
        """The rule without the evidence below."""
        return verdict.worst(verdict.nearest(self.beside(row, given, use))[1])

    def below(self, f: Below, given: tuple[int, ...]) -> verdict.Findings:
        return limits.judge(f, self.original, [self.references[i] for i in given], class_wise=self.class_wise)

    def telling(self, given: tuple[int, ...]) -> bool:
        return limits.telling(self.original, [self.references[i] for i in given], class_wise=self.class_wise)

    def status(self, row: Row, f: Below, given: tuple[int, ...], use: bool = True) -> str:
        """As :func:`fastforget.auditing.verdict.judge` has it."""
        beside = self.beside(row, given, use, power=not self.telling(given))
        return verdict.worst(verdict.nearest([(i, [*found, self.below(f, given)]) for i, found in beside])[1])

    def powerless(self, given: tuple[int, ...]) -> bool:
        """Whether no check can tell the original from the retrained model: then nobody can pass, and the audit says so."""
        rows = [row["findings"][given[0]] for row, _ in self.of("honest")]
        return not self.telling(given) and any(kind == "power" for findings in rows for _, kind in findings)


SUBSETS = {k: list(itertools.combinations(range(3), k)) for k in (1, 2, 3)}


RECIPES = ("seed", "half as wide", "twice as wide", "half the epochs", "twice the epochs", "weight decay", "80 % of the retain set")


class Rates:
    """Counts of one part of the zoo, with so many retrained models given; every choice of them out of three counts.

    ``dressed``, ``passed``, ``before``: dressed-up models, those that pass, and those that the rule without the evidence below passes.
    ``honest``, ``right``, ``forgot``: retrained ones, those that pass, and those that pass where a loss of use is left out. ``named``,
    ``named_right``: those of them that differ by seed, width, epochs, weight decay or a subset.
    """

    def __init__(self, worlds: list[World], given: int) -> None:
        self.dressed = self.passed = self.before = self.honest = self.right = self.forgot = self.named = self.named_right = 0
        for w, chosen in itertools.product(worlds, SUBSETS[given]):
            for row, f in w.of("dressed"):
                self.dressed += 1
                self.passed += w.status(row, f, chosen) == "PASS"
                self.before += w.base(row, chosen) == "PASS"
            if w.powerless(chosen):
                continue
            for row, f in w.of("honest"):
                right = w.status(row, f, chosen) == "PASS"
                self.honest += 1
                self.right += right
                self.forgot += w.status(row, f, chosen, use=False) == "PASS"
                if row["name"].startswith(RECIPES):
                    self.named += 1
                    self.named_right += right


def rates(worlds: list[World]) -> list[str]:
    """Error rates by part of the zoo and by how many retrained models are given."""
    lines = [f"{'worlds':<10} {'given':>5}  {'dressed PASS':>16} {'(without below)':>16}  {'honest PASS':>18} {'use left out':>18}"]
    for part in ("choose", "report"):
        for k in SUBSETS:
            r = Rates([w for w in worlds if w.part == part], k)
            n, m = max(r.dressed, 1), max(r.honest, 1)
            lines.append(
                f"{part:<10} {k:>5}  {r.passed:>7} of {n:<5} {r.before:>10} of {n:<5}  {r.right:>6} of {m:<4} "
                f"{100 * r.right / m:5.1f} % {r.forgot:>6} {100 * r.forgot / m:5.1f} %"
            )
    return lines


def table(measured: list[Row]) -> str:
    """The error rates as a Markdown table, on the worlds that the limits were not chosen on."""
    worlds = [World(m) for m in measured if m["part"] == "report"]
    head = "retrained models given", "forgot nothing: PASS", "by answers and weights alone", "retrained: PASS"
    head = *head, "by seed, width, epochs, weight decay, subset", "loss of use left out"
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for k in SUBSETS:
        r = Rates(worlds, k)
        lines.append(
            f"| {k} | {r.passed} of {r.dressed:,} ({100 * r.passed / r.dressed:.1f} %) | {r.before} ({100 * r.before / r.dressed:.0f} %) | "
            f"{r.right} of {r.honest} ({100 * r.right / r.honest:.1f} %) | {r.named_right} of {r.named} "
            f"({100 * r.named_right / r.named:.1f} %) | {100 * r.forgot / r.honest:.1f} % |"
        )
    return "\n".join(lines)


def by_kind(worlds: list[World], group: str) -> list[str]:
    """PASS / PARTIAL / FAIL of every kind, beside one retrained model, and by which figures it is caught."""
    found: dict[str, list[dict[str, int]]] = defaultdict(lambda: [defaultdict(int), defaultdict(int), defaultdict(int)])
    for w in worlds:
        for row, f in w.of(group):
            for given in SUBSETS[1]:
                entry = found[("classes" if w.class_wise else "samples") + ": " + row["name"]]
                entry[0][w.status(row, f, given)] += 1
                entry[2][w.base(row, given)] += 1
                for status, text in w.below(f, given):
                    if status != "PASS":
                        key = next((k for k in ("built", "CKA", "read off", "probe", "noised", "half", "fresh") if k in text), text)
                        entry[1]["can't be measured" if "can't be" in text else key] += 1
    lines = []
    for name, (status, caught, base) in sorted(found.items()):
        said = " ".join(f"{status[s]:>4}" for s in ORDER) + "   before " + " ".join(f"{base[s]:>4}" for s in ORDER)
        lines.append(f"{name:<66} {said}   " + ", ".join(f"{k} {v}" for k, v in caught.items()))
    return lines


def packed(measured: list[Row]) -> str:
    """What the report reads, one model a line, as JSON."""

    def row(r: Row) -> Row:
        return json.loads(json.dumps(jsonable(r)), parse_float=lambda v: float(f"{float(v):.5g}"))

    worlds = []
    for m in measured:
        lines = ",\n".join(json.dumps(row(r)) for r in m["rows"])
        head = json.dumps({k: v for k, v in m.items() if k != "rows"})
        worlds.append(f'{head[:-1]}, "rows": [\n{lines}\n]}}')
    return "[\n" + ",\n".join(worlds) + "\n]\n"


INTRO = f"""# What the verdict tells apart

Written by `python -m fastforget._bench.verdict_zoo --page`; don't edit by hand. The rows are measured by the same command with `--out`.

Small networks on digits, MNIST 5k, made-up tables and made-up texts. In each world: models that forgot nothing and are dressed up, models
retrained honestly by other recipes than the reference, false references, and this library's methods. The figures and most limits were
chosen on the worlds marked `choose`. Not so the share of the way by CKA (first a third: the `report` worlds showed that retraining from the
original's own initial weights comes near that), how near a false reference may come, and a fresh last layer's limits: these were
chosen with all worlds but the last two clean ones in view. The rule, below the answers (`fastforget.auditing.limits`):

- built otherwise than the original (another module tree, hooks): at most PARTIAL
- classes: linear CKA to the original inside the forgotten classes at least {limits.WAY:.0%} of retraining's way from the original; of the
  share of the original's features that can be read linearly off the model's at least {limits.READ_WAY:.0%} of that way; a linear probe's
  log-odds at most {limits.KNOWN:.0%} of the way from the retrained model's to the original's (or {limits.ERRORS:g} standard errors, or
  {limits.ODDS:g} times the odds)
- single samples: AUC of the loss attack on noised samples, and on the other half after three steps on one half, at most {limits.EXCESS:g}
  (or {limits.EXCESS_ERRORS:g} standard errors) above the retrained model's, never more than half of the original's gap; under a fresh last
  layer at most {limits.HEAD_WAY:.0%} of that gap (or {limits.HEAD_ERRORS:g} standard errors)
- a "retrained" model isn't believed whose features lie within {limits.SAME_FEATURES:g} of the original's by 1 - CKA over the
  test set; or, with weights below the last layer that moved less than {limits.STILL:g} of both norms, within
  {limits.NEAR_FEATURES:g} where less than {limits.UNREAD:.0%} of the original's features can't be read off it, or within
  {limits.NEARER_FEATURES:g} for single samples. (First .02, and {limits.NEAR_FEATURES:g} alone: a wide layer on six inputs, and
  short training, both from the original's own initial weights, came too near.)
- with several retrained models: their mean, and limits widened to {limits.SPREAD:g} times what one of them differs from the others

The figures are the audit's own, and so is the rule that judges them (`fastforget.auditing.verdict`).
"without below": the rule by answers and weights alone, as it was. "use left out": a loss of accuracy on what is kept doesn't count; some of
the honest recipes (plain SGD on texts, half the epochs) do lose it. Worlds in which nothing tells the original from the retrained model
count for the dressed-up ones alone.
"""


def page(measured: list[Row]) -> str:
    """:func:`text` as a Markdown page."""
    return f"{INTRO}\n```\n{text(measured)}\n```\n"


def text(measured: list[Row]) -> str:
    worlds = [World(m) for m in measured]
    lines = [*rates(worlds), ""]
    lines += [f"{part}: " + "; ".join(w.name for w in worlds if w.part == part) for part in ("choose", "report")] + [""]
    for group in ("dressed", "honest", "method"):
        for part in ("choose", "report"):
            lines += [f"{group}, {part}: {' / '.join(ORDER)} beside one retrained model, before and by what", ""]
            lines += by_kind([w for w in worlds if w.part == part], group)
            lines.append("")
    lines += ["false references (believed?) and honest ones", ""]
    for w in worlds:
        for group in ("false reference", "honest", "reference"):
            for row, f in w.of(group):
                reason = limits.believed(f, None if math.isnan(f.moved) else f.moved)
                if (group == "false reference") == (reason is None):
                    lines.append(f"{w.name}: {group} {row['name']}: {reason or 'believed'}")
    return "\n".join(lines)
