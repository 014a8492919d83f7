"""README and docs/: the example runs, links lead somewhere, generated parts are what the commands write, README stays short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import page_types
import pytest

from fastforget import _info, _schema
from fastforget._bench import docs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_first_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True ")
    assert "no reference" in result.stdout.lower()


def test_readme_has_at_most_1000_words():
    assert len(README.read_text().split()) <= 1000


@pytest.mark.parametrize("page", page_types.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#?[^)]*\)", page.read_text())
    assert [link for link in links if link and not (page.parent / link).exists()] == []


def test_readme_has_links_and_a_picture():
    assert re.findall(r"!\[[^]]+\]\(docs/[^)]+\)", README.read_text())


def test_generated_parts_are_what_the_command_writes(capsys):
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_every_generated_part_stands_on_a_page():
    on_pages = [name for page in docs.PAGES for name in re.findall(r"<!-- generated: ([\w-]+) -->", (ROOT / page).read_text())]
    assert sorted(on_pages) == sorted(docs.PARTS)


def test_every_public_op_is_in_the_support_table():
    table = (ROOT / "docs/gpu.md").read_text()
    assert [name for name in _schema.SCHEMAS if name not in table] == []


def test_the_info_block_has_the_commands_lines():
    block = re.search(r"```\n(fastforget \d.*?)```", (ROOT / "docs/environment.md").read_text(), re.DOTALL).group(1)
    printed = _info.text(_info.facts()).splitlines()

    def labels(lines):  # a head line has a label of 11 characters, a row of the table begins with its op
        return [line[:10].strip() for line in lines if line.strip()]

    head = labels(block.splitlines()[1:-2])
    assert head == labels(printed[1 : 1 + len(head)])
    assert block.splitlines()[-2].split() == next(line for line in printed if line.startswith("op ")).split()


@pytest.mark.slow
def test_the_pages_python_satisfies_a_type_checker(tmp_path):
    files = page_types.write(tmp_path)
    assert len(files) > 1 and "ff.audit.relearn_time\n" in files[-1].read_text()
    seen = {**os.environ, "MYPYPATH": str(ROOT)}  # a type checker doesn't follow an editable install
    checked = subprocess.run(page_types.mypy(files), capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path, env=seen)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # the checker sees the package: what is not there is an error
    (tmp_path / "wrong.py").write_text("import fastforget as ff\nff.audit.nothing\nff.audit(forget=1)\nff.audit.oracles.Nothing\n")
    command = page_types.mypy([tmp_path / "wrong.py"])
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path, env=seen).stdout
    assert '"Audit" has no attribute "nothing"' in wrong and 'Missing positional argument "models"' in wrong
    assert 'has no attribute "Nothing"' in wrong
