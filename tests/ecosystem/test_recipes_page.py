"""docs/recipes.md: every example has a test, and the table names what was run, with the versions that are pinned. Needs no package."""

from __future__ import annotations

import ast
from pathlib import Path

import recipe_page

HERE = Path(__file__).parent


def trees() -> list[ast.Module]:
    return [ast.parse(file.read_text()) for file in sorted(HERE.glob("test_recipes_*.py"))]


def test_every_example_is_what_a_test_runs() -> None:
    calls = [node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if "run" in (getattr(call.func, "attr", ""), getattr(call.func, "id", "").replace("unlearned", "run"))]
    headings = {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}
    assert headings == set(recipe_page.sections())


def test_the_table_has_every_test_and_the_pinned_versions() -> None:
    rows, pins = recipe_page.table(), recipe_page.pins()
    run = {
        node.name
        for tree in trees()
        if any(isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "pytestmark" for node in tree.body)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {by for _, _, by in rows} - {"not run"} == run
    for package, what, by in rows:
        name, _, version = package.partition(" ")
        if by != "not run" and name != "torch":
            assert pins[name] == version, what
    assert sum(by == "not run" for _, _, by in rows) >= 1


def test_the_recipes_say_the_pins_torch() -> None:
    build = (recipe_page.ROOT / "requirements" / "build.txt").read_text()
    assert f"torch=={next(row[0] for row in recipe_page.table() if row[2] == 'test_compile').split()[1]}" in build
