"""A zoo of malformed files. Each ends its command with exit status 2 and one line that names the file and says why."""

from __future__ import annotations

import gc
import os
import resource
import signal
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_world import World
from zoo_arrays import EVERYWHERE, LABELS, MEMBERS, NPY, NPZ, SAFETENSORS, deflated, shaped
from zoo_images import CIFAR, IDX, IMAGES, NAMES, ROWS, TABLES, batch, idx
from zoo_states import IDS, JSON, PT, SAMPLES

from fastforget import _safetensors as safetensors_io
from fastforget.__main__ import main

pytestmark = pytest.mark.filterwarnings("error")  # a warning would be a line more
SECONDS, GROWTH_MB = 30, 400


@pytest.fixture(autouse=True)
def in_time_and_memory() -> Iterator[None]:
    """A pipe that is waited for and a size that is believed would show here."""

    def late(*_: Any) -> None:
        raise TimeoutError("the command waits")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what tests before left behind (a loader that waits for its workers) isn't the command's time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_MB * 1024


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder of files that every command takes."""
    place, world = tmp_path_factory.mktemp("good"), World()
    world.audit(unlearned=world.retrained_again).write_receipt(place / "receipt.json", ids=range(100))
    torch.save(world.retrained_again.state_dict(), place / "w.pt")
    np.savez(place / "forget.npz", inputs=world.forget[0].numpy(), labels=world.forget[1].numpy())
    (place / "ids.txt").write_text("".join(f"{i}\n" for i in range(100)))
    generator = np.random.default_rng(0)
    np.save(place / "logits.npy", generator.normal(size=(40, 5)).astype(np.float32))
    np.save(place / "labels.npy", generator.integers(0, 5, 40))
    np.save(place / "members.npy", np.arange(40) % 2)
    np.save(place / "keep.npy", np.arange(80).reshape(2, 40) % 3 == 0)
    (place / "shadows").mkdir()
    for i in range(2):
        np.save(place / "shadows" / f"{i}.npy", generator.normal(size=(40, 5)).astype(np.float32))
    return place


# ------------------------------------------------------------------ the commands


def ends(capsys, path: Path, arguments: list[str]) -> str:
    status = main(arguments)
    printed = capsys.readouterr()
    assert status == 2, (status, printed.out[-500:], printed.err[-500:])
    assert printed.out == "" and printed.err.count("\n") == 1, printed.err
    assert path.name in printed.err, printed.err
    line = printed.err.rstrip("\n")
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], line
    assert len(line.split(path.name, 1)[1].strip(" :'")) > 8, line  # a reason
    return line


def score(good: Path, **changed: Path) -> list[str]:
    files = {"logits": good / "logits.npy", "labels": good / "labels.npy"} | changed
    return ["score", "--no-progress", *[word for name, path in files.items() for word in (f"--{name.replace('_', '-')}", str(path))]]


def verify(good: Path, receipt: str | Path = "receipt.json", model: str | Path = "w.pt", **more: Path) -> list[str]:
    words = [word for name, path in more.items() for word in (f"--{name}", str(path))]
    return ["verify", str(good / receipt), "--model", str(good / model), *words]


def cases(*groups: tuple[str, dict[str, Any]]) -> list[Any]:
    return [pytest.param(suffix, content, id=f"{suffix} {name}") for suffix, group in groups for name, content in group.items()]


def put(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".pt" and content not in EVERYWHERE.values():
        path.write_bytes(content())
    else:
        content(path)


ARRAYS = (".npy", NPY), (".npz", NPZ), (".safetensors", SAFETENSORS)


@pytest.mark.parametrize(("suffix", "content"), cases(*ARRAYS, *((suffix, EVERYWHERE) for suffix in (".npy", ".npz", ".safetensors"))))
def test_score_logits(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, score(good, logits=path))


@pytest.mark.parametrize(("suffix", "content"), cases((".npy", LABELS), (".npy", EVERYWHERE)))
def test_score_labels(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, score(good, labels=path))


@pytest.mark.parametrize(("suffix", "content"), cases((".npy", MEMBERS)))
def test_score_members(good: Path, tmp_path: Path, capsys, suffix: str, content: bytes) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, score(good, members=path))
    both = tmp_path / "keep.npy"
    both.write_bytes(content)
    ends(capsys, both, score(good, shadow_logits=good / "shadows", keep=both))


@pytest.mark.parametrize(("suffix", "content"), cases((".npy", {k: NPY[k] for k in ("empty", "huge shape", "objects", "truncated data")})))
def test_score_shadow_models(good: Path, tmp_path: Path, capsys, suffix: str, content: bytes) -> None:
    for name in ("0.npy", "animal.npy"):
        (tmp_path / name).write_bytes((good / "shadows" / "0.npy").read_bytes() if name == "0.npy" else content)
    ends(capsys, tmp_path / "animal.npy", score(good, shadow_logits=tmp_path))


def test_score_folder_of_shadow_models(good: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "one").mkdir()
    for path in (tmp_path / "one", tmp_path / "none", good / "logits.npy"):
        ends(capsys, path, score(good, shadow_logits=path))


def test_other_endianness_and_packing_are_read(good: Path, tmp_path: Path, capsys) -> None:
    logits, results = np.load(good / "logits.npy"), []
    np.save(tmp_path / "big.npy", logits.astype(">f4"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(logits))
    np.savez_compressed(tmp_path / "packed.npz", logits=logits.astype(">f8"))
    np.savez(tmp_path / "plain.npz", logits=logits)
    for path in (good / "logits.npy", *sorted(tmp_path.iterdir())):
        assert main(score(good, logits=path)) == 0
        results.append(capsys.readouterr().out)
    assert len(set(results)) == 1
    (tmp_path / "truths.npy").write_bytes(shaped("(40,)", "'|b1'", bytes([255, 0, 1, 0] * 10)))
    outputs = []
    for path in (tmp_path / "truths.npy", good / "members.npy"):
        (tmp_path / "m.npy").write_bytes(path.read_bytes())
        outputs.append(main(score(good, members=path)))
    assert outputs == [0, 0] and "20 members, 20 non-members" in capsys.readouterr().out


WEIGHTS = (".pt", PT), (".safetensors", SAFETENSORS), (".pt", EVERYWHERE), (".safetensors", EVERYWHERE)


@pytest.mark.parametrize(("suffix", "content"), cases(*WEIGHTS))
def test_verify_weights(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    if content is SAFETENSORS["nothing inside"]:
        assert main(verify(good, model=path)) == 1  # a file without weights is well formed
        return
    ends(capsys, path, verify(good, model=path))


@pytest.mark.parametrize(("suffix", "content"), cases((".json", JSON), (".json", EVERYWHERE)))
def test_verify_receipt(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, verify(good, receipt=path))


@pytest.mark.parametrize(("suffix", "content"), cases((".npz", SAMPLES), (".npz", EVERYWHERE)))
def test_verify_samples(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, verify(good, forget=path))


@pytest.mark.parametrize(("suffix", "content"), cases((".txt", IDS), (".txt", EVERYWHERE)))
def test_verify_ids(good: Path, tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / f"animal{suffix}"
    put(path, content)
    ends(capsys, path, verify(good, ids=path))


def test_ids_are_split_at_line_feeds_alone(tmp_path: Path) -> None:
    from fastforget.auditing.proof.reading import load_ids

    (tmp_path / "ids.txt").write_bytes("a\u2028b\r\nc\x0bd\n\ne".encode())
    assert load_ids(tmp_path / "ids.txt") == ["a\u2028b", "c\x0bd", "", "e"]
    (tmp_path / "ids.txt").write_bytes(b"")
    assert load_ids(tmp_path / "ids.txt") == []


# ------------------------------------------------------------------ the demonstration's data


def demo(tmp_path: Path, data: str, root: Path) -> list[str]:
    return ["demo", "--data", data, "--root", str(root), "--out", str(tmp_path / "out"), "--no-progress", "--epochs", "1"]


@pytest.mark.parametrize(("suffix", "content"), cases(("idx", IDX), ("idx", EVERYWHERE)))
def test_demo_idx(tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    root = tmp_path / "nobody"
    root.mkdir()
    for part in ("train", "t10k"):
        (root / f"{part}-images-idx3-ubyte").write_bytes(IMAGES)
        (root / f"{part}-labels-idx1-ubyte").write_bytes(NAMES)
    path = root / "t10k-images-idx3-ubyte"  # of the test part no content is known beforehand
    path.unlink()
    put(path, content)
    about = root if content in (IDX["not square"], IDX["fewer than labels"]) else path
    (root / "train-images-idx3-ubyte").write_bytes(IMAGES)
    ends(capsys, about, demo(tmp_path, "unchecked", tmp_path))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch) -> None:
    """A data set of idx files whose content nobody knows beforehand."""
    from fastforget.demo import data

    monkeypatch.setitem(data.LOADERS, "unchecked", data._idx_loader("nobody", "Nobody's", "nobody", data.DIGITS, "none"))
    monkeypatch.setitem(__import__("fastforget.demo.run", fromlist=["EPOCHS"]).EPOCHS, "unchecked", 1)


@pytest.mark.parametrize(("suffix", "content"), cases(("csv", TABLES), ("csv", EVERYWHERE)))
def test_demo_tables(tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    path = tmp_path / "digits.csv.gz"
    put(path, content)
    ends(capsys, path, demo(tmp_path, "digits", tmp_path))


@pytest.mark.parametrize(("suffix", "content"), cases(("batch", CIFAR), ("batch", EVERYWHERE)))
def test_demo_cifar(tmp_path: Path, capsys, suffix: str, content: Any) -> None:
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}").write_bytes(batch(ROWS, list(range(10))))
    path = tmp_path / "test_batch"
    put(path, content)
    ends(capsys, path, demo(tmp_path, "cifar10", tmp_path))


def test_demo_without_the_class(tmp_path: Path, capsys) -> None:
    root = tmp_path / "nobody"
    root.mkdir()
    for part in ("train", "t10k"):
        (root / f"{part}-images-idx3-ubyte").write_bytes(IMAGES)
        (root / f"{part}-labels-idx1-ubyte").write_bytes(idx((20,), bytes([1, 2] * 10)))
    assert "holds no training image of class 3" in ends(capsys, root, demo(tmp_path, "unchecked", tmp_path))


# ------------------------------------------------------------------ bombs, permissions, names


def test_a_bomb_is_not_unpacked(good: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    """A compressed array of half a gigabyte in half a megabyte: their size is known before memory is taken."""
    from fastforget import _arrays

    size = 1 << 29
    bomb = tmp_path / "bomb.npz"
    bomb.write_bytes(deflated(shaped(f"(32, {size // 128})", data=b""), size))
    monkeypatch.setattr(_arrays, "free_memory", lambda: 1 << 28)
    ends(capsys, bomb, score(good, labels=bomb))  # of another shape, so it isn't read at all
    np.save(tmp_path / "labels.npy", np.zeros(32, np.int8))
    assert "more than half of the 268435456 that are free" in ends(capsys, bomb, score(good, logits=bomb, labels=tmp_path / "labels.npy"))
    ends(capsys, bomb, verify(good, forget=bomb))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="there are no users here")
def test_files_without_permission(good: Path, tmp_path: Path, capsys) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    names = ("a.npy", "a.npz", "a.safetensors", "a.pt", "a.json", "a.txt", "digits.csv.gz", "data_batch_1", "train-images-idx3-ubyte")
    for name in names:
        (closed / name).write_bytes(b"x")
        (closed / name).chmod(0)
    user = os.geteuid()
    for place in (good, tmp_path, closed, *tmp_path.parents):
        if place.owner() == "root" and user == 0:
            place.chmod(0o755)
    try:
        if user == 0:
            os.seteuid(65534)
        for suffix in ("npy", "npz", "safetensors"):
            ends(capsys, closed / f"a.{suffix}", score(good, logits=closed / f"a.{suffix}"))
        ends(capsys, closed / "a.pt", verify(good, model=closed / "a.pt"))
        ends(capsys, closed / "a.safetensors", verify(good, model=closed / "a.safetensors"))
        ends(capsys, closed / "a.json", verify(good, receipt=closed / "a.json"))
        ends(capsys, closed / "a.npz", verify(good, forget=closed / "a.npz"))
        ends(capsys, closed / "a.txt", verify(good, ids=closed / "a.txt"))
    finally:
        if user == 0:
            os.seteuid(user)


HOSTILE = "a\x1b[2J\rVERIFIED: PASS\n\u202eFAIL\u2066\x9b\u200b"


def test_a_files_name_can_not_move_the_cursor(good: Path, tmp_path: Path, capfd) -> None:
    for suffix, arguments in (
        (".npy", lambda path: score(good, logits=path)),
        (".pt", lambda path: verify(good, model=path)),
        (".json", lambda path: verify(good, receipt=path)),
        (".npz", lambda path: verify(good, forget=path)),
        (".txt", lambda path: verify(good, ids=path)),
        (".csv", lambda path: demo(tmp_path, "digits", path)),
    ):
        for name in (HOSTILE, os.fsdecode(b"a\xff\xfe")):
            path = tmp_path / f"{name}{suffix}"
            assert main(arguments(path)) == 2
            printed = capfd.readouterr()
            assert printed.out == "" and printed.err.count("\n") == 1
            assert not [c for c in printed.err[:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], printed.err
    with pytest.raises(SystemExit):
        main(["score", "--logits", "a.npy", "--labels", "b.npy", "--out", HOSTILE])
    assert "\x1b" not in capfd.readouterr().err


def test_a_receipts_words_never_reach_the_terminal(tmp_path: Path, capsys) -> None:
    world = World()
    report = __import__("fastforget").audit(
        {"original": world.original, HOSTILE: world.retrained_again, "retrained": world.retrained},
        forget=world.forget, retain=world.retain, test=world.test,
    )  # fmt: skip
    assert not [c for c in str(report) if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert not [line for line in str(report).splitlines() if line.startswith("VERIFIED")]
    report.to_html(tmp_path / "report.html")
    report.write_receipt(tmp_path / "r.json", facts={HOSTILE: HOSTILE, "half": "\ud800"})
    for page in ("report.html", "r.html"):
        text = (tmp_path / page).read_text()
        assert not [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")], page
    torch.save(world.retrained_again.state_dict(), tmp_path / "w.pt")
    assert main(["verify", str(tmp_path / "r.json"), "--model", str(tmp_path / "w.pt")]) == 0
    printed = capsys.readouterr().out
    assert not [c for c in printed if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert [line for line in printed.splitlines() if line.startswith("VERIFIED")] == [printed.splitlines()[-1]]
    text = (tmp_path / "r.json").read_text().replace("evidence from measurements", "a certificate\u202e")
    (tmp_path / "r.json").write_text(text)
    assert main(["verify", str(tmp_path / "r.json"), "--model", str(tmp_path / "w.pt")]) == 1
    assert "certificate" not in capsys.readouterr().out


def test_tensors_are_written_and_read_whatever_their_shape(tmp_path: Path) -> None:
    state = {"a": torch.zeros(0, 3), "b": torch.tensor(1.5), "c": torch.arange(3, dtype=torch.int8)}
    safetensors_io.save(tmp_path / "x.safetensors", state)
    read, _ = safetensors_io.load(tmp_path / "x.safetensors")
    assert {name: (value.shape, value.tolist()) for name, value in read.items()} == {n: (v.shape, v.tolist()) for n, v in state.items()}


def test_it_is_a_zoo_of_more_than_a_hundred() -> None:
    groups = (NPY, LABELS, MEMBERS, NPZ, SAFETENSORS, PT, JSON, IDS, SAMPLES, IDX, TABLES, CIFAR)
    assert sum(map(len, groups)) >= 100
