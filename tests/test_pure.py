"""Where nothing is compiled, as on macOS and Windows: it imports, says so once, and gives the same results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastforget as ff

ROOT = Path(__file__).resolve().parents[1]
NATIVE = shutil.ignore_patterns("_lib", "*.so", "*.pyd", "*.dylib", "__pycache__")

USE_IT = """
import json, pathlib, platform, sys, sysconfig, warnings
import numpy, torch, torch._dynamo  # as they are here; what follows sees another system
sysconfig.get_config_vars()
system, name = {"linux": ("Linux", "linux"), "macos": ("Darwin", "darwin"), "windows": ("Windows", "win32")}[sys.argv[1]]
folder = pathlib.Path(sys.argv[2])
if name != "linux":
    platform.system = lambda: system
    sys.platform = name
    if name == "win32":
        sys.modules["fcntl"] = sys.modules["resource"] = None
sys.path.insert(0, sys.argv[3])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastforget as ff
    torch.manual_seed(0)
    y = torch.arange(400) % 4
    x, unseen = (torch.nn.functional.one_hot(y, 4).float() * 3 + torch.randn(400, 4) for _ in range(2))
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    optimiser = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    words = [w % 2**32 for w in ff.ops.noise.random_bits(4, seed=0).tolist()]
    noise = ff.ops.noise.normal_(torch.empty(5), seed=3).tolist()
    kept = y != 2
    sets = {"forget": (x[~kept], y[~kept]), "retain": (x[kept], y[kept]), "test": (unseen, y)}
    result = ff.unlearn(net, "lightweight", classes=[2], nonmember=(x[:100] + 0.3, y[:100]), progress=False, **sets)
    report = ff.audit({"original": net, "unlearned": result.model}, **sets, progress=False)
    report.write_receipt(folder / "receipt.json", result)
    report.to_html(folder / "report.html")
    ff.audit.compare([folder / "receipt.json"]).to_html(folder / "page.html")
    from fastforget.__main__ import main
    status = main(["info", "--json"])
left = report.row("unlearned")["accuracy"]["forget"]
print("RESULT", json.dumps({
    "words": words, "noise": noise, "file": ff.__file__, "forgot": result.forgot, "left": left, "status": status,
    "serving": sorted({ff.backend.serving(op, "cpu") for op in ff.backends()}),
    "warned": [str(w.message) for w in caught if "no compiled kernels" in str(w.message)],
    "files": sorted(path.name for path in folder.iterdir()),
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without its native parts, as a wheel of pure Python has it."""
    folder = tmp_path_factory.mktemp("pure")
    shutil.copytree(ROOT / "fastforget", folder / "fastforget", ignore=NATIVE)
    shutil.copytree(ROOT / "triton_kernels", folder / "triton_kernels", ignore=NATIVE)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "models", "__pycache__"))
    return folder


OTHERS = [pytest.param(system, marks=pytest.mark.slow) for system in ("macos", "windows")]


@pytest.mark.parametrize("system", ["linux", *OTHERS])
def test_without_native_parts_everything_works_and_is_said(package: Path, tmp_path: Path, system: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FASTFORGET_"))}
    command = [sys.executable, "-I", "-c", USE_IT, system, str(tmp_path), str(package)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.split("RESULT ", 1)[1])
    assert said["file"].startswith(str(package)) and said["serving"] == ["reference"] and said["status"] == 0
    assert said["words"] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    torch.testing.assert_close(torch.tensor(said["noise"]), ff.ops.noise.normal_(torch.empty(5), seed=3), rtol=1e-6, atol=1e-6)
    assert said["forgot"] and said["left"] < 0.05
    assert len(said["warned"]) == 1 and "so plain PyTorch serves" in said["warned"][0]
    assert said["files"] == ["page.html", "receipt.html", "receipt.json", "report.html"]
