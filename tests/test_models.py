"""The nets of ``benchmarks/models``: the split of each request, training that was killed, and what is loaded again; on made-up images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastforget._bench import cifar40, models, models_judge
from fastforget.demo.data import DataMissing

Image = pytest.importorskip("PIL.Image")
LABELS = np.arange(80, dtype=np.uint8) % 40
REQUEST = {"classes": [4, 14, 24, 34], "samples": 0, "seed": 0}
DRAWN = [8, 63, 78, 116, 148]  # the first of the random samples


class Killed(BaseException):
    pass


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def sheet(images: np.ndarray, columns: int, path: Path) -> None:
    tiles = images.reshape(-1, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray(tiles.reshape(len(images) // columns * 32, columns * 32, 3)).save(path, lossless=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    train = pixels(80, 0)
    sheet(train[:60], 10, folder / "train_00.webp")
    sheet(train[60:], 10, folder / "train_01.webp")
    sheet(pixels(40, 1), 8, folder / "test_00.webp")
    np.savez(folder / "labels.npz", train=LABELS, test=LABELS[:40], names=np.array([f"class {i}" for i in range(40)]))
    return folder


def run(root: Path, out: Path, *more: str) -> int:
    return models.main(["--root", str(root), "--out", str(out), "--epochs", "3", "--only", "classes-1", *more])


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    threads, folder = torch.get_num_threads(), tmp_path_factory.mktemp("nets")
    assert run(root, folder) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(autouse=True)
def threads_kept():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_tiles_are_read_row_by_row_and_unchanged(root) -> None:
    data = cifar40.read(root)
    assert np.array_equal(data.train[0].numpy(), pixels(80, 0)) and np.array_equal(data.test[0].numpy(), pixels(40, 1))
    assert data.train[1].tolist() == LABELS.tolist() and data.names[39] == "class 39"
    x = data.floats().train[0]
    assert x.shape == (80, 3, 32, 32) and x.dtype == torch.float32
    torch.testing.assert_close(x[7, 1, 2, 3], (data.train[0][7, 2, 3, 1] / 255 - cifar40.MEAN[1]) / cifar40.DEVIATION[1])


def test_requests_split_the_training_set() -> None:
    labels = torch.arange(20_000) % 40
    for name, request in cifar40.REQUESTS.items():
        forget, retain = request.split(labels)
        assert torch.equal(torch.cat([forget, retain]).sort().values, torch.arange(20_000)), name
        assert len(forget) == 500 * len(request.classes) + request.samples
        if request.classes:
            assert set(labels[forget].tolist()) == set(request.classes) and not set(labels[retain].tolist()) & set(request.classes)
    drawn = cifar40.REQUESTS["random"].split(labels)[0]
    assert drawn[:5].tolist() == DRAWN, "other samples than those that the committed nets were retrained without"
    assert not torch.equal(drawn, cifar40.Request(samples=500, seed=1).split(labels)[0])


def test_net_is_the_published_one_with_a_seed_of_its_own() -> None:
    before = torch.get_rng_state()
    net = cifar40.resnet20(3)
    assert torch.equal(torch.get_rng_state(), before)
    # the paper's 0.27 M: no weights in the shortcuts; 10 more outputs x 65 for every 10 classes
    assert sum(p.numel() for p in net.parameters()) == 269_722 + 30 * 65
    same, other = cifar40.resnet20(3), cifar40.resnet20(4)
    assert torch.equal(net.conv.weight, same.conv.weight) and not torch.equal(net.conv.weight, other.conv.weight)
    x = torch.randn(2, 16, 8, 8)
    block = cifar40.Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2].relu()) and not y[:, :8].any() and not y[:, 24:].any()


def test_augmentation_hangs_on_seed_epoch_and_sample() -> None:
    images = torch.from_numpy(pixels(80, 0))
    padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4)), torch.arange(80)
    recipe = models.RECIPE | {"batch": 32}

    def drawn(samples: torch.Tensor, epoch: int) -> dict[int, torch.Tensor]:
        found = {}
        for x, sample in models.batches(padded, samples, 5, epoch, recipe):
            assert x.is_contiguous(memory_format=torch.channels_last)
            found |= dict(zip(sample.tolist(), x, strict=True))
        return found

    everything, some = drawn(torch.arange(80), 1), drawn(torch.arange(0, 80, 3), 1)
    assert sorted(everything) == list(range(80)) and sorted(some) == list(range(0, 80, 3))
    assert all(torch.equal(x, everything[sample]) for sample, x in some.items())
    assert not all(torch.equal(x, everything[sample]) for sample, x in drawn(torch.arange(80), 2).items())
    places = set()
    for sample, x in everything.items():
        sides = [padded[0][sample][row : row + 32, column : column + 32] for row in range(9) for column in range(9)]
        both = cifar40.normalised(torch.stack([side for s in sides for side in (s, s.flip(1))]))
        (place,) = [i for i, candidate in enumerate(both) if torch.equal(candidate, x)]
        places.add(place)
    assert len(places) > 40 and {place % 2 for place in places} == {0, 1}


def test_rate_rises_and_falls() -> None:
    rates = [models.rate(step, 100, models.RECIPE) for step in range(100)]
    top = rates.index(max(rates))
    assert top == 14 and rates[top] == pytest.approx(models.RECIPE["peak"]) and rates[-1] == pytest.approx(0)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_killed_run_goes_on_to_the_same_bytes(root, trained, tmp_path, monkeypatch, capsys) -> None:
    real = models.Training.epoch

    def mortal(self) -> None:
        if len(self.curve) == 2:
            raise Killed
        real(self)

    monkeypatch.setattr(models.Training, "epoch", mortal)
    with pytest.raises(Killed):
        run(root, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".classes-1.checkpoint"]
    monkeypatch.undo()
    # a pickle that runs nothing
    state = torch.load(tmp_path / ".classes-1.checkpoint", weights_only=True)
    assert len(state["curve"]) == 2
    assert run(root, tmp_path, "--epochs", "4") == 2 and "another recipe" in capsys.readouterr().err
    assert run(root, tmp_path) == 0
    name = "classes-1.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes-1.json", name]


def test_net_that_is_there_is_skipped_and_another_recipe_refused(root, trained, monkeypatch, capsys) -> None:
    monkeypatch.setattr(models, "make", None)
    assert run(root, trained) == 0
    assert run(root, trained, "--epochs", "4") == 2 and "another recipe" in capsys.readouterr().err
    assert models.main(["--list", "--out", str(trained)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 12 and "classes-1: test " in "".join(shown) and shown[0] == "original-0: not there"


def test_a_net_can_be_trained_in_float32_and_its_receipt_says_so(root, trained, tmp_path, monkeypatch, capsys) -> None:
    cast = []
    real = torch.autocast
    monkeypatch.setattr(models.torch, "autocast", lambda *given, enabled: (cast.append(enabled), real(*given, enabled=enabled))[1])
    assert run(root, tmp_path, "--precision", "float32") == 0 and not any(cast) and cast
    facts = json.loads((tmp_path / "classes-1.json").read_text())
    assert facts["recipe"] == models.RECIPE | {"epochs": 3, "precision": "float32, channels_last"}
    assert facts["weights_sha256"] != json.loads((trained / "classes-1.json").read_text())["weights_sha256"]
    monkeypatch.setattr(models, "make", None)
    assert run(root, tmp_path) == 0  # it is there, whatever its precision


def test_load_gives_net_request_and_receipt(root, trained) -> None:
    net, request, seed, receipt = models.load("classes-1", trained)
    assert seed == 1 and request == cifar40.REQUESTS["classes"] and receipt["request"] == REQUEST and not net.training
    data = cifar40.read(root)
    assert receipt["data"] == {"sha256": data.digest(), "train": 80, "test": 40, "trained_on": 72}
    x, y = data.floats().test
    with torch.no_grad():
        hits = net(x).argmax(1) == y
    gone, kept = request.split(y)
    accuracy = receipt["accuracy"]
    assert accuracy["test"] == pytest.approx(hits.double().mean().item(), abs=1e-5)
    assert accuracy["classes"]["test_forgotten"] == pytest.approx(hits[gone].double().mean().item(), abs=1e-5)
    assert accuracy["classes"]["test_kept"] == pytest.approx(hits[kept].double().mean().item(), abs=1e-5)
    assert receipt["recipe"] == models.RECIPE | {"epochs": 3} and len(receipt["curve"]) == 3
    with pytest.raises(FileNotFoundError, match=r"there: classes-1"):
        models.load("random-0", trained)


def test_load_refuses_weights_of_another_receipt(trained, tmp_path) -> None:
    raw = bytearray((trained / "classes-1.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "classes-1.safetensors").write_bytes(raw)
    (tmp_path / "classes-1.json").write_text((trained / "classes-1.json").read_text())
    with pytest.raises(ValueError, match="sha256"):
        models.load("classes-1", tmp_path)


def test_what_is_missing_is_said(root, tmp_path, monkeypatch, capsys) -> None:
    assert models.main([]) == 2 and "--root FOLDER is needed" in capsys.readouterr().err
    with pytest.raises(DataMissing, match=r"labels\.npz"):
        cifar40.read(tmp_path)
    np.savez(tmp_path / "labels.npz", train=LABELS, test=LABELS, names=np.array([str(i) for i in range(40)]))
    with pytest.raises(DataMissing, match=r"0 images, labels\.npz has 80"):
        cifar40.read(tmp_path)
    (tmp_path / "train_00.webp").write_bytes(b"RIFF")
    with pytest.raises(DataMissing, match="can't be read as an image"):
        cifar40.read(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataMissing, match="pip install pillow"):
        cifar40.read(root)


@pytest.mark.parametrize("receipt", sorted(models.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_nets_are_what_their_receipts_say(receipt: Path) -> None:
    net, request, seed, facts = models.load(receipt.stem)
    kind, number = receipt.stem.rsplit("-", 1)
    assert facts["name"] == receipt.stem and seed == int(number) and request == cifar40.REQUESTS[kind]
    assert facts["recipe"] | {"precision": models.RECIPE["precision"]} == models.RECIPE
    assert facts["recipe"]["precision"] in dict(models.PRECISIONS.values())
    assert json.loads(receipt.read_text())["accuracy"]["test"] > 0.5
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_method_is_judged_on_a_committed_net_and_the_row_is_kept(root, tmp_path, capsys) -> None:
    out = tmp_path / "rows.json"
    asked = ["--root", str(root), "--method", "gradient_ascent", "--request", "class", "--seeds", "0", "--no-audit", "--out", str(out)]
    assert models_judge.main(asked) == 0
    stored = json.loads(out.read_text())
    (row,) = stored["rows"]
    assert (row["request"], row["method"], row["seed"], row["passes"]) == ("class", "gradient_ascent", 0, 5 * 2)
    data = cifar40.read(root).floats()
    cell = models_judge.cell_of("class", data)
    assert cell.classes == list(cifar40.REQUESTS["class"].classes) and set(cell.forget[1].tolist()) == set(cell.classes)
    assert not set(cell.test[1].tolist()) & set(cell.classes) and len(cell.nonmember[1]) == 20
    right = models.load("original-0").net(cell.test[0]).argmax(1).eq(cell.test[1]).double().mean().item()
    assert stored["models"]["class"]["original-0"]["kept"] == round(right, 5)
    before = out.read_bytes()
    capsys.readouterr()
    assert models_judge.main(asked) == 0 and json.loads(out.read_text())["rows"] == json.loads(before)["rows"]
    assert models_judge.main(["--table", "--out", str(out)]) == 0
    assert "| class | **gradient_ascent** (1 seed) |" in capsys.readouterr().out
    assert models_judge.main(["--out", str(out)]) == 2


def test_a_method_that_ends_in_nan_has_a_row_that_says_so(root, tmp_path, monkeypatch, capsys) -> None:
    def diverges(*given, **options):
        raise FloatingPointError("neggrad_plus, epoch 1: the loss became nan at rate 0.01; the model is unchanged. Lower lr=")

    monkeypatch.setattr(models_judge.ff, "unlearn", diverges)
    out = tmp_path / "rows.json"
    asked = ["--root", str(root), "--method", "neggrad_plus", "--request", "class", "--seeds", "0", "--no-audit", "--out", str(out)]
    assert models_judge.main(asked) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["failed"].startswith("neggrad_plus, epoch 1") and "kept" not in row
    shown = "| class | **neggrad_plus** (1 of 1) | neggrad_plus, epoch 1: the loss became nan at rate 0.01 | | | | | |"
    assert shown in capsys.readouterr().out
