"""What a call costs before any work is done: 16 elements, and lists of 161 small tensors.

op: what the public function calls, ``torch.ops.fastforget.<name>.default``, into tensors that are there: making the seven results of
membership_scores takes longer than computing them. public: the public function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastforget.ops import mask, membership, noise, update

from . import noise as noise_rows
from . import update as update_rows
from .cases import Call, Case, Options, Place, Work, WrongResult
from .mask import elementwise, optim
from .membership.scores import eager_scores

SMALL = 16
LIST = 161  # a ResNet-50's parameter list
Make = Callable[[Place], dict[str, Call]]


def _noise(place: Place) -> dict[str, Call]:
    x = place.normal(SMALL)
    op = torch.ops.fastforget.add_normal_.default
    return {
        "op": lambda: op([x], [0.5], 1),
        "public": lambda: noise.add_normal_(x, 0.5, seed=1),
        "eager": lambda: noise_rows.eager_add(x),
    }


def _dampen(place: Place) -> dict[str, Call]:
    x, (f, r) = place.normal(SMALL), elementwise.importances(place, (SMALL,))
    count = torch.zeros((), dtype=torch.int64)
    op = torch.ops.fastforget.dampen_.default
    return {
        "op": lambda: op([x], [f], [r], count, 1.0, 1.0),
        "public": lambda: mask.dampen_(x, f, r, alpha=1.0, lam=1.0),
        "eager": lambda: elementwise.where([x], [f], [r]),
    }


def _step(place: Place) -> dict[str, Call]:
    x, g = place.normal(1, SMALL), place.normal(1, SMALL)
    m, v = place.zeros(1, SMALL), place.zeros(1, SMALL)
    rule, op = (0.1, 0.9, 0.999, 1e-8, 0.1, -1.0, 1.0), torch.ops.fastforget.error_max_step_.default
    sum_sq = torch.zeros(())
    eager = update_rows.EagerStep(x, g, foreach=True)
    return {
        "op": lambda: op(x, g, m, v, sum_sq, 1, *rule),
        "public": lambda: update.error_max_step_(x, g, m, v, step=1, lr=0.1, clamp=(-1.0, 1.0)),
        "eager": eager,
    }


def _scores(place: Place) -> dict[str, Call]:
    logits, labels = place.normal(2, SMALL // 2), place.integers(SMALL // 2, 2)
    scores, correct = place.empty(6, 2), torch.empty(2, dtype=torch.bool)
    op = torch.ops.fastforget.membership_scores.default
    return {
        "op": lambda: op(logits, labels, 1.0, scores, correct),
        "public": lambda: membership.membership_scores(logits, labels),
        "eager": lambda: eager_scores(logits, labels),
    }


def _noise_list(place: Place) -> dict[str, Call]:
    xs = [place.normal(SMALL) for _ in range(LIST)]
    op = torch.ops.fastforget.add_normal_.default
    return {
        "op": lambda: op(xs, [0.5], 1),
        "public": lambda: noise.add_normal_(xs, 0.5, seed=1),
        "eager": lambda: noise_rows.eager_add_list(xs),
    }


def _dampen_list(place: Place) -> dict[str, Call]:
    xs = [place.normal(SMALL) for _ in range(LIST)]
    fs, rs = map(list, zip(*(elementwise.importances(place, (SMALL,)) for _ in xs), strict=True))
    count = torch.zeros((), dtype=torch.int64)
    op = torch.ops.fastforget.dampen_.default
    return {
        "op": lambda: op(xs, fs, rs, count, 1.0, 1.0),
        "public": lambda: mask.dampen_(xs, fs, rs, alpha=1.0, lam=1.0),
        "eager": lambda: elementwise.where(xs, fs, rs),
    }


def _adam_list(place: Place) -> dict[str, Call]:
    params, grads = ([place.normal(SMALL) for _ in range(LIST)] for _ in range(2))
    on = [place.uniform(SMALL) < 0.5 for _ in range(LIST)]
    first, second = ([place.zeros(SMALL) for _ in range(LIST)] for _ in range(2))
    op = torch.ops.fastforget.masked_adam_.default
    numbers = (2, 1e-3, 0.9, 0.999, 1e-8, 0.0, False, False)
    return {
        "op": lambda: op(params, grads, on, first, second, *numbers),
        "public": lambda: mask.masked_adam_(params, grads, on, first, second, step=2, lr=1e-3),
        "eager": optim.Published(params, grads, [m.float() for m in on], torch.optim.Adam),
    }


def _finite(_name: str, result: Any) -> None:
    """The arithmetic is judged in the sized rows; here only that a call went through and left numbers."""
    tensors = [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else []
    for x in tensors:
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise WrongResult("a call left something that is no number")


def _case(op: str, label: str, tensors: int, make: Make, kind: str) -> Case:
    """``kind``: which of the raw op and the public function is 'ours' in this row."""

    def prepare(place: Place) -> Work:
        calls = make(place)
        other = "public" if kind == "op" else "op"
        return Work({"ours": calls[kind], "eager": calls["eager"], other: calls[other]}, _finite)

    shape = str(SMALL) if tensors == 1 else f"{tensors} tensors of {SMALL}"
    return Case(op, f"{label}, {kind}", shape, "float32", SMALL * tensors, prepare, unit="element", family="overhead")


def cases(options: Options) -> list[Case]:
    del options
    rows = []
    for op, make in (
        ("add_normal_", _noise),
        ("error_max_step_", _step),
        ("membership_scores", _scores),
        ("dampen_", _dampen),
    ):
        rows += [_case(op, "call", 1, make, kind) for kind in ("op", "public")]
    for op, make in (("add_normal_", _noise_list), ("dampen_", _dampen_list), ("masked_adam_", _adam_list)):
        rows += [_case(op, "161-tensor call", LIST, make, kind) for kind in ("op", "public")]
    return rows
