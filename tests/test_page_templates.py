"""The page's templates: they escape, they travel with the package, and nothing of them is loaded before a page is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from fastforget.auditing import show
from fastforget.auditing.show import layout

FOLDER = Path(show.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").iterdir())
HOSTILE = "<script>alert('x')</script> & \"quoted\""


def rendered(source: str, **values: object) -> str:
    return layout._environment().from_string(layout.joined(source)).render(values)


def test_values_are_escaped_in_texts_and_attributes() -> None:
    page = rendered('<p title="{{ text }}">{{ text }}</p>', text=HOSTILE)
    assert page.count("<") == 2 and page.count('"') == 2 and page.count("&lt;script&gt;") == 2
    terms = rendered('{% from "parts.html" import terms %}{{ terms({text: text}) }}', text=HOSTILE)
    assert "<script" not in terms and re.findall(r"<[^>]*>", terms) == ["<dl>", "<dt>", "</dt>", "<dd>", "</dd>", "</dl>"]


def test_only_drawings_the_style_sheet_and_the_script_are_taken_as_they_are() -> None:
    sources = {path.name: path.read_text("utf-8") for path in TEMPLATES}
    safe = {name: re.findall(r"\{\{\s*([^}]*?)\s*\|\s*safe\s*\}\}", source) for name, source in sources.items()}
    taken = {name: set(values) for name, values in safe.items() if values}
    assert taken == {"page.html": {"css", "script"}, "parts.html": {"chart.drawing"}}
    words = re.findall(r"\b(?:safe|autoescape)\b", "".join(sources.values()))
    assert words == ["safe"] * sum(map(len, safe.values()))


def test_numbers_stay_with_their_signs() -> None:
    assert rendered("<td>{{ text }}</td>", text="12.0 % of 5 %, TPR *") == "<td>12.0\u00a0% of 5\u00a0%, TPR\u00a0*</td>"


def test_a_misspelt_name_is_an_error() -> None:
    import jinja2

    with pytest.raises(jinja2.UndefinedError, match="'titel' is undefined"):
        rendered("<h1>{{ titel }}</h1>", title="Audit")


def test_line_breaks_between_tags_stand_for_nothing() -> None:
    source = "{% for x in xs %}\n  <li>\n    {{ x }}\n    and\n    more\n  </li>\n{% endfor %}\n\n<hr>\n"
    assert rendered(source, xs=["a", "b"]) == "<li>a and more</li><li>b and more</li>\n<hr>"
    assert rendered("<b>one</b> {{ x }}\n<i>two</i>", x="b") == "<b>one</b> b<i>two</i>"


def test_templates_and_style_sheet_are_package_data() -> None:
    """As setuptools will find them: what pyproject names is what lies there."""
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    if not pyproject.exists():
        pytest.skip("not in a checkout")
    (patterns,) = re.findall(r'^"fastforget\.auditing\.show" = \[(.*)\]$', pyproject.read_text(), flags=re.M)
    named = {path for pattern in re.findall(r'"([^"]+)"', patterns) for path in FOLDER.glob(pattern)}
    there = {path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert named == there and len(named) == 2 + len(TEMPLATES)  # the style sheet and the script
    assert files(show).joinpath("style.css").read_text("utf-8") == layout.style_sheet()


def test_every_template_is_used() -> None:
    sources = "".join(path.read_text("utf-8") for path in (*TEMPLATES, *FOLDER.glob("*.py")))
    assert [path.name for path in TEMPLATES if f'"{path.name}"' not in sources] == []


def test_importing_the_package_loads_no_template_engine() -> None:
    code = "import sys, fastforget; print([name for name in ('jinja2', 'markupsafe') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_jinja2_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    layout._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match="a page needs the package jinja2, which torch requires: .*pip install jinja2"):
        layout.render("report.html")
    layout._environment.cache_clear()
