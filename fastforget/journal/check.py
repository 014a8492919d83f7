"""Is every request so far still forgotten? Each one's own data is measured again, as a table of one row a request."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from torch import nn

from .. import _overlap
from .._data import Source
from .._files import jsonable, write_json
from .._text import number, percent, visible
from ..auditing.proof.hashes import of_digests
from ..methods.attack import attack_auc, comparable
from ..methods.kind import Kind
from ..methods.task import Forward
from ..methods.verdict import CLEAR, GONE_AT
from .loss import Loss, task_of
from .past import Past, of_classes, sample_hashes
from .store import Done

FORMAT = "fastforget journal check 1"


@dataclass(frozen=True)
class Row:
    """One request, looked at again.

    Attributes:
        id: the request's.
        figure: ``"right"``, the largest share of a class's samples that is answered right, or ``"auc"`` of the loss attack that tells the
            samples from unseen ones; ``None`` where it wasn't measured.
        samples: how many were measured.
        before, then, now: the figure before the request, after it (both as its receipt has them), and of the model at hand.
        low, high: where ``now`` counts as forgotten.
        forgot: what the request's own verdict was.
        gone: whether it is forgotten now; ``None`` where that isn't shown: it wasn't measured, or the figure is as it should be, but was so
            before the request as well.
        why: why not, or on what ``now`` rests.
    """

    id: str
    figure: str | None
    samples: int
    before: float | None
    then: float | None
    now: float | None
    low: float | None
    high: float | None
    forgot: bool
    gone: bool | None
    why: str

    @property
    def brought_back(self) -> bool:
        """It was forgotten once and isn't any more."""
        return self.forgot and self.gone is False

    @property
    def outcome(self) -> str:
        if self.gone is None:
            return "not measured" if self.figure is None else "not shown"
        return "forgotten" if self.gone else "BROUGHT BACK" if self.brought_back else "never forgotten"


@dataclass(frozen=True)
class Check:
    """What :meth:`fastforget.Journal.check` found: ``print`` shows the table, :meth:`to_json` has all of it.

    Attributes:
        state: which of the journal's weights the model has: ``"original"``, ``"after <id>"``, or ``"none of the journal's"``.
        rows: one a request, in their order.
        loss: what was lost on test data (or data to keep), where such was given.
    """

    state: str
    rows: list[Row]
    loss: Loss | None

    @property
    def forgotten(self) -> bool:
        """Every request, at least one, is shown to be forgotten."""
        return bool(self.rows) and all(row.gone for row in self.rows)

    @property
    def brought_back(self) -> list[str]:
        """Ids of the requests that were forgotten once and aren't any more."""
        return [row.id for row in self.rows if row.brought_back]

    def __str__(self) -> str:
        head = ("request", "figure", "samples", "before", "then", "now", "outcome", "on what")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(cells[i]) for cells in table) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]
        return "\n".join([f"weights: {visible(self.state)}", *lines, *([str(self.loss)] if self.loss else [])])

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The check as strict JSON; written to ``path`` as well, whole or not at all (OSError)."""
        rows = [{**asdict(row), "brought_back": row.brought_back} for row in self.rows]
        about = {"format": FORMAT, "state": self.state, "forgotten": self.forgotten, "brought_back": self.brought_back, "rows": rows}
        value = jsonable({**about, "loss": self.loss and self.loss.receipt()})
        if path is not None:
            write_json(path, value)
        return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)


def _cells(row: Row) -> tuple[str, ...]:
    shown = percent if row.figure == "right" else number
    figure = {"right": "answered right", "auc": "attack AUC", None: "-"}[row.figure]
    return (visible(row.id), figure, str(row.samples or "-"), shown(row.before), shown(row.then), shown(row.now), row.outcome, row.why)


def must_be(done: Done, data: Source) -> Source:
    """The data of a request (of the classes that it forgot), known by its hashes.

    Raises:
        ValueError: it isn't what was to be forgotten.
    """
    classes, stated = done.request["classes"], done.request["forget"]
    part = of_classes(data, classes)
    if part is None:
        raise ValueError(f"{data.name}: it holds no sample of the classes {classes} that request {visible(done.id)!r} forgot")
    if _hashed(done):
        found = of_digests(sample_hashes(part))
        if found != stated["samples_sha256"]:
            raise ValueError(
                f"{data.name}: its {len(part)} samples ({found[:12]}…) aren't the {stated['samples']} that request {visible(done.id)!r} "
                f"forgot ({stated['samples_sha256'][:12]}…); accepted are the same ones, with the same bytes and labels, in any order"
            )
    return part


def _hashed(done: Done) -> bool:
    """Whether the request's samples are known by their hashes."""
    return bool((done.request["forget"] or {}).get("samples_sha256"))


def row_of(done: Done, past: Past, model: nn.Module, data: Source | None, unseen: Source | None, forward: Forward, kind: Kind) -> Row:
    """A request measured again, on its own data, or where that isn't given on unseen samples of its classes."""
    if done.request["classes"]:
        return _classes(done, model, data, unseen, forward)
    return _samples(done, past, model, data, unseen, forward, kind)


def _classes(done: Done, model: nn.Module, data: Source | None, unseen: Source | None, forward: Forward) -> Row:
    classes, verdict = done.request["classes"], done.receipt["unlearning"]["verdict"]
    task, count, texts = task_of(model, forward), 0, []
    measured: dict[int, float | None] = dict.fromkeys(classes)
    for name, one in (("forget", data), ("test", unseen)):
        if one is None or (part := of_classes(one, classes)) is None:
            continue
        by_class = task.right_by_class(part, classes)
        measured |= {c: max(share, measured[c] or 0.0) for c, share in by_class.items()}
        count += len(part)
        texts.append(f"{name}: " + ", ".join(f"class {c} {percent(share)}" for c, share in by_class.items()))
    shares = [share for share in measured.values() if share is not None]
    if not shares:
        return Row(done.id, None, 0, None, None, None, None, None, done.forgot, None, "no data of its classes was given")
    before, then = (
        max((share for name in ("forget_accuracy", "test_accuracy") for share in verdict.get(name + moment, {}).values()), default=None)
        for moment in ("_before", "")
    )
    now = max(shares)
    if len(shares) < len(classes):
        texts.append(f"no data of {[c for c in classes if measured[c] is None]}")
    hashed = "" if data is None or _hashed(done) else "; the request's samples weren't hashed, so these are known by their labels alone"
    why = "; ".join(texts) + hashed
    gone, why = _shown(now <= GONE_AT, why, verdict) if len(shares) == len(classes) or now > GONE_AT else (None, why)
    return Row(done.id, "right", count, before, then, now, 0.0, GONE_AT, done.forgot, gone, why)


def _shown(gone: bool, why: str, verdict: dict[str, Any]) -> tuple[bool | None, str]:
    """That nothing is left shows something only where the request's own look had found it before."""
    if gone and verdict.get("known_before") is False:
        return None, f"{why}; but it couldn't be told before the request either, so this doesn't show that it is gone"
    return gone, why


def _samples(
    done: Done, past: Past, model: nn.Module, data: Source | None, unseen: Source | None, forward: Forward, kind: Kind
) -> Row:
    verdict = done.receipt["unlearning"]["verdict"]
    missing = "its samples weren't given" if data is None else "no unseen data was given to compare with" if unseen is None else ""
    left, others = (None if one is None else past.unseen(one) for one in (data, unseen))
    if not missing and (left is None or others is None):
        missing = "all its samples, or all unseen ones, are of classes that other requests forgot"
    if missing or left is None or others is None:
        return Row(done.id, None, 0, None, None, None, None, None, done.forgot, None, missing)
    auc, error = attack_auc(task_of(model, forward, kind.head(model, forward, left)), left, others, kind.losses)
    low, high = 0.5 - CLEAR * error, 0.5 + CLEAR * error
    before, then = verdict.get("attack_auc_before"), verdict.get("attack_auc")
    why = f"against {len(comparable(left, others))} {others.name} {kind.counted} (forgotten: {low:.3f} to {high:.3f})"
    gone, why = _shown(low <= auc <= high, why, verdict)
    if gone and (same := _overlap.compare(left, others)).count > same.allowed:
        gone, why = None, f"{why}; but {same.count} of its samples are in {others.name} too, so these aren't unseen"
    return Row(done.id, "auc", len(left), before, then, auc, low, high, done.forgot, gone, why)
