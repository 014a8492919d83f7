"""The journal's folder: killed at every step and resumed, one writer at a time, and no file that can be changed unnoticed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from journal_world import ask_class, net, same, tree
from torch import nn

import fastforget as ff
from fastforget import _files, _safetensors
from fastforget.auditing.proof.receipt import own_hash
from fastforget.journal import call
from fastforget.journal.store import Store

# everything by which a file or folder is made, written, named or removed: by Python's own account, and by name what it doesn't tell of
EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link")
STEPS = ("fsync", "pwrite", "close")
KILLED = 9


@pytest.fixture
def still(monkeypatch):
    """Time stands still, so that the same requests give the same bytes."""
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    monkeypatch.setattr(call, "_now", lambda: "2026-01-01T00:00:00+00:00")


def in_a_child(work) -> int:
    """Runs ``work`` in a forked process; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(step: int) -> None:
    """Ends this process just before its ``step``-th call that changes a file or folder."""
    count = [0]

    def one_more():
        count[0] += 1
        if count[0] == step:
            os._exit(KILLED)

    def hook(event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in EVENTS:
            one_more()

    def mortal(function):
        def counted(*args, **kwargs):
            one_more()
            return function(*args, **kwargs)

        return counted

    for name in STEPS:
        setattr(os, name, mortal(getattr(os, name)))
    sys.addaudithook(hook)


def die_in_write(nth: int) -> None:
    """Ends this process when half of the ``nth`` file is written."""
    count, whole = [0], _files._write

    def half(descriptor, data, **kwargs):
        count[0] += 1
        if count[0] == nth:
            os.write(descriptor, data[: len(data) // 2])
            os._exit(KILLED)
        whole(descriptor, data, **kwargs)

    _files._write = half


def undisturbed(path: Path) -> tuple[list[dict[str, bytes]], nn.Module]:
    """A journal's files before, and after each of two requests; and the model that was given to both."""
    journal, model = ff.Journal(path), net()
    states = [tree(path)]
    for c in (0, 1):
        ask_class(journal, c, model, test=None)
        states.append(tree(path))
    return states, model


def resumed_is_the_same(path: Path, number: int, states, model) -> None:
    """After a kill in request ``number`` the journal has it or not, and nothing else; asked again, it has the same bytes as undisturbed."""
    journal = ff.Journal(path)
    assert tree(path) in (states[number], states[number + 1])
    assert journal.verify() == len(journal.ids) in (number, number + 1)
    ask_class(journal, number, model, test=None)
    assert tree(path) == states[number + 1]


@pytest.mark.parametrize("number", [0, 1])
def test_killed_at_every_step_and_resumed(tmp_path, still, number):
    states, model = undisturbed(tmp_path / "undisturbed")
    steps, ends = 0, []
    while not ends or ends[-1] == KILLED:
        steps += 1
        path = tmp_path / str(steps)
        if number:
            shutil.copytree(tmp_path / "undisturbed", path)
            shutil.rmtree(path / "0002")

        def request(step=steps, path=path):
            journal = ff.Journal(path)
            die_at(step)
            ask_class(journal, number, model, test=None)

        ends.append(in_a_child(request))
        resumed_is_the_same(path, number, states, model)
        shutil.rmtree(path)
    assert ends[-1] == 0 and steps > 20  # the last one got through


def test_a_journal_that_was_open_while_another_process_was_killed(tmp_path):
    journal, model = ff.Journal(tmp_path), net()

    def request():
        die_in_write(4)
        ask_class(journal, 0, model)

    assert in_a_child(request) == KILLED
    assert journal._store.half_written and journal.ids == []
    ask_class(journal, 0, model)
    assert journal.verify() == 1 and not journal._store.half_written


@pytest.mark.parametrize("nth", range(1, 6))
def test_killed_in_the_middle_of_every_file_and_resumed(tmp_path, still, nth):
    states, model = undisturbed(tmp_path / "undisturbed")
    path = tmp_path / "killed"

    def request():
        die_in_write(nth)
        ask_class(ff.Journal(path), 0, model, test=None)

    assert in_a_child(request) == KILLED
    assert tree(path)  # the half-written files, before the journal is opened
    resumed_is_the_same(path, 0, states, model)


def test_killed_while_it_cleans_up_and_resumed(tmp_path, still):
    states, model = undisturbed(tmp_path / "undisturbed")
    path, ends = tmp_path / "killed", []

    def killed():
        die_in_write(4)
        ask_class(ff.Journal(path), 0, model, test=None)

    assert in_a_child(killed) == KILLED

    def opened():
        die_at(len(ends) + 1)
        ff.Journal(path)

    while not ends or ends[-1] == KILLED:
        ends.append(in_a_child(opened))
        if len(ends) % 5 == 0:  # half-written again, as it was cleaned meanwhile
            assert in_a_child(killed) == KILLED
    resumed_is_the_same(path, 0, states, model)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from journal_world import ask_class, net
import fastforget as ff
journal, model = ff.Journal(sys.argv[2]), net()
print("begun", flush=True)
for c in range(4):
    model = ask_class(journal, c, model).model
"""


@pytest.mark.slow
def test_a_script_killed_by_signal_9_again_and_again_gets_through(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
    subprocess.run([*command, str(tmp_path / "undisturbed")], check=True, timeout=300)
    whole, path, draws, kills = ff.Journal(tmp_path / "undisturbed"), tmp_path / "killed", random.Random(0), 0
    for _ in range(12):
        with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE) as running:
            running.stdout.readline()
            time.sleep(draws.random() * 0.4)
            running.send_signal(signal.SIGKILL)
        kills += running.returncode == -signal.SIGKILL
        ff.Journal(path).verify()
    assert kills > 2
    subprocess.run([*command, str(path)], check=True, timeout=300)
    killed, like = ff.Journal(path), net()
    assert killed.ids == whole.ids and killed.verify() == 4
    for id in whole.ids:
        assert same(killed.model(like, after=id), whole.model(like, after=id))


# ---------------------------------------------------------------------- one writer


def test_a_second_writer_is_told_who_writes_and_a_reader_is_not_kept_out(tmp_path):
    journal, model = ff.Journal(tmp_path), net()
    ask_class(journal, 0, model)
    reading, writing = os.pipe()

    def holds():
        with Store(tmp_path).lock():
            os.write(writing, b"x")
            time.sleep(60)

    child = os.fork()
    if child == 0:
        holds()
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        before = tree(tmp_path)
        with pytest.raises(ff.journal.Busy, match=f"process {child} on .* is writing to this journal"):
            ask_class(journal, 1, model)
        assert tree(tmp_path) == before
        assert ff.Journal(tmp_path).verify() == 1 and same(ff.Journal(tmp_path).original(model), model)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading), os.close(writing)
    assert (tmp_path / "lock").read_text().startswith(f"process {child} on")  # what a dead process left is no lock
    ask_class(journal, 1, model)
    assert journal.ids == ["class 0", "class 1"]


def test_two_journals_of_one_process_exclude_each_other_too(tmp_path):
    with Store(tmp_path).lock(), pytest.raises(ff.journal.Busy, match=f"process {os.getpid()} on"):
        ask_class(ff.Journal(tmp_path), 0, net())
    ask_class(ff.Journal(tmp_path), 0, net())


def test_what_another_process_is_writing_is_not_cleaned_away(tmp_path):
    store = Store(tmp_path)
    with store.lock():
        (tmp_path / ".pending").mkdir()
        ff.Journal(tmp_path)
        assert store.half_written
    ff.Journal(tmp_path)
    assert not store.half_written


# ---------------------------------------------------------------------- tampering


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "kept"
    journal, model = ff.Journal(path), net()
    for c in range(3):
        ask_class(journal, c, model)
    return path


FILES = [f"{n:04d}/{name}" for n in (1, 2, 3) for name in ("request.json", "receipt.json", "weights.safetensors", "forget.safetensors")]
FILES.append("0001/original.safetensors")


def test_these_are_all_files(kept):
    assert sorted(tree(kept)) == sorted(FILES)
    assert ff.Journal(kept).verify() == 3


@pytest.fixture
def copy(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "copy"))


@pytest.mark.parametrize("file", FILES)
def test_no_file_can_be_changed_or_taken_away(copy, file):
    path = copy / file
    journal, whole = ff.Journal(copy), path.read_bytes()
    for at in {len(whole) - 3, len(whole) // 2, 9}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=f"^{copy / file[:4]}/"):
            journal.verify()
    path.unlink()
    with pytest.raises(ValueError, match=f"^{path}: "):
        journal.verify()
    with pytest.raises(ValueError, match=f"^{path}: "):
        ff.Journal(copy)
    path.write_bytes(whole)
    assert journal.verify() == 3


def rewrite(path: Path, change) -> None:
    """Changes a JSON file; a receipt as somebody would who knows its own hash, and those of the files beside it."""
    value = json.loads(path.read_text())
    change(value)
    if path.name == "receipt.json":
        value["sha256"] = own_hash(value)
    path.write_text(json.dumps(value, indent=1))


def test_a_rewritten_receipt_breaks_the_chain(copy):
    journal, head = ff.Journal(copy), ff.Journal(copy).head
    rewrite(copy / "0001/receipt.json", lambda r: r["unlearning"]["verdict"].update(why="all is well"))
    with pytest.raises(ValueError, match="0002/request.json: the receipt before it isn't the one that it names"):
        journal.verify()
    shutil.rmtree(copy / "0002")
    with pytest.raises(ValueError, match="0002: it is missing, and 0003 is there"):
        journal.verify()
    shutil.rmtree(copy / "0003")
    assert journal.verify() == 1  # all that is left fits together; only who kept the head can tell
    with pytest.raises(ValueError, match=f"none of its 1 receipts has the hash {head[:12]}"):
        journal.verify(head)


def test_weights_put_in_anothers_place(copy):
    """With hashes of files that fit, the content's hash still doesn't."""
    import hashlib

    place = copy / "0003/weights.safetensors"
    tensors, _ = _safetensors.load(place)
    tensors["0.bias"] = tensors["0.bias"] + 1
    _safetensors.save(place, tensors)
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    rewrite(copy / "0003/receipt.json", lambda r: r["files"].update({"weights.safetensors": digest}))
    with pytest.raises(ValueError, match=r"0003/weights.safetensors: its weights aren't those that request.json names"):
        ff.Journal(copy).verify()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("unlearning"), "0002/receipt.json: an entry .* missing or of another kind"),
        (lambda r: r.update(files=3), "0002/receipt.json: an entry .* missing or of another kind"),
        (lambda r: r.update(format="fastforget journal 2"), "0002/receipt.json: its format is 'fastforget journal 2'; accepted"),
        (lambda r: r.update(id="other"), "0002/request.json: its id and number aren't those of"),
        (lambda r: r["unlearning"]["weights_sha256"].update(after="0"), "0002/receipt.json: its weights aren't those"),
    ],
)
def test_receipts_that_make_no_sense(copy, change, says):
    rewrite(copy / "0002/receipt.json", change)
    with pytest.raises(ValueError, match=says):
        ff.Journal(copy)


def test_folders_swapped_or_added(copy):
    (copy / "0002").rename(copy / "x")
    with pytest.raises(ValueError, match="x: it is no part of a journal"):
        ff.Journal(copy)
    (copy / "0003").rename(copy / "0002")
    (copy / "x").rename(copy / "0003")
    with pytest.raises(ValueError, match="0002/request.json: its id and number"):
        ff.Journal(copy)
    (copy / "0002").rename(copy / "x")
    (copy / "0003").rename(copy / "0002")
    (copy / "x").rename(copy / "0003")
    (copy / "0001/more").write_text("")
    with pytest.raises(ValueError, match="0001/more: it isn't among the files"):
        ff.Journal(copy)


def test_only_a_journals_folder_is_opened(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis.tex: it is no part of a journal; accepted is a journal's folder, an empty or a new one"):
        ff.Journal(tmp_path)
    with pytest.raises(ValueError, match=r"thesis.tex: it is a file"):
        ff.Journal(tmp_path / "thesis.tex")
    journal = ff.Journal(tmp_path / "new" / "one")
    assert journal.ids == [] and journal.head is None and journal.verify() == 0 and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="no request is in this journal yet"):
        journal.model(net())


def test_nothing_in_a_journal_is_executed(kept):
    """No pickle: weights are safetensors, all else is JSON."""
    for name, content in tree(kept).items():
        if name.endswith(".json"):
            json.loads(content)
        else:
            assert content[8:9] == b"{" and all(isinstance(t, torch.Tensor) for t in _safetensors.load(kept / name)[0].values())


def test_where_there_are_no_file_locks_the_journal_says_so_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows: the import fails
    with pytest.raises(OSError, match="needs the file locks of Linux or macOS"), Store(tmp_path / "journal").lock():
        pass
    assert not (tmp_path / "journal").exists()
