"""An audit says how much of the forget set its other sets hold, and is refused where that is more than twins explain."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from audit_world import FORGOTTEN, World

from fastforget import _overlap
from fastforget._data import source
from fastforget.auditing.proof.again import Again
from fastforget.auditing.proof.verify import check


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def joined(*pairs):
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


@pytest.mark.parametrize("classwise", [True, False])
@pytest.mark.parametrize("name", ["retain", "test"])
def test_samples_of_two_sets_are_refused(world, name, classwise):
    """Members among the unseen samples bring every attack's AUC nearer to a half: that must not pass for forgetting."""
    rows = slice(0, 12)
    forget = tuple(t[rows] for t in (world.forget if classwise else world.retain))
    retain = world.retain if classwise else tuple(t[12:] for t in world.retain)
    sets = {"forget": forget, "retain": retain, "test": world.test}
    sets[name] = joined(sets[name], tuple(t[:5] for t in forget))
    with pytest.raises(ValueError, match=rf"5 of its 12 samples are in {name} too \(same contents, 0.8 accepted\)"):
        world.audit(**sets)
    report = world.audit(**sets, check_overlap=False)
    assert report.settings["overlap"] == {"how": "not checked: check_overlap=False"}
    assert "forget samples in other sets: not checked: check_overlap=False." in " ".join(str(report).split())


def test_counts_stand_in_report_and_receipt_and_are_verified(world, tmp_path):
    none = {"how": "contents", "shared": 0, "allowed": pytest.approx(1 + 2 * 1)}
    report = world.audit()
    assert report.settings["overlap"] == {"retain": none, "test": none}
    assert "forget samples in" not in str(report)
    twins = joined(world.test, world.test, tuple(t[:2] for t in world.forget))  # a test set of twins
    report = world.audit(test=twins)
    found = report.settings["overlap"]["test"]
    assert found == {"how": "contents", "shared": 2, "allowed": pytest.approx(200.5 + 2 * 200.5**0.5, rel=1e-4)}
    assert "forget samples in the test set too: 2 (same contents, 228.8 accepted)." in " ".join(str(report).split())
    receipt = json.loads(json.dumps(report.write_receipt(tmp_path / "receipt.json")))
    assert not any("overlap" in one.field and one.why for one in check(receipt, weights={}))
    for change, said in (
        (lambda overlap: overlap["test"].update(shared=101), "101 are shared, and such an audit is refused"),
        (lambda overlap: overlap.pop("test"), "it is not of the retain and the test set"),
    ):
        invented = copy.deepcopy(receipt)
        change(invented["settings"]["overlap"])
        assert any(said in one.why for one in check(invented, weights={})), said


def test_a_few_twins_more_than_the_rule_expects_are_chance():
    """Texts of news: 3 of 274 samples to forget had a twin among 1,000 others, in which no two were alike."""
    x = torch.randn(1274, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(1274, dtype=torch.long)
    other = source((x[274:], y[274:]), name="test")
    for shared, fits in ((3, True), (6, True), (7, False), (27, False)):
        mine = x[:274].clone()
        mine[:shared] = x[300 : 300 + shared]
        found = _overlap.compare(source((mine, y[:274]), name="forget"), other)
        assert found.count == shared and (found.count <= found.allowed) is fits


def test_they_are_counted_again_from_the_sets(world, tmp_path):
    receipt = json.loads(json.dumps(world.audit().write_receipt(tmp_path / "receipt.json")))
    sets = {"forget": world.forget, "retain": world.retain, "test": world.test}
    build, states = lambda: copy.deepcopy(world.original), {"original": world.original.state_dict()}
    findings = [one for one in Again(sets, build).findings(receipt, states) if "overlap" in one.field]
    assert [(one.field, one.why) for one in findings] == [(f"settings.overlap.{name}, counted again", "") for name in ("retain", "test")]
    # the same sizes, and half of the forget set among what is called unseen
    mixed = world.test[0].clone(), world.test[1].clone()
    mixed[0][mixed[1] == FORGOTTEN] = world.forget[0]
    findings = [one for one in Again(sets | {"test": mixed}, build).findings(receipt, states) if one.why and "overlap" in one.field]
    assert [one.field for one in findings] == ["settings.overlap.test, counted again"]


def test_receipts_that_did_not_look_are_read_as_before(world, tmp_path):
    receipt = json.loads(json.dumps(world.audit().write_receipt(tmp_path / "receipt.json")))
    del receipt["settings"]["overlap"]
    assert not any("overlap" in one.field for one in check(receipt, weights={}))


def test_the_forget_set_is_read_once_however_many_sets_it_is_compared_with():
    class Counted(torch.utils.data.Dataset):
        def __init__(self, first):
            self.first, self.read = first, 0

        def __len__(self):
            return 20

        def __getitem__(self, i):
            self.read += 1
            return torch.tensor([float(self.first + i)]), i % 2

    given = {name: Counted(100 * i) for i, name in enumerate(("forget", "retain", "nonmember", "test"))}
    sets = {name: source(data, name=name) for name, data in given.items()}
    before = {name: data.read for name, data in given.items()}
    found = _overlap.check(sets["forget"], [sets["retain"], sets["nonmember"], sets["test"]])
    assert {name: one["shared"] for name, one in found.items()} == {"retain": 0, "nonmember": 0, "test": 0}
    assert {name: data.read - before[name] for name, data in given.items()} == dict.fromkeys(given, 20)
