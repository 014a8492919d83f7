"""Shadow models on disk: resumed runs, several processes, merges, foreign folders; and the safetensors format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shadows_world import POOL, POPULATION, forget_half_way, models_of, query, scores_of, tensors_equal, train

import fastforget as ff
from fastforget import _safetensors as safetensors_io
from fastforget.auditing.shadow import training as shadow_training

EVERY = torch.arange(len(POOL[1]))
FULL = {"population": POPULATION, "keep_scores": True, "unlearn": forget_half_way, "queries": query, "n_queries": 2}


class Killed(BaseException):
    pass


def kill_after(monkeypatch, models: int) -> None:
    """The run dies as it begins to train model number ``models``."""
    real, left = shadow_training._train_and_score, [models]

    def mortal(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return real(*args)

    monkeypatch.setattr(shadow_training, "_train_and_score", mortal)


def only_file(folder) -> bytes:
    (path,) = sorted(folder.iterdir())
    return path.read_bytes()


@pytest.mark.parametrize("options", [{}, FULL, {"stack": 2}])
def test_resumed_ends_with_the_same_bytes(tmp_path, monkeypatch, options):
    whole = train(6, out=tmp_path / "a", epochs=2, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        train(6, out=tmp_path / "b", epochs=2, **options)
    cut_off = ff.audit.Shadows.load(tmp_path / "b")
    assert cut_off.n_models == 2 * max(1, options.get("stack", 1))
    seen = []
    monkeypatch.setattr(shadow_training, "model_seed", lambda s, i, real=shadow_training.model_seed: seen.append(i) or real(s, i))
    resumed = train(6, out=tmp_path / "b", epochs=2, **options)
    assert only_file(tmp_path / "b") == only_file(tmp_path / "a") and tensors_equal(resumed, whole)
    # only the first (whose weights are looked at) is made again, and none is trained again
    assert set(seen) <= {0, 1} | set(range(cut_off.n_models, 6))
    assert tensors_equal(train(6, out=tmp_path / "b", epochs=2, **options), whole)


@pytest.mark.slow
def test_a_run_killed_by_signal_9_is_resumed(tmp_path):
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from shadows_world import train\n"
        "from fastforget.auditing.shadow import training as t\n"
        "real, n = t._train_and_score, [0]\n"
        "def mortal(*a):\n"
        "    n[0] += 1\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if n[0] == 3 else real(*a)\n"
        "t._train_and_score = mortal\n"
        "train(4, out=sys.argv[2], epochs=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "a")])
    assert done.returncode == -9 and ff.audit.Shadows.load(tmp_path / "a").n_models == 2
    train(4, out=tmp_path / "a", epochs=1)
    train(4, out=tmp_path / "b", epochs=1)
    assert only_file(tmp_path / "a") == only_file(tmp_path / "b")


DIFFERENT = {
    "epochs": ({"epochs": 3}, r"epochs is 2, not 3"),
    "seed": ({"seed": 1}, r"seed is 0, not 1"),
    "n": ({"n": 8}, r"n is 4, not 8"),
    "pool": ({"pool": (POOL[0] + 1, POOL[1])}, "pool is '"),
    "queries": ({"queries": query, "n_queries": 2}, "queries is 1, not 2; query is None, not 'query'"),
    "keep_scores": ({"keep_scores": True}, "keep_scores is False, not True"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_folder_of_another_configuration_is_refused(tmp_path, case):
    train(4, out=tmp_path, epochs=2)
    before = only_file(tmp_path)
    changed, message = DIFFERENT[case]
    with pytest.raises(ValueError, match=f"out, .*another configuration: .*{message}.*Choose another folder"):
        train(**{"n": 4, "out": tmp_path, "epochs": 2, **changed})
    assert only_file(tmp_path) == before


# ------------------------------------------------------------------ folders of earlier versions


def write_old(folder: Path, name: str, held: ff.audit.Shadows, *models: int) -> None:
    """Some of a run's models, each under sums of its own, as runs of earlier versions have left them."""
    part = ff.audit.Shadows(held.settings, held.digests, len(held.population))
    net = dict(zip(held.index.tolist(), models_of(held), strict=True))
    for index in models:
        phi, loss = (score[0] for score in scores_of([net[index]], POOL))
        part.add(index, int(held.seeds[index]), held.member[index], phi, loss)
    folder.mkdir(exist_ok=True)
    part.write(folder / name)


def test_an_old_run_that_was_cut_off_ends_with_the_same_sums(tmp_path):
    whole = train(5)
    write_old(tmp_path, "shadows-000-of-001.safetensors", whole, 0, 1)
    assert ff.audit.Shadows.load(tmp_path).index.tolist() == [0, 1]
    assert tensors_equal(train(5, out=tmp_path), whole)
    assert tensors_equal(ff.audit.Shadows.load(tmp_path), whole)


def test_parts_of_old_ranks_are_gone_on_from(tmp_path, monkeypatch):
    whole = train(5)
    write_old(tmp_path, "shadows-000-of-002.safetensors", whole, 0, 2)
    write_old(tmp_path, "shadows-001-of-002.safetensors", whole, 1)
    assert ff.audit.Shadows.load(tmp_path).n_models == 3
    made = train(5, out=tmp_path)
    # the sums of models 0 and 2 can't be taken apart: those that are new come first
    assert made.index.tolist() == [3, 4, 0, 2, 1]
    for name, value in whole.lira.state_dict().items():
        torch.testing.assert_close(made.lira.state_dict()[name], value, rtol=1e-12, atol=1e-11)
    assert tensors_equal(ff.audit.Shadows.load(tmp_path), made)
    monkeypatch.setattr(shadow_training, "_train_and_score", lambda *_: pytest.fail("trained again"))
    assert tensors_equal(train(5, out=tmp_path), made)


def test_a_saved_state_is_as_good_as_a_run(tmp_path, monkeypatch):
    whole = train(3)
    whole.save(tmp_path)
    monkeypatch.setattr(shadow_training, "_train_and_score", lambda *_: pytest.fail("trained again"))
    assert tensors_equal(train(3, out=tmp_path), whole) and only_file(tmp_path)


# ------------------------------------------------------------------ merging and saving


def test_merged_equals_single():
    """Models of two seeds, put together in either order."""
    a, b = train(4, seed=1, population=POPULATION), train(6, seed=2, population=POPULATION)
    kept = b.tensors()
    phi, loss = torch.randn(40), torch.rand(40)
    z = torch.rand(24)
    one = train(4, seed=1, population=POPULATION).merge(b)
    two = train(6, seed=2, population=POPULATION).merge(a)
    assert one.n_models == two.n_models == 10 and one.member.shape == (10, 40)
    assert all(torch.equal(v, b.tensors()[k]) for k, v in kept.items())
    for attack in ("lira", "lira_offline", "rmia"):
        given = {"logit_confidence": phi, "loss": loss, "population_loss": z, "index": EVERY}
        torch.testing.assert_close(one.score(attack, **given), two.score(attack, **given), rtol=1e-10, atol=1e-10)
    assert torch.equal(one.lira.count, a.lira.count + b.lira.count)


def test_save_and_load(tmp_path):
    held = train(5, **FULL)
    path = held.save(tmp_path / "new" / "folder")
    loaded = ff.audit.Shadows.load(tmp_path / "new" / "folder")
    assert tensors_equal(loaded, held) and loaded.tune_a() == held.tune_a()
    assert loaded.n_models == 5 and torch.equal(loaded.member, held.member) and repr(loaded) == repr(held)
    with pytest.raises(ValueError, match="already holds shadow models"):
        held.save(path.parent)
    with pytest.raises(FileNotFoundError, match="holds no shadow models"):
        ff.audit.Shadows.load(tmp_path)


@pytest.mark.parametrize("spoil", ["cut", "foreign", "header", "missing"])
def test_a_spoiled_file_is_refused(tmp_path, spoil):
    path = train(2).save(tmp_path)
    messages = {"cut": "is cut off", "foreign": "its format is None", "header": "header", "missing": "isn't a whole file"}
    data = path.read_bytes()
    if spoil == "cut":
        path.write_bytes(data[:-1])
    elif spoil == "header":
        path.write_bytes(data[:8] + b"}" + data[9:])
    else:
        tensors, metadata = safetensors_io.load(path)
        if spoil == "missing":
            del tensors["log_p"]
        safetensors_io.save(path, tensors, metadata if spoil == "missing" else None)
    with pytest.raises(ValueError, match=messages[spoil]):
        ff.audit.Shadows.load(tmp_path)


def test_parts_of_different_runs_are_not_mixed(tmp_path):
    train(2).write(tmp_path / "shadows-000-of-002.safetensors")
    train(2, seed=1).write(tmp_path / "shadows-001-of-002.safetensors")
    with pytest.raises(ValueError, match="001-of-002.*another configuration: seed is 1, not 0"):
        ff.audit.Shadows.load(tmp_path)


# ------------------------------------------------------------------ the format

EACH = {
    "f64": torch.tensor([1.5, -torch.inf], dtype=torch.float64), "f32": torch.randn(2, 3), "f16": torch.ones(3).half(),
    "bf16": torch.tensor([[3.0]]).bfloat16(), "i64": torch.tensor(7), "i32": torch.arange(3).int(), "i16": torch.arange(3).short(),
    "i8": torch.tensor([-1], dtype=torch.int8), "u8": torch.arange(5).byte(), "bool": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
}  # fmt: skip


def test_the_format_round_trips_and_is_aligned(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_io.save(path, EACH, {"b": "2", "a": "1"})
    tensors, metadata = safetensors_io.load(path)
    assert metadata == {"a": "1", "b": "2"} and tensors.keys() == EACH.keys()
    for name, tensor in EACH.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert all(e.start % e.dtype.itemsize == 0 for e in safetensors_io.entries(path)[0].values())
    assert safetensors_io.encode(EACH, {"a": "1", "b": "2"}) == safetensors_io.encode(dict(reversed(EACH.items())), {"b": "2", "a": "1"})


def test_the_safetensors_package_agrees(tmp_path):
    package = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    safetensors_io.save(path, EACH, {"a": "1"})
    theirs = package.load_file(path)
    assert theirs.keys() == EACH.keys() and all(torch.equal(theirs[k], v) for k, v in EACH.items())
    package.save_file(EACH, tmp_path / "y.safetensors", {"a": "1"})
    ours, metadata = safetensors_io.load(tmp_path / "y.safetensors")
    assert metadata == {"a": "1"} and all(torch.equal(ours[k], v) for k, v in EACH.items())


def header(**tensors) -> bytes:
    """A header of {name: (dtype, shape, offsets)}."""
    text = json.dumps({k: dict(zip(("dtype", "shape", "data_offsets"), v, strict=True)) for k, v in tensors.items()}).encode()
    return len(text).to_bytes(8, "little") + text


FOREIGN = {
    "empty": (b"", "cut off in its header"),
    "long header": ((10**12).to_bytes(8, "little") + b"{}", "cut off in its header"),
    "not JSON": ((2).to_bytes(8, "little") + b"{]", "header can't be understood"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "header can't be understood"),
    "dtype": (header(a=("X9", [1], [0, 1])) + b"x", "header can't be understood"),
    "size": (header(a=("U8", [2], [0, 1])) + b"xx", "1 bytes for shape"),
    "negative": (header(a=("U8", [-1, -1], [0, 1])) + b"xx", "1 bytes for shape"),
    "beyond": (header(a=("U8", [2], [0, 2])) + b"x", "is cut off: a ends at byte"),
    "before": (header(a=("U8", [2], [-2, 0])) + b"x", "a overlaps"),
    "overlap": (header(a=("U8", [2], [0, 2]), b=("U8", [1], [1, 2])) + b"xx", "b overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_such_file_is_refused(tmp_path, case):
    content, message = FOREIGN[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(safetensors_io.NotSafetensors, match=message):
        safetensors_io.load(tmp_path / "x.safetensors")


def test_a_dtype_without_a_name_is_refused():
    with pytest.raises(TypeError, match="z: got torch.complex64"):
        safetensors_io.encode({"z": torch.zeros(1, dtype=torch.complex64)})
