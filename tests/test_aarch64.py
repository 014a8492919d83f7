"""The CPU kernels for another processor: compiled for aarch64, and run there by an emulator, against the reference in float64.

No torch for that processor is here, so what glues the kernels to it is only compiled. An x86 build of the same programme runs too:
it shows that the programme's own inputs are those of this test.
"""

from __future__ import annotations

import importlib.util
import runpy
import shlex
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from built_once import built_once

from fastforget.reference import noise, update
from fastforget.reference.mask import elementwise
from fastforget.reference.membership import scores

ROOT = Path(__file__).resolve().parents[1]
SELF_CHECK = ROOT / "tests" / "aarch64" / "selfcheck.cpp"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = next(filter(None, map(shutil.which, ("qemu-aarch64", "qemu-aarch64-static"))), None)
RULES = runpy.run_path(str(ROOT / "csrc" / "ninja_rules.py"))
N = 77
pytestmark = pytest.mark.slow


def flags() -> list[str]:
    """What setup.py compiles a kernel file with where the processor is no x86."""
    return [*RULES["CXX_FLAGS"], *RULES["ISA_FLAGS"]["baseline"][:2]]


def kernel_files() -> list[Path]:
    return [path for path in sorted((ROOT / "csrc" / "cpu").rglob("*.cpp")) if not path.name.endswith(RULES["ONCE"])]


def compiled(compiler: str, folder: Path, *more: str) -> Path:
    """The self-check with every kernel file, as one programme without shared libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in [*kernel_files(), SELF_CHECK]:
        objects.append(folder / "_".join([*source.relative_to(ROOT).with_suffix("").parts, "o"]))
        command = [compiler, *flags(), "-Werror", *more, "-c", source, "-o", objects[-1]]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stderr}"
    programme = folder / "selfcheck"
    subprocess.run([compiler, "-static", *map(str, objects), "-o", str(programme)], check=True)
    return programme


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian: apt-get install g++-aarch64-linux-gnu)")

    def build(folder: Path) -> None:
        compiled(COMPILER, folder)

    return built_once(tmp_path_factory, "aarch64", build) / "selfcheck"


def test_every_kernel_file_compiles_for_aarch64(aarch64: Path) -> None:
    header = aarch64.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and struct.unpack("<H", header[18:20])[0] == 183  # EM_AARCH64
    assert len(kernel_files()) >= 13


def test_the_glue_to_torch_compiles_for_aarch64(aarch64: Path) -> None:
    """torch's stable ABI is headers of C++ alone, the same for every processor."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_flags = [*RULES["STABLE_ABI"], "-isystem", str(Path(spec.origin).parent / "include")]
    for source in sorted((ROOT / "csrc" / "cpu").rglob(f"*{RULES['ONCE']}")):
        command = [COMPILER, *RULES["CXX_FLAGS"], *torch_flags, "-fsyntax-only", str(source)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]


@pytest.fixture(scope="session", params=["aarch64", "x86"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What each kernel gave, as the bits of each number."""
    if request.param == "x86":
        if RULES["platform"].machine() != "x86_64" or shutil.which("g++") is None:
            pytest.skip("this machine has no g++ for x86")
        march = RULES["ISA_FLAGS"]["baseline"][2]
        command = [str(built_once(tmp_path_factory, "selfcheck-x86", lambda folder: compiled("g++", folder, march) and None) / "selfcheck")]
    else:
        programme = request.getfixturevalue("aarch64")
        if EMULATOR is None:
            pytest.skip("qemu-aarch64 is not installed (Debian: apt-get install qemu-user)")
        command = [EMULATOR, str(programme)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0]: [int(word, 16) for word in line.split()[1:]] for line in out.splitlines()}


# ------------------------------------------------------------------ what is right


def number(i: int, series: int) -> float:
    return ((i + 1) * 2654435761 + series * 2246822519) % 2**32 / 2**32 * 4 - 2


def numbers(series: int, n: int = N) -> torch.Tensor:
    """float32, as the programme rounds them, in float64."""
    return torch.tensor([number(i, series) for i in range(n)], dtype=torch.float64).float().double()


def read(bits: list[int], dtype: torch.dtype) -> torch.Tensor:
    codes = {torch.float32: "<I", torch.float64: "<Q", torch.bfloat16: "<H", torch.float16: "<H", torch.int64: "<Q"}
    data = b"".join(struct.pack(codes[dtype], one) for one in bits)
    return torch.frombuffer(bytearray(data), dtype=dtype).double()


def normals(n: int = N) -> torch.Tensor:
    z = torch.empty(n, dtype=torch.float64)
    noise.normal_([z], [0.0], [1.0], 7, 1, 2, [3])
    return z


def near(found: torch.Tensor, wanted: torch.Tensor, relative: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=relative, atol=relative)


def test_integers_are_the_same(told: dict[str, list[int]]) -> None:
    assert told["philox"] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # the known answer of the generator's authors
    out = torch.empty(N, dtype=torch.int32)
    noise.random_bits(out, 7, 1, 2, 3)
    assert told["random_bits"] == [word % 2**32 for word in out.tolist()]


@pytest.mark.parametrize(
    ("name", "dtype", "relative"),
    [
        ("float", torch.float32, 1e-6),
        ("double", torch.float64, 1e-14),
        ("bfloat16", torch.bfloat16, 2**-8),
        ("half", torch.float16, 2**-11),
    ],
)
def test_noise_is_right(told: dict[str, list[int]], name: str, dtype: torch.dtype, relative: float) -> None:
    near(read(told[f"normal_{name}"], dtype), 0.5 + 2.0 * normals(), relative)


def test_a_noisy_step_is_right(told: dict[str, list[int]]) -> None:
    near(read(told["perturb"], torch.float32), numbers(1) - 0.25 * numbers(2) + 0.5 * normals(), 1e-6)


def test_masks_are_right(told: dict[str, list[int]]) -> None:
    p, count = numbers(3), torch.zeros((), dtype=torch.int64)
    elementwise.dampen_([p], [numbers(4).abs()], [numbers(5).abs()], count, 2.0, 1.0)
    near(read(told["dampen"], torch.float32), p, 1e-6)
    assert told["dampen_count"] == [int(count)] and 0 < int(count) < N
    x = numbers(6)
    shrunk = x.sign() * (x.abs() - 0.75).clamp_min(0)
    near(read(told["soft_threshold"], torch.float32), shrunk, 1e-6)
    assert told["soft_threshold_count"] == [int((shrunk != 0).sum())]
    near(read(told["soft_threshold_l1"], torch.float64), shrunk.abs().sum()[None], 1e-6)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    return numbers(8, 77).view(11, 7), torch.arange(11) * 3 % 7


def test_losses_and_scores_are_right(told: dict[str, list[int]]) -> None:
    logits, labels = rows()
    wanted: dict[str, Any] = {"loss": torch.empty(11, dtype=torch.float64), "dlogits": torch.empty(11, 7, dtype=torch.float64)}
    update.error_max_loss(logits, labels, wanted["loss"], wanted["dlogits"])
    near(read(told["error_max_loss"], torch.float32), wanted["loss"], 2e-6)
    near(read(told["error_max_dlogits"], torch.float32), wanted["dlogits"].flatten(), 2e-6)
    found, correct = torch.empty(6, 11, dtype=torch.float64), torch.empty(11, dtype=torch.bool)
    scores.membership_scores(logits, labels, 1.0, found, correct)
    near(read(told["membership_scores"], torch.float32), found.flatten(), 5e-6)
    assert told["membership_correct"] == correct.int().tolist()


def test_sums_are_right(told: dict[str, list[int]]) -> None:
    a, b = numbers(9), numbers(10)
    near(read(told["gradient_products"], torch.float64), torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]), 1e-6)

