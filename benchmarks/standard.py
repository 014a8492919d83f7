"""The standard methods' table: every method x request x data set, with its published constants, beside retraining and our own methods.

    python -m fastforget experiment --standard                          # what is missing of the plan; resumable
    python -m fastforget experiment --standard --data digits --seeds 0  # a part of it
    python -m fastforget experiment --standard --page --commit          # rows and pages from the cells that are there

The constants are those of the methods' papers, for their nets and data; nothing was tuned to these sets. ``sweep``, ``unsir``,
``forsaken`` and ``lightweight`` run with their defaults (how these were tuned: docs/experiment.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastforget.methods.pack import STANDARD

from .experiment_claims import CLASSES, GONE, USE, Case, Rows, elsewhere, groups, mean, signed, spread
from .experiment_page import DATA, machine

ROWS = Path(__file__).resolve().parent / "results" / "methods.json"
OWN = ("sweep", "unsir", "forsaken", "lightweight")
CONTROLS = ("retrained", "retrained again", "untouched")
EVERY = ("original", *CONTROLS, *STANDARD, *OWN)
REQUESTS = {
    "class": "one class",
    "classes": "several classes",
    "random1": "1 % of the samples, at random",
    "random10": "10 % of the samples, at random",
}
PLAN: dict[str, list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]] = {
    "digits": [(("cnn",), tuple(REQUESTS), EVERY)],
    "mnist5k": [(("cnn",), tuple(REQUESTS), EVERY)],
    "fashion-mnist": [(("cnn",), tuple(REQUESTS), EVERY)],
    "20newsgroups": [(("bag",), tuple(REQUESTS), EVERY)],
    "reuters-r8": [(("bag",), tuple(REQUESTS), EVERY)],
    "adult": [(("mlp",), ("random1", "random10"), EVERY)],
}
NEAR = 0.03  # how near the attack's AUC must be to the retrained model's
SIGMA = 2.0  # standard errors of an AUC by which chance explains a difference


def not_served(method: str, scenario: str) -> bool:
    """Whether a method isn't for this kind of request."""
    return scenario not in CLASSES and (method == "unsir" or (method in STANDARD and STANDARD[method].scope == "classes"))


def all_cases(rows: Rows) -> list[Case]:
    """Every method on every request of a data set."""
    found = []
    for (data, net, scenario), members in groups(rows, "data", "net", "scenario").items():
        by = {method: runs for (method,), runs in groups(members, "method").items()}
        for method, runs in by.items():
            ran = [r for r in runs if not r.get("failed")]
            if method != "original" and ran and "retrained" in by:
                found.append(Case(method, data, net, scenario, ran, by["original"], by["retrained"]))
    return found


def room(case: Case) -> float:
    """How far the attack's AUC may be from the retrained models': their spread, what chance explains of so few samples, or NEAR."""
    chance = SIGMA * math.sqrt(1 / (6 * case.rows[0]["samples"] * len(case.rows)))
    return max(NEAR, spread(r["attack_auc"] for r in case.retrained), chance)


def misses(case: Case) -> list[str]:
    """What a method misses on one request of one data set: the rule of "which method for which request"."""
    known = case.mean("forget_accuracy") - mean(r["forget_accuracy"] for r in case.retrained)
    gap, auc = case.gap("test_accuracy"), case.gap("attack_auc")
    return [
        *(["known"] if case.scenario in CLASSES and known > GONE else []),
        *(["attack"] if abs(auc) > room(case) else []),
        *(["accuracy"] if gap < -USE else []),
    ]


RULE = (
    f"A method fits a request on a data set when, by the mean over the seeds, at most {100 * GONE:.0f} % more of the forgotten classes "
    f"is answered right than by the retrained models, the loss attack's AUC is within {NEAR} of theirs (or within their spread, or what "
    f"chance explains of so few samples), and at most {100 * USE:.0f} points of accuracy on the kept classes are missing. A request "
    "on which the untouched original fits as well tells nothing and isn't counted. Most fits come first, then fewest sample passes."
)


def telling(cases: Iterable[Case]) -> set[tuple[str, str, str]]:
    """The requests that can tell: the untouched original doesn't fit."""
    return {case[1:4] for case in cases if case.method == "untouched" and misses(case)}


def records(rows: Rows) -> dict[str, list[tuple[str, int, int, float, float, float]]]:
    """For each request, best first: method, fits, data sets, mean accuracy and attack beside retraining, share of retraining's passes."""
    cases = all_cases(rows)
    told, out = telling(cases), {}
    for scenario in REQUESTS:
        found = []
        for method in (*STANDARD, *OWN):
            own = [c for c in cases if (c.method, c.scenario) == (method, scenario) and c[1:4] in told]
            if own and not not_served(method, scenario):
                cost = mean(c.mean("passes") / mean(r["passes"] for r in c.retrained) for c in own)
                gaps = mean(c.gap("test_accuracy") for c in own), mean(abs(c.gap("attack_auc")) for c in own)
                found.append((method, sum(not misses(c) for c in own), len(own), *gaps, cost))
        out[scenario] = sorted(found, key=lambda r: (-r[1] / r[2], r[5]))
    return out


HEAD = "| method | fits | points beside retraining | attack AUC off by | sample passes, of retraining's |"


def choice(rows: Rows) -> str:
    """docs/methods.md: for each request, every method's record, the best first."""
    parts = []
    for scenario, found in records(rows).items():
        if found:
            parts += [
                f"### {REQUESTS[scenario].capitalize()}",
                "",
                HEAD,
                "|---|---|---|---|---|",
            ]
            parts += [
                f"| {'**' * (i == 0)}`{name}`{'**' * (i == 0)} | {fits} of {sets} | {signed(gap)} | {auc:.3f} | {100 * cost:.0f} % |"
                for i, (name, fits, sets, gap, auc, cost) in enumerate(found)
            ]
            parts.append("")
    return "\n".join([RULE, "", *parts]).strip()


COLUMNS = (
    ("kept %", "test_accuracy", 100, 1), ("worst class %", "worst_accuracy", 100, 1), ("forget set %", "forget_accuracy", 100, 1),
    ("attack AUC", "attack_auc", 1, 3), ("TPR @ 1 %", "attack_tpr", 1, 3), ("probe", "probe", 1, 3), ("relearned", "relearned", 1, 3),
    ("passes", "passes", 1, 0), ("s", "seconds", 1, 1), ("× retraining", "speedup", 1, 1), ("MB", "megabytes", 1, 0),
)  # fmt: skip


def table(rows: Rows) -> list[str]:
    """All figures: a line for each data set, request and method, retrained models and their spread among them."""
    lines = [f"| data | forget | method | {' | '.join(name for name, *_ in COLUMNS)} | says forgot | audit | misses |"]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    cases = {(c[1:4], c.method): c for c in all_cases(rows)}
    for (data, net, scenario), members in groups(rows, "data", "net", "scenario").items():
        by = {method: runs for (method,), runs in groups(members, "method").items()}
        for method in EVERY:
            runs = by.get(method, [])
            if not runs:
                continue
            figures = [_cell(runs, key, scale, digits) for _, key, scale, digits in COLUMNS]
            said, audits = [r["forgot"] for r in runs if r.get("forgot") is not None], [r["audit"] for r in runs if r.get("audit")]
            failed = sum(bool(r.get("failed")) for r in runs)
            case = cases.get(((data, net, scenario), method))
            served = (
                "not for this request"
                if not_served(method, scenario)
                else ", ".join(misses(case))
                if case and method != "retrained"
                else ""
            )
            ends = (
                (f"{sum(said)} of {len(said)}" if said else "") + (f"{failed} failed" if failed else ""),
                f"{audits.count('PASS')} of {len(audits)}" if audits else "",
                served,
            )
            lines.append(f"| {data} | {scenario} | {method} | {' | '.join((*figures, *ends))} |")
    return lines


def _cell(rows: Rows, key: str, scale: float, digits: int) -> str:
    values = [r.get(key) for r in rows if not r.get("failed")]
    if not math.isfinite(mean(values)):
        return ""
    return f"{scale * mean(values):,.{digits}f}" + (f" ± {scale * spread(values):.{digits}f}" if digits and len(values) > 1 else "")


def facts(results: dict[str, Any]) -> list[str]:
    """What the rows were measured on."""
    rows = results["rows"]
    seeds = groups(rows, "data", "scenario")
    counts = sorted({len({r["seed"] for r in members}) for members in seeds.values()})
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0] if counts else 0}"
    names = dict.fromkeys(r["data"] for r in rows)
    there = {(r["data"], r["scenario"]) for r in rows}
    missing = [f"{data} {scenario}" for data, plan in PLAN.items() for _, asked, _ in plan for scenario in asked]
    missing = [name for name in missing if tuple(name.split()) not in there]
    return [
        *machine(results["machine"]),
        *(f"- {line}" for line in elsewhere(rows)),
        f"- {len(rows)} rows, {several} seed{'s' * (counts != [1])} a request; training samples + unseen ones:",
        *(f"  - `{name}`: {DATA[name]}" for name in names),
        *([f"- not run yet: {', '.join(missing)}"] if missing else []),
    ]


INTRO = """\
Written by `python -m fastforget experiment --standard --commit` from `results/methods.json`; don't edit by hand.

Each method runs with its published constants, which are those of its paper's nets and data: a method that forgets nothing or loses much
here may do better when it is tuned. Means over the seeds ± half the range. `kept`: test accuracy on the classes that stay, `worst class`
the lowest of them. `attack AUC` and `TPR` are the loss attack's, forget set against unseen samples of its kind: the aim is the retrained
model's figure. `probe`: the AUC of a linear probe for the forgotten classes on the model's features; `relearned`: accuracy on them after
a few samples were shown again. `MB`: the process's peak above what it held before. `audit`: how often `ff.audit`, which knows the
retrained model, says PASS. `misses`: by the rule of docs/methods.md.
"""


def page(results: dict[str, Any]) -> str:
    """benchmarks/METHODS.md."""
    return "\n".join(["# Standard methods beside retraining: all figures", "", INTRO, *facts(results), "", *table(results["rows"]), ""])


def files(results: dict[str, Any]) -> dict[str, str]:
    """The page by file name, beside the folder ``results``."""
    return {"METHODS.md": page(results)}
