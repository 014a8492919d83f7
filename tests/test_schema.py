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
from sequences_world import world as sequences_world

import fastforget
from fastforget.auditing.measure.oracles import LossThreshold
from fastforget.auditing.proof.hashes import same_state
from fastforget.auditing.proof.reading import load_weights
from fastforget.auditing.proof.schema import violations
from fastforget.methods.pack import STANDARD

FOLDER = Path(fastforget.__file__).parent / "auditing" / "schema"
SCHEMAS = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in ("figures", "report", "receipt", "unlearning")}


def errors(kind: str, value: Any) -> list[str]:
    """What the schema says of a file's content, by the entries' paths."""
    registry = Registry().with_resources((f"{name}.json", Resource.from_contents(SCHEMAS[name])) for name in ("figures", "unlearning"))
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
        "sequences": sequences_world().audit(controls=True),
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


# "ct" transposes convolutions, which this world's nets have none of
METHODS = [name for name in ("none", "auto", "sweep", "unsir", "forsaken", "lightweight", *STANDARD) if name != "ct"]


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_record_satisfies_its_schema(world: World, method: str, tmp_path: Path) -> None:
    """Also as part of a receipt, and by the package's own reader of schemas; and it can be saved beside the weights."""
    small = {"budget": 3_000, "progress": False, "nonmember": world.test}
    sets = {"forget": world.forget, "retain": world.retain, "test": world.test}
    result = quiet(world.original, method, classes=[FORGOTTEN], **sets, **small)
    record = json.loads(json.dumps(result.receipt, allow_nan=False))
    assert errors("unlearning", record) == []
    torch.save({"receipt": result.receipt, "history": result.history}, tmp_path / "record.pt")
    assert torch.load(tmp_path / "record.pt", weights_only=True)["receipt"] == result.receipt
    assert ("standard" in record) == (method in STANDARD)
    receipt = world.audit(unlearned=result.model, intervals=False).receipt(result)
    assert errors("receipt", receipt) == [] and list(violations(receipt)) == []
    if "standard" in record:
        for entry, wrong in (("batch_norm", "gone"), ("trained_on", ["everything"]), ("source", None), ("more", 1)):
            changed = copy.deepcopy(receipt)
            changed["method"]["standard"][entry] = wrong
            assert errors("receipt", changed) and list(violations(changed))


def test_a_record_of_single_samples_satisfies_its_schema(world: World) -> None:
    result = quiet(world.original, "none", forget=world.forget, retain=world.retain, nonmember=world.test, progress=False)
    record = json.loads(json.dumps(result.receipt, allow_nan=False))
    assert errors("unlearning", record) == [] and record["classes"] == [] and "attack_auc" in record["verdict"]
    for name in SCHEMAS["unlearning"]["required"]:
        assert errors("unlearning", {key: value for key, value in record.items() if key != name}), name


def test_a_results_weights_load_without_running_code(world: World, tmp_path: Path) -> None:
    """``weights_only=True``, also with the receipt beside them; and the file is the receipt's model."""
    result = quiet(world.original, "none", classes=[FORGOTTEN], retain=world.retain, progress=False)
    receipt = world.audit(unlearned=result.model).receipt(result)
    torch.save({"model": result.model.state_dict(), "receipt": result.receipt, "history": result.history}, tmp_path / "both.pt")
    loaded = torch.load(tmp_path / "both.pt", weights_only=True)
    assert loaded["receipt"] == result.receipt
    assert same_state(receipt["models"]["unlearned"]["state_dict_sha256"], loaded["model"])
    assert same_state(receipt["models"]["unlearned"]["state_dict_sha256"], load_weights(tmp_path / "both.pt"))


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
