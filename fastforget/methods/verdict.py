"""Forgotten or not, why, and the figures: measured on real data where there is any, else what the method measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import _weights
from .._text import percent
from .attack import attack_auc
from .task import Task

GONE_AT = 0.01
LOST = 0.20  # more than this of the accuracy on the data to keep gone: a wrecked model, not one that forgot
USE_SAMPLES, USE = 256, 51  # how many retain samples show that, and the purpose of their seed
UNDECIDED = "it couldn't tell them before either"


@dataclass
class Verdict:
    """``figures`` are JSON-able; ``rests_on`` among them says what was measured: "data", "rehearsal" or "nothing"."""

    forgot: bool
    why: str
    figures: dict[str, Any]

    def receipt(self) -> dict[str, Any]:
        return {"forgot": self.forgot, "why": self.why, **self.figures}


def judge(task: Task, proxy: dict[str, Any] | None) -> Verdict:
    """The verdict on the task's model. ``proxy``: the method's own, for classes of which no data is at hand."""
    return _still_of_use(task, _on_classes(task, proxy) if task.classes else _on_samples(task))


def _on_classes(task: Task, proxy: dict[str, Any] | None) -> Verdict:
    """Forgotten when, in each set that was given, every class is there and hardly any of its samples is answered right."""
    shares: dict[str, Any] = {}
    texts, gone = [], True
    for data in (task.forget, task.test):
        if data is None:
            continue
        by_class = task.right_by_class(data, task.classes)
        missing = [c for c in task.classes if c not in by_class]
        shares[f"{data.name}_accuracy"] = {str(c): right for c, right in by_class.items()}
        gone = gone and not missing and max(by_class.values()) <= GONE_AT
        counts = ", ".join(f"class {c}: {percent(right)}" for c, right in by_class.items())
        texts.append(f"on {len(data)} {data.name} samples still right {counts}" + (f", none of {missing}" if missing else ""))
    if texts:
        return Verdict(gone, f"{'; '.join(texts)} (forgotten: at most {percent(GONE_AT)})", {"rests_on": "data", **shares})
    if proxy is not None:
        return Verdict(proxy["gone"], proxy["why"], {"rests_on": "rehearsal"})
    why = "not shown: no data of the classes was given. Pass forget= or test= with samples of them"
    return Verdict(False, why, {"rests_on": "nothing"})


def _on_samples(task: Task) -> Verdict:
    """Forgotten when the loss attack could tell the samples from unseen data before and can't any more."""
    assert task.forget is not None and task.original is not None
    unseen = task.test or task.nonmember
    if unseen is None:
        return Verdict(False, "not shown: no unseen data was given to compare with. Pass test= or nonmember=", {"rests_on": "nothing"})
    auc, error = attack_auc(task, task.forget, unseen)
    before, _ = attack_auc(task.before(), task.forget, unseen)
    limit = 0.5 + 2 * error
    figures = {"rests_on": "data", "attack_auc_before": before, "attack_auc": auc, "attack_auc_limit": limit}
    text = f"loss attack of {len(task.forget)} forget against {len(unseen)} {unseen.name} samples: AUC {before:.3f} before, {auc:.3f} now"
    if _weights.fingerprint(task.model) == _weights.fingerprint(task.original):
        return Verdict(False, f"the weights are unchanged; {text}", figures)
    if before <= limit:
        why = f"not shown: {text}; {UNDECIDED} (limit {limit:.3f}), so it can't show that they are gone"
        return Verdict(False, why, figures)
    return Verdict(auc <= limit, f"{text} (forgotten: at most {limit:.3f})", figures)


def _still_of_use(task: Task, verdict: Verdict) -> Verdict:
    """A model that answers nothing right has not forgotten something: the data to keep must still be known."""
    if not verdict.forgot or task.retain is None:
        return verdict
    some = task.retain.at_most(USE_SAMPLES, task.generator(USE))
    before, after = task.before().right(some), task.right(some)
    figures = verdict.figures | {"retain_accuracy_before": before, "retain_accuracy": after}
    if before - after <= LOST:
        return Verdict(True, verdict.why, figures)
    right = f"only {percent(after)} are answered right, {percent(before)} before (at most {percent(LOST)} less)"
    why = f"{verdict.why}; but of {len(some)} retain samples {right}: the model lost more than it was to forget"
    return Verdict(False, why, figures)
