"""One cell of the experiment: what is to be forgotten, the models beside it, every method's run, and what is measured on each."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastforget as ff
from fastforget import _weights
from fastforget.auditing.measure.oracles import LossThreshold, logits_of
from fastforget.demo.train import train
from fastforget.methods.cost import LOOKS, SPENT_ON, Cost
from fastforget.ops import membership

from . import machine
from .experiment_data import Pair, Problem

SCENARIOS = ("class", "classes", "random", "uploads")
SHARES = {"random1": 0.01, "random10": 0.10}  # of the training samples, at random
CLASSES = ("class", "classes")
SUBSET = 1_000  # retained samples that Lightweight may use, and that the audit looks at
# name, method, options; "unsir" is the default of its scenario
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "unsir": ("unsir", {}),
    "forsaken": ("forsaken", {}),
    "forsaken direct": ("forsaken", {"generator": "direct"}),
    "lightweight": ("lightweight", {}),
    "sweep": ("sweep", {}),
    "forsaken labels": ("forsaken", {"hold": "labels"}),
    "lightweight labels": ("lightweight", {"hold": "labels"}),
}
LABELS = ("forsaken labels", "lightweight labels")  # for classes, whose default is the anchor; samples are held by labels anyhow
CONTROLS = ("untouched", "random", "retrained", "retrained again")
Row = dict[str, Any]


@dataclass
class Cell:
    """One request: what was trained, what is to be forgotten, and what was never seen."""

    whole: Pair
    forget: Pair
    retain: Pair
    nonmember: Pair
    unseen: Pair  # of the forget data's kind, never seen by anything
    test: Pair  # for accuracy: of the kept classes
    classes: list[int] | None

    @property
    def measuring(self) -> Pair:
        """The audit's test set: unseen samples of all classes."""
        return _both(self.unseen, self.test) if self.classes else self.test


def _pick(pair: Pair, index: Tensor) -> Pair:
    return pair[0][index], pair[1][index]


def _both(a: Pair, b: Pair) -> Pair:
    return torch.cat((a[0], b[0])), torch.cat((a[1], b[1]))


def some(pair: Pair, n: int, seed: int) -> Pair:
    return _pick(pair, torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(seed))[:n])


def make_cell(problem: Problem, scenario: str, seed: int, member: Tensor | None = None) -> Cell | None:
    """The sets of one request; None where the scenario has no meaning for the data."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    data = problem.train if member is None else _pick(problem.train, member)
    half = torch.randperm(len(problem.test[1]), generator=generator).tensor_split(2)
    nonmember, test = _pick(problem.test, half[0]), _pick(problem.test, half[1])
    if scenario in CLASSES:
        classes = [problem.forget_class] if scenario == "class" else problem.several
        if not classes or problem.classes <= len(classes) + 1:
            return None
        wanted = torch.tensor(classes)
        forget, unseen = torch.isin(data[1], wanted), torch.isin(problem.test[1], wanted)
        kept = _pick(test, ~torch.isin(test[1], wanted))
        # unlearning leaves samples of the classes out of its nonmember set, so those of both halves are unseen
        return Cell(data, _pick(data, forget), _pick(data, ~forget), nonmember, _pick(problem.test, unseen), kept, classes)
    order = torch.randperm(len(data[1]), generator=generator)
    if scenario == "random" or scenario in SHARES:
        n = min(500, len(order) // 20) if scenario == "random" else round(SHARES[scenario] * len(order))
        return Cell(data, _pick(data, order[:n]), _pick(data, order[n:]), nonmember, test, test, None)
    if not problem.uploads:
        return None
    n = min(200, len(order) // 12)
    other = [_upload(_pick(data, order[n * i : n * (i + k)]), problem.classes, generator) for i, k in ((0, 1), (1, 4), (5, 4))]
    return Cell(_both(data, other[0]), other[0], data, other[1], other[2], test, None)


def _upload(pair: Pair, classes: int, generator: torch.Generator) -> Pair:
    """Images of another kind with arbitrary labels: inverted, turned, mirrored."""
    return -pair[0].transpose(2, 3).flip(2), torch.randint(0, classes, (len(pair[1]),), generator=generator)


def scores(model: nn.Module, pair: Pair) -> membership.MembershipScores:
    return membership.membership_scores(*logits_of(model, pair))


def oracle(model: nn.Module, cell: Cell) -> LossThreshold:
    """Tells the original model's training data from unseen data by the loss; fixed before unlearning."""
    return LossThreshold.calibrated(model, _both(some(cell.whole, 5_000, 0), cell.forget), cell.nonmember)


def measure(model: nn.Module, cell: Cell, threshold: float, before: Tensor) -> Row:
    """Accuracies, the loss attack on the forget set against unseen data of its kind, and the forgetting rate."""
    sets = (cell.forget, cell.unseen, some(cell.retain, 5_000, 1), cell.test)
    forget, unseen, retain, test = (scores(model, pair) for pair in sets)
    attack = membership.roc_stats(-forget.loss, -unseen.loss, fprs=(0.01,))
    rate = membership.forgetting_rate(before, forget.loss <= threshold)
    return {
        "forget_accuracy": forget.correct.double().mean().item(),
        "retain_accuracy": retain.correct.double().mean().item(),
        "test_accuracy": test.correct.double().mean().item(),
        "worst_accuracy": worst(test.correct, cell.test[1]),
        "unseen_accuracy": unseen.correct.double().mean().item(),
        "attack_auc": float(attack.auc),
        "attack_tpr": float(attack.tpr[0]),
        "forgetting_rate": None if math.isnan(rate) else rate,
    }


def worst(correct: Tensor, labels: Tensor) -> float:
    """The lowest class's share of right answers."""
    return min(correct[labels == c].double().mean().item() for c in labels.unique())


@dataclass
class Given:
    """Puts a ready-made model's weights in the place of a method's result: what does the method's verdict say of it?"""

    weights: nn.Module
    name = "given"
    scope = "samples"
    learns_noise = False

    def run(self, task: Any) -> Row:
        _weights.put_back(task.model, _weights.save(self.weights))
        return {}

    def receipt(self) -> Row:
        return {}


def trained(problem: Problem, net: str, data: Pair, seed: int, path: Path, label: str, show: bool) -> tuple[nn.Module, float]:
    """A trained net and the processor seconds that it took, from the folder if an earlier run left it there."""
    model = problem.nets[net](seed)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        return model.eval(), saved["seconds"]
    began = time.process_time()
    train(model, data, epochs=problem.epochs, seed=seed, label=label, progress=show)
    seconds = time.process_time() - began
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "seconds": seconds}, part)
    os.replace(part, path)
    return model, seconds


class Run:
    """A cell with its models: makes the row of any method or control."""

    def __init__(self, problem: Problem, net: str, scenario: str, seed: int, out: Path, show: bool) -> None:
        self.problem, self.net, self.scenario, self.seed, self.out, self.show = problem, net, scenario, seed, out, show
        given = problem.pretrained() if problem.pretrained and scenario != "uploads" else None
        self.cell = make_cell(problem, scenario, seed, given[1] if given else None)
        if self.cell is None:
            return
        if given:
            self.original, self.seconds = given[0].eval(), None
        else:
            shared = "uploads" if scenario == "uploads" else "all"
            self.original, self.seconds = self._trained(self.cell.whole, seed, shared)
        self.retrained, self.retraining = self._trained(self.cell.retain, seed, f"without-{scenario}")
        self.threshold = oracle(self.original, self.cell).threshold
        self.before = scores(self.original, self.cell.forget).loss <= self.threshold

    def _trained(self, data: Pair, seed: int, what: str) -> tuple[nn.Module, float]:
        stem = f"{self.problem.name}-{self.net}-{seed}-{what}"
        return trained(self.problem, self.net, data, seed, self.out / "models" / f"{stem}.pt", f"train {stem}", self.show)

    def again(self) -> nn.Module:
        """A second model retrained from another seed: how far apart exact retraining itself is."""
        assert self.cell is not None
        if self.cell.classes is not None:  # the data is that of every seed, so the next seed's retrained model is one
            return self._trained(self.cell.retain, (self.seed + 1) % 3, f"without-{self.scenario}")[0]
        return self._trained(self.cell.retain, self.seed + 50, f"without-{self.scenario}-of-{self.seed}")[0]

    def row(self, name: str) -> Row | None:
        """What one method or control is measured to be; None where it doesn't apply."""
        assert self.cell is not None
        if name in not_applicable(self.problem, self.scenario):
            return None
        if name == "original":
            return self._measured(name, self.original, self.seconds)
        if name == "random":
            return self._control(name, self.problem.nets[self.net](self.seed + 77))
        if name == "retrained":
            passes = self.problem.epochs * len(self.cell.retain[1])
            return self._control(name, self.retrained) | {"seconds": self.retraining, "passes": passes, "shares": None}
        if name == "retrained again":
            return self._control(name, self.again())
        if name == "untouched":
            return self._unlearned(name, "none", {})
        method, options = METHODS.get(name, (name, {}))
        if method == "unsir" and self.cell.classes is None:
            options = {"preset": "samples"}
        if method == "unsir":
            options = options | {"noise_at": self.problem.embedding}
        return self._unlearned(name, method, options)

    def _control(self, name: str, model: nn.Module) -> Row:
        return self._unlearned(name, Given(model.eval()), {}) | {"seconds": None, "speedup": None, "passes": None, "shares": None}

    def _unlearned(self, name: str, method: Any, options: Row) -> Row:
        cell = self.cell
        assert cell is not None
        retain = some(cell.retain, SUBSET, self.seed) if method == "lightweight" else cell.retain
        # UNSIR's claim is that it needs no sample of the classes, so it gets none
        sets: Row = {"classes": cell.classes, "retain": retain, "nonmember": cell.nonmember}
        if method != "unsir" or cell.classes is None:
            sets["forget"] = cell.forget
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ff.methods.NotForgottenWarning)
            try:
                machine.forget_peak()
                held, began = machine.resident("VmRSS"), time.process_time()
                result = ff.unlearn(self.original, method, **sets, seed=self.seed, progress=False, **options)
                took, above = time.process_time() - began, machine.resident("VmHWM") - held
            except (FloatingPointError, RuntimeError, TypeError, ValueError) as error:
                return self._measured(name, self.original, None) | {"failed": f"{type(error).__name__}: {error}"}
        steps = (result.receipt.get("measured") or {}).get("steps")
        row = self._measured(name, result.model, took)
        row |= {"speedup": self.retraining / took, "forgot": result.forgot, "why": result.why, "steps": steps}
        return row | {"passes": result.cost.passes, "megabytes": round(above, 1), "shares": shares(result.cost)}

    def _measured(self, name: str, model: nn.Module, seconds: float | None) -> Row:
        cell = self.cell
        assert cell is not None
        base = {"data": self.problem.name, "net": self.net, "scenario": self.scenario, "seed": self.seed, "method": name}
        row = base | {"seconds": seconds, "samples": len(cell.forget[1])}
        return row | measure(model.eval(), cell, self.threshold, self.before) | self._audited(name, model)

    def _audited(self, name: str, model: nn.Module) -> Row:
        """The audit's status of the model, beside the original and the retrained one."""
        cell = self.cell
        assert cell is not None
        if name in ("original", "retrained"):
            return {}
        models = {"original": self.original, "judged": model, "retrained": self.retrained}
        retain, statuses, why = some(cell.retain, SUBSET, 2), [], []
        probe: Row = {}
        # the attack needs unseen data of the forget data's kind, the loss of use ordinary test data: where they differ, two audits
        tests = [cell.unseen, cell.test] if self.scenario == "uploads" else [cell.measuring]
        for test in tests:
            # the sets are parts of one data set: what they share are samples that came twice
            report = ff.audit(models, forget=cell.forget, retain=retain, test=test, attacks=("loss",), check_overlap=False, progress=False)
            judged = next(r for r in report.rows if r["model"] == "judged")
            if cell.classes:
                for key, model in (("", "judged"), ("_retrained", "retrained")):
                    probe |= {f"probe{key}": _below(report, model, "probe_auc"), f"relearned{key}": _below(report, model, "relearned")}
            reasons = judged["reasons"]
            if self.scenario == "uploads" and test is cell.test:
                reasons = [r for r in reasons if "test accuracy on the kept classes" in r]
            statuses += [r.split(":")[0] for r in reasons]
            why += [r for r in reasons if not r.startswith("PASS")]
        return {"audit": max(statuses, key=("PASS", "PARTIAL", "FAIL").index), "audit_why": why} | probe


def _below(report: ff.AuditReport, model: str, key: str) -> float | None:
    """Of the audit's figures below the answers: the AUC of its linear probe for the classes, on what the model's last layer reads; or the
    accuracy on the classes after a few samples of them were shown again (the mean over how many)."""
    below = next(r for r in report.rows if r["model"] == model).get("below") or {}
    value = below.get(key)
    if isinstance(value, dict):
        value = sum(value.values()) / len(value) if value else None
    return value if value is not None and math.isfinite(value) else None


def shares(cost: Cost) -> dict[str, float]:
    """Of a run's seconds: what went to the model, our ops, data and all else; and, across these, to looks before, within and after."""
    table = cost.table()
    total = sum(sum(phase.values()) for phase in table.values()) or 1.0
    parts = {name: sum(phase[name] for phase in table.values()) for name in SPENT_ON}
    parts["looks"] = sum(sum(table[name].values()) for name in LOOKS if name in table)
    return {name: round(seconds / total, 4) for name, seconds in parts.items()}


def not_applicable(problem: Problem, scenario: str) -> set[str]:
    """Methods that never have a row there."""
    without = set() if problem.again else {"retrained again"}
    return without | (set() if scenario in CLASSES else set(LABELS))


def rows_of(run: Run, wanted: Sequence[str], have: Sequence[Row], keep: Callable[[list[Row]], None]) -> list[Row]:
    """The cell's rows: those it has, and those still wanted; each is kept as soon as it is there."""
    rows = list(have)
    for name in wanted:
        if run.cell is not None and all(r["method"] != name for r in rows):
            row = run.row(name)
            rows += [row] if row else []
            keep(rows)
    return rows
