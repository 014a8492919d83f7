"""The pages' Python as files for a type checker: their examples, and every name of the package that their text mentions."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def write(folder: Path) -> list[Path]:
    """One file an example, and one that mentions the names."""
    text = "\n".join(page.read_text() for page in PAGES)
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = sorted(set(re.findall(r"\bff(?:\.[A-Za-z_]\w*)+", text)))
    sources = [*examples, "\n".join(["import fastforget as ff", *names, ""])]
    files = [folder / f"page_{i}.py" for i in range(len(sources))]
    for file, source in zip(files, sources, strict=True):
        file.write_text(source)
    return files


def mypy(files: list[Path], python: str | Path = sys.executable) -> list[str]:
    """The command that checks these files against the package that ``python`` sees."""
    options = ["--check-untyped-defs", "--follow-imports=silent", f"--cache-dir={files[0].parent / 'mypy_cache'}", "--config-file="]
    return [str(python), "-I", "-m", "mypy", *options, *map(str, files)]
