"""Receipts that somebody changed and sealed again: refused, or the change is said to be beyond checking. Honest ones of every kind hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from audit_world import FORGOTTEN, World
from digits_world import quiet
from page_world import full_report
from torch import nn

import fastforget as ff
from fastforget.__main__ import main
from fastforget.auditing.measure.oracles import LossThreshold
from fastforget.auditing.proof.check import ON_TRUST, check
from fastforget.auditing.proof.receipt import own_hash
from fastforget.auditing.proof.schema import violations

Receipt = dict[str, Any]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def suppressed(world: World) -> nn.Module:
    """A model that forgot nothing: its last bias keeps it from the class."""
    cheat = copy.deepcopy(world.original)
    with torch.no_grad():
        cheat[2].bias[FORGOTTEN] -= 20
    return cheat


@pytest.fixture(scope="module")
def receipt(world: World, suppressed: nn.Module) -> Receipt:
    """Of the cheat: an honest FAIL, which a forger wants to be a PASS."""
    written = world.audit(unlearned=suppressed, controls=True).receipt(ids=range(100))
    assert written["verdict"]["status"] == "FAIL"
    return written


def sealed(receipt: Receipt) -> Receipt:
    return {**receipt, "sha256": own_hash(receipt)}


def findings(receipt: Receipt, model: nn.Module, **more: Any) -> list[str]:
    return [one.field for one in check(receipt, weights={"unlearned": model.state_dict()}, **more) if one.why]


# ------------------------------------------------------------------ honest ones


@pytest.fixture(scope="module")
def honest(world: World) -> dict[str, tuple[Receipt, nn.Module]]:
    x, y = world.test
    of_class, kept = y == FORGOTTEN, y != FORGOTTEN
    everything = tuple(map(torch.cat, zip(world.forget, world.retain, strict=True)))
    by_sample = {"forget": (everything[0][::9], everything[1][::9]), "retain": (everything[0][1::3], everything[1][1::3])}
    oracles = {"half": LossThreshold(0.5), "never": lambda z, y: torch.zeros(len(y), dtype=torch.bool)}
    again, bare = world.retrained_again, {"forget": world.forget, "retain": world.retain, "test": world.test}
    page, model = full_report()[0], None
    receipts = {
        "with controls": world.audit(unlearned=again, controls=True),
        "all attacks": world.audit(unlearned=again, attacks=("entropy", "modified_entropy", "margin", "logit_confidence", "attack_p")),
        "samples": world.audit(unlearned=again, controls=True, **by_sample),
        "no intervals": world.audit(unlearned=again, intervals=False),
        "no reference": world.audit(unlearned=again, reference=False, controls=True),
        "no original": ff.audit({"unlearned": again, "retrained": world.retrained}, **bare),
        "the original again": world.audit(unlearned=copy.deepcopy(world.original)),
        "test set of the class": world.audit(unlearned=again, test=(x[of_class], y[of_class])),
        "test set of the others": world.audit(unlearned=again, test=(x[kept], y[kept])),
        "oracles and relearning": world.audit(unlearned=again, oracles=oracles, relearn=("ain",), train=everything),
        "few samples": world.audit(unlearned=again, forget=(world.forget[0][:1], world.forget[1][:1]), test=(x[:7], y[:7])),
        "wrapped": world.audit(unlearned=nn.DataParallel(again), controls=True),
        "other width": world.audit(unlearned=nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))),
    }
    written = {name: (report.receipt(), again) for name, report in receipts.items()}
    written["everything a page can show"] = (page.receipt(), model)
    return written


def test_honest_receipts_of_every_kind_hold(honest) -> None:
    for name, (written, _) in honest.items():
        assert [one for one in check(json.loads(json.dumps(written)), weights={}) if one.why] == [], name
    wrapped, model = honest["wrapped"]
    assert findings(wrapped, model) == [] and findings(wrapped, nn.DataParallel(model)) == []


def test_the_unlearning_is_checked_too(world: World) -> None:
    result = quiet(world.original, "none", classes=[FORGOTTEN], retain=world.retain, seed=5, progress=False)
    written = world.audit(unlearned=result.model).receipt(result)
    assert findings(written, result.model) == []
    for path, value, field in (
        (("seed",), 6, "seeds.unlearn"),
        (("classes",), [0], "method.classes"),
        (("weights_sha256", "after"), "0" * 64, "method.weights_sha256.after"),
        (("weights_sha256", "before"), "0" * 64, "method.weights_sha256.before"),
    ):
        assert field in findings(sealed(put(written, ("method", *path), value)), result.model)
    assert findings(sealed({**written, "method": None}), result.model) == ["seeds.unlearn"]


# ------------------------------------------------------------------ tampered ones


def put(receipt: Receipt, path: tuple, value: Any) -> Receipt:
    changed = copy.deepcopy(receipt)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value(place.get(path[-1])) if callable(value) else value
    return changed


def drop(receipt: Receipt, path: tuple) -> Receipt:
    changed = copy.deepcopy(receipt)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


ROW = ("rows", 1)  # the cheat's
LOSS = (*ROW, "attacks", "forget_vs_test", "loss")
FAR = (*ROW, "weight_distance", "original")
CHANGES: dict[str, tuple[tuple, Any, str]] = {
    "verdict": (("verdict", "status"), "PASS", "verdict.status"),
    "verdict in other words": (("verdict", "status"), "EXCELLENT", "entries"),
    "verdict's reasons": (("verdict", "reasons"), ["unlearned: PASS: all is well"], "verdict.reasons"),
    "verdict without reasons": (("verdict", "reasons"), [], "verdict.reasons"),
    "rule": (("verdict", "rule"), "everything passes", "verdict.rule"),
    "called": (("called",), "a certificate of erasure under article 17", "called"),
    "created": (("created",), "VERIFIED: PASS", "created"),
    "status": ((*ROW, "status"), "PASS", "rows.unlearned.status"),
    "reasons": ((*ROW, "reasons"), lambda old: [*old, "PASS: certified"], "rows.unlearned.reasons"),
    "another model's name": ((*ROW, "model"), "better", "models"),
    "a control's status": (("control_rows", 3, "status"), "PASS", "rows.suppressed.status"),
    "a control's outcome": (("controls", "suppressed", "behaved"), False, "controls"),
    "a control that is none": (("control_rows", 1, "control"), False, "control_rows.control"),
    "a model that is a control": ((*ROW, "control"), True, "rows.control"),
    "sizes": (("sizes", "test"), 4000, "sizes"),
    "sizes of the settings": (("settings", "sizes", "forget"), 1000, "sizes"),
    "counts": ((*ROW, "counts", "test"), 4000, "rows.unlearned.figures"),
    "counts of the parts": ((*ROW, "counts", "test_forget"), 10, "rows.unlearned.figures"),
    "samples": (("forget_set", "samples"), 1000, "forget_set.samples"),
    "count of ids": (("forget_set", "ids", "count"), 1000, "forget_set.ids.count"),
    "request": (("request",), "sample-wise", "request"),
    "classes": (("forgotten_classes",), [0], "forgotten_classes"),
    "no class": (("forgotten_classes",), [], "forgotten_classes"),
    "seed": (("seeds", "audit"), 7, "seeds.audit"),
    "a seed of unlearning": (("seeds", "unlearn"), 7, "seeds.unlearn"),
    "reference": (("settings", "reference"), None, "settings.reference"),
    "accuracy": ((*ROW, "accuracy", "test_retain"), 0.99, "rows.unlearned.figures"),
    "accuracy by a share": ((*ROW, "accuracy", "test_forget"), 0.01, "rows.unlearned.figures"),
    "accuracy out of range": ((*ROW, "accuracy", "forget"), -0.5, "entries"),
    "accuracy of a class": ((*ROW, "class_accuracy", "forget", str(FORGOTTEN)), 0.5, "rows.unlearned.figures"),
    "interval": ((*ROW, "accuracy_intervals", "forget"), [0.0, 0.001], "rows.unlearned.figures"),
    "answers": ((*ROW, "forget_predictions"), [25, 25, 25, 25], "rows.unlearned.figures"),
    "spread": ((*ROW, "forget_prediction_spread"), 3.9, "rows.unlearned.figures"),
    "loss": ((*ROW, "mean_loss", "forget"), 0.1, "rows.unlearned.figures"),
    "AUC": ((*LOSS, "auc"), 0.50011, "rows.unlearned.figures"),
    "AUC, far off": ((*LOSS, "auc"), 0.99, "rows.unlearned.figures"),
    "error of the AUC": ((*LOSS, "auc_standard_error"), 0.5, "rows.unlearned.figures"),
    "balanced accuracy": ((*LOSS, "balanced_accuracy"), 0.95, "rows.unlearned.figures"),
    "true-positive rate": ((*LOSS, "tpr_at_1pct_fpr"), 0.123456, "rows.unlearned.figures"),
    "what resolves": ((*LOSS, "resolves_0.1pct_fpr"), True, "rows.unlearned.figures"),
    "members": ((*LOSS, "members"), 50, "rows.unlearned.figures"),
    "non-members": ((*LOSS, "nonmembers"), 50, "rows.unlearned.figures"),
    "an attack's reason": ((*LOSS, "reason"), "not needed", "rows.unlearned.figures"),
    "forgetting rate": ((*ROW, "forgetting_rate"), 0.5, "rows.unlearned.figures"),
    "oracle's members": ((*ROW, "oracle_members", "forget"), 0.123456, "rows.unlearned.figures"),
    "threshold a class": ((*ROW, "class_thresholds", "forget_vs_test", "loss", "balanced_accuracy"), 0.9, "rows.unlearned.figures"),
    "distance": ((*FAR, "total"), 99.0, "rows.unlearned.figures"),
    "a layer's distance": ((*FAR, "layers", 0, "l2"), 5.0, "rows.unlearned.figures"),
    "relative distance": ((*FAR, "layers", 1, "relative"), 5.0, "rows.unlearned.figures"),
    "relative distance in all": ((*FAR, "relative"), 5.0, "rows.unlearned.figures"),
    "rows of a layer": ((*FAR, "layers", 0, "rows"), 63, "rows.unlearned.figures"),
    "size of a model": (("models", "retrained", "parameters"), 7, "models.unlearned.parameters"),
    "loss within its interval": ((*ROW, "mean_loss", "test"), lambda old: 1.01 * old, "rows.unlearned.figures"),
    "interval of a threshold a class": (
        (*ROW, "class_thresholds", "forget_vs_test", "loss", "balanced_accuracy_interval"),
        [0.49, 0.51],
        "rows.unlearned.figures",
    ),
    "undefined scores": ((*LOSS, "undefined"), 3, "rows.unlearned.figures"),
    "unseen members": ((*ROW, "oracle_members", "unseen"), 0.123456, "rows.unlearned.figures"),
    "rate's interval": ((*ROW, "forgetting_rate_interval"), [0.9, 0.99], "rows.unlearned.figures"),
    "small divergence": ((*ROW, "probes", "js_to_retrained", "value"), 1e-5, "rows.unlearned.figures"),
    "activation distance": ((*ROW, "probes", "activation_distance", "value"), 1e-5, "rows.unlearned.figures"),
    "called non-member": ((*ROW, "probes", "mia_efficacy", "value"), 0.123456, "rows.unlearned.figures"),
    "what a probe is": ((*ROW, "probes", "js_to_retrained", "convention"), "certified divergence", "rows.unlearned.figures"),
    "torch": (("versions", "torch"), "1.0", "settings.torch"),
    "a reason for no hash": (("forget_set", "reason"), "none was needed", "forget_set.reason"),
    "a reason with figures": ((*FAR, "reason"), "the models differ in structure", "rows.unlearned.figures"),
    "identical": ((*FAR, "identical"), True, "rows.unlearned.figures"),
    "told by its logit": ((*ROW, "probes", "class_logit_auc", "value"), 0.5, "rows.unlearned.figures"),
    "told by its logit, no value": ((*ROW, "probes", "class_logit_auc", "value"), None, "rows.unlearned.figures"),
    "divergence": ((*ROW, "probes", "js_to_retrained", "value"), 0.9, "rows.unlearned.figures"),
    "untouched's hash": (("models", "untouched", "weights_sha256"), "0" * 64, "models.untouched"),
    "no hash": (("models", "retrained", "weights_sha256"), None, "models.retrained"),
    "a hash that is none": (("models", "retrained", "weights_sha256"), "PASS", "entries"),
    "a hash and a line": (("models", "retrained", "weights_sha256"), "0" * 64 + "\n", "entries"),
    "the weights": (("models", "unlearned", "state_dict_sha256"), "0" * 64, "models.unlearned.state_dict_sha256"),
    "a number for a name": (("models",), 5, "receipt"),
    "a huge number": ((*LOSS, "auc"), 10**350, "receipt"),
    "an unknown entry": ((*ROW, "certified"), True, "entries"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_refused_though_the_receipt_is_sealed_again(receipt: Receipt, suppressed: nn.Module, kind: str) -> None:
    path, value, field = CHANGES[kind]
    changed = put(receipt, path, value)
    assert changed != receipt
    assert field in findings(sealed(changed), suppressed)
    assert "sha256" in findings(changed, suppressed) or field == "receipt"


DROPPED = [
    ("called",), ("created",), ("method",), ("settings",), ("conventions",), ("verdict", "reasons"), ("models", "retrained"),
    ("forget_set", "samples_sha256"), ("sizes", "test"), ("settings", "attacks"), ("rows", 2), ("rows", 0), ("control_rows", 3),
    ("controls", "suppressed"), (*ROW, "weight_distance"), (*FAR, "layers"), (*ROW, "weight_distance", "original"), (*ROW, "probes"),
    (*ROW, "probes", "class_logit_auc"), (*ROW, "attacks", "retain_vs_test"), LOSS, (*ROW, "counts"), (*ROW, "mean_loss"),
    (*ROW, "class_accuracy"), (*ROW, "accuracy_intervals"), (*ROW, "forget_predictions"), (*ROW, "reasons"), (*ROW, "control"),
]  # fmt: skip


@pytest.mark.parametrize("path", DROPPED, ids=lambda path: ".".join(map(str, path)))
def test_what_is_left_out_is_missed(receipt: Receipt, suppressed: nn.Module, path: tuple) -> None:
    assert findings(sealed(drop(receipt, path)), suppressed), path


TRUSTED = [
    ("created",), ("versions", "python"), ("machine", "cpu"), ("facts", "data"), ("settings", "oracle_threshold"),
    ("settings", "conventions_used", "loss"), ("conventions", "auc"),
]  # fmt: skip


@pytest.mark.parametrize("path", TRUSTED, ids=lambda path: ".".join(path))
def test_what_can_not_be_checked_is_said_and_never_printed(world: World, tmp_path, capsys, path: tuple) -> None:
    place = Path(tmp_path)
    written = world.audit(unlearned=world.retrained_again).receipt(facts={"data": "blobs"})
    changed = put(written, path, 9.5 if path[-1] == "oracle_threshold" else "2031-01-01T00:00:00+00:00")
    (place / "r.json").write_text(json.dumps(sealed(changed)))
    torch.save(world.retrained_again.state_dict(), place / "w.pt")
    assert main(["verify", str(place / "r.json"), "--model", str(place / "w.pt")]) == 0
    printed = capsys.readouterr().out
    assert f"on trust, as the file has them: {ON_TRUST}" in printed and "figures not measured again" in printed
    assert printed.count("2031") == (path == ("created",))
    if path[0] == "conventions":
        assert "-         conventions: other words than this version's" in printed


def test_a_forger_who_makes_all_agree_is_found_by_the_weights(world: World, suppressed: nn.Module) -> None:
    """The honest model's row under the cheat's hashes: every figure agrees with every other."""
    good = world.audit(unlearned=world.retrained_again).receipt()
    bad = world.audit(unlearned=suppressed).receipt()
    forged = sealed({**good, "models": bad["models"]})
    assert findings(forged, suppressed) == []  # said to be not measured again
    weights = {"unlearned": suppressed.state_dict(), "original": world.original.state_dict()}
    wrong = [one.field for one in check(forged, weights=weights) if one.why]
    assert wrong == ["rows.unlearned.weight_distance.original"]
    hidden = put(forged, ("rows", 1, "weight_distance", "original"), far_without_figures)
    for row in ("status", "reasons"):
        hidden["rows"][1][row] = forged["rows"][1][row]
    unchecked = [one.field for one in check(sealed(hidden), weights=weights) if one.unchecked]
    assert "rows.unlearned.weight_distance.original" in unchecked


def far_without_figures(_: Any) -> dict[str, Any]:
    return {"total": None, "relative": None, "identical": False, "layers": [], "reason": "the models differ in structure"}


# ------------------------------------------------------------------ earlier receipts


def test_a_receipt_of_the_first_version_is_judged_by_its_own_rule(world: World, tmp_path, capsys) -> None:
    from old_rule import OLD_RULE

    written = world.audit(unlearned=world.retrained_again, controls=True).receipt()
    written["verdict"]["rule"] = OLD_RULE
    written["conventions"] = {"accuracy": "as it was called then"}
    found = check(sealed(written), weights={"unlearned": world.retrained_again.state_dict()})
    assert [one.field for one in found if one.why] == []
    assert {"verdict.rule", "conventions"} <= {one.field for one in found if one.unchecked}


def test_the_schema_is_read_as_its_own_reader_reads_it(honest) -> None:
    for name, (written, _) in honest.items():
        assert list(violations(json.loads(json.dumps(written)))) == [], name
