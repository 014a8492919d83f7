"""docs/engine.md's generated parts, from the experiment's rows: a table a request, and where each method's time goes."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

from .experiment_claims import CLASSES, REQUESTS, Case, Rows, cases, elsewhere, mean, signed

SHOWN = ("sweep", "unsir", "forsaken", "forsaken labels", "lightweight", "lightweight labels")
SHARES = ("model", "ops", "data", "other")
LONG = 1.0  # seconds
BAR = 0.15  # of a run, that nothing but the model may take


def full(rows: Rows, method: str, scenario: str) -> list[Case]:
    """A method's cases on every net that all methods ran on."""
    nets = {(r["data"], r["net"], r["scenario"]) for r in rows if r["method"] == "lightweight"}
    return [c for c in cases(rows, method, (scenario,), main=False) if (c.data, c.net, c.scenario) in nets]


def share_of_retraining(case: Case) -> float:
    """The run's sample passes, in those of the retraining beside it."""
    return case.mean("passes") / mean(r.get("passes") for r in case.retrained)


def requests(rows: Rows) -> str:
    """One table a request: what was kept, what was forgotten, what it cost."""
    parts = []
    for scenario in ("class", "classes", "random"):
        listed = [(m, c) for m in SHOWN for c in full(rows, m, scenario)]
        order = list(dict.fromkeys((c.data, c.net) for _, c in listed))
        listed.sort(key=lambda item: order.index((item[1].data, item[1].net)))
        probes = " probe (retrained) |" if scenario in CLASSES else ""
        head = f"| data, net | method | accuracy | beside | forgotten | AUC | beside |{probes} audit | passes | share | times |"
        lines = [_line(method, case) for method, case in listed]
        parts += [f"### {REQUESTS[scenario].capitalize()}", "", head, "|" + "---|" * (head.count("|") - 1), *lines, ""]
    return "\n".join(parts).strip()


def _line(method: str, case: Case) -> str:
    forgotten, open_ = (sum(bool(r.get(key)) for r in case.rows) for key in ("forgot", "undecided"))
    share = share_of_retraining(case)
    cells = [
        f"{case.data}, {case.net}",
        method,
        f"{100 * case.mean('test_accuracy'):.1f}",
        signed(case.gap("test_accuracy")),
        f"{forgotten} of {len(case.rows)}"
        + (f"; {100 * case.mean('forget_accuracy'):.1f} %" if case.scenario in CLASSES else f"; {open_} open" if open_ else ""),
        f"{case.mean('attack_auc'):.3f}",
        f"{case.gap('attack_auc'):+.3f}",
        *([_probe(case)] if case.scenario in CLASSES else []),
        _audit(case.rows),
        "-" if math.isnan(share) else f"{case.mean('passes'):,.0f}",
        "-" if math.isnan(share) else f"{100 * share:.0f} %",
        f"{case.mean('speedup'):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _audit(rows: Rows) -> str:
    """How many runs have which status, the best first."""
    counts = Counter(r["audit"] for r in rows if r.get("audit"))
    return ", ".join(f"{counts[status]} {status}" for status in ("PASS", "PARTIAL", "FAIL") if counts[status]) or "-"


def _probe(case: Case) -> str:
    probe, retrained = case.mean("probe"), case.mean("probe_retrained")
    return "-" if math.isnan(probe) else f"{probe:.3f} ({retrained:.3f})"


def where(rows: Rows) -> str:
    """Each method's median shares, of all runs and of the longer ones."""
    names = " | ".join((*SHARES, "in looks"))
    lines = [f"| method | runs | {names} | {LONG:g} s and longer | {names} |", "|" + "---|" * (3 + 2 * (len(SHARES) + 1))]
    for method in SHOWN:
        runs = [r for r in rows if r["method"] == method and r.get("shares")]
        if runs:
            longer = [r for r in runs if r["seconds"] >= LONG]
            lines.append(f"| {method} | {len(runs)} | {_shares(runs)} | {len(longer)} | {_shares(longer)} |")
    return "\n".join(lines)


def _shares(runs: Rows) -> str:
    def share(name: str) -> str:
        if not runs:
            return "-"
        value = statistics.median(r["shares"][name] for r in runs)
        return f"**{100 * value:.0f} %**" if name not in ("model", "looks") and value > BAR else f"{100 * value:.0f} %"

    return " | ".join(share(name) for name in (*SHARES, "looks"))


def measured(results: dict[str, Any]) -> str:
    """When and on what the tables' rows were measured."""
    machine, rows = results["machine"], results["rows"]
    seeds = sorted({r["seed"] for r in rows})
    return (
        f"Measured {machine['date'][:10]}: {len(rows)} rows on {len({r['data'] for r in rows})} data sets, means over seeds "
        f"{', '.join(map(str, seeds))}; {machine['cpu']}, one thread, torch {machine['torch']}; the machine had other jobs beside it."
        + "".join(f" {line}." for line in elsewhere(rows))
    )
