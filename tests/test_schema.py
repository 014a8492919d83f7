"""The JSON schemas of report and receipt: what the package writes satisfies them, and they refuse what it does not write."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_world import FORGOTTEN, World
from digits_world import quiet
from jsonschema import Draft202012Validator
from page_world import full_report
from referencing import Registry, Resource

import fastforget
from fastforget.auditing.measure.oracles import LossThreshold

FOLDER = Path(fastforget.__file__).parent / "auditing" / "schema"
SCHEMAS = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("figures", "report", "receipt")}


def errors(kind: str, value: Any) -> list[str]:
    """What the schema says of a file's content, by the entries' paths."""
    registry = Registry().with_resource("figures.json", Resource.from_contents(SCHEMAS["figures"]))
    problems = Draft202012Validator(SCHEMAS[kind], registry=registry).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:100]}" for error in problems]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def reports(world: World) -> dict[str, fastforget.audit.AuditReport]:
    x, y = world.test
    keep = y == FORGOTTEN
    everything = tuple(map(torch.cat, zip(world.forget, world.retain, strict=True)))
    oracles = {"half": LossThreshold(0.5), "never": lambda z, y: torch.zeros(len(y), dtype=torch.bool)}
    return {
        "everything a page can show": full_report()[0],
        "oracles, relearn time": world.audit(unlearned=world.retrained_again, oracles=oracles, relearn=("ain",), train=everything),
        "no intervals": world.audit(unlearned=world.original, intervals=False, controls=True),
        "no reference": world.audit(reference=False, controls=True),
        "undefined figures": world.audit(unlearned=world.retrained_again, test=(x[keep], y[keep])),
    }


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_the_schemas_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["title"] == f"fastforget {name} 1"


def test_reports_and_receipts_satisfy_their_schemas(reports, tmp_path) -> None:
    for name, report in reports.items():
        report.to_json(tmp_path / "report.json")
        report.write_receipt(tmp_path / "receipt.json", facts={"data": name})
        for kind in ("report", "receipt"):
            written = json.loads((tmp_path / f"{kind}.json").read_text())
            assert written["format"] == f"fastforget {kind} 1"
            assert errors(kind, written) == [], (name, kind)


def test_a_receipt_with_the_unlearning_satisfies_its_schema(world: World) -> None:
    result = quiet(world.original, "none", classes=[FORGOTTEN], retain=world.retain, progress=False)
    receipt = world.audit(unlearned=result.model).receipt(result, ids=range(100))
    assert receipt["method"] and receipt["forget_set"]["ids"] and errors("receipt", receipt) == []


def test_every_entry_of_a_row_is_described(reports) -> None:
    """Neither does the schema describe what no row holds."""
    described = SCHEMAS["figures"]["$defs"]

    def held(values: list[dict]) -> set[str]:
        return {key for value in values for key in value}

    rows = [row for report in reports.values() for row in (*report.rows, *report.control_rows)]
    assert held(rows) == set(described["row"]["properties"])
    attacks = [figures for row in rows for by_attack in row["attacks"].values() for figures in by_attack.values()]
    assert held(attacks) == set(described["attack"]["properties"])
    assert held([probe for row in rows for probe in row["probes"].values()]) == set(described["probe"]["properties"])
    assert held([far for row in rows for far in row["weight_distance"].values()]) == set(described["weight_distance"]["properties"])


@pytest.mark.parametrize(
    ("path", "value", "about"),
    [
        (("format",), "fastforget report 2", "format"),
        (("verdict",), "GOOD", "verdict"),
        (("rows", 1, "accuracy", "forget"), 1.5, "rows.1.accuracy.forget"),
        (("rows", 1, "attacks", "forget_vs_test", "loss", "auc"), "high", "rows.1.attacks.forget_vs_test.loss.auc"),
        (("rows", 1, "accuracy_intervals", "forget"), [0.1], "rows.1.accuracy_intervals.forget"),
        (("rows", 1, "of_nobody"), 1, "rows.1"),
        (("settings", "models", "original", "weights_sha256"), "abc", "settings.models.original.weights_sha256"),
    ],
)
def test_what_is_not_a_report_is_refused(reports, path: tuple, value: Any, about: str) -> None:
    report = copy.deepcopy(reports["oracles, relearn time"].to_dict())
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (error,) = errors("report", report)
    assert error.startswith(f"{about}: ")
