"""What `make test-quick` runs: every op on the reference and on the best CPU level, one unlearning, one audit; in well under a minute.

It says whether a checkout works at all. Everything here is tested closer by, over shapes, dtypes and levels, in the other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import op_table
import pytest
import torch
from digits_world import World, quiet, right
from native_parts import native_missing
from torch.utils._python_dispatch import TorchDispatchMode

import fastforget as ff
from fastforget import _schema

CLASS = 3


class Dispatched(TorchDispatchMode):
    """Notes which of the package's ops torch's dispatcher runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == _schema.NAMESPACE:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def test_every_op_is_right_on_the_reference() -> None:
    ran = set()

    def definition(op: str) -> Callable[..., None]:
        def run(*args: Any) -> None:
            _schema.SCHEMAS[op][1](*args)
            ran.add(op)

        return run

    for op in op_table.TABLE:
        op_table.check(op, definition(op), torch.float32)
    assert ran == set(_schema.SCHEMAS)


def test_every_op_is_right_on_the_best_level() -> None:
    """As users call: the level that the library chooses on this CPU."""
    reason = native_missing()
    if reason is not None:
        pytest.skip(reason)
    assert {op: ff.backend.serving(op, "cpu") for op in _schema.SCHEMAS} == dict.fromkeys(_schema.SCHEMAS, "native")
    with Dispatched() as dispatched:
        for op in op_table.TABLE:
            op_table.check(op, _schema.overload(op), torch.float32)
    assert dispatched.names == set(_schema.SCHEMAS)


def test_a_class_is_unlearned_and_the_audit_confirms_it() -> None:
    world = World()
    original, retrained = world.net("mlp"), world.net("mlp", (CLASS,))
    forget, retain = (world.part(world.train, [CLASS], inside) for inside in (True, False))
    result = quiet(original, "unsir", classes=[CLASS], retain=retain, seed=0)
    assert result.forgot, result.why
    assert right(result.model, forget) <= 0.01 < 0.9 < right(original, forget)
    models = {"original": original, "unlearned": result.model, "retrained": retrained}
    report = ff.audit(models, forget=forget, retain=retain, test=world.test, progress=False)
    assert report.verdict == "PASS", report.reasons
    assert [row["model"] for row in report.rows] == list(models)
