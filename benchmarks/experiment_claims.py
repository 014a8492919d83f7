"""What the experiment's rows say: the papers' claims, our own bar, which method for what, and the controls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

Row = dict[str, Any]
Rows = list[Row]
REQUESTS = {"class": "one class", "classes": "several classes", "random": "random samples", "uploads": "uploaded samples of another kind"}
METHODS = ("unsir", "forsaken", "forsaken direct", "lightweight", "sweep")
HOLDS = {"forsaken": "forsaken labels", "lightweight": "lightweight labels"}  # for classes: by the anchor, and the same by labels
ASIDE = (("mnist5k", "resnet"),)  # one request on a second net of a data set: in the tables, not in claims, where a data set counts once
SAME = 0.03  # how near a membership attack must be to the retrained model's, in AUC and in TPR at 1 % FPR
GONE = 0.01  # a class is forgotten when at most this share of its samples is answered with it
USE = 0.02  # accuracy that a recommended method may lose against retraining
CLASSES = ("class", "classes")
# Unseen samples that were drawn otherwise than the training samples: an attack there tells one distribution from the other, whatever was
# learned. Such a set is shown, and doesn't decide.
SHIFTED = ("20newsgroups-by-date",)
ATTACKS = ("attack_auc", "attack_tpr")


def mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def spread(values: Iterable[float | None]) -> float:
    """Half the distance from the smallest to the largest."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return (max(known) - min(known)) / 2 if known else math.nan


def groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    grouped: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        grouped.setdefault(tuple(row[k] for k in keys), []).append(row)
    return grouped


def elsewhere(rows: Rows) -> list[str]:
    """How many rows another processor measured, and which."""
    found = []
    for (cpu,), members in groups([r for r in rows if "cpu" in r], "cpu").items():
        methods, data = (list(dict.fromkeys(r[key] for r in members)) for key in ("method", "data"))
        found.append(f"{len(members)} of the rows on {cpu}: {', '.join(methods)} on {', '.join(data)}")
    return found


class Case(NamedTuple):
    """One method on one request of one data set and net: means over the seeds, beside those of the original and the retrained model."""

    method: str
    data: str
    net: str
    scenario: str
    rows: Rows
    original: Rows
    retrained: Rows

    def mean(self, key: str) -> float:
        return mean(r.get(key) for r in self.rows)

    def gap(self, key: str, other: Rows | None = None) -> float:
        """Mean difference from the retrained models (or ``other``)."""
        return self.mean(key) - mean(r[key] for r in (self.retrained if other is None else other))

    @property
    def like_retrained(self) -> bool:
        return all(abs(self.gap(k)) <= SAME for k in ATTACKS)

    @property
    def forgotten(self) -> bool:
        """Classes: at most 1 % still right, in every run. Samples: attacks as on the retrained model."""
        if self.scenario in CLASSES:
            return all(r["forget_accuracy"] <= GONE for r in self.rows)
        return self.like_retrained

    @property
    def telling(self) -> bool:
        """Whether the figures can tell a model that forgot from the original at all: the original isn't like the retrained one already."""
        return self.scenario in CLASSES or any(abs(self.gap(k, self.original) - self.gap(k)) > SAME for k in ATTACKS)

    @property
    def idle(self) -> bool:
        """Every run ended before its first step: the attack could tell nothing to begin with."""
        return all(r.get("steps") == 0 for r in self.rows)

    @property
    def fit(self) -> bool:
        return self.forgotten and self.like_retrained and self.gap("test_accuracy") >= -USE


def cases(rows: Rows, method: str, scenarios: Iterable[str] = tuple(REQUESTS), main: bool = True) -> list[Case]:
    """All cases of a method; ``main``: only on the net of a data set that every method ran on."""
    result = []
    for (data, net, scenario), members in groups(rows, "data", "net", "scenario").items():
        by_method = groups(members, "method")
        aside = ("lightweight",) not in by_method or (data, net) in ASIDE
        if scenario not in scenarios or (method,) not in by_method or (main and aside):
            continue
        runs = [r for r in by_method[method,] if not r.get("failed")]
        if runs:
            result.append(Case(method, data, net, scenario, runs, by_method["original",], by_method["retrained",]))
    return result


NO_ROWS = "no rows of this request"


class Claim(NamedTuple):
    """A claim as stated, whether it held, and what was measured."""

    text: str
    held: bool | None
    measured: str


def alike(rows: Rows) -> Rows:
    """The rows of data sets whose unseen samples are of the training samples' distribution."""
    return [r for r in rows if r["data"] not in SHIFTED]


def claims(rows: Rows) -> list[Claim]:
    """Every claim that the experiment was made for, on data sets whose unseen samples are like the training samples; then our bar on the
    others."""
    shifted = [r for r in rows if r["data"] in SHIFTED]
    rows = alike(rows)
    kinds = ((CLASSES, "whole classes"), (("uploads",), REQUESTS["uploads"]), (("random",), REQUESTS["random"]))
    result = [forsaken(rows, scenarios, label) for scenarios, label in kinds]
    result += [lightweight(rows), unsir(rows), *(sweep(rows, s) for s in ("class", "classes", "random")), hold(rows)]
    result += [own_bar(rows, s) for s in REQUESTS]
    where = f", where the unseen samples are of a later time ({', '.join(SHIFTED)})"
    return result + [own_bar(shifted, s, where) for s in REQUESTS if any(r["scenario"] == s for r in shifted)]


def forsaken(rows: Rows, scenarios: tuple[str, ...], label: str) -> Claim:
    by_data: dict[str, list[Case]] = {}
    for case in cases(rows, "forsaken", scenarios):
        by_data.setdefault(case.data, []).append(case)
    rates = {d: mean(c.mean("forgetting_rate") for c in g) for d, g in by_data.items()}
    losses = {d: mean(-c.gap("test_accuracy", c.original) for c in g) for d, g in by_data.items()}
    aim = mean(mean(r["forgetting_rate"] for r in c.retrained) for g in by_data.values() for c in g)
    rate, worst, n = mean(rates.values()), max(losses.values(), default=math.nan), len(rates)
    held = None if not n else rate > 0.9 and mean(losses.values()) < 0.05
    short = n < 5 and scenarios != ("uploads",)
    if held and short:
        held = None
    each = sum(rates[d] > 0.9 and losses[d] < 0.05 for d in rates)
    why = ""
    if held is False:
        why = f"; exact retraining itself has {percent(aim)}, which is the aim" if aim <= 0.9 else "; see the table"
    few = f" ({'only' if short else 'no more than'} {n} data sets {'were run' if short else 'can hold this request'})" if n < 5 else ""
    measured = (
        f"average FR {percent(rate)}, retrained {percent(aim)}; accuracy {signed(-mean(losses.values()))} points on average, "
        f"{signed(-worst)} at worst; holds on {each} of {n} data sets by itself{few}{why}"
    )
    text = f"Forsaken, {label}: average forgetting rate above 90 % with less than 5 points of accuracy lost"
    return Claim(text, held, measured if n else NO_ROWS)


def lightweight(rows: Rows) -> Claim:
    """Runs that had nothing to do don't count, nor do those that didn't forget."""
    by_data: dict[str, list[float]] = {}
    left, unlike = 0, 0
    for case in cases(rows, "lightweight"):
        left += case.idle
        unlike += not case.idle and not case.forgotten
        if not case.idle and case.forgotten:
            by_data.setdefault(case.data, []).append(mean(r["speedup"] for r in case.rows if r.get("steps")))
    times = {d: mean(v) for d, v in by_data.items()}
    held = all(v >= 15 for v in times.values()) if times else None
    listed = ", ".join(f"{d} {v:.1f}" for d, v in sorted(times.items(), key=lambda item: -item[1]))
    measured = f"{mean(times.values()):.1f} times on average ({listed})"
    measured += f"; {unlike} requests not forgotten as by retraining, {left} with nothing to do"
    if held is False:
        measured += f". Missed on {', '.join(sorted(d for d, v in times.items() if v < 15))}"
    text = f"at equal forgetting (classes: {100 * GONE:.0f} %; samples: attacks), on every data set"
    return Claim(f"Lightweight: at least 15 times faster than retraining {text}", held, measured)


def unsir(rows: Rows) -> Claim:
    requests = cases(rows, "unsir", CLASSES, main=False)
    runs = [r for c in requests for r in c.rows]
    gone = sum(r["forget_accuracy"] <= GONE for r in runs)
    gaps = {(c.data, c.net, c.scenario): c.gap("test_accuracy") for c in requests}
    near = sum(g >= -USE for g in gaps.values())
    nets = sorted({c.net for c in requests})
    good = [n for n in nets if all(c.gap("test_accuracy") >= -USE and c.forgotten for c in requests if c.net == n)]
    held = None if not runs else len(good) >= 4
    worst = min(gaps, key=lambda k: gaps[k]) if gaps else None
    measured = f"gone in {gone} of {len(runs)} runs; within 2 points in {near} of {len(gaps)} cases"
    if worst:
        measured += f", {signed(gaps[worst])} points at worst ({', '.join(worst)}); in all cases on the nets {', '.join(good)}"
        measured += f", not on {', '.join(n for n in nets if n not in good)}" if len(good) < len(nets) else ""
    if len(nets) < 4:
        measured += f"; only {len(nets)} nets were run"
    text = "one and several classes gone (<= 1 %) within 2 points of retraining, on at least four nets"
    return Claim(f"UNSIR, untuned: {text}", held, measured)


POINT, NEAR, FASTER = 0.01, 0.02, {"mnist5k": 3.0}  # the sweep's bars: accuracy, attack AUC, and how many times as fast as retraining


def misses(case: Case) -> list[str]:
    """Which of the sweep's bars a case misses: forgotten, accuracy, the attack (or within the retrained models' own spread), speed."""
    bar = max(NEAR, spread(r["attack_auc"] for r in case.retrained))
    times = FASTER.get(case.data, 5.0)
    gap, auc, speed = case.gap("test_accuracy"), case.gap("attack_auc"), case.mean("speedup")
    refused = sum(not r.get("forgot") and not r.get("undecided") for r in case.rows)
    known = max(r["forget_accuracy"] for r in case.rows) if case.scenario in CLASSES else 0.0
    return [
        *([f"known for {percent(known)}"] if known > GONE else []),
        *([f"its own verdict no in {refused} of {len(case.rows)}"] if refused else []),
        *([f"accuracy {signed(gap)} points"] if gap < -POINT else []),
        *([f"AUC {auc:+.3f}"] if abs(auc) > bar else []),
        *([f"{speed:.1f} times as fast"] if speed < times else []),
    ]


def sweep(rows: Rows, scenario: str) -> Claim:
    requests = cases(rows, "sweep", (scenario,), main=False)
    missed = [f"{c.data} {c.net}: {', '.join(why)}" for c in requests if (why := misses(c))]
    rule = f"within {100 * POINT:.0f} point of retraining, attack AUC within {NEAR} of it or within retraining's own spread"
    text = f"Sweep, {REQUESTS[scenario]}: forgotten, {rule}, at least 5 times as fast (MNIST 5k: 3), on every data set"
    measured = f"holds on {len(requests) - len(missed)} of {len(requests)} nets and data sets"
    return Claim(text, not missed if requests else None, measured + (f"; missed: {'; '.join(missed)}" if missed else ""))


def hold(rows: Rows) -> Claim:
    """Each method's two holds side by side, on the same requests."""
    texts, better = [], []
    for name, other in HOLDS.items():
        anchored, labelled = (cases(rows, method, CLASSES, main=False) for method in (name, other))
        pairs = [(c, o) for c in anchored for o in labelled if c[1:4] == o[1:4]]
        if pairs:
            anchor, labels = (mean(case.gap("test_accuracy") for case in side) for side in zip(*pairs, strict=True))
            fewer = sum(c.mean("test_accuracy") > o.mean("test_accuracy") for c, o in pairs)
            texts.append(f"{name} {signed(anchor)} points beside retraining, by labels {signed(labels)}; better on {fewer} of {len(pairs)}")
            better.append(anchor > labels)
    text = "Hold by the model's own answers (anchor) in place of labels, classes: loses less accuracy on average"
    return Claim(text, all(better) if better else None, "; ".join(texts))


def beside(case: Case) -> list[tuple[Row, Row]]:
    """Each run with the retrained model of its own seed."""
    by_seed = {r["seed"]: r for r in case.retrained}
    return [(r, by_seed[r["seed"]]) for r in case.rows if r["seed"] in by_seed]


def own_bar(rows: Rows, scenario: str, where: str = "") -> Claim:
    counts = []
    for method in METHODS:
        requests = cases(rows, method, (scenario,))
        if not requests:
            continue
        near = [c for c in requests if c.forgotten and c.like_retrained]
        far = [c.data for c in requests if c not in near]
        counts.append(f"{method} {len(near)} of {len(requests)}" + (f" (not {', '.join(far)})" if far else ""))
    covered = {c.data for m in METHODS for c in cases(rows, m, (scenario,)) if c.forgotten and c.like_retrained}
    needed = {c.data for m in METHODS for c in cases(rows, m, (scenario,))}
    bar = f"attacks (AUC, TPR at 1 % FPR) within {SAME} of retraining's"
    text = f"Own bar, {REQUESTS[scenario]}{where}: {bar}, by at least one method on every data set"
    dull = {c.data for m in METHODS for c in cases(rows, m, (scenario,)) if not c.telling}
    note = f"data sets within the bar: {'; '.join(counts)}; by at least one {len(covered)} of {len(needed)}"
    if covered != needed:
        note += f" (none on {', '.join(sorted(needed - covered))}{_aim(rows, scenario, needed - covered)})"
    again = [r for c in cases(rows, "retrained again", (scenario,)) for r in beside(c)]
    close = sum(all(abs(r[k] - o[k]) <= SAME for k in ATTACKS) for r, o in again)
    note += f"; by single run a second retrained model is within it in {close} of {len(again)}" if again else ""
    note += f"; shows nothing on {', '.join(sorted(dull))}, where the original model is within the bar as well" if dull else ""
    return Claim(text, covered == needed if needed else None, note if needed else NO_ROWS)


def _aim(rows: Rows, scenario: str, data: set[str]) -> str:
    """The attack's AUC where no method reached the bar: on the original model, by lightweight and forsaken, and on the retrained model."""
    texts = []
    for name in ("original", "lightweight", "forsaken", "retrained"):
        aucs = [c.mean("attack_auc") for c in cases(rows, name, (scenario,)) if c.data in data]
        texts.append(f"{name} {', '.join(f'{v:.2f}' for v in aucs)}")
    return f": AUC {'; '.join(texts)}"


class Choice(NamedTuple):
    """One method's record for one kind of request."""

    scenario: str
    method: str
    fit: int
    data_sets: int
    accuracy: float
    speedup: float


def choices(rows: Rows) -> list[Choice]:
    """Per request, best first: on how many data sets it forgets, looks retrained and keeps accuracy; then the speed."""
    out, rows = [], alike(rows)
    for scenario in REQUESTS:
        ranked = []
        for method in METHODS:
            telling = [c for c in cases(rows, method, (scenario,)) if c.telling]
            if telling:
                speed = mean(math.log(mean(r["speedup"] for r in c.rows)) for c in telling)
                gap = mean(c.gap("test_accuracy") for c in telling)
                ranked.append(Choice(scenario, method, sum(c.fit for c in telling), len(telling), gap, math.exp(speed)))
        out += sorted(ranked, key=lambda c: (-c.fit / c.data_sets, -c.speedup))
    return out


RULE = (
    "Rule: for each kind of request, a method gets a point for every data set on which, by the mean over the seeds, it forgets (classes: "
    f"at most 1 % still right in every run), both attack figures are within {SAME} of the retrained models' and at most "
    f"{100 * USE:.0f} points of accuracy are missing beside them. Data sets on which the original model's attack figures are within that "
    "bar already can't tell, and don't count. Most points in proportion to the data sets it ran on comes first; speed breaks ties."
)


class Control(NamedTuple):
    text: str
    held: bool | None
    measured: str


def controls(rows: Rows) -> list[Control]:
    """Untouched and random models must never read as forgotten; retrained ones always, by a method's own verdict wherever it can tell the
    original model, and by the audit, which is given another retrained model."""
    out = []
    for name in ("untouched", "random"):
        runs = [r for r in rows if r["method"] == name]
        by_method, by_audit = sum(bool(r.get("forgot")) for r in runs), sum(r.get("audit") == "PASS" for r in runs)
        measured = f"the method's verdict says forgotten in {by_method} of {len(runs)}, the audit PASS in {by_audit} of {len(runs)}"
        out.append(Control(f"{name} model never reads as forgotten", by_method + by_audit == 0 if runs else None, measured))
    again = [r for r in alike(rows) if r["method"] == "retrained again"]
    passed, open_ = sum(r.get("audit") == "PASS" for r in again), sum(bool(r.get("powerless")) for r in again)
    doubted = sum(bool(r.get("doubted")) for r in again)
    measured = f"PASS in {passed} of {len(again)}"
    if doubted:
        measured += f"; in {doubted} the audit doubts the retrained one, which began from the original's first weights and has its features"
    measured += f", and in {open_} PARTIAL only because these checks can't tell the original model either" if open_ else ""
    text = "a second retrained model always reads as forgotten in the audit, where that can tell the original"
    out.append(Control(text, passed + open_ == len(again) if again else None, measured))
    text = "a retrained model always reads as forgotten by the method's verdict, where that can tell the original"
    return [*out, Control(text, *_by_verdict([r for r in alike(rows) if r["method"] in ("retrained", "retrained again")]))]


def _by_verdict(runs: Rows) -> tuple[bool | None, str]:
    forgotten, open_ = sum(bool(r.get("forgot")) for r in runs), sum(not r.get("forgot") and bool(r.get("undecided")) for r in runs)
    refused = [r for r in runs if not r.get("forgot") and not r.get("undecided")]
    measured = f"forgotten in {forgotten} of {len(runs)}"
    if open_:
        measured += f", not shown in {open_}: there the attack couldn't tell the original model's samples either"
    if refused:
        where = ", ".join(f"{r['data']} {r['scenario']} seed {r['seed']}" for r in refused)
        measured += f"; no in {len(refused)} ({where}): a limit at two standard errors refuses one honest model in 44"
    return (not refused if runs else None), measured


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"
