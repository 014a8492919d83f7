"""``python -m fastforget verify``: exit status, and what it says of each file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audit_world import World

from fastforget import _safetensors as safetensors_io
from fastforget.__main__ import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A receipt with all the files it can be checked against."""
    world, place = World(), tmp_path_factory.mktemp("receipt")
    report = world.audit(unlearned=world.retrained_again)
    report.write_receipt(place / "receipt.json", ids=range(100))
    torch.save(world.retrained_again.state_dict(), place / "unlearned.pt")
    torch.save({"state_dict": world.retrained_again.state_dict(), "epoch": 3}, place / "nested.pth")
    torch.save(world.original.state_dict(), place / "original.pt")
    torch.save(world.original, place / "whole_model.pt")
    torch.save(world.retrained.state_dict(), place / "retrained.pt")
    torch.save([1, 2], place / "list.pt")
    x, y = world.forget
    np.savez(place / "forget.npz", inputs=x.numpy(), labels=y.numpy())
    np.savez(place / "other.npz", x=x.numpy() + 1, y=y.numpy())
    np.savez(place / "strange.npz", a=x.numpy())
    (place / "ids.txt").write_text("".join(f"{i}\n" for i in reversed(range(100))))
    return place


def run(place: Path, *arguments: str, receipt: str = "receipt.json", model: str = "unlearned.pt") -> int:
    words = [str(place / word) if (place / word).exists() or "." in word else word for word in arguments]
    return main(["verify", str(place / receipt), "--model", str(place / model), *words])


def test_what_fits_is_verified(place: Path, capsys) -> None:
    assert run(place) == 0
    printed = capsys.readouterr().out
    assert "VERIFIED: PASS" in printed and "MISMATCH" not in printed and "the forget set: not checked (--forget)" in printed
    assert run(place, "--original", "original.pt", "--retrained", "retrained.pt", "--forget", "forget.npz", "--ids", "ids.txt") == 0
    printed = capsys.readouterr().out
    assert "the figures: not measured again (--retain, --test, --build)" in printed
    assert "not checked" not in printed and "ok        forget_set.ids.sha256" in printed
    assert run(place, model="nested.pth") == 0


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [
        ("original.pt", [], "models.unlearned.state_dict_sha256"),
        ("unlearned.pt", ["--original", "unlearned.pt"], "models.original.state_dict_sha256"),
        ("unlearned.pt", ["--forget", "other.npz"], "forget_set.samples_sha256"),
        ("unlearned.pt", ["--name", "retrained"], "models.retrained.state_dict_sha256"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(place: Path, capsys, model: str, options: list[str], field: str) -> None:
    assert run(place, *options, model=model) == 1
    printed = capsys.readouterr().out
    assert f"MISMATCH  {field}: " in printed and f"REFUSED: {field}" in printed and "VERIFIED" not in printed


def test_a_tampered_receipt_is_refused(place: Path, capsys) -> None:
    text = (place / "receipt.json").read_text()
    receipt = json.loads(text)
    accuracy = receipt["rows"][1]["accuracy"]["test_retain"]
    assert text.count(f'"test_retain": {accuracy!r}') >= 1
    (place / "edited.json").write_text(text.replace(f'"test_retain": {accuracy!r}', '"test_retain": 0.999', 1))
    assert run(place, receipt="edited.json") == 1
    assert "MISMATCH  sha256: it was changed after it was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda text: text[: len(text) // 2], "not whole, or not JSON"),
        (lambda text: "", "not whole, or not JSON"),
        (lambda text: "[1]", "not a fastforget receipt"),
        (lambda text: text.replace("receipt 1", "receipt 99"), "its format is 'fastforget receipt 99'"),
        (lambda text: text.replace('"audit": 0', '"audit": NaN', 1), "NaN is not strict JSON"),
    ],
)
def test_a_receipt_that_can_not_be_read(place: Path, capsys, content, message: str) -> None:
    (place / "damaged.json").write_text(content((place / "receipt.json").read_text()))
    assert run(place, receipt="damaged.json") == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_files_that_can_not_be_read(place: Path, capsys) -> None:
    (place / "cut.pt").write_bytes((place / "unlearned.pt").read_bytes()[:500])
    (place / "cut.npz").write_bytes((place / "forget.npz").read_bytes()[:300])
    for options, message in (
        ({"receipt": "missing.json"}, "missing.json: No such file"),
        ({"model": "missing.pt"}, "missing.pt: no such file"),
        ({"model": "cut.pt"}, "cut.pt: can't be read as weights"),
        ({"model": "whole_model.pt"}, "accepted is torch.save(model.state_dict(), …)"),
        ({"model": "whole_model.pt"}, "and to read that would run code: a whole model, by torch.save(model, …)?"),
        ({"model": "list.pt"}, "list.pt: holds a list"),
        ({"model": "receipt.json"}, "can't be read as weights (it is none of torch.save's files, or damaged)"),
    ):
        assert run(place, **options) == 2
        printed = capsys.readouterr().err
        assert message in printed and "weights_only" not in printed and "\\x1b" not in printed
    for name, message in (("cut.npz", "can't be read as .npz"), ("strange.npz", "holds a; accepted are arrays"), ("no.npz", "no.npz")):
        assert run(place, "--forget", name) == 2
        assert message in capsys.readouterr().err
    assert run(place, "--ids", "no.txt") == 2


def test_whose_weights_must_be_clear(place: Path, capsys) -> None:
    assert run(place, "--name", "nobody") == 2
    assert "--name: 'nobody' is not in the receipt; accepted are original, unlearned, retrained" in capsys.readouterr().err
    receipt = json.loads((place / "receipt.json").read_text())
    receipt["models"]["second"] = receipt["models"]["unlearned"]
    (place / "two.json").write_text(json.dumps(receipt))
    assert run(place, receipt="two.json") == 2
    assert "--name: the receipt is about unlearned, second" in capsys.readouterr().err


def test_usage(capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["verify", "receipt.json"])
    assert error.value.code == 2 and "--model" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["verify", "--help"])
    assert error.value.code == 0 and "Exit status: 0 everything" in " ".join(capsys.readouterr().out.split())


def test_safetensors(place: Path, capsys) -> None:
    path = place / "weights.safetensors"
    safetensors_io.save(path, torch.load(place / "unlearned.pt", weights_only=True))
    assert run(place, model="weights.safetensors") == 0
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert run(place, model="weights.safetensors") == 2
    assert "weights.safetensors: can't be read" in capsys.readouterr().err
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # one bit of one weight
    assert run(place, model="weights.safetensors") == 1
    assert "these are other weights" in capsys.readouterr().out
    path.write_bytes(b"\0" * 20)
    assert run(place, model="weights.safetensors") == 2
