"""The standard methods' table: its rule on rows made by hand, and its pages on the committed rows."""

from __future__ import annotations

import json

import pytest

from fastforget._bench import experiment, standard


def row(method: str, scenario: str = "class", data: str = "digits", seed: int = 0, **figures: float) -> dict:
    base = {"data": data, "net": "cnn", "scenario": scenario, "method": method, "seed": seed, "samples": 1_000}
    good = {"test_accuracy": 0.95, "worst_accuracy": 0.9, "forget_accuracy": 0.0, "attack_auc": 0.55, "attack_tpr": 0.02, "passes": 1_000}
    return base | good | figures


def rows(scenario: str = "class", **runs: dict) -> list[dict]:
    original = {"forget_accuracy": 1.0, "attack_auc": 0.7}
    found = [
        row("original", scenario, **original),
        row("untouched", scenario, **original, passes=0),
        row("retrained", scenario, passes=10_000),
    ]
    return found + [row(method, scenario, **figures) for method, figures in runs.items()]


def missed(scenario: str = "class", **figures: float) -> list[str]:
    cases = standard.all_cases(rows(scenario, salun=figures))
    return standard.misses(next(c for c in cases if c.method == "salun"))


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, []),
        ({"forget_accuracy": 0.011}, ["known"]),
        ({"forget_accuracy": 0.009}, []),
        ({"attack_auc": 0.581}, ["attack"]),
        ({"attack_auc": 0.519}, ["attack"]),
        ({"attack_auc": 0.579}, []),
        ({"test_accuracy": 0.929}, ["accuracy"]),
        ({"test_accuracy": 0.931}, []),
        ({"test_accuracy": 0.5, "attack_auc": 0.9, "forget_accuracy": 1.0}, ["known", "attack", "accuracy"]),
    ],
)
def test_what_a_method_misses(figures, expected):
    assert missed(**figures) == expected


def test_of_samples_the_answers_may_stay_right():
    assert missed("random10", forget_accuracy=0.9) == []


def test_few_samples_leave_room_for_chance_and_retrained_models_for_their_spread():
    few = rows(salun={"attack_auc": 0.6, "samples": 10})
    assert standard.misses(next(c for c in standard.all_cases(few) if c.method == "salun")) == []
    wide = [*rows(salun={"attack_auc": 0.64}), row("retrained", seed=1, attack_auc=0.65, passes=10_000)]
    assert standard.misses(next(c for c in standard.all_cases(wide) if c.method == "salun")) == []


def test_most_fits_come_first_then_fewest_passes_and_who_serves_another_request_is_left_out():
    found = standard.records(
        rows(salun={"passes": 2_000}, sweep={"passes": 1_000}, finetune={"forget_accuracy": 1.0, "passes": 10})
        + rows("random10", unsir={}, salun={"passes": 5_000})
    )
    assert [(name, fits, sets) for name, fits, sets, *_ in found["class"]] == [("sweep", 1, 1), ("salun", 1, 1), ("finetune", 0, 1)]
    assert found["class"][0][5] == pytest.approx(0.1)
    assert [name for name, *_ in found["random10"]] == ["salun"]


def test_a_request_on_which_the_untouched_original_fits_is_not_counted():
    dull = [r | ({"attack_auc": 0.56} if r["method"] in ("original", "untouched") else {}) for r in rows("random10", salun={})]
    assert standard.records(dull)["random10"] == []


def test_a_run_that_failed_is_said_and_is_no_fit():
    broken = rows(salun={"failed": "FloatingPointError: nan"})
    assert standard.records(broken)["class"] == []
    assert any("| salun |" in line and "1 failed" in line for line in standard.table(broken))


def test_the_plan_has_every_standard_method_and_request():
    for plan in standard.PLAN.values():
        for _, scenarios, methods in plan:
            assert set(standard.STANDARD) <= set(methods)
            assert set(scenarios) <= set(standard.REQUESTS)
    assert experiment.parser().parse_args(["--standard", "--scenario", "random10", "--method", "salun"]).standard


def test_committed_rows_that_no_cell_has_are_kept_and_their_machine_is_named(tmp_path):
    (tmp_path / "cells").mkdir()
    here, old = row("salun", seed=1), [row("salun", seed=0), row("ssd", seed=0), row("ssd", seed=1)]
    (tmp_path / "cells" / "digits-cnn-class-1.json").write_text(json.dumps([here]))
    (tmp_path / "old.json").write_text(json.dumps({"machine": {"cpu": "Another"}, "rows": old}))
    results = experiment._collected(tmp_path, standard.EVERY, tmp_path / "old.json")
    found = [(r["method"], r["seed"], r.get("cpu")) for r in results["rows"]]
    assert found == [("salun", 0, "Another"), ("salun", 1, None), ("ssd", 0, "Another"), ("ssd", 1, "Another")]
    assert "- 3 of the rows on Another: salun, ssd on digits" in standard.facts(results)
    alone = experiment._collected(tmp_path, standard.EVERY, None)["rows"]
    assert [(r["method"], r["seed"]) for r in alone] == [("salun", 1)]
