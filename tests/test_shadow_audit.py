"""The end-to-end audit with shadow models, small: every model has a row of every attack, and a run that was cut off goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fastforget._bench import shadow_audit
from fastforget.demo import data

METHODS = ["unsir samples", "lightweight", "salun"]
MODELS = ["original", *METHODS, "retrained"]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("audit")
    args = ["--data", "digits", "--n", "4", "--forget", "24", "--epochs", "4"]
    args += ["--method", *METHODS, "--shadow-method", "lightweight", "unsir samples"]
    files = ["--state", str(place / "state"), "--out", str(place / "found.json"), "--page", str(place / "page.html")]
    assert shadow_audit.main([*args, *files]) == 0
    return {"place": place, "arguments": [*args, *files], **json.loads((place / "found.json").read_text())}


def test_every_model_has_figures_with_intervals_of_every_attack(found) -> None:
    assert [row["model"] for row in found["rows"]] == MODELS and found["settings"]["attacks"] == list(shadow_audit.ATTACKS)
    for row in found["rows"]:
        for attack in shadow_audit.ATTACKS:
            figures = row["attacks"]["forget_vs_test"][attack]
            low, high = figures["auc_interval"]
            assert 0 < low <= figures["auc"] <= high < 1 and figures["members"] > 0, (row["model"], attack)
    assert found["u_lira_matched"].keys() == {"unsir samples"}
    assert found["controls"]["untouched"]["behaved"] and found["controls"]["random"]["behaved"]
    assert "Audit with shadow models" in (found["place"] / "page.html").read_text()


def test_shadow_models_unlearn_only_by_what_is_attacked(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        shadow_audit.main(["--method", "salun", "--shadow-method", "sweep", "--out", str(tmp_path / "found.json")])
    assert "--shadow-method: sweep isn't among --method" in capsys.readouterr().err


def test_markdown_shows_what_was_found(found, capsys) -> None:
    assert shadow_audit.main(["--out", str(found["place"] / "found.json"), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : 2 + len(MODELS)]] == MODELS
    titles = [cell.strip() for cell in lines[0].split("|")]
    cells = {row["model"]: [cell.strip() for cell in line.split("|")] for row, line in zip(found["rows"], lines[2:], strict=False)}
    lira = found["rows"][0]["attacks"]["forget_vs_test"]["lira"]
    low, high = lira["auc_interval"]
    assert cells["original"][titles.index("LiRA AUC")] == f"{lira['auc']:.3f} [{low:.3f}, {high:.3f}]"
    # a method that shadow models unlearned by is attacked with those
    own = found["u_lira_matched"]["unsir samples"]["unsir samples"]["balanced_accuracy_at_half"]
    assert cells["unsir samples"][titles.index("U-LiRA balanced accuracy")].startswith(f"{own:.3f} [")


def test_a_second_run_trains_no_shadow_model_again_and_finds_the_same(found, monkeypatch, capsys) -> None:
    monkeypatch.setattr("fastforget.auditing.shadow.training.train_one", None)
    place = found["place"] / "again.json"
    assert shadow_audit.main([*found["arguments"], "--out", str(place)]) == 0
    again = json.loads(place.read_text())
    assert again["rows"] == found["rows"] and again["shadow_models_untimed"] == 0
    for method in ("lightweight", "unsir samples"):
        step = f"shadow models, {method}"
        assert again["spent"][step] == found["spent"][step]
    (found["place"] / "state" / "lightweight" / shadow_audit.SPENT).unlink()
    assert shadow_audit.main([*found["arguments"], "--out", str(place)]) == 0
    assert json.loads(place.read_text())["shadow_models_untimed"] == 4
    assert shadow_audit.main(["--out", str(place), "--markdown"]) == 0
    assert "without the time of 4 models of a run that was cut off" in capsys.readouterr().out


def test_no_sample_is_both_trained_on_and_unseen() -> None:
    images = data.load("digits")
    r = shadow_audit.request(images, 24, 0)
    half = len(images.train[1]) // 2
    assert len(r.forget[1]) == 24 and len(r.members) == half and torch.equal(torch.cat((r.forget_at, r.retain_at)), r.members)
    inside = torch.zeros(len(images.train[1]), dtype=torch.bool).index_fill_(0, r.members, True)
    assert torch.equal(r.test[0], images.train[0][r.candidates.new_tensor(_unseen_order(images, 0, half))])
    assert inside[r.candidates].sum() == 24 and len(r.candidates.unique()) == 4 * 24
    assert len(r.population[1]) + len(r.nonmember[1]) == len(images.test[1])
    with pytest.raises(ValueError, match=f"forget: got {half}; accepted is 1 to {half // 3}"):
        shadow_audit.request(images, half, 0)


def _unseen_order(images: data.Images, seed: int, half: int) -> list[int]:
    return torch.randperm(len(images.train[1]), generator=torch.Generator().manual_seed(seed))[half:].tolist()
