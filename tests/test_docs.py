"""README and docs/: the example runs, links lead somewhere, generated parts are what the commands write, README stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastforget import _info, _schema
from fastforget._bench import docs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_first_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True ")
    assert "no reference" in result.stdout.lower()


def test_readme_has_at_most_1000_words():
    assert len(README.read_text().split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
