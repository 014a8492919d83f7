"""The checkout, its sdist, and the wheel that is built of it: once for all tests of installing."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from built_once import built_once
from install_world import NOT_SOURCE, ROOT, SITE, environment, only_wheel, succeeds, wheel_command


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's sources as they are now, all of them."""

    def copy(folder: Path) -> None:
        shutil.copytree(ROOT, folder / "fastforget", ignore=NOT_SOURCE)

    return built_once(tmp_path_factory, "checkout", copy) / "fastforget"


@pytest.fixture(scope="session")
def tree(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as its sdist holds it, with the checkout's object files: only changed files compile. The wheel is built in it."""

    def unpack(folder: Path) -> None:
        make = "import os, sys, setuptools.build_meta as b; os.chdir(sys.argv[1]); b.build_sdist(sys.argv[2])"
        succeeds([sys.executable, "-c", make, checkout, folder])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        if (ROOT / "build" / "native").is_dir():
            shutil.copytree(ROOT / "build" / "native", unpacked / "build" / "native")

    (unpacked,) = (built_once(tmp_path_factory, "sdist", unpack) / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(folder: Path) -> None:
        python = environment(folder / "env", [SITE])
        succeeds(wheel_command(python, tree, folder), FASTFORGET_REQUIRE_NATIVE="1")

    return only_wheel(built_once(tmp_path_factory, "wheel", build))


@pytest.fixture
def fresh(tree: Path, wheel: Path, tmp_path: Path) -> Path:
    """A copy of the sdist's tree to damage."""
    assert wheel.exists()  # so nothing builds in the tree any more
    return Path(shutil.copytree(tree, tmp_path / "tree", ignore=shutil.ignore_patterns("build")))
