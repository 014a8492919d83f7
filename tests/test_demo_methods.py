"""The methods that stand side by side in the demonstration: which run, on what, and what is shown and written of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastforget.__main__ import main
from fastforget.demo import contest, data, nets, run
from fastforget.demo.train import train

needs_digits = pytest.mark.skipif(data.importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn's file")


@pytest.mark.parametrize(
    ("chosen", "wanted", "others"),
    [
        ("sweep", None, ["unsir", "lightweight"]),
        ("unsir", None, ["sweep", "lightweight"]),
        ("lightweight", None, ["sweep", "unsir"]),
        ("forsaken", None, ["sweep", "unsir"]),
        ("none", None, []),
        ("sweep", [], []),
        ("sweep", ["forsaken", "sweep", "forsaken"], ["forsaken"]),
        ("none", ["sweep"], ["sweep"]),
    ],
)
def test_which_methods_run_beside_the_chosen_one(chosen: str, wanted: list[str] | None, others: list[str]) -> None:
    assert contest.beside(chosen, wanted) == others


def test_every_method_gets_the_same_original_and_sets(monkeypatch) -> None:
    seen: list[tuple[str, Any, dict[str, Any]]] = []
    real = contest.unlearn

    def unlearn(model: torch.nn.Module, method: str, **request: Any) -> Any:
        seen.append((method, model, request))
        return real(model, "none", **request) if method == "unsir" else real(model, method, **request)

    monkeypatch.setattr(contest, "unlearn", unlearn)
    g = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 4
    x = torch.randn(200, 1, 8, 8, generator=g) + y[:, None, None, None]
    net = nets.build("mlp", 1, 8, 4, seed=0)
    train(net, (x, y), epochs=2, seed=0, label="", progress=False)
    sets = {"forget": (x[y == 1], y[y == 1]), "retain": (x[y != 1], y[y != 1]), "nonmember": (x + 0.1, y), "test": (x - 0.1, y)}
    entrants = contest.run(net, "auto", None, classes=[1], **sets, seed=0, progress=False)
    assert [method for method, _, _ in seen] == ["auto", "unsir", "lightweight"]
    assert all(model is net and request.keys() == seen[0][2].keys() for _, model, request in seen)
    assert all(request[name] is sets[name] for _, _, request in seen for name in sets)
    assert [one.model for one in entrants] == ["unlearned", "unsir", "lightweight"]
    assert entrants[0].method == "sweep" and entrants[0].reason and entrants[2].reason is None


@needs_digits
def test_three_methods_stand_side_by_side(tmp_path: Path, capsys) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--data", "digits", "--net", "mlp", "--no-progress", "--out", str(tmp_path), "--json", str(figures)]
    status = main(["demo", *arguments])
    lines = capsys.readouterr().out.splitlines()
    written = json.loads(figures.read_text())
    rows = {row["model"]: row for row in written["rows"]}
    assert list(rows) == ["original", "unlearned", "unsir", "lightweight", "retrained"]
    assert [row["method"] for row in rows.values()] == ["train", "sweep", "unsir", "lightweight", "retrain"]
    assert status == (0 if written["forgot"] else 1)
    assert written["settings"]["method"] == "auto" and any(line == f"auto chose sweep: {written['method_chosen']}" for line in lines)

    # the table: one line a model, with the figures of the file
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["right", "right"])
    table = lines[head + 1 : head + 6]
    for line, row, title in zip(table, rows.values(), ("original", "sweep (auto)", "unsir", "lightweight", "retrained"), strict=True):
        assert line.startswith(title)
        share, kept, auc, probe, seconds, times, passes, verdict = line[len(title) :].replace(" %", "%").split()
        assert share == f"{100 * row['forget_accuracy']:.1f}%" and kept == f"{100 * row['retain_accuracy']:.1f}%"
        assert float(auc) == pytest.approx(row["loss_attack_auc"], abs=6e-4) and float(probe) == pytest.approx(row["probe_auc"], abs=6e-4)
        assert float(seconds) == pytest.approx(row["seconds"], abs=6e-3) and int(passes.replace(",", "")) == row["sample_passes"]
        assert verdict == row["status"] and (times == "-") == (title in ("original", "retrained"))

    # passes: of training, epochs times samples
    training = data.load("digits").train[1]
    assert rows["original"]["sample_passes"] == written["settings"]["epochs"] * len(training)
    assert rows["retrained"]["sample_passes"] == written["settings"]["epochs"] * int((training != 3).sum())
    for name in ("unlearned", "unsir", "lightweight"):
        assert rows[name]["speedup"] == pytest.approx(rows["retrained"]["seconds"] / rows[name]["seconds"])
        assert 0 < rows[name]["sample_passes"] < 3 * rows["retrained"]["sample_passes"]
    assert written["speedup"] == rows["unlearned"]["speedup"] and written["seconds"]["unlearn"] == rows["unlearned"]["seconds"]

    # the receipt and its verdict are about the chosen method's model alone, the page shows all
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert [row["model"] for row in receipt["rows"]] == ["original", "unlearned", "retrained"]
    assert receipt["method"]["method"] == "sweep" and receipt["method"]["cost"]["passes"] == rows["unlearned"]["sample_passes"]
    assert receipt["verdict"]["status"] == written["verdict"] == rows["unlearned"]["status"]
    assert main(["verify", str(tmp_path / "receipt.json"), "--model", str(tmp_path / "unlearned.pt")]) == 0
    assert receipt["sizes"]["test"] == len(run._halves(data.load("digits").test)[1][1])
    page = (tmp_path / "report.html").read_text().replace("\u00a0", " ")
    assert "beside it: lightweight" in page and f"{rows['unsir']['sample_passes']:,}" in page


@needs_digits
def test_beside_alone_runs_the_chosen_method(tmp_path: Path, capsys) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--data", "digits", "--net", "mlp", "--quick", "--no-progress", "--out", str(tmp_path), "--json", str(figures)]
    assert main(["demo", *arguments, "--method", "lightweight", "--beside"]) in (0, 1)
    written = json.loads(figures.read_text())
    assert [row["model"] for row in written["rows"]] == ["original", "unlearned", "retrained"] and written["method_chosen"] is None
    assert "chose" not in capsys.readouterr().out
    assert "The learned noise" not in (tmp_path / "report.html").read_text()
