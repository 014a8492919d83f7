"""The generated parts of README and docs/: tables and blocks between two marks, written anew from committed rows and from the code.

    python -m fastforget._bench.docs            # rewrite every part (make docs)
    python -m fastforget._bench.docs --check    # name the parts that are out of date; the exit status is 1 if there are any

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. What it says comes from :data:`PARTS`, so a figure on a page
can't differ from the row that was measured.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastforget import _files, _schema, ops
from fastforget.auditing import sequence_rule, verdict
from fastforget.methods.language import LANGUAGE

from . import (
    experiment,
    experiment_costs,
    experiment_page,
    facts_page,
    models_judge,
    rows,
    shadow_audit,
    standard,
    tokens,
    verdict_zoo,
    zoo_report,
)
from .experiment_claims import choices, groups

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SPEED = RESULTS / "cpu-amd-epyc-family-26-model-2.json"
_DOCS = ("audit", "engine", "environment", "experiment", "facts", "gpu", "language", "methods", "ops")
PAGES = ("README.md", *(f"docs/{name}.md" for name in _DOCS))
PART = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What README's table of methods says beside the measured columns.
NEEDS = {
    "unsir": ("UNSIR", "classes", "retain"),
    "forsaken": ("Forsaken", "classes, samples", "forget, non-members, retain"),
    "lightweight": ("Lightweight", "classes, samples", "forget, non-members, retain"),
    "sweep": ("our own", "classes, samples", "retain; samples: all three"),
}
# What docs/ops.md says of a family.
FAMILIES = {
    "noise": "counter-based normal noise",
    "update": "losses with their gradients, UNSIR's Adam step on the noise, products of two gradients",
    "mask": "importance of weights, and steps that keep some of them as they are",
    "membership": "scores of membership attacks, and what they are worth",
}
# README's six rows of speed: op, case, the plain form.
FAST = (
    ("add_normal_", "11.2M", "`p.add_(torch.randn_like(p) * s)`"),
    ("error_max_step_", "256x3x32x32", "autograd + Adam + clamp"),
    ("dampen_", "1M", "the published loop"),
    ("saliency_mask", "ResNet-18", "the published sorts"),
    ("membership_scores", "50000x10", "the six scores in PyTorch"),
    ("rmia_counts", "10000x10000", "all pairs"),
)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def methods() -> str:
    """README's table: what each method forgets, what it needs, and what it cost beside retraining."""
    lines = ["| method | forgets | needs | × as fast as retraining: class, classes, samples | points lost |", "|---|---|---|---|---|"]
    records = choices(_json(experiment.ROWS)["rows"])
    for name, (title, request, needs) in NEEDS.items():
        own = {record.scenario: record for record in records if record.method == name}
        served = ("class", "classes", "random") if "samples" in request else ("class", "classes")
        speeds = [f"{own[s].speedup:.1f}" for s in served if s in own] + ["-"] * (3 - len(served))
        worst = min(own[s].accuracy for s in served if s in own)
        lines.append(f"| `{name}` ({title}) | {request} | {needs} | {', '.join(speeds)} | {max(0.0, -100 * worst):.1f} |")
    return "\n".join(lines)


def speed() -> str:
    """README's table of six ops."""
    lines = ["| op | against | AVX-512 | AVX2 | time at AVX-512 |", "|---|---|---|---|---|"]
    found = {(row["op"], row["case"], row["isa"]): row for row in _json(SPEED)["rows"]}
    for op, case, form in FAST:
        wide, narrow = found[op, case, "avx512"], found[op, case, "avx2"]
        key = "published" if "published" in form and "published" in wide["ratios"] else "eager"
        ratios = " | ".join(f"{float(rows.times(row['ratios'][key])[:-1]):g}x" for row in (wide, narrow))
        lines.append(f"| `{op}` {case} | {form} | {ratios} | {rows.duration(wide['ours'])} |")
    return "\n".join(lines)


def support() -> str:
    """Where each op runs, and what that was seen in."""
    lines = ["| op | reference | native CPU (AVX-512, AVX2, baseline) | native CUDA | Triton |", "|---|---|---|---|---|"]
    ops = (f"| `{_schema.MODULE_OF[op]}`: `{op}` | tested | tested | compiled | interpreted |" for op in _schema.SCHEMAS)
    return "\n".join([*lines, *ops])


def families() -> str:
    """The public functions of ``ff.ops``; a named tuple belongs to the function that returns it."""
    lines = ["| family | what for | ops |", "|---|---|---|"]
    for family, purpose in FAMILIES.items():
        module = getattr(ops, family)
        public = [
            name
            for name, value in vars(module).items()
            if (inspect.isfunction(value) or (inspect.isclass(value) and not hasattr(value, "_fields")))
            and value.__module__.startswith(module.__name__) and not name.startswith("_")
        ]  # fmt: skip
        lines.append(f"| `{family}` | {purpose} | {', '.join(f'`{name}`' for name in public)} |")
    return "\n".join(lines)


def rule() -> str:
    return verdict.RULE


def sequences_rule() -> str:
    """docs/language.md: the rule of the verdict on language models."""
    return sequence_rule.SEQUENCES.text


def shadow() -> str:
    return shadow_audit.markdown(_json(RESULTS / "shadow-audit-mnist5k.json")).strip()


def experiments() -> str:
    return experiment_page.section(_json(experiment.ROWS)).strip()


def requests() -> str:
    """docs/engine.md's tables, and when their rows were measured."""
    results = _json(experiment.ROWS)
    return f"{experiment_costs.measured(results)}\n\n{experiment_costs.requests(results['rows'])}"


def larger() -> str:
    """docs/engine.md: methods on the stored ResNet-20."""
    stored = _json(models_judge.ROWS)
    m = stored["machine"]
    by_cpu = groups(stored["rows"], "cpu").items()
    on = "; ".join(f"{', '.join(dict.fromkeys(r['method'] for r in rows))} on {cpu}" for (cpu,), rows in by_cpu)
    return f"One thread, torch {m['torch']}: {on}. Medians where there are several seeds.\n\n{models_judge.table(stored)}"


def where() -> str:
    return experiment_costs.where(_json(experiment.ROWS)["rows"])


def standard_methods() -> str:
    """docs/methods.md: each standard method, from the code."""
    lines = ["| method | class | from | forgets | trains on | reads the forget set's labels | presets |", "|---|---|---|---|---|---|---|"]
    for name, method in standard.STANDARD.items():
        paper = method.source.split(";")[0]
        asked = "classes" if method.scope == "classes" else "classes, samples"
        labels = "-" if "forget" not in method.uses else "yes" if method.reads_labels else "no"
        presets = ", ".join(f"`{preset}`" for preset in method.presets)
        lines.append(f"| `{name}` | `{method.__name__}` | {paper} | {asked} | {', '.join(method.uses)} | {labels} | {presets} |")
    return "\n".join(lines)


def standard_choice() -> str:
    """docs/methods.md: which method for which request."""
    results = _json(standard.ROWS)
    return "\n".join([*standard.facts(results), "", standard.choice(results["rows"])])


def language_methods() -> str:
    """docs/language.md: each method for language models, from the code."""
    lines = ["| method | class | from | holds by | presets |", "|---|---|---|---|---|"]
    for name, method in LANGUAGE.items():
        holds = ", ".join(f"`{hold}`" for hold in (method.hold, *(h for h in method.choices["hold"] if h != method.hold)))
        presets = ", ".join(f"`{preset}`" for preset in method.presets)
        lines.append(f"| `{name}` | `{method.__name__}` | {method.source.partition(';')[0]} | {holds} | {presets} |")
    return "\n".join(lines)


def facts() -> str:
    """docs/facts.md: language models with inserted facts, beside retraining."""
    return facts_page.section(_json(RESULTS / "facts.json"))


def token_scores() -> str:
    """docs/language.md: what token scores cost."""
    return tokens.table(_json(RESULTS / "tokens.json"))


def verdict_rates() -> str:
    """How often the verdict errs, over the zoo's stored rows."""
    return zoo_report.table(_json(verdict_zoo.RESULTS))


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods,
    "speed": speed,
    "support": support,
    "families": families,
    "rule": rule,
    "sequence-rule": sequences_rule,
    "shadow-audit": shadow,
    "verdict-rates": verdict_rates,
    "experiment": experiments,
    "requests": requests,
    "larger": larger,
    "where": where,
    "language-methods": language_methods,
    "tokens": token_scores,
    "facts": facts,
    "standard-methods": standard_methods,
    "standard-choice": standard_choice,
}


def renewed(text: str) -> str:
    """A page with its generated parts written anew."""
    return PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastforget._bench.docs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page is out of date")
    check = parser.parse_args(argv).check
    status = 0
    for name in PAGES:
        page = ROOT / name
        text = page.read_text()
        new = renewed(text)
        if new == text:
            continue
        print(f"{name}: {'out of date, run `make docs`' if check else 'written'}")
        status = max(status, int(check))
        if not check:
            _files.write_whole(page, new)
    return status


if __name__ == "__main__":
    sys.exit(main())
