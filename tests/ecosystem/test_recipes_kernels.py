"""Hugging Face's ``kernels`` reads, checks and loads the kernel repository that ``fastforget._bench.hub`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastforget as ff
from fastforget._bench import hub

pytestmark = pytest.mark.ecosystem


def test_kernels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kernels = pytest.importorskip("kernels", reason="kernels is not installed")
    from kernels._rust import Backend, Build, Digest, Metadata
    from kernels.variants import parse_variant

    variants = hub.write(tmp_path / "kernels")
    assert Build.open(tmp_path / "kernels").general.backends == [Backend.CPU, Backend.CUDA]
    assert "legacy" not in "".join(capfd.readouterr())  # what it prints of an edition that is no longer its own

    for variant in variants:
        metadata = Metadata.read_from_file(variant / "metadata.json")
        assert metadata.digest is not None and metadata.name.python_name == hub.MODULE
        metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, variant))
        assert parse_variant(variant.name).arch.backend_name == variant.name.removeprefix("torch-")

    loaded = kernels.get_local_kernel(tmp_path / "kernels", backend="cpu")
    with loaded.use_backend("reference"), ff.use_backend("reference"):
        ours, theirs = (one.noise.normal_(torch.empty(100), seed=7) for one in (ff.ops, loaded))
    assert torch.equal(ours, theirs) and loaded.__name__.startswith("_fastforget_kernels_cpu_")
    assert [one.metadata.name.python_name for one in kernels.get_loaded_kernels()] == [hub.MODULE]

    (variants[0] / "ops" / "noise.py").write_text("changed")
    with pytest.raises(Exception, match="noise"):
        metadata = Metadata.read_from_file(variants[0] / "metadata.json")
        metadata.digest.validate(Digest.hash_variant(metadata.digest.algorithm, variants[0]))
