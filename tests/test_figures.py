"""The figures as dataclasses: written out they are the rows, read back they are the same, and a wrong entry is named."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from audit_world import FORGOTTEN, World

from fastforget._files import jsonable
from fastforget.auditing.figures import FORGET, ClassProbe, ModelRow, RelearnProbe
from fastforget.auditing.measure.oracles import LossThreshold


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    world = World()
    everything = tuple(map(torch.cat, zip(world.forget, world.retain, strict=True)))
    whole = world.audit(
        unlearned=world.retrained_again,
        attacks=("loss", "entropy", "attack_p"),
        oracles={"half": LossThreshold(0.5)},
        relearn=("golatkar", "ain"),
        train=everything,
        progress=False,
        controls=True,
    )
    plain = world.audit(intervals=False, reference=False)
    return [*whole.rows, *whole.control_rows, *plain.rows]


def test_a_row_read_and_written_is_the_same(rows: list[dict]) -> None:
    for row in rows:
        assert repr(ModelRow.from_dict(row).to_dict()) == repr(row)
        # as JSON has it: null for NaN, strings for class ids
        read = json.loads(json.dumps(jsonable(row), allow_nan=False))
        assert json.dumps(jsonable(ModelRow.from_dict(read).to_dict())) == json.dumps(read)


def test_what_a_row_holds(rows: list[dict]) -> None:
    original, unlearned, retrained = map(ModelRow.from_dict, rows[:3])
    assert unlearned.accuracy["forget"].interval == rows[1]["accuracy_intervals"]["forget"]
    loss = unlearned.attacks[FORGET]["loss"]
    assert loss.auc.value == rows[1]["attacks"]["forget_vs_test"]["loss"]["auc"] and loss.auc.known
    assert loss.tpr_at["1pct"].resolves == rows[1]["attacks"]["forget_vs_test"]["loss"]["resolves_1pct_fpr"]
    told = original.probes["class_logit_auc"]
    assert isinstance(told, ClassProbe) and told.worst_class == FORGOTTEN and told.by_class == {FORGOTTEN: told.value}
    again = retrained.probes["relearn_time_ain"]
    assert isinstance(again, RelearnProbe) and again.unit == "batches" and len(again.trace) == again.value + 1
    assert not unlearned.probes["zrf"].known and "no teacher" in str(unlearned.probes["zrf"].reason)
    assert unlearned.weight_distance["original"].layers[0].rows == 64


def test_null_is_not_a_number_and_what_an_older_file_lacks_is_empty(rows: list[dict]) -> None:
    row = copy.deepcopy(rows[1])
    row["accuracy"]["test_retain"] = None
    for name in ("probes", "class_thresholds", "forgetting_rates", "accuracy_intervals", "forgetting_rate", "forgetting_rate_interval"):
        del row[name]
    read = ModelRow.from_dict(row)
    assert math.isnan(read.accuracy["test_retain"].value) and read.accuracy["forget"].interval is None
    assert read.probes == {} and not read.forgetting_rate.known
    newer = ModelRow.from_dict({**rows[1], "of_a_newer_version": 1})
    assert repr(newer) == repr(ModelRow.from_dict(rows[1]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("accuracy", "forget"), "high", r"rows\[1\].accuracy.forget: got 'high'; accepted is a number or null"),
        (("attacks", "forget_vs_test", "loss", "auc"), True, r"rows\[1\].attacks.forget_vs_test.loss.auc: got True"),
        (("attacks", "forget_vs_test", "loss", "auc_interval"), [1], r"loss.auc_interval: got \[1\]; accepted is \[low, high\] or null"),
        (("counts", "test"), 1.5, r"rows\[1\].counts.test: got 1.5; accepted is a whole number"),
        (("weight_distance", "original", "layers", 0, "l2"), "x", r"weight_distance.original.layers\[0\].l2: got 'x'"),
        (("class_accuracy", "test"), {"red": 1.0}, r"rows\[1\].class_accuracy.test: .*accepted are class ids"),
        (("class_accuracy", "test"), {"3": "x"}, r"rows\[1\].class_accuracy.test.3: got 'x'"),
        (("probes", "zrf"), [], r"rows\[1\].probes.zrf: got \[\]; accepted is an object"),
        (("reasons",), "PASS", r"rows\[1\].reasons: got 'PASS'; accepted is a list"),
        (("control",), 0, r"rows\[1\].control: got 0; accepted is true or false"),
    ],
)
def test_a_wrong_entry_is_named(rows: list[dict], path: tuple, value, message: str) -> None:
    row = copy.deepcopy(rows[1])
    place = row
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        ModelRow.from_dict(row, "rows[1]")


def test_a_missing_entry_is_named(rows: list[dict]) -> None:
    with pytest.raises(ValueError, match=r"rows\[1\].attacks: the entry is missing"):
        ModelRow.from_dict({key: value for key, value in rows[1].items() if key != "attacks"}, "rows[1]")
