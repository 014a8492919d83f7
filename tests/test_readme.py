"""README's first example runs as it stands there, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import readme_types

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True ")
    assert "no reference" in result.stdout.lower()


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_methods_section_is_the_commands():
    from fastforget._bench import experiment, experiment_page

    assert experiment_page.readme(json.loads(experiment.ROWS.read_text())).strip() in README.read_text()


def test_the_shadow_audits_table_is_the_commands():
    from fastforget._bench import shadow_audit

    found = json.loads((README.parent / "benchmarks/results/shadow-audit-mnist5k.json").read_text())
    assert shadow_audit.markdown(found).strip() in README.read_text()


def test_every_public_op_is_in_the_support_table():
    from fastforget import _schema

    table = README.read_text().split("## Where each op runs")[1].split("##")[0]
    assert [name for name in _schema.SCHEMAS if name not in table] == []


@pytest.mark.slow
def test_its_python_satisfies_a_type_checker(tmp_path):
    files = readme_types.write(tmp_path)
    assert len(files) > 1 and "ff.audit.relearn_time\n" in files[-1].read_text()
    found = subprocess.run(readme_types.mypy(files), capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    # the checker sees the package: what is not there is an error
    (tmp_path / "wrong.py").write_text("import fastforget as ff\nff.audit.nothing\nff.audit(forget=1)\nff.audit.oracles.Nothing\n")
    command = readme_types.mypy([tmp_path / "wrong.py"])
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path).stdout
    assert '"Audit" has no attribute "nothing"' in wrong and 'Missing positional argument "models"' in wrong
    assert 'has no attribute "Nothing"' in wrong
