"""The receipt: what it holds, what its hashes tell apart, and that any change to it is found."""

from __future__ import annotations

import copy
import html.parser
import json
import math
import random

import pytest
import torch
from audit_world import FORGOTTEN, World
from digits_world import quiet
from old_rule import OLD_RULE
from torch import nn

import fastforget as ff
from fastforget import _files as files
from fastforget._data import source
from fastforget._weights import fingerprint
from fastforget.auditing.proof import hashes
from fastforget.auditing.proof.receipt import own_hash
from fastforget.auditing.proof.verify import check, load_receipt


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def report(world: World):
    return world.audit(unlearned=world.retrained_again, controls=True)


@pytest.fixture(scope="module")
def receipt(report) -> dict:
    return report.receipt(ids=range(100), facts={"data": "blobs"})


def state(model: nn.Module) -> dict:
    return {"unlearned": model.state_dict()}


def resealed(receipt: dict) -> dict:
    """With the self-hash that a forger would compute."""
    return {**receipt, "sha256": own_hash(receipt)}


def wrong(receipt: dict, world: World, **more) -> list[str]:
    return [one.field for one in check(receipt, weights=state(world.retrained_again), **more) if one.why]


# ------------------------------------------------------------------ what it holds


def test_it_holds_what_was_done_and_measured(world: World, report, receipt: dict) -> None:
    assert receipt["verdict"] == {"status": "PASS", "reasons": report.reasons, "rule": report.settings["rule"]}
    assert receipt["models"]["original"]["weights_sha256"] == fingerprint(world.original)
    assert set(receipt["models"]) == {row["model"] for row in receipt["rows"] + receipt["control_rows"]}
    assert receipt["sizes"] == {"forget": 100, "retain": 300, "test": 400} and receipt["forgotten_classes"] == [FORGOTTEN]
    assert receipt["versions"]["torch"] == torch.__version__ and receipt["machine"]["cpu"] and receipt["seeds"]["audit"] == 0
    assert [row["accuracy"]["forget"] for row in receipt["rows"]] == [row["accuracy"]["forget"] for row in report.rows]
    assert receipt["controls"] == report.controls and receipt["facts"] == {"data": "blobs"}
    text = json.dumps(receipt).lower()
    assert "evidence" in receipt["called"] and "epsilon" not in text and "certif" not in text and "delta)" not in text


def test_it_holds_the_unlearning_and_only_of_the_models_audited(world: World) -> None:
    result = quiet(world.original, "none", classes=[FORGOTTEN], retain=world.retain, seed=5, progress=False)
    receipt = world.audit(unlearned=result.model).receipt(result)
    assert receipt["method"]["method"] == "none" and receipt["seeds"]["unlearn"] == 5
    assert receipt["method"]["weights_sha256"]["after"] == receipt["models"]["unlearned"]["weights_sha256"]
    assert not [one for one in check(receipt, weights=state(result.model)) if one.why]
    other = world.audit(unlearned=world.retrained_again)
    assert other.receipt(result)["method"]["method"] == "none"  # what "none" returns is the original, and that is there
    moved = quiet(world.retrained, "none", classes=[FORGOTTEN], retain=world.retain, progress=False)
    with pytest.raises(ValueError, match="result: its weights before unlearning .* are not those of the model 'original'"):
        other.receipt(moved)


def test_same_audit_same_receipt_but_for_the_time(world: World, receipt: dict) -> None:
    again = world.audit(unlearned=world.retrained_again, controls=True).receipt(ids=range(100), facts={"data": "blobs"})
    for one in (again, receipt := copy.deepcopy(receipt)):
        del one["created"], one["sha256"], one["settings"]["seconds"]
    assert again == receipt


def test_ids_are_one_a_sample_in_any_order(report, receipt: dict) -> None:
    assert report.receipt(ids=[99 - i for i in range(100)])["forget_set"]["ids"] == receipt["forget_set"]["ids"]
    with pytest.raises(ValueError, match="ids: got 3, but the forget set has 100 samples"):
        report.receipt(ids=[1, 2, 3])
    with pytest.raises(TypeError, match="ids: got a str"):
        report.receipt(ids="x" * 100)
    with pytest.raises(ValueError, match="line feed"):
        report.receipt(ids=["a\nb"] * 100)


# ------------------------------------------------------------------ the hashes


def test_a_set_hash_is_of_its_samples_not_of_their_order() -> None:
    x, y = torch.randn(20, 3, 2), torch.arange(20) % 4

    def digest(x, y, **options) -> str:
        return hashes.of_samples(source((x, y), name="s", **options))

    order = torch.randperm(20)
    whole = digest(x, y)
    assert whole == digest(x[order], y[order]) == digest(x, y, batch_size=7)
    dataset = torch.utils.data.TensorDataset(x, y)
    assert whole == hashes.of_samples(source(torch.utils.data.DataLoader(dataset, batch_size=3, shuffle=True), name="s"))
    nudged = x.clone()
    nudged[4, 1, 1] += 1e-6
    for other in (digest(nudged, y), digest(x, y.roll(1)), digest(x[1:], y[1:]), digest(x.double(), y), digest(x.reshape(20, 6), y)):
        assert other != whole


def test_inputs_of_several_parts_are_hashed() -> None:
    x, y = torch.randn(6, 2), torch.arange(6) % 2

    def digest(scale: float, word: str) -> str:
        data = [({"a": x[i], "b": scale * x[i]}, word, int(y[i])) for i in range(6)]
        unpack = lambda batch: ((batch[0], {"a": batch[0]["b"]}), batch[2])  # noqa: E731
        return hashes.of_samples(source(data, name="s", unpack=unpack))

    assert digest(1.0, "w") == digest(1.0, "w") != digest(2.0, "w")
    words = [hashes.of_samples(source([(w, 0)] * 2, name="s")) for w in ("one", "two")]
    assert words[0] != words[1]


def test_a_model_hash_tells_a_buffer_and_a_name() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    base, moved = net(), net()
    assert hashes.of_model(base) == hashes.of_model(moved)
    moved[1].running_mean[0] += 1e-6
    first, second = hashes.of_model(base), hashes.of_model(moved)
    assert first["weights_sha256"] != second["weights_sha256"] and first["state_dict_sha256"] != second["state_dict_sha256"]
    renamed = {f"x.{k}": v for k, v in base.state_dict().items()}
    assert hashes.of_state(renamed) != first["state_dict_sha256"]


def test_what_can_not_be_hashed_is_audited_but_gets_no_receipt(world: World) -> None:
    sparse = copy.deepcopy(world.original)
    sparse.register_buffer("table", torch.eye(3).to_sparse())
    report = world.audit(unlearned=sparse)
    assert report.settings["models"]["unlearned"]["weights_sha256"] is None and report.settings["models"]["original"]["weights_sha256"]
    with pytest.raises(ValueError, match="unlearned: can't be hashed: .*A receipt needs hashes"):
        report.receipt()
    x, y = torch.eye(4).to_sparse(), torch.arange(4)
    pairs = [(x[i], int(y[i])) for i in range(4)]
    hashed = hashes.of_set(
        source(torch.utils.data.DataLoader(pairs, collate_fn=lambda b: (torch.stack([p[0] for p in b]), y[:1])), name="s"), 0
    )
    assert hashed["samples_sha256"] is None and "can't be hashed" in hashed["reason"]


# ------------------------------------------------------------------ tampering


def test_a_whole_receipt_holds(world: World, receipt: dict) -> None:
    fields = [
        one.field for one in check(receipt, weights=state(world.retrained_again), forget=world.forget, ids=[str(i) for i in range(100)])
    ]
    assert wrong(receipt, world, forget=world.forget) == []
    assert {"sha256", "models.unlearned.state_dict_sha256", "forget_set.samples_sha256", "forget_set.ids.sha256"} <= set(fields)
    assert {"verdict.status", "controls", "rows.unlearned.status", "rows.suppressed.status"} <= set(fields)


def leaves(value, path=()) -> list[tuple]:
    if isinstance(value, dict):
        return [leaf for key, v in value.items() for leaf in leaves(v, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, v in enumerate(value) for leaf in leaves(v, (*path, i))]
    return [path]


def changed(receipt: dict, path: tuple) -> dict:
    """One value changed as little as possible: a digit, a letter, a truth value."""
    receipt = copy.deepcopy(receipt)
    place = receipt
    for key in path[:-1]:
        place = place[key]
    old = place[path[-1]]
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, (int, float)):
        new = math.nextafter(old, math.inf) if isinstance(old, float) else old + 1
    else:
        new = "x" if old is None or old == "" else old[:-1] + ("0" if old[-1] != "0" else "1")
    place[path[-1]] = new
    return receipt


def test_any_change_of_any_value_is_found(world: World, receipt: dict) -> None:
    paths = leaves(receipt)
    assert len(paths) > 500
    for path in random.Random(0).sample(paths, 60):
        if path != ("format",):
            assert wrong(changed(receipt, path), world), path


def test_a_dropped_row_and_a_dropped_entry_are_found(world: World, receipt: dict) -> None:
    for entry in ("rows", "control_rows"):
        short = copy.deepcopy(receipt)
        del short[entry][1]
        assert "sha256" in wrong(short, world) and "models" in wrong(resealed(short), world)
    for entry in ("rows", "models", "sha256", "controls"):
        short = {key: value for key, value in receipt.items() if key != entry}
        assert wrong(short, world) == [entry]
    assert wrong(resealed({**receipt, "rows": "none"}), world) == ["receipt"]


def test_a_forger_who_reseals_still_needs_the_weights_and_the_figures(world: World, receipt: dict) -> None:
    swapped = copy.deepcopy(receipt)
    models = swapped["models"]
    models["unlearned"], models["original"] = models["original"], models["unlearned"]
    assert wrong(resealed(swapped), world) == ["models.unlearned.state_dict_sha256", "models.untouched"]
    better = copy.deepcopy(receipt)
    better["control_rows"][3]["status"] = "PASS"
    assert wrong(resealed(better), world) == ["rows.suppressed.status"]
    worse = copy.deepcopy(receipt)
    worse["rows"][1]["accuracy"]["test_forget"] = 0.5
    followed = {"rows.unlearned.status", "rows.unlearned.reasons", "verdict.status", "verdict.reasons"}
    assert set(wrong(resealed(worse), world)) == {*followed, "rows.unlearned.figures"}
    failing = world.audit(unlearned=world.original, controls=True).receipt()
    failing["verdict"]["status"] = "PASS"
    fields = [one.field for one in check(resealed(failing), weights=state(world.original)) if one.why]
    assert fields == ["verdict.status"]
    behaved = copy.deepcopy(receipt)
    behaved["controls"]["suppressed"]["behaved"] = False
    assert wrong(resealed(behaved), world) == ["controls"]


def test_another_rule_can_not_be_judged_here(world: World, receipt: dict) -> None:
    other = copy.deepcopy(receipt)
    other["verdict"]["rule"] = "all pass"
    assert wrong(resealed(other), world) == ["verdict.rule"]


def test_the_words_of_an_earlier_version_can_where_the_checks_are_the_same(world: World, receipt: dict) -> None:
    old = copy.deepcopy(receipt)
    old["verdict"]["rule"] = OLD_RULE
    assert wrong(resealed(old), world) == []
    old["rows"][1]["accuracy"]["test_forget"] = 0.5
    assert wrong(old, world)[0] == "sha256" and "rows.unlearned.status" in wrong(resealed(old), world)


def test_an_entry_of_another_kind_is_named(world: World, receipt: dict) -> None:
    odd = copy.deepcopy(receipt)
    odd["rows"][1]["attacks"]["forget_vs_test"]["loss"]["auc"] = "high"
    (finding,) = check(resealed(odd), weights=state(world.retrained_again))
    assert finding.field == "receipt" and "rows[1].attacks.forget_vs_test.loss.auc: got 'high'" in finding.why


def test_other_weights_samples_and_ids_are_refused(world: World, receipt: dict) -> None:
    (finding,) = [one for one in check(receipt, weights={"unlearned": world.retrained.state_dict()}) if one.why]
    assert finding.field == "models.unlearned.state_dict_sha256" and "other weights" in finding.why
    assert wrong(receipt, world, forget=world.retain) == ["forget_set.samples_sha256"]
    assert wrong(receipt, world, ids=["1"]) == ["forget_set.ids.sha256"]
    assert [one.field for one in check(receipt, weights={"nobody": {}}) if one.why] == ["models.nobody.state_dict_sha256"]


# ------------------------------------------------------------------ the files


def test_undefined_figures_stay_strict_json(world: World, tmp_path) -> None:
    x, y = world.test
    keep = y == FORGOTTEN  # no test sample of a kept class: several figures are NaN
    report = world.audit(unlearned=world.retrained_again, test=(x[keep], y[keep]), controls=True)
    assert math.isnan(report.row("unlearned")["accuracy"]["test_retain"])
    report.write_receipt(tmp_path / "r.json")
    read = load_receipt(tmp_path / "r.json")  # refuses NaN and Infinity
    assert read["rows"][1]["accuracy"]["test_retain"] is None and read["verdict"]["status"] == "PARTIAL"
    assert not [one for one in check(read, weights=state(world.retrained_again)) if one.why]
    assert "-" in (tmp_path / "r.html").read_text()
    lone = ff.audit({"unlearned": world.original}, forget=world.forget, retain=world.retain, test=world.test).receipt()
    assert lone["verdict"]["status"] == "NO REFERENCE"
    assert not [one for one in check(lone, weights=state(world.original)) if one.why]


def test_files_are_written_whole_or_not_at_all(report, tmp_path, monkeypatch) -> None:
    target = tmp_path / "r.json"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            report.write_receipt(target)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"] and target.read_text() == "old"
    with pytest.raises(ValueError, match=r"path: got .*r\.html"):
        report.write_receipt(tmp_path / "r.html")
    written = report.write_receipt(target)
    assert load_receipt(target) == written and sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


HOSTILE = '<script>alert("x")</script>&\'"<img src=http://evil.example/x>'


class Reader(html.parser.HTMLParser):
    """The tags of a page, how often each; fails where one is not closed, and where an attribute names another resource."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            assert not name.startswith("on") and (name not in ("href", "src") or value.startswith("data:"))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_the_hashes_and_how_to_verify(receipt: dict, report, tmp_path) -> None:
    written = report.write_receipt(tmp_path / "evidence.json")
    page = (tmp_path / "evidence.html").read_text()
    read = Reader(page)
    assert "script" not in read.tags and read.tags["table"] == 1
    for text in (written["sha256"], written["forget_set"]["samples_sha256"], *(m["weights_sha256"] for m in written["models"].values())):
        assert text in page
    assert "python -m fastforget verify evidence.json --model WEIGHTS.pt" in page and "control: suppressed" in page


def test_hostile_names_are_text(world: World, tmp_path) -> None:
    models = {"original": world.original, HOSTILE: world.retrained_again, "retrained": world.retrained}
    report = ff.audit(models, forget=world.forget, retain=world.retain, test=world.test)
    report.write_receipt(tmp_path / "r.json", facts={HOSTILE: {HOSTILE: [HOSTILE]}})
    page = (tmp_path / "r.html").read_text()
    read = Reader(page)
    assert not {"script", "img"} & set(read.tags) and "&lt;script&gt;" in page
