"""The zoo: every construction is made, and the rule's error rates over the stored rows are within what was asked."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastforget._bench import verdict_zoo, zoo_models, zoo_report, zoo_worlds


@pytest.fixture(scope="module")
def stored() -> list[zoo_report.World]:
    return [zoo_report.World(measured) for measured in json.loads(verdict_zoo.RESULTS.read_text())]


@pytest.mark.parametrize("part", ["choose", "report"])
def test_error_rates(stored, part):
    worlds = [w for w in stored if w.part == part]
    assert len(worlds) >= 7
    for given in zoo_report.SUBSETS[1] + zoo_report.SUBSETS[3]:
        dressed = [w.status(row, f, given) for w in worlds for row, f in w.of("dressed")]
        honest = [w.status(row, f, given, use=False) for w in worlds if not w.powerless(given) for row, f in w.of("honest")]
        assert len(dressed) >= 200 and dressed.count("PASS") <= math.floor(len(dressed) * 2 / 130)
        assert len(honest) >= 80 and honest.count("PASS") >= 0.98 * len(honest)


def test_wrappers_never_pass(stored):
    for w in stored:
        for row, f in w.of("dressed"):
            if row["name"].startswith(("wrapper", "hook", "adapter")):
                assert f.structure and all(w.status(row, f, given) != "PASS" for given in zoo_report.SUBSETS[1])


def test_the_page_is_of_the_stored_rows():
    assert verdict_zoo.PAGE.read_text() == zoo_report.page(json.loads(verdict_zoo.RESULTS.read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes: texts, 1", "samples: table MLP"])
def test_a_world_from_end_to_end(name, monkeypatch):
    def quick() -> zoo_worlds.World:
        made = zoo_worlds.WORLDS[name]()
        made.name, made.epochs = name, 2
        return made

    torch.set_num_threads(1)
    w = quick()
    measured = verdict_zoo.measured(w)
    groups = {row["group"] for row in measured["rows"]}
    assert groups >= {"original", "reference", "dressed", "honest", "false reference"}
    assert {row["name"] for row in measured["rows"] if row["group"] == "dressed"} == set(zoo_models.dressed(w))
    for row in measured["rows"]:
        assert row["features_reason"] or row["cka"]["test"] <= 1 + 1e-9
    verdict_zoo.coded(measured)
    again = json.loads(zoo_report.packed([measured]))
    assert zoo_report.text(again).startswith("worlds")
