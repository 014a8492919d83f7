"""What the tests of installing share: commands away from the checkout, environments of their own, and looks into wheels.

An environment sees torch and the build tools through a .pth line; Python reads no further .pth files from a folder named so, hence an
editable install of this checkout, which works by a .pth file, cannot leak in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = sysconfig.get_path("purelib")
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "_lib", "*.so", ".*_cache"
)


def run(command: list[object], **changes: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a command elsewhere than in the checkout; `changes` set or (None) remove environment variables."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTFORGET_", "TRITON_"))}
    env.update({k: v for k, v in changes.items() if v is not None})
    for gone in [k for k, v in changes.items() if v is None]:
        env.pop(gone, None)
    return subprocess.run(
        [str(part) for part in command],
        env=env,
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def succeeds(command: list[object], **changes: str | None) -> str:
    done = run(command, **changes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def environment(folder: Path, sees: list[str]) -> Path:
    """An empty virtual environment without pip that also imports from `sees`; returns its Python."""
    succeeds([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    site = succeeds([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(site, "sees.pth").write_text("\n".join([*sees, ""]))
    return python


def pip(python: Path, *arguments: object) -> list[object]:
    return [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments]


def wheel_command(python: Path, tree: Path, out: Path) -> list[object]:
    return pip(python, "wheel", "-v", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, tree)


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def top_level(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names if ".dist-info/" not in name}


def build_json(wheel: Path) -> dict:
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read("fastforget/_lib/build.json"))


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def modules_below(folder: Path) -> list[str]:
    """Dotted names of the modules in a folder and in those below it."""
    return sorted(".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py"))
