"""docs/recipes.md as code: each section's example is what its test runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipes.md"
PINS = ROOT / "requirements" / "ecosystem.txt"


def sections() -> dict[str, str]:
    """The example of each section that has one, by its heading."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    codes = {part.partition("\n")[0]: re.findall(r"```py\n(.*?)```", part, re.DOTALL) for part in parts}
    return {heading: code[0] for heading, code in codes.items() if code}


def run(heading: str, **given: Any) -> dict[str, Any]:
    """Runs a section's example with the names that its test gives; returns all names afterwards."""
    names = {"__name__": "recipe", **given}
    exec(compile(sections()[heading], f"docs/recipes.md: {heading}", "exec"), names)
    return names


def table() -> list[tuple[str, str, str]]:
    """The support table's rows: packages with versions, what was run, by which test or why not."""
    text = PAGE.read_text(encoding="utf-8").partition("## What was run")[2]
    rows = [line.strip("|\n").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return [(a.strip(), b.strip(), c.strip()) for a, b, c in rows]


def pins() -> dict[str, str]:
    """Versions by distribution, as requirements/ecosystem.txt pins them."""
    lines = (line.split(";")[0].strip() for line in PINS.read_text().splitlines())
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
