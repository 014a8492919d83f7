"""Forgotten or not, why, and the figures: measured on real data where there is any, else what the method measured.

Nothing can be forgotten that was not known. A class was known when the model answered clearly more of its samples right than chance does:
more than chance and two standard errors of chance, in one of the sets given. Chance is 1 / classes, or the share of the data to keep that
the model answers with that class, if that is larger: a model that says "3" to everything doesn't know threes. Samples were known when the
loss attack told them from unseen ones of their classes, by the same two standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .. import _weights
from .._data import Source
from .._text import percent
from .attack import Losses, attack_auc, comparable, losses_of
from .task import Task

GONE_AT = 0.01
LOST = 0.20  # more than this of the accuracy on data to keep gone: a wrecked model, not one that forgot
COST = 0.02  # more than this of it gone is said: what an audit allows beside a retrained model
CLEAR = 2.0  # standard errors
USE_SAMPLES, USE, USE_UNSEEN = 256, 51, 56  # how many samples show that, and the purposes of their seeds
USE_TEST = 1_024  # the same of test samples, which are given to measure with
USE_FEW = 50  # fewer unseen samples, or a model that knows them little better than chance, don't show what was lost
UNDECIDED = "it couldn't tell them before either"
CHECK = "check label order, normalisation, checkpoint"


@dataclass
class Verdict:
    """``figures`` are JSON-able; ``rests_on`` among them says what was measured: "data", "rehearsal" or "nothing"."""

    forgot: bool
    why: str
    figures: dict[str, Any]

    def receipt(self) -> dict[str, Any]:
        return {"forgot": self.forgot, "why": self.why, **self.figures}


@dataclass
class Before:
    """What the model knew before the run.

    Attributes:
        weights_sha256: of the model as given.
        by_class: for each set with samples of the classes to forget, the share answered right of each of them.
        answered: for each class to forget, the share of the data to keep (without it: of the non-members) that is answered with it.
        retain: the share of the data to keep that is answered right.
        unseen: the same of unseen data of what is to be kept.
        auc: of the loss attack on single samples.
    """

    weights_sha256: str
    by_class: dict[str, dict[int, float]] = field(default_factory=dict)
    answered: dict[int, float] = field(default_factory=dict)
    retain: float | None = None
    unseen: float | None = None
    auc: float | None = None


def look_before(task: Task, weights_sha256: str) -> Before:
    """Measures the task's model before the method works on it."""
    before = Before(weights_sha256)
    others = task.retain or task.nonmember
    if others is not None:
        some = others.at_most(USE_SAMPLES, task.generator(USE))
        answers = task.answers(some)
        before.answered = {c: answers.eq(c).double().mean().item() for c in task.classes}
        if task.retain is not None:
            before.retain = answers.eq(some.labels()).double().mean().item()
    if (kept := _kept_unseen(task)) is not None:
        before.unseen = task.right(kept)
    if task.classes:
        before.by_class = {data.name: task.right_by_class(data, task.classes) for data in (task.forget, task.test) if data is not None}
    elif task.forget is not None and (unseen := task.unseen) is not None:
        before.auc, _ = attack_auc(task, task.forget, unseen)
    return before


def judge(task: Task, before: Before, proxy: dict[str, Any] | None) -> Verdict:
    """The verdict on the task's model. ``proxy``: the method's own, for classes of which no data is at hand."""
    return ending_said(task, _still_of_use(task, before, _on_classes(task, before, proxy) if task.classes else on_samples(task, before)))


def ending_said(task: Task, verdict: Verdict) -> Verdict:
    """The verdict, whose ``why`` says how the run ended: the method's own remark, and that the budget ended it, where it did."""
    if task.remark:
        verdict.why += f"; {task.remark}"
    if task.cost.stopped_by_budget:
        verdict.why += f"; the budget of {task.cost.budget:,} sample passes ended the run"
        if not task.cost.asked:
            verdict.why += " (the method's own, as none was given: budget= allows more)"
    return verdict


def _on_classes(task: Task, before: Before, proxy: dict[str, Any] | None) -> Verdict:
    """Forgotten when every class was known and, in each set that was given, is there and hardly any of its samples is answered right."""
    shares: dict[str, Any] = {}
    texts, gone = [], True
    for data in (task.forget, task.test):
        if data is None:
            continue
        by_class = task.right_by_class(data, task.classes)
        missing = [c for c in task.classes if c not in by_class]
        shares[f"{data.name}_accuracy_before"] = {str(c): right for c, right in before.by_class[data.name].items()}
        shares[f"{data.name}_accuracy"] = {str(c): right for c, right in by_class.items()}
        gone = gone and not missing and max(by_class.values()) <= GONE_AT
        counts = ", ".join(f"class {c}: {percent(right)}" for c, right in by_class.items())
        texts.append(f"on {len(data)} {data.name} samples still right {counts}" + (f", none of {missing}" if missing else ""))
    if texts:
        why = f"{'; '.join(texts)} (forgotten: at most {percent(GONE_AT)})"
        unknown = [text for c in task.classes if (text := _not_known(task, before, c))]
        if unknown and gone:
            gone, why = False, f"not shown: {', '.join(unknown)}; {CHECK}. Now {why}"
        return Verdict(gone, why, {"rests_on": "data", "known_before": not unknown, **shares})
    if proxy is not None:
        return Verdict(proxy["gone"], proxy["why"], {"rests_on": "rehearsal"})
    why = "not shown: no data of the classes was given. Pass forget= or test= with samples of them"
    return Verdict(False, why, {"rests_on": "nothing"})


def _not_known(task: Task, before: Before, c: int) -> str | None:
    """``None`` where a class was known in one of the sets, else what the model answered."""
    answered = before.answered.get(c, 0.0)
    chance = max(1 / task.outputs, answered)
    counts = {data.name: int((data.labels() == c).sum()) for data in (task.forget, task.test) if data is not None}
    rights = {name: before.by_class[name][c] for name, n in counts.items() if n}
    if not rights:
        return None  # that its samples are missing is said elsewhere
    if any(right > chance + CLEAR * math.sqrt(chance * (1 - chance) / counts[name]) for name, right in rights.items()):
        return None
    right = max(rights.values())
    text = f"the model answered {100 * right:.0f} % of class {c} before"
    if answered >= right > 0:
        return f"{text}, and {100 * answered:.0f} % of other data with that class as well"
    if right > chance:
        return f"{text}, which {max(counts.values())} samples can't tell from chance"
    return text


def on_samples(task: Task, before: Before, losses: Losses = losses_of) -> Verdict:
    """Forgotten when the loss attack could tell the samples from unseen data before and can't any more, either way round: samples that
    are fitted worse than unseen ones stand out as well."""
    assert task.forget is not None
    unseen = task.unseen
    if unseen is None:
        return Verdict(False, "not shown: no unseen data was given to compare with. Pass test= or nonmember=", {"rests_on": "nothing"})
    auc, error = attack_auc(task, task.forget, unseen, losses)
    assert before.auc is not None
    low, limit = 0.5 - CLEAR * error, 0.5 + CLEAR * error
    known = before.auc > limit
    figures = {
        "rests_on": "data",
        "known_before": known,
        "attack_auc_before": before.auc,
        "attack_auc": auc,
        "attack_auc_limit": limit,
        "attack_auc_low_limit": low,
    }
    alike = comparable(task.forget, unseen)
    some = "" if len(alike) == len(unseen) else " of their classes"
    sizes = f"{len(task.forget)} forget against {len(alike)} {unseen.name} samples{some}"
    text = f"loss attack of {sizes}: AUC {before.auc:.3f} before, {auc:.3f} now"
    if _weights.fingerprint(task.model) == before.weights_sha256:
        return Verdict(False, f"the weights are unchanged; {text}", figures)
    if not known:
        why = f"not shown: {text}; {UNDECIDED} (limit {limit:.3f}), so it can't show that they are gone"
        return Verdict(False, why, figures)
    if auc < low:
        why = f"{text}, below {low:.3f}: they are fitted worse than unseen samples, so the forgotten samples stand out"
        return Verdict(False, why, figures)
    return Verdict(auc <= limit, f"{text} (forgotten: {low:.3f} to {limit:.3f})", figures)


def _kept_unseen(task: Task) -> Source | None:
    """Some unseen samples of what is to be kept: what a model has memorised it answers right long after it has lost all else."""
    data = task.unseen_kept
    return None if data is None else data.at_most(USE_SAMPLES if task.test_kept is None else USE_TEST, task.generator(USE_UNSEEN))


def _still_of_use(task: Task, before: Before, verdict: Verdict) -> Verdict:
    """A model that answers nothing right has not forgotten something: the data to keep must still be known. What it lost is said of one
    that did not forget, too. Where unseen data tells, it decides: a model that only lost what it had memorised is still of use."""
    retain, unseen = None if task.retain is None else task.retain.at_most(USE_SAMPLES, task.generator(USE)), _kept_unseen(task)
    figures, shown, lost = dict(verdict.figures), dict[str, str](), dict[str, float]()
    for name, some, was in (("retain", retain, before.retain), ("unseen", unseen, before.unseen)):
        if some is None:
            continue
        assert was is not None
        now = task.right(some)
        figures |= {f"{name}_accuracy_before": was, f"{name}_accuracy": now}
        lost[name] = was - now
        shown[name] = f"{'only ' * (lost[name] > COST)}{percent(now)} are answered right, {percent(was)} before"
    if max(lost.values(), default=0.0) <= COST:
        return Verdict(verdict.forgot, verdict.why, figures)
    texts = []
    if retain is not None and lost["retain"] > COST:
        texts.append(f"of {len(retain)} retain samples {shown['retain']}")
    if unseen is not None:
        texts.append(f"of {len(unseen)} {unseen.name} samples to keep {shown['unseen']}")
    why = f"{verdict.why}; but {', and '.join(texts)}"
    tells = unseen is not None and len(unseen) >= USE_FEW and (before.unseen or 0.0) - LOST > 1 / task.outputs
    if (lost["unseen"] if tells else max(lost.values())) <= LOST:
        return Verdict(verdict.forgot, why, figures)
    return Verdict(False, f"{why} (at most {percent(LOST)} less): the model lost more than it was to forget", figures)
