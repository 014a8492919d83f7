"""Shadow models by several processes: ranks of a process group, and processes that share a folder only."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ranks
import shadows_ranks
import torch
from shadows_ranks import FULL, MODELS, start, told
from shadows_world import tensors_equal, train

import fastforget as ff
from fastforget import _safetensors as safetensors_io
from fastforget._files import write_once
from fastforget._identity import digest
from fastforget.auditing.shadow import claims as claims_module
from fastforget.auditing.shadow import folder as folder_module
from fastforget.auditing.shadow import parts
from fastforget.auditing.shadow import together as together_module
from fastforget.auditing.shadow import training as shadow_training
from fastforget.auditing.shadow.claims import Claims

EVERY = list(range(MODELS))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The sums of one process, and its file."""
    folder = tmp_path_factory.mktemp("alone")
    held = train(MODELS, out=folder, **FULL)
    assert tensors_equal(held, train(MODELS, **FULL))
    (path,) = folder.iterdir()
    return digest(held.tensors()), path.read_bytes()


def together(count: int, function: str, folder: Path, **environment: str) -> list[tuple[int, str]]:
    return ranks.finish(start(count, function, folder, PROCESSES=str(count), **environment), timeout=120)


def only_file(folder: Path) -> bytes:
    names = sorted(path.name for path in folder.iterdir())
    assert names == [parts.first_name(MODELS)], names
    return (folder / names[0]).read_bytes()


# ------------------------------------------------------------------ processes that share a folder only


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_that_share_a_folder_train_each_model_once(count, tmp_path, alone):
    assert all(status == 0 for status, _ in together(count, "plain", tmp_path))
    said = told(tmp_path)
    assert len(said) == count and {one["sums"] for one in said} == {alone[0]}
    assert sorted(index for one in said for index in one["trained"]) == EVERY
    assert only_file(tmp_path / "out") == alone[1]


@pytest.mark.slow
def test_groups_stay_together(tmp_path):
    together(2, "stacked", tmp_path)
    said = told(tmp_path)
    assert sorted(index for one in said for index in one["trained"]) == EVERY
    for one in said:
        assert all(index + 1 in one["trained"] for index in one["trained"] if index % 2 == 0 and index < MODELS - 1)
    assert {one["sums"] for one in said} == {digest(train(MODELS, stack=2, **FULL).tensors())}


@pytest.mark.slow
def test_unlike_machines_are_named_and_each_gets_the_same(tmp_path):
    together(2, "mixed", tmp_path)
    assert len({one["sums"] for one in told(tmp_path)} - {None}) == 1
    one, two = (json.loads(path.read_text()) for path in tmp_path.glob("machines-*"))
    assert one == two == list(ff.audit.Shadows.load(tmp_path / "out").machines)
    assert [" 1 threads," in one[0], " 2 threads," in one[1], len(one)] == [True, True, 2]


@pytest.mark.slow
def test_a_killed_process_is_followed_at_once_on_its_machine(tmp_path, alone):
    ended = together(2, "dies", tmp_path)
    assert [status for status, _ in ended] == [-9, 0], ended
    first, second = told(tmp_path)
    # its two finished models are kept; the third is trained by the other
    assert sorted([*first["trained"][:2], *second["trained"]]) == EVERY
    assert second["sums"] == alone[0] and second["seconds"] < claims_module.SILENCE
    assert only_file(tmp_path / "out") == alone[1]


@pytest.mark.slow
def test_a_process_killed_elsewhere_is_followed_after_its_silence(tmp_path, alone):
    ended = together(2, "elsewhere", tmp_path, SILENCE="2")
    assert [status for status, _ in ended] == [-9, 0], ended
    first, second = told(tmp_path)
    assert sorted([*first["trained"][:2], *second["trained"]]) == EVERY
    assert second["sums"] == alone[0] and second["seconds"] > 2
    assert only_file(tmp_path / "out") == alone[1]


@pytest.mark.slow
def test_a_process_that_raises_leaves_its_work_to_the_others(tmp_path, alone):
    together(2, "stumbles", tmp_path)
    first, second = told(tmp_path)
    assert first["said"] == "ZeroDivisionError: out of luck" and second["said"] == ""
    assert second["sums"] == alone[0] and only_file(tmp_path / "out") == alone[1]


def claimed_by_the_dead(folder: Path, said: str, beat: bool) -> None:
    folder.mkdir()
    (folder / "shadows-claim-00000.0").write_text(said)
    if beat:
        (folder / "shadows-beat-another").write_bytes(b"000000000003\n")


@pytest.mark.parametrize(
    ("said", "beat", "waits"),
    [
        (json.dumps({"owner": "another", "process": None}), True, True),
        (json.dumps({"owner": "another", "process": None}), False, False),  # it has left
        ("", False, True),  # killed before it had written its name
    ],
)
def test_a_stale_claim_is_taken_over(said, beat, waits, tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "SILENCE", 0.5)
    claimed_by_the_dead(tmp_path / "out", said, beat)
    began = time.monotonic()
    held = train(2, out=tmp_path / "out", epochs=1)
    assert tensors_equal(held, train(2, epochs=1)) and (time.monotonic() - began > 0.5) == waits
    assert [path.name for path in (tmp_path / "out").iterdir()] == [parts.first_name(2)]


def test_a_slow_owner_is_waited_for_with_a_word(tmp_path, monkeypatch):
    """Another process holds model 0, gives signs of life for longer than the silence that is allowed, and is done in the end."""
    answers, notes = [], []
    real_train, real_work = shadow_training._train_and_score, folder_module._work

    def kept(*args):
        for one in real_train(*args):
            answers.append(one)
            yield one

    def noted(folder, claims, train, show):
        real_work(folder, claims, train, lambda there, note: (notes.append((there, note)), show(there, note)))

    monkeypatch.setattr(shadow_training, "_train_and_score", kept)
    monkeypatch.setattr(folder_module, "_work", noted)
    monkeypatch.setattr(claims_module, "BEAT", 0.05)
    monkeypatch.setattr(claims_module, "SILENCE", 0.4)
    monkeypatch.setattr(claims_module, "SLOW", 1000)
    held = train(2, epochs=1)
    scores = parts.Scores(answers[0], held.digests, parts.Made(held.settings, held.machines))
    with Claims(tmp_path) as other:
        assert other.take([0, 1]) == 0
        done = threading.Timer(1.2, parts.write_scores, [tmp_path / parts.model_name(0), scores])
        done.start()
        got = train(2, out=tmp_path, epochs=1)
        done.join()
    assert tensors_equal(got, held) and [one.model for one in answers] == [0, 1, 1]
    assert (1, f"waiting for {other.owner}") in notes


def test_who_is_far_slower_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "BEAT", 0.05)
    monkeypatch.setattr(claims_module, "SILENCE", 0.3)
    monkeypatch.setattr(claims_module, "SLOW", 1)
    with Claims(tmp_path) as other:
        assert other.take([0, 1]) == 0
        assert tensors_equal(train(2, out=tmp_path, epochs=1), train(2, epochs=1))


def test_a_folder_at_work_is_refused_to_another_configuration(tmp_path, monkeypatch):
    """Before a model is there to say what is being trained."""
    refused = []
    real = shadow_training._train_and_score

    def meanwhile(*args):
        monkeypatch.setattr(shadow_training, "_train_and_score", real)
        with pytest.raises(ValueError, match="out, .*shadows-settings.json: .*another configuration: epochs is 1, not 3") as error:
            train(2, out=tmp_path, epochs=3)
        refused.append(error)
        return real(*args)

    monkeypatch.setattr(shadow_training, "_train_and_score", meanwhile)
    assert tensors_equal(train(2, out=tmp_path, epochs=1), train(2, epochs=1)) and refused


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(shadow_training, "_train_and_score", lambda *_: 1 / 0)
        train(2, out=tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []
    assert train(2, out=tmp_path, epochs=2).n_models == 2


def test_scores_come_back_as_they_were(tmp_path, monkeypatch):
    answers = []
    real = shadow_training._train_and_score
    monkeypatch.setattr(shadow_training, "_train_and_score", lambda *args: (answers.append(one) or one for one in real(*args)))
    held = train(2, **FULL)
    assert held.machines == (together_module.machine(torch.device("cpu")),)
    for one in answers:
        path = tmp_path / parts.model_name(one.model)
        parts.write_scores(path, parts.Scores(one, held.digests, parts.Made(held.settings, held.machines)))
        back = parts.read_scores(path)
        assert back.made == (held.settings, held.machines) and torch.equal(back.digests, held.digests)
        assert back.answers[:2] == one[:2]
        for there, here in zip(back.answers[2:6], one[2:6], strict=True):
            assert there.dtype == here.dtype and torch.equal(there, here)
        assert all(map(torch.equal, back.answers.unlearned, one.unlearned))
    # a folder with scores alone, before they are in sums
    assert tensors_equal(ff.audit.Shadows.load(tmp_path), held)


@pytest.mark.parametrize("spoil", ["cut", "missing", "foreign"])
def test_spoiled_scores_are_refused(spoil, tmp_path):
    path = tmp_path / parts.model_name(0)
    if spoil == "foreign":
        train(2, epochs=1).write(path)
    else:
        held = train(2, epochs=1)
        made, member = parts.Made(held.settings, held.machines), held.member[0]
        parts.write_scores(path, parts.Scores(parts.Answers(0, 1, member, *torch.rand(2, 40, 1), None, None), held.digests, made))
        tensors, metadata = safetensors_io.load(path)
        if spoil == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            del tensors["loss"]
            safetensors_io.save(path, tensors, metadata)
    message = {"cut": "is cut off", "missing": "isn't a whole file", "foreign": "its format is 'fastforget shadows 1'"}
    for read in (lambda: train(2, out=tmp_path, epochs=1), lambda: ff.audit.Shadows.load(tmp_path)):
        with pytest.raises(ValueError, match=message[spoil]):
            read()


def test_what_is_written_first_stays(tmp_path, monkeypatch):
    path = tmp_path / "x"
    assert write_once(path, "one") and not write_once(path, "two")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="could not write .*nowhere"):
        write_once(tmp_path / "nowhere" / "x", "one")

    def without_links(*_):
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", without_links)
    assert write_once(path, "three") and path.read_text() == "three" and list(tmp_path.iterdir()) == [path]
    assert tensors_equal(train(3, out=tmp_path / "out", epochs=1), train(3, epochs=1))


def test_what_the_killed_left_half_written_goes_in_the_end(tmp_path):
    (tmp_path / ".shadows-model-00000.safetensors.0a1b2c").write_bytes(b"half")
    train(2, out=tmp_path, epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == [parts.first_name(2)]


def test_work_that_is_swept_away_by_who_has_finished_is_not_missed(tmp_path, monkeypatch):
    """Two are at model 0, and the other one finishes everything while this one writes."""
    real = folder_module.write_scores

    def late(path, scores):
        if scores.answers.model == 0:
            monkeypatch.setattr(folder_module, "write_scores", real)
            monkeypatch.setattr(claims_module, "_is_dead", lambda _: True)
            train(2, out=tmp_path, epochs=1)
            raise FileNotFoundError(errno.ENOENT, "swept away")
        real(path, scores)

    monkeypatch.setattr(folder_module, "write_scores", late)
    assert tensors_equal(train(2, out=tmp_path, epochs=1), train(2, epochs=1))


def test_stacks_that_leave_processes_idle_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.warns(UserWarning, match="stack: 1 stacks of up to 16 models for 4 processes.*Pass a smaller"):
        train(16, out=tmp_path, epochs=1, stack="auto")


def test_other_machines_are_named():
    """A state that two kinds of machine have made says so; merged states too."""
    one, two = train(2, epochs=1), train(2, epochs=1, seed=1)
    here = one.machines
    two.machines = ("another processor",)
    assert one.merge(two).machines == tuple(sorted([*here, "another processor"]))


def test_a_file_that_goes_while_it_is_read_is_looked_for_again(tmp_path):
    train(2, out=tmp_path / "a", epochs=1)
    (whole,) = (tmp_path / "a").iterdir()
    seen: list[parts.Listing] = []

    def read(found: parts.Listing) -> int:
        seen.append(found)
        if len(seen) == 1:
            whole.rename(whole.with_name(parts.first_name(3)))
        return len(found.firsts[found.latest].read_bytes())

    assert parts.steadily(tmp_path / "a", read) > 0 and [found.latest for found in seen] == [2, 3]
    with pytest.raises(FileNotFoundError):
        parts.steadily(tmp_path, lambda _: (tmp_path / "nothing").read_bytes())


# ------------------------------------------------------------------ ranks

needs_ranks = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


@needs_ranks
@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_train_each_model_once(world, tmp_path, alone):
    ranks.run(world, "shadows_ranks", "on_ranks", tmp_path)
    said = told(tmp_path)
    assert len(said) == world and {one["sums"] for one in said} == {alone[0]}, said
    assert sorted(index for one in said for index in one["trained"]) == EVERY
    assert only_file(tmp_path / "out") == alone[1]
    # the audit of a model that the ranks hold together
    assert len({path.read_bytes() for path in tmp_path.glob("report-*")}) == min(1, world - 1)


@needs_ranks
@pytest.mark.slow
def test_torchrun_goes_on_with_another_number_of_ranks(tmp_path, alone):
    """Rank 1 of 2 can't make its third model; the same call on 3 ranks, by torchrun, trains what is missing."""
    ranks.run(2, "shadows_ranks", "rank_stumbles", tmp_path)
    first, second = told(tmp_path)
    assert second["said"] == "ZeroDivisionError: out of luck"
    assert first["said"].startswith("RankError: shadows: rank 1 stopped (ZeroDivisionError: out of luck); so this rank stops too. What was")
    assert first["seconds"] < 60
    kept = ff.audit.Shadows.load(tmp_path / "out").n_models
    assert kept >= len(second["trained"]) - 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=3", "--standalone"]
    command = [*torchrun, ranks.__file__, "shadows_ranks", "on_ranks", str(tmp_path)]
    done = subprocess.run(command, env=shadows_ranks.environment_of_tests(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = told(tmp_path)
    assert {one["sums"] for one in said} == {alone[0]} and sum(len(one["trained"]) for one in said) == MODELS - kept
    assert only_file(tmp_path / "out") == alone[1]


@needs_ranks
@pytest.mark.slow
def test_ranks_are_told_of_what_differs(tmp_path):
    ranks.run(2, "shadows_ranks", "rank_differs", tmp_path)
    for one in told(tmp_path):
        assert one["said"].startswith("RankError: shadows: epochs: rank 0 was given 2, rank 1 3"), one
    ranks.run(2, "shadows_ranks", "other_folders", tmp_path)
    for one in told(tmp_path):
        assert "isn't the same folder on rank 1 as on rank 0" in one["said"] and not one["trained"], one


@needs_ranks
@pytest.mark.slow
def test_a_dead_rank_ends_the_others(tmp_path, alone):
    ended = ranks.finish(ranks.start(3, "shadows_ranks", "rank_dies", tmp_path), timeout=120)
    assert [status for status, _ in ended] == [0, -9, 0], ended
    for one in told(tmp_path):
        assert "rank 1 has given no sign of life" in one["said"] and one["seconds"] < 60, one
    assert digest(train(MODELS, out=tmp_path / "out", **FULL).tensors()) == alone[0]
    assert only_file(tmp_path / "out") == alone[1]


def test_environments_without_a_group(tmp_path, monkeypatch):
    """Processes that know no more than their numbers share the folder like any others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert train(2, out=tmp_path, epochs=1).n_models == 2
    with pytest.raises(ValueError, match="out: got None under torchrun with 2 processes"):
        train(2)
