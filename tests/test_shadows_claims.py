"""Claims on shadow models in a folder: who has one, and what a full disk or another configuration leaves behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from shadows_world import tensors_equal, train

import fastforget as ff
from fastforget.auditing.shadow import claims as claims_module
from fastforget.auditing.shadow import folder as folder_module
from fastforget.auditing.shadow import parts
from fastforget.auditing.shadow.claims import Claims


def test_a_claim_has_one_owner(tmp_path):
    """Many threads, each with claims of its own, and each piece of work once."""
    taken: list[int] = []

    def work() -> None:
        with Claims(tmp_path) as claims:
            while (number := claims.take(set(range(50)) - set(taken))) is not None:
                taken.append(number)
            done.wait(10)

    done = threading.Barrier(6)
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(50))


def test_a_folder_that_another_configuration_has_filled_since_it_was_opened_is_left_as_it_is(tmp_path, monkeypatch):
    """The other one was done, and had taken away what said that it was at work."""
    real = folder_module.Folder.settle

    def late(folder):
        monkeypatch.setattr(folder_module.Folder, "settle", real)
        train(2, out=tmp_path, epochs=1)
        real(folder)

    monkeypatch.setattr(folder_module.Folder, "settle", late)
    with pytest.raises(ValueError, match=r"shadows-first-00002.*another configuration: n is 2, not 4; epochs is 1, not 3"):
        train(4, out=tmp_path, epochs=3)
    assert [path.name for path in tmp_path.iterdir()] == [parts.first_name(2)]
    assert tensors_equal(ff.audit.Shadows.load(tmp_path), train(2, epochs=1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("which", ["beat", "claim"])
def test_a_full_disk_leaves_no_claim(which, tmp_path, monkeypatch):
    """A claim without a name would keep others waiting, and so would signs of life of who has left."""
    real = claims_module.os.open

    def full(path, *rest):
        descriptor = real(path, *rest)
        if which in Path(path).name:
            os.close(descriptor)
            descriptor = real("/dev/full", os.O_WRONLY)
        return descriptor

    with Claims(tmp_path) as other:
        monkeypatch.setattr(claims_module.os, "open", full)
        with pytest.raises(OSError, match=f"could not write .*shadows-{which}-.*: No space left"), Claims(tmp_path) as claims:
            claims.take([0])
        monkeypatch.undo()
        assert len(list(tmp_path.iterdir())) == 1 and other.take([0]) == 0


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "x").write_text("notes")
    with pytest.raises(FileExistsError, match=r"out: .*x is a file.*accepted is a folder"):
        train(2, out=tmp_path / "x", epochs=1)
    assert (tmp_path / "x").read_text() == "notes"
