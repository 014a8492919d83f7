"""The experiment's page says what its rows say: claims, advice and controls on rows made for the purpose, and the cells' sets."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from fastforget._bench.experiment_data import Problem
from torch import nn

from fastforget._bench import experiment, experiment_cells, experiment_claims, experiment_costs, experiment_page, experiment_plot

GOOD = {"forget_accuracy": 0.0, "test_accuracy": 0.95, "attack_auc": 0.51, "attack_tpr": 0.01, "forgetting_rate": 0.95, "seconds": 1.0}
BEFORE = GOOD | {"forget_accuracy": 1.0, "test_accuracy": 0.96, "attack_auc": 0.60, "forgetting_rate": 0.0}
DATA = ("digits", "mnist5k", "fashion-mnist", "mnist", "adult")


def rows_of(changes: dict | None = None, scenario: str = "class", **every) -> list[dict]:
    """Two seeds of every method on five data sets; ``changes``: {method: {key: value}}."""
    rows = []
    for data in DATA:
        for seed in (0, 1):
            for method in ("original", *experiment_cells.CONTROLS, *experiment_cells.METHODS):
                old = method in ("original", "untouched")
                row = dict(BEFORE if old else GOOD, data=data, net="cnn", scenario=scenario, seed=seed, method=method, samples=10)
                row |= {"speedup": 20.0, "steps": 5, "forgot": not old and method != "random", "audit": "FAIL" if old else "PASS"}
                row |= {"audit": "FAIL"} if method == "random" else {}
                rows.append(row | every | (changes or {}).get(method, {}))
    return rows


def held(rows: list[dict], start: str) -> bool | None:
    (claim,) = [c for c in experiment_claims.claims(rows) if c.text.startswith(start)]
    return claim.held


def test_claims_hold_where_they_do():
    rows = rows_of()
    assert held(rows, "Forsaken, whole classes") and held(rows, "Lightweight") and held(rows, "Own bar, one class")
    assert held(rows, "Sweep, one class") and held(rows, "Sweep, random") is None
    assert held(rows_of({m: {"test_accuracy": 0.94} for m in experiment_cells.LABELS}), "Hold by")
    assert held(rows, "Forsaken, random") is None  # not run is neither yes nor no
    assert held(rows, "UNSIR") is False  # one net isn't four


@pytest.mark.parametrize(
    ("claim", "changes"),
    [
        ("Forsaken, whole classes", {"forsaken": {"forgetting_rate": 0.89}}),
        ("Forsaken, whole classes", {"forsaken": {"test_accuracy": 0.90}}),
        ("Lightweight", {"lightweight": {"speedup": 14.9}}),
        ("Lightweight", {"lightweight": {"forget_accuracy": 0.02}}),
        ("Own bar, one class", {m: {"attack_auc": 0.545} for m in experiment_cells.METHODS}),
        ("Own bar, one class", {m: {"attack_tpr": 0.05} for m in experiment_cells.METHODS}),
        ("Sweep, one class", {"sweep": {"forget_accuracy": 0.02}}),
        ("Sweep, one class", {"sweep": {"test_accuracy": 0.939}}),
        ("Sweep, one class", {"sweep": {"attack_auc": 0.535}}),
        ("Sweep, one class", {"sweep": {"speedup": 4.9}}),
        ("Hold by", {"forsaken": {"test_accuracy": 0.94}}),
    ],
)
def test_a_claim_falls_with_its_figure(claim, changes):
    assert not held(rows_of(changes), claim)


def test_one_data_set_that_is_too_slow_is_enough():
    rows = rows_of()
    for r in rows:
        if r["method"] == "lightweight" and r["data"] == "adult":
            r["speedup"] = 5.0
    assert held(rows, "Lightweight") is False
    assert "adult 5.0" in next(c.measured for c in experiment_claims.claims(rows) if c.text.startswith("Lightweight"))


def test_runs_with_nothing_to_do_are_no_evidence():
    rows = rows_of({"lightweight": {"steps": 0}}, scenario="random")
    assert held(rows, "Lightweight") is None
    # where the original looks like the retrained model, nothing can be shown, and no method earns a recommendation
    dull = rows_of({"original": {"attack_auc": 0.52}}, scenario="random")
    assert experiment_claims.choices(dull) == []


def test_advice_follows_its_rule():
    def first(rows):
        return experiment_claims.choices(rows)[0].method

    assert first(rows_of({"unsir": {"speedup": 30.0}})) == "unsir"  # all fit: the fastest
    assert first(rows_of({"unsir": {"speedup": 30.0, "test_accuracy": 0.92}, "forsaken": {"speedup": 25.0}})) == "forsaken"
    assert first(rows_of({"unsir": {"speedup": 30.0, "attack_auc": 0.55}, "lightweight": {"speedup": 25.0}})) == "lightweight"


@pytest.mark.parametrize(
    ("control", "changes"),
    [
        ("untouched", {"untouched": {"forgot": True}}),
        ("random", {"random": {"audit": "PASS"}}),
        ("a second retrained", {"retrained again": {"audit": "PARTIAL"}}),
        ("a retrained", {"retrained": {"forgot": False}}),
    ],
)
def test_a_control_that_goes_wrong_is_said(control, changes):
    assert all(c.held for c in experiment_claims.controls(rows_of()))
    wrong = [c.text for c in experiment_claims.controls(rows_of(changes)) if not c.held]
    assert len(wrong) == 1 and wrong[0].startswith(f"{control} model")


def test_a_verdict_that_can_tell_nothing_is_no_refusal():
    rows = rows_of({"retrained": {"forgot": False, "undecided": True}})
    (control,) = [c for c in experiment_claims.controls(rows) if c.text.startswith("a retrained model")]
    assert control.held and "not shown in 10" in control.measured


def test_data_whose_unseen_samples_are_of_another_time_is_shown_and_does_not_decide():
    rows = rows_of()
    late = [dict(r, data="20newsgroups-by-date") for r in rows if r["data"] == "digits"]
    for r in late:
        if r["method"] in experiment_cells.METHODS:
            r |= {"attack_auc": 0.59, "forgetting_rate": 0.5}
        if r["method"] == "retrained again":
            r |= {"audit": "FAIL"}
    together = experiment_claims.claims([*rows, *late])
    assert together[: len(experiment_claims.claims(rows))] == experiment_claims.claims(rows)
    (own,) = together[len(experiment_claims.claims(rows)) :]
    assert own.held is False and "(20newsgroups-by-date)" in own.text
    assert experiment_claims.choices([*rows, *late]) == experiment_claims.choices(rows)
    assert all(c.held for c in experiment_claims.controls([*rows, *late]))


def test_page_section_and_figures_hold_every_case():
    machine = dict.fromkeys(("torch", "torch_cpu", "python", "system", "fastforget"), "-")
    machine |= {"cpu": "a machine", "cores": 2, "date": "2026-01-02 03:04"}
    results = {"machine": machine, "profile": [], "rows": rows_of(passes=500) + rows_of(scenario="uploads", passes=500)}
    files = experiment_page.files(results)
    assert all(f"| {d} | cnn | class | forsaken |" in files["EXPERIMENT.md"] for d in DATA)
    assert "a machine" in files["EXPERIMENT.md"] and "2026-01-02" in experiment_page.section(results)
    for name in experiment_page.FIGURES:
        assert files[name].startswith("<svg") and files[name].count("<title>") > 2 * len(DATA)
        assert "nan" not in files[name]
    assert experiment_plot.attacks([]).startswith("<svg")


def test_committed_page_is_that_of_the_committed_rows():
    """Page, figures and rows in the repository belong together."""
    results = json.loads(experiment.ROWS.read_text())
    for name, text in experiment_page.files(results).items():
        assert (experiment.FOLDER / name).read_text() == text, f"{name}: run python -m fastforget experiment --commit"
    seeds = {(r["data"], r["net"], r["scenario"], r["method"]): set() for r in results["rows"]}
    for r in results["rows"]:
        seeds[r["data"], r["net"], r["scenario"], r["method"]].add(r["seed"])
    assert all(len(s) >= 3 for s in seeds.values())


def test_what_a_run_cost_stands_in_its_line_and_its_share_in_the_table():
    shares = {"model": 0.6, "ops": 0.05, "data": 0.05, "other": 0.3, "looks": 0.1}
    rows = rows_of({"retrained": {"passes": 20_000}, "sweep": {"passes": 2_000, "shares": shares, "probe": 0.9, "probe_retrained": 0.8}})
    assert "| digits, cnn | sweep | 95.0 | +0.0 | 2 of 2; 0.0 % | 0.510 | +0.000 | 0.900 (0.800) | 2 PASS | 2,000 | 10 % | 20.0 |" in (
        experiment_costs.requests(rows).splitlines()
    )
    (line,) = [line for line in experiment_costs.where(rows).splitlines() if line.startswith("| sweep |")]
    assert line == "| sweep | 10 | 60 % | 5 % | 5 % | **30 %** | 10 % | 10 | 60 % | 5 % | 5 % | **30 %** | 10 % |"
    assert experiment_plot.costs(rows).count("sweep, ") == len(DATA)  # the one method whose passes are known


def test_rows_of_an_earlier_version_still_print():
    """They have no passes, shares or probe."""
    rows = rows_of()
    tables = experiment_costs.requests(rows)
    assert "| digits, cnn | sweep | 95.0 | +0.0 | 2 of 2; 0.0 % | 0.510 | +0.000 | - | 2 PASS | - | - | 20.0 |" in tables
    assert "nan" not in tables + experiment_costs.where(rows) + experiment_plot.costs(rows)


def toy() -> Problem:
    generator = torch.Generator().manual_seed(0)
    train, test = ((torch.randn(n, 1, 4, 4, generator=generator), torch.arange(n) % 5) for n in (240, 120))

    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 5))

    return Problem("digits", "toy", train, test, 5, {"cnn": net}, 2, 3, [1, 4])


@pytest.mark.parametrize("scenario", experiment_cells.SCENARIOS)
def test_sets_of_a_cell_share_no_sample(scenario):
    cell = experiment_cells.make_cell(toy(), scenario, 0)
    names = [{x.numpy().tobytes() for x in part[0]} for part in (cell.forget, cell.retain, cell.unseen)]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert {x.numpy().tobytes() for x in cell.whole[0]} == names[0] | names[1]
    if cell.classes:
        assert not set(cell.retain[1].tolist()) & set(cell.classes) and set(cell.unseen[1].tolist()) <= set(cell.classes)


def test_a_cell_goes_on_where_it_was_cut_off(tmp_path):
    """Rows are kept one by one; what is there isn't made again, and the models come from their files."""
    (tmp_path / "models").mkdir()
    run = experiment_cells.Run(toy(), "cnn", "class", 0, tmp_path, False)
    kept: list[list[dict]] = []
    rows = experiment_cells.rows_of(run, ["original", "random"], [], lambda r: kept.append(list(r)))
    assert [len(k) for k in kept] == [1, 2] and rows[1]["audit"] != "PASS" and not rows[1]["forgot"]
    again = experiment_cells.Run(toy(), "cnn", "class", 0, tmp_path, False)
    assert all(torch.equal(a, b) for a, b in zip(run.retrained.parameters(), again.retrained.parameters(), strict=True))
    assert run.retraining == again.retraining
    marked = [dict(r, mark=1) for r in rows]
    more = experiment_cells.rows_of(again, ["original", "untouched"], marked, lambda r: None)
    assert [r.get("mark") for r in more] == [1, 1, None] and more[2]["method"] == "untouched" and not more[2]["forgot"]


def test_a_row_keeps_what_the_run_cost(tmp_path):
    (tmp_path / "models").mkdir()
    run = experiment_cells.Run(toy(), "cnn", "classes", 0, tmp_path, False)
    row = run.row("lightweight labels")
    assert row["passes"] > 0 and sum(row["shares"][name] for name in experiment_costs.SHARES) == pytest.approx(1, abs=1e-3)
    assert run.row("retrained")["passes"] == 2 * len(run.cell.retain[1])
    assert experiment_cells.Run(toy(), "cnn", "random", 0, tmp_path, False).row("lightweight labels") is None  # the default there


def test_the_command_prints_the_section():
    done = subprocess.run([sys.executable, "-m", "fastforget", "experiment", "--section"], capture_output=True, text=True, check=True)
    assert "## Which method for what\n" in done.stdout and "| claim | held | measured |" in done.stdout


def test_rows_without_models_to_compare_with_are_kept_and_no_page_is_made(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    row = {"data": "digits", "net": "cnn", "scenario": "class", "seed": 0, "method": "sweep", "seconds": 1.0}
    (tmp_path / "cells" / "digits-cnn-class-0.json").write_text(json.dumps([row]))
    before = experiment.ROWS.read_bytes()
    assert experiment.main(["--page", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "no page: digits cnn class without rows of original and retrained" in said.err and said.out == ""
    assert [r["method"] for r in json.loads((tmp_path / "rows.json").read_text())["rows"]] == ["sweep"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "models", "results", "rows.json"]
    assert experiment.main(["--page", "--commit", "--out", str(tmp_path)]) == 2
    assert experiment.ROWS.read_bytes() == before
