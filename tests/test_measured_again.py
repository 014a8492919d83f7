"""verify with sets, weights and a way to build the model: figures measured again, and weights found wherever a checkpoint holds them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_world import FORGOTTEN, World
from torch import nn

from fastforget.__main__ import main
from fastforget.auditing.proof.receipt import own_hash


@pytest.fixture(scope="module")
def world() -> World:
    return World()


BUILD = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4))

def wide():
    return nn.Sequential(nn.Linear(6, 65), nn.ReLU(), nn.Linear(65, 4))

def fails():
    raise KeyError("no such thing")

def nothing():
    return 3

number = 5
"""


@pytest.fixture(scope="module")
def files(world: World, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("again")
    suppressed = copy.deepcopy(world.original)  # forgot nothing: its last bias keeps it from the class
    with torch.no_grad():
        suppressed[2].bias[FORGOTTEN] -= 20
    (place / "nets.py").write_text(BUILD)
    for name, model in (
        ("again", world.retrained_again),
        ("cheat", suppressed),
        ("original", world.original),
        ("retrained", world.retrained),
    ):
        torch.save(nn.DataParallel(model).state_dict() if name == "again" else model.state_dict(), place / f"{name}.pt")
    for name in ("forget", "retain", "test"):
        x, y = getattr(world, name)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
        np.savez_compressed(place / f"{name}.npz", inputs=x[order].numpy(), labels=y[order].numpy())
    np.savez(place / "short.npz", inputs=world.test[0][:-1].numpy(), labels=world.test[1][:-1].numpy())
    good = world.audit(unlearned=world.retrained_again, controls=True)
    good.write_receipt(place / "good.json")
    bad = world.audit(unlearned=suppressed, controls=True).receipt()
    forged = {**good.receipt(), "models": bad["models"]}
    (place / "forged.json").write_text(json.dumps({**forged, "sha256": own_hash(forged)}))
    return place


def verify(place: Path, receipt: str, model: str, *more: str, build: str = "make", **sets: str) -> int:
    named = {"forget": "forget.npz", "retain": "retain.npz", "test": "test.npz"} | sets
    words = [word for name, file in named.items() for word in (f"--{name}", str(place / file))]
    return main(["verify", str(place / receipt), "--model", str(place / model), "--build", f"{place / 'nets.py'}:{build}", *words, *more])


def test_figures_are_measured_again(files: Path, capsys) -> None:
    assert verify(files, "good.json", "again.pt") == 0
    printed = capsys.readouterr().out
    assert "ok        rows.unlearned.figures, measured again" in printed and "figures of unlearned measured again" in printed
    assert "not measured again, for want of models or data: " in printed
    more = ["--original", str(files / "original.pt"), "--retrained", str(files / "retrained.pt")]
    assert verify(files, "good.json", "again.pt", *more) == 0
    printed = capsys.readouterr().out
    assert "figures of unlearned, original, retrained measured again" in printed and "not measured again" not in printed


def test_figures_of_another_model_are_found(files: Path, capsys) -> None:
    assert verify(files, "forged.json", "cheat.pt") == 1
    printed = capsys.readouterr().out
    assert "MISMATCH  rows.unlearned.figures, measured again: " in printed and "measured again it is" in printed


def test_other_sets_are_found(files: Path, capsys) -> None:
    assert verify(files, "good.json", "again.pt", test="short.npz") == 1
    assert "MISMATCH  sizes: the sets given have" in capsys.readouterr().out
    assert verify(files, "good.json", "again.pt", test="retain.npz") == 1
    assert verify(files, "good.json", "again.pt", forget="test.npz") == 1
    assert "forget_set.samples_sha256: these are other samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("wide", "the weights of unlearned don't fit the model it makes"),
        ("fails", "--build: it failed (KeyError"),
        ("nothing", "--build: it returned a int; accepted is a torch.nn.Module"),
        ("number", "is a int; accepted is a function that returns the model"),
        ("absent", "can't be imported (AttributeError"),
    ],
)
def test_a_model_that_can_not_be_built(files: Path, capsys, build: str, message: str) -> None:
    assert verify(files, "good.json", "again.pt", build=build) == 2
    assert message in capsys.readouterr().err


def test_building_takes_the_sets(files: Path, capsys) -> None:
    plain = ["verify", str(files / "good.json"), "--model", str(files / "again.pt"), "--build"]
    assert main([*plain, "nets:make"]) == 2
    assert "--build: to measure again takes --forget, --retain, --test too" in capsys.readouterr().err
    sets = [word for name in ("forget", "retain", "test") for word in (f"--{name}", str(files / f"{name}.npz"))]
    for build in ("nets", "no_such_module_here:make", ":make", f"{files}/no.py:make"):
        assert main([*plain, build, *sets]) == 2
        assert "--build: " in capsys.readouterr().err


# ------------------------------------------------------------------ checkpoints


def test_weights_are_found_in_a_checkpoint(world: World, tmp_path, capsys) -> None:
    state = world.retrained_again.state_dict()
    world.audit(unlearned=world.retrained_again).write_receipt(tmp_path / "r.json")
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    fine: dict[str, Any] = {
        "plain": state,
        "net and acc": {"net": state, "acc": 95.1},
        "model and epoch": {"model": state, "epoch": torch.tensor(3)},
        "optimiser": {"model_state_dict": state, "optimizer_state_dict": moments, "loss": torch.tensor(0.1)},
        "deep": {"checkpoint": {"student": state}, "args": {"lr": 0.1}},
        "with averages": {"state_dict": state, "ema": world.original.state_dict(), "epoch": 3},
        "module": {f"module.{name}": value for name, value in state.items()},
        "compiled": {"net": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        "per sample": {f"_module.{name}": value for name, value in state.items()},
        "with numbers": {**state, "epoch": 3, "note": "best"},
    }
    for name, saved in fine.items():
        torch.save(saved, tmp_path / "w.pt")
        assert main(["verify", str(tmp_path / "r.json"), "--model", str(tmp_path / "w.pt")]) == 0, name
    capsys.readouterr()
    torch.save({"teacher": world.original.state_dict(), "student": state}, tmp_path / "w.pt")
    arguments = ["verify", str(tmp_path / "r.json"), "--model", str(tmp_path / "w.pt")]
    assert main(arguments) == 2
    assert "holds several weights; say whose they are by --key, one of teacher, student" in capsys.readouterr().err
    assert main([*arguments, "--key", "student"]) == 0 and main([*arguments, "--key", "teacher"]) == 1
    assert main([*arguments, "--key", "nobody"]) == 2
    assert "--key 'nobody' names no weights; accepted are teacher, student" in capsys.readouterr().err
    torch.save({"acc": 95.1, "history": [1, 2]}, tmp_path / "w.pt")
    assert main(arguments) == 2 and "without tensors" in capsys.readouterr().err
