"""``verify --model`` as libraries save models: folders, several files with an index, renamed weights, tied weights that were left out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from audit_world import World

from fastforget import _safetensors as safetensors_io
from fastforget.__main__ import main
from fastforget.auditing.proof import hashes
from fastforget.auditing.proof.check import check
from fastforget.auditing.proof.reading import Unreadable, load_weights


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def receipt(world: World, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("receipt") / "receipt.json"
    world.audit(unlearned=world.retrained_again).write_receipt(place)
    return place


def sharded(folder: Path, state: dict, *, suffix: str = "safetensors") -> Path:
    """The state in two files with an index, as save_pretrained writes them."""
    folder.mkdir()
    names = list(state)
    parts = {f"model-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, mine in parts.items():
        part = {name: state[name] for name in mine}
        safetensors_io.save(folder / file, part) if suffix == "safetensors" else torch.save(part, folder / file)
    places = {name: file for file, mine in parts.items() for name in mine}
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_verified_by_folder_and_by_index(world: World, receipt: Path, tmp_path: Path, capsys, suffix: str) -> None:
    folder = sharded(tmp_path / "saved", world.retrained_again.state_dict(), suffix=suffix)
    for place in (folder, next(folder.glob("*.index.json"))):
        assert main(["verify", str(receipt), "--model", str(place)]) == 0
        assert "ok        models.unlearned.state_dict_sha256" in capsys.readouterr().out
    other = sharded(tmp_path / "other", world.original.state_dict(), suffix=suffix)
    assert main(["verify", str(receipt), "--model", str(other)]) == 1
    assert "MISMATCH  models.unlearned.state_dict_sha256: these are other weights" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "checkpoint.pt"])
def test_a_folder_with_one_file_of_weights(world: World, receipt: Path, tmp_path: Path, name: str) -> None:
    state = world.retrained_again.state_dict()
    safetensors_io.save(tmp_path / name, state) if name.endswith("s") else torch.save({"model": state}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert main(["verify", str(receipt), "--model", str(tmp_path)]) == 0


def test_folders_and_indices_that_cant_serve_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    with pytest.raises(Unreadable, match=r"holds no weights; accepted is a folder with model\.safetensors"):
        load_weights(tmp_path)
    torch.save(state, tmp_path / "one.pt")
    torch.save(state, tmp_path / "two.pt")
    with pytest.raises(Unreadable, match="several files of weights.*say which"):
        load_weights(tmp_path)
    folder = sharded(tmp_path / "saved", state)
    index = folder / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    for change, said in (
        ({"c": "model-00001-of-00002.safetensors"}, "'c' is not in model-00001-of-00002.safetensors"),
        ({"a": "../saved/model-00001-of-00002.safetensors"}, "accepted are files of weights beside it"),
        ({"a": "model.safetensors.index.json"}, "accepted are files of weights beside it"),
        ({"a": "model-00002-of-00002.safetensors"}, "'a' is not in|'b' is in|'a' is in"),
        ({"a": "missing.safetensors"}, "no such file"),
    ):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], **change}}))
        with pytest.raises(Unreadable, match=said):
            load_weights(folder)
    for text in ("[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"):
        index.write_text(text)
        with pytest.raises(Unreadable, match="not whole" if text == "{" else "no entry"):
            load_weights(index)


def found(receipt: Path, state: dict) -> tuple[str, str]:
    """The finding on the unlearned model's weights, and why it doesn't hold."""
    findings = check(json.loads(receipt.read_text()), weights={"unlearned": state})
    return next((one.field, one.why) for one in findings if "contents_sha256" in one.field or "state_dict_sha256" in one.field)


def test_renamed_weights_are_the_same_tensors(world: World, receipt: Path) -> None:
    state = world.retrained_again.state_dict()
    field, why = found(receipt, {f"base.{name.replace('weight', 'gamma')}": value for name, value in state.items()})
    assert field == "models.unlearned.contents_sha256 (the same tensors under other names)" and not why
    changed = {f"base.{name}": value.clone() for name, value in state.items()}
    next(iter(changed.values())).view(-1)[0] += 1e-6
    field, why = found(receipt, changed)
    assert field == "models.unlearned.state_dict_sha256" and why


def test_exchanged_tensors_under_the_same_names_are_other_weights() -> None:
    state = {"a.weight": torch.ones(2, 2), "b.weight": torch.zeros(2, 2)}
    stated = {"contents_sha256": hashes.of_contents(state), "names_sha256": hashes.of_names(state)}
    swapped = {"a.weight": state["b.weight"], "b.weight": state["a.weight"]}
    assert not hashes.same_contents(stated, swapped)
    assert not hashes.same_contents(stated, {f"module.{name}": value for name, value in swapped.items()})
    assert hashes.same_contents(stated, {"x": state["b.weight"], "y": state["a.weight"]})


def test_a_tied_weight_that_was_left_out_is_no_other_model() -> None:
    tied = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5)})
    tied["head"].weight = tied["embed"].weight
    stated = hashes.of_model(tied)
    saved = {name: value for name, value in tied.state_dict().items() if name != "head.weight"}
    assert hashes.same_contents(stated, saved)
    assert not hashes.same_contents(stated, {name: value for name, value in saved.items() if name != "head.bias"})
    other = copy.deepcopy(saved)
    other["embed.weight"][0, 0] += 1
    assert not hashes.same_contents(stated, other)


def test_receipts_from_before_say_nothing_of_contents(world: World, receipt: Path) -> None:
    old = json.loads(receipt.read_text())
    for hashed in old["models"].values():
        del hashed["contents_sha256"], hashed["names_sha256"]
    state = world.retrained_again.state_dict()
    assert not hashes.same_contents(old["models"]["unlearned"], {f"x.{name}": value for name, value in state.items()})
    # what else they say is checked as ever: only the hash over the whole file is another now
    assert [one.field for one in check(old, weights={"unlearned": state}) if one.why] == ["sha256"]
