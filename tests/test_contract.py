"""What every op promises besides its values: tracing, autograd, refusals, backend choice, a quiet import."""

from __future__ import annotations

import math
import subprocess
import sys

import op_table
import pytest
import torch

import fastforget as ff
from fastforget import _schema
from fastforget.ops import mask, membership, noise, update


@pytest.mark.parametrize("name", _schema.SCHEMAS)
def test_opcheck(name):
    # "reference" checks of autograd registration need differentiable outputs; these ops have none
    torch.library.opcheck(_schema.overload(name), op_table.raw(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", _schema.SCHEMAS)
def test_opcheck_of_other_dtypes(name, dtype):
    torch.library.opcheck(_schema.overload(name), op_table.raw(name, dtype), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", op_table.PUBLIC)
def test_compiled_equals_eager(name):
    public = op_table.PUBLIC[name]

    def function(*inputs):
        return public.call(*inputs), inputs

    eager_inputs = public.traced()
    compiled_inputs = op_table.copied(eager_inputs)
    eager = function(*eager_inputs)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)(*compiled_inputs)
    for a, b in zip(op_table.flat([eager, eager_inputs]), op_table.flat([compiled, compiled_inputs]), strict=True):
        assert torch.equal(a, b)


def test_compiled_step_inside_a_larger_graph():
    """The mutation is ordered with its neighbours, and the caller's tensor is changed."""

    def loop(x):
        y = x * 2
        noise.add_normal_(y, 1.0, seed=1)
        z = y.sum()
        noise.add_normal_(y, 1.0, seed=1, step=1)
        x.copy_(y)
        return z, y.sum()

    a, b = torch.zeros(50), torch.zeros(50)
    eager, compiled = loop(a), torch.compile(loop, fullgraph=True)(b)
    assert torch.equal(a, b)
    for e, c in zip(eager, compiled, strict=True):
        torch.testing.assert_close(e, c)


IN_PLACE = [name for name, public in op_table.PUBLIC.items() if public.changed and public.kind != "own"]


def change(name, x):
    """Calls the function on ``x``, with constants for its other arguments that make it change ``x``."""
    public = op_table.PUBLIC[name]
    return public.call(x, *(torch.full_like(x, 2.0 / i**2) for i in range(1, public.count)))


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_stale_saved_tensor_is_detected(implementation, name):
    """Without the version bump autograd would use the changed values and give a wrong gradient silently."""
    x = torch.randn(4, 3)
    w = torch.randn(4, 3, requires_grad=True)
    y = (w * x).sum()
    before = x._version
    with torch.no_grad():
        change(name, x)
    assert x._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", IN_PLACE)
def test_tensors_that_require_grad_are_refused_and_unchanged(name):
    leaf = torch.randn(4, 3, requires_grad=True)
    copy = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="requires grad and is changed in place.*torch.no_grad"):
        change(name, leaf)
    inner = leaf * 1
    with pytest.raises(RuntimeError, match="requires grad"):
        change(name, inner)
    assert torch.equal(leaf, copy)
    with torch.no_grad():
        change(name, leaf)
    assert not torch.equal(leaf, copy)


@pytest.mark.parametrize("name", IN_PLACE)
def test_vmap_is_refused(name):
    with pytest.raises(RuntimeError, match="can't run under torch.vmap"):
        torch.vmap(lambda x: change(name, x))(torch.randn(5, 4, 3))


READ_ONLY = {
    "neuron_stats": mask.neuron_stats,
    "saliency_mask": lambda x: mask.saliency_mask(x, 0.5),
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_statistics_and_masks_have_no_gradient(name):
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="x requires grad.*detach"):
        READ_ONLY[name](x)
    with pytest.raises(RuntimeError, match=r"x\[1\] requires grad.*detach"):
        READ_ONLY[name]([torch.zeros(3), x])
    with pytest.raises(RuntimeError, match="can't run under torch.vmap"):
        torch.vmap(READ_ONLY[name])(torch.randn(5, 4, 3))
    with torch.no_grad():
        READ_ONLY[name](x)
    version = x._version
    READ_ONLY[name](x.detach())
    assert x._version == version


def test_scores_have_no_gradient():
    z = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="logits requires grad.*detach"):
        membership.membership_scores(z, torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="member_scores requires grad"):
        membership.roc_stats(z[0], torch.randn(3))


F = torch.zeros(4, 3)
BAD_CALLS = {
    "integer tensor": (lambda: noise.normal_(torch.zeros(3, dtype=torch.int64), seed=0), TypeError, r"x: got .*int64.*float"),
    "not a tensor": (lambda: noise.normal_([1.0, 2.0], seed=0), TypeError, r"x\[0\]"),
    "list of integers": (lambda: noise.add_normal_([F, F.int()], 0.1, seed=0), TypeError, r"x\[1\]: .*int32"),
    "complex": (lambda: noise.normal_(torch.zeros(3, dtype=torch.complex64), seed=0), TypeError, "complex64"),
    "mixed devices": (
        lambda: noise.normal_([F, torch.zeros(3, device="meta")], seed=0), ValueError, r"x\[0\] is on cpu but x\[1\] is on meta"),
    "expanded": (lambda: noise.normal_(torch.zeros(1).expand(5), seed=0), ValueError, "one memory cell as several"),
    "negative seed": (lambda: noise.normal_(F, seed=-1), ValueError, "seed: got -1; accepted is an int from 0"),
    "large seed": (lambda: noise.normal_(F, seed=2**64), ValueError, "seed"),
    "float seed": (lambda: noise.normal_(F, seed=1.0), TypeError, "seed: got float"),
    "negative start": (lambda: noise.normal_(F, seed=1, start=-4), ValueError, "start: got -4"),
    "starts": (lambda: noise.normal_([F, F], seed=1, start=[0, 1, 2]), ValueError, "start: got 3 values"),
    "stds": (lambda: noise.add_normal_([F, F], [0.1, 0.2, 0.3], seed=1), ValueError, "std: got 3 values"),
    "filling std": (lambda: noise.normal_(F, torch.ones(4, 3), seed=1), TypeError, "std: got a tensor"),
    "std shape": (lambda: noise.add_normal_(F, torch.ones(3), seed=1), ValueError, r"std\[0\]: .*its shape must be that of x\[0\]"),
    "std dtype": (lambda: noise.add_normal_(F, torch.ones(4, 3).double(), seed=1), ValueError, r"std\[0\]: .*its dtype"),
    "std tensors": (lambda: noise.add_normal_([F, F], torch.ones(4, 3), seed=1), ValueError, "std: got 1 tensors; accepted are 2"),
    "std mixed": (lambda: noise.add_normal_([F, F], [F, 1.0], seed=1), TypeError, r"std\[1\]: got float 1.0"),
    "std text": (lambda: noise.add_normal_(F, "1", seed=1), TypeError, "std: got str '1'"),
    "no grads": (lambda: noise.perturb_step_(F, None, lr=0.1, std=1.0, seed=1), TypeError, "grads: got NoneType"),
    "grads missing": (lambda: noise.perturb_step_([F, F], [F], lr=0.1, std=1.0, seed=1), ValueError, "grads: got 1 tensors"),
    "grads of none": (lambda: noise.perturb_step_(F, [None], lr=0.1, std=1.0, seed=1), TypeError, r"grads\[0\]: got NoneType"),
    "grads dtype": (
        lambda: noise.perturb_step_(F, F.half(), lr=0.1, std=1.0, seed=1), ValueError, r"grads\[0\]: .*dtype must be that of params"),
    "integer params": (lambda: noise.perturb_step_(F.int(), F, lr=0.1, std=1.0, seed=1), TypeError, "params: got .*int32"),
    "step size": (lambda: noise.perturb_step_(F, F, lr=math.nan, std=1.0, seed=1), ValueError, "lr: got nan"),
    "step size tensor": (lambda: noise.perturb_step_(F, F, lr=torch.ones(1), std=1.0, seed=1), TypeError, "lr: got a tensor"),
    "negative count": (lambda: noise.random_bits(-1, seed=0), ValueError, "n: got -1"),
    "label too large": (
        lambda: update.error_max_loss(F, torch.tensor([0, 1, 3, 0])), RuntimeError, r"labels\[2\] is 3; accepted: 0 to 2"),
    "label negative": (
        lambda: membership.membership_scores(F, torch.tensor([0, -1, 0, 0])), RuntimeError, r"labels\[1\] is -1; accepted: 0 to 2"),
    "label dtype": (lambda: update.error_max_loss(F, torch.zeros(4)), TypeError, "labels: .*float32.*int64"),
    "label shape": (lambda: update.error_max_loss(F, torch.tensor([0])), ValueError, r"labels: got shape \(1,\)"),
    "label device": (
        lambda: membership.membership_scores(F, torch.zeros(4, dtype=torch.int64, device="meta")), ValueError, "labels: on meta"),
    "integer logits": (lambda: membership.membership_scores(F.int(), torch.zeros(4).long()), TypeError, "logits: .*int32"),
    "one class": (lambda: membership.membership_scores(F[:, :1], torch.zeros(4).long()), ValueError, "at least 2 classes"),
    "temperature": (
        lambda: membership.membership_scores(F, torch.zeros(4).long(), temperature=0.0), ValueError, "temperature: got 0.0"),
    "grad shape": (
        lambda: update.error_max_step_(F.clone(), F[:2], F.clone(), F.clone(), step=1, lr=0.1), ValueError, "grad: .*shape"),
    "moment dtype": (
        lambda: update.error_max_step_(F.clone(), F, F.double(), F.clone(), step=1, lr=0.1), ValueError, "exp_avg: .*dtype"),
    "step zero": (
        lambda: update.error_max_step_(F.clone(), F, F.clone(), F.clone(), step=0, lr=0.1), ValueError, "step: got 0"),
    "clamp": (
        lambda: update.error_max_step_(F.clone(), F, F.clone(), F.clone(), step=1, lr=0.1, clamp=(1.0, 0.0)), ValueError, "clamp"),
    "nan lr": (
        lambda: update.error_max_step_(F.clone(), F, F.clone(), F.clone(), step=1, lr=math.nan), ValueError, "lr: got nan"),
    "importance count": (lambda: mask.dampen_([F, F], [F], [F, F], alpha=1, lam=1), ValueError, "forget_importance: got 1"),
    "importance shape": (lambda: mask.dampen_(F, F[:2], F, alpha=1, lam=1), ValueError, r"forget_importance\[0\]: .*shape"),
    "alpha": (lambda: mask.dampen_(F, F, F, alpha=-1, lam=1), ValueError, "alpha: got -1"),
    "grads count": (lambda: mask.accumulate_importance_([F, F], [F]), ValueError, "grads: got 1 tensors; accepted are 2"),
    "grads shape": (lambda: mask.accumulate_importance_(F, F[:2]), ValueError, r"grads\[0\]: .*shape must be"),
    "narrow importance": (lambda: mask.accumulate_importance_(F, F.double()), ValueError, r"grads\[0\]: .*dtype must be"),
    "wide grads shape": (lambda: mask.accumulate_importance_(F, F[:2].half()), ValueError, r"grads\[0\]: .*shape must be"),
    "power": (lambda: mask.accumulate_importance_(F, F, power=3), ValueError, "power: got 3; accepted are 1"),
    "scale": (lambda: mask.accumulate_importance_(F, F, scale=math.inf), ValueError, "scale: got inf"),
    "negative threshold": (lambda: mask.soft_threshold_(F, -1.0), ValueError, "threshold: got -1.0"),
    "thresholds": (lambda: mask.soft_threshold_([F, F.clone()], [1.0]), ValueError, "threshold: got 1 values"),
    "threshold tensor": (lambda: mask.soft_threshold_(F, torch.ones(3)), TypeError, "threshold: got a tensor"),
    "dim": (lambda: mask.neuron_stats([F, F[0]], dim=1), ValueError, r"dim: got 1, but x\[1\] has 1 dimensions; accepted is -1 to 0"),
    "dim of nothing": (lambda: mask.neuron_stats(F.sum()), ValueError, "dim: got 0, but x has 0 dimensions"),
    "float dim": (lambda: mask.neuron_stats(F, dim=1.0), TypeError, "dim: got float"),
    "keep": (lambda: mask.saliency_mask(F, 1.5), ValueError, "keep: got 1.5; accepted is a number from 0 to 1"),
    "nan keep": (lambda: mask.saliency_mask(F, math.nan), ValueError, "keep: got nan"),
    "integer saliency": (lambda: mask.saliency_mask(F.int(), 0.5), TypeError, "x: .*int32"),
    "unpacked size": (lambda: mask.unpack_bits(torch.zeros(2, dtype=torch.uint8), 17), ValueError, r"packed: .*accepted is \[3\]"),
    "pack floats": (lambda: mask.pack_bits(F), TypeError, "mask: .*accepted dtype is bool"),
    "empty scores": (lambda: membership.roc_stats(torch.empty(0), F[0]), ValueError, "member_scores: no scores"),
    "score matrix": (lambda: membership.roc_stats(F, F[0]), ValueError, "member_scores: .*1-D"),
    "rate": (lambda: membership.roc_stats(F[0], F[0], fprs=(1.5,)), ValueError, "fprs: got 1.5"),
    "nan policy": (lambda: membership.roc_stats(F[0], F[0], nan="ignore"), ValueError, "nan: got 'ignore'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_named_and_change_nothing(implementation, case):
    call, kind, message = BAD_CALLS[case]
    with pytest.raises(kind, match=message):
        call()
    assert (F == 0).all()


def test_empty_lists_are_fine():
    assert noise.normal_([], seed=0) == []
    assert noise.perturb_step_([], [], lr=0.1, std=1.0, seed=0) == []
    assert mask.dampen_([], [], [], alpha=1, lam=1).item() == 0


def test_backends_explain_themselves():
    table = ff.backends()
    assert set(table) == set(_schema.SCHEMAS)
    assert all(row["cpu"]["reference"] == "ok" for row in table.values())
    assert "CUDA tensors" in table["normal_"]["cpu"]["triton"] or "triton is not installed" in table["normal_"]["cpu"]["triton"]
    with pytest.raises(ValueError, match="backend: got 'cpu'; accepted are 'reference', 'native', 'triton'"):
        ff.use_backend("cpu").__enter__()


def test_a_backend_that_cannot_serve_says_who_can(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(3)
    with ff.use_backend("triton"), pytest.raises(ff.BackendError, match="(?s)reference: ok.*native: .*triton: "):
        noise.normal_(x, seed=0)
    assert (x == 0).all()


def test_forcing_is_undone_after_an_error():
    with pytest.raises(ZeroDivisionError), ff.use_backend("reference"):
        1 / 0  # noqa: B018
    assert ff.backend.forced is None


def run_python(code: str, **env: str) -> str:
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **env}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_environment_forces_a_backend():
    code = "import fastforget as ff; print(ff.backend.forced)"
    assert run_python(code, FASTFORGET_BACKEND="reference").strip() == "reference"


def test_import_is_quiet():
    """No Triton, no thread, no CUDA context; torch itself is imported first, so only what ours adds counts."""
    code = """
import os, sys, torch
def threads(): return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
before = threads()
import fastforget
print("triton" in sys.modules, threads() - before, torch.cuda.is_initialized())
"""
    assert run_python(code).split() == ["False", "0", "False"]


def test_cpu_level_can_be_capped():
    if ff.backend.why_not("native", "normal_", "cpu") is not None:
        pytest.skip(ff.backend.why_not("native", "normal_", "cpu"))
    code = "import fastforget, torch; print(torch.ops.fastforget._cpu_isa(0))"
    assert run_python(code, FASTFORGET_CPU_ISA="baseline").strip() == "2"
