"""What every op promises besides its values: tracing, autograd, refusals, backend choice, a quiet import."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

import fastforget as ff
from fastforget import _schema
from fastforget.ops import mask, membership, noise, update

OPS = torch.ops.fastforget


def samples(dtype=torch.float32):
    """For each op, arguments of a small valid call of the raw op."""

    def f(*shape):
        return torch.randn(shape).to(dtype)

    single = torch.float64 if dtype == torch.float64 else torch.float32
    labels = torch.tensor([0, 2, 1])
    return {
        "random_bits": (torch.zeros(9, dtype=torch.int32), 7, 1, 2, 3),
        "normal_": ([f(5), f(2, 3)], [0.0], [1.0, 2.0], 7, 0, 0, [0]),
        "add_normal_": ([f(5), f(2, 3)], [0.5], 7, 0, 0, [0, 4]),
        "perturb_step_": ([f(5), f(2, 3)], [f(5), f(2, 3)], 0.1, [], [f(5).abs(), f(2, 3).abs()], 7, 0, 0, [0, 4]),
        "error_max_loss": (f(3, 4), labels, torch.zeros(3, dtype=single), f(3, 4)),
        "error_max_step_": (
            f(3, 4), f(3, 4), f(3, 4), f(3, 4).abs(), torch.zeros((), dtype=single), 1, 0.1, 0.9, 0.999, 1e-8, 0.1,
            -math.inf, math.inf,
        ),
        "dampen_": ([f(5), f(2, 3)], [f(5), f(2, 3)], [f(5), f(2, 3)], torch.zeros((), dtype=torch.int64), 1.0, 1.0),
        "masked_sgd_": (
            [f(5), f(2, 3)], [f(5), f(2, 3)], [torch.ones(5, dtype=torch.bool), torch.tensor([0.0, 2.0])], [f(5), f(2, 3)],
            0.1, 0.9, 0.1, 0.1, False, False, False,
        ),
        "masked_adam_": (
            [f(5), f(2, 3)], [f(5), f(2, 3)], [torch.tensor([5], dtype=torch.uint8), torch.tensor([True, False])],
            [f(5), f(2, 3)], [f(5).abs(), f(2, 3).abs()], 2, 0.1, 0.9, 0.999, 1e-8, 0.1, True, False,
        ),
        "accumulate_importance_": ([f(5), f(2, 3)], [f(5), f(2, 3)], 2, 0.5),
        "soft_threshold_": ([f(5), f(2, 3)], [0.5], torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)),
        "neuron_stats": (
            [f(5, 2), f(2, 3)], 0, [torch.zeros(5, dtype=single), torch.zeros(2, dtype=single)],
            [torch.zeros(5, dtype=single), torch.zeros(2, dtype=single)],
        ),
        "saliency_mask": (
            [f(5), f(2, 3)], 4, [torch.zeros(5, dtype=torch.bool), torch.zeros(1, dtype=torch.uint8)], torch.zeros((), dtype=single),
        ),
        "membership_scores": (f(3, 4), labels, 1.0, torch.zeros(6, 3, dtype=single), torch.zeros(3, dtype=torch.bool)),
        "roc_stats": (torch.randn(5).to(single), torch.randn(6).to(single), [0.1], torch.zeros(6, dtype=torch.float64)),
        "roc_bootstrap": (torch.randn(5).to(single), torch.randn(6).to(single), [0.1], 7, torch.zeros(3, 2, dtype=torch.float64)),
        "rmia_counts": (
            torch.rand(2, 5).to(single), torch.rand(2, 6).to(single), [1.0, 2.0], False, torch.zeros(2, 2, 5, dtype=torch.int64)),
        "rmia_vote": (torch.rand(3, 5).to(single), torch.rand(3, 6).to(single), 2.0, False, torch.zeros(5, dtype=torch.int64)),
        **lira_samples(single),
    }  # fmt: skip


def lira_samples(dtype):
    scores, member = torch.randn(6, 3, 2).to(dtype), torch.arange(18).view(6, 3) % 2 == 0
    pair, count = torch.ones(2, 3, 2, dtype=dtype), torch.full((2, 3), 3)
    rule = (0, 1e-6, 1)
    return {
        "lira_stats": (scores, member, True, pair.clone(), pair.clone(), count.clone()),
        "lira_ratio": (scores, pair, pair.clone(), count, *rule, torch.zeros(6, 3, dtype=dtype)),
        "lira_loo": (scores, member, True, torch.empty(0, dtype=dtype), *rule, torch.zeros(6, 3, dtype=dtype)),
        "lira_update_": (scores, member.to(torch.int8), count.clone(), pair.double(), pair.double()),
    }


def test_every_op_has_a_sample():
    assert set(samples()) == set(_schema.SCHEMAS)


@pytest.mark.parametrize("name", _schema.SCHEMAS)
def test_opcheck(name):
    # "reference" checks of autograd registration need differentiable outputs; these ops have none
    torch.library.opcheck(_schema.overload(name), samples()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", _schema.SCHEMAS)
def test_opcheck_of_other_dtypes(name, dtype):
    torch.library.opcheck(_schema.overload(name), samples(dtype)[name], test_utils=("test_schema", "test_faketensor"))


def public_calls():
    """Each public function as a function of tensors, returning all that it computes or changes."""

    def step(x, g, m, v):
        total = update.error_max_step_(x, g, m, v, step=2, lr=0.1, clamp=(-1.0, 1.0))
        return total, x, m, v

    def dampen(a, b, f, g, r, s):
        return mask.dampen_([a, b], [f, g], [r, s], alpha=1.0, lam=0.5), a, b

    def lira(target, scores, member):
        stream = membership.Lira(5).update(scores, member)
        return membership.lira(target, scores, member), membership.lira("loo", scores, member), stream.score(target)

    def sgd(a, b, g, h, m, n, on, bits):
        buffers = [m, n]
        return mask.masked_sgd_([a, b], [g, h], [on, bits], lr=0.1, momentum=0.9, momentum_buffers=buffers), buffers

    def adam(x, g, rows, m, v):
        return mask.masked_adam_(x, g, rows, m, v, step=2, lr=0.1, weight_decay=0.1), m, v

    nine, four = (torch.randn(9) for _ in range(3)), (torch.randn(2, 2) for _ in range(3))
    pairs = [t for pair in zip(nine, four, strict=True) for t in pair]
    return {
        "random_bits": (lambda x: noise.random_bits(9, seed=3, start=2) + x, (torch.zeros(9, dtype=torch.int32),)),
        "normal_": (lambda x: noise.normal_(x, 2.0, 1.0, seed=3), (torch.zeros(7, 5),)),
        "add_normal_": (lambda a, b: noise.add_normal_([a, b], 0.5, seed=3), (torch.zeros(7), torch.ones(3, 3))),
        "add_normal_ by element": (lambda x, s: noise.add_normal_(x, s, seed=3), (torch.zeros(7, 5), torch.rand(7, 5))),
        "perturb_step_": (
            lambda a, b, g, h: noise.perturb_step_([a, b], [g, h], lr=0.1, std=0.5, seed=3),
            (torch.zeros(7), torch.ones(3, 3), torch.randn(7), torch.randn(3, 3)),
        ),
        "error_max_loss": (update.error_max_loss, (torch.randn(6, 5), torch.randint(0, 5, (6,)))),
        "error_max_step_": (step, (torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5), torch.rand(4, 5))),
        "dampen_": (dampen, (torch.randn(9), torch.randn(2, 2), *(torch.rand(s) for s in ((9,), (2, 2), (9,), (2, 2))))),
        "masked_sgd_": (sgd, (*pairs, torch.arange(9) % 2 == 0, torch.tensor([9], dtype=torch.uint8))),
        "masked_adam_": (adam, (*(torch.rand(4, 5) for _ in range(2)), torch.arange(4) > 1, *(torch.rand(4, 5) for _ in range(2)))),
        "accumulate_importance_": (
            lambda a, b, g, h: (*mask.accumulate_importance_([a, b], [g, h], scale=0.5), a, b),
            (torch.rand(9), torch.rand(2, 2), torch.randn(9), torch.randn(2, 2).bfloat16())),
        "soft_threshold_": (lambda a, b: (*mask.soft_threshold_([a, b], 0.5), a, b), (torch.randn(9), torch.randn(2, 2))),
        "neuron_stats": (lambda a, b: mask.neuron_stats([a, b], dim=1), (torch.randn(9, 3), torch.randn(2, 2, 4))),
        "saliency_mask": (lambda a, b: mask.saliency_mask([a, b], 0.3), (torch.randn(9, 3), torch.randn(2, 2, 4))),
        "saliency_mask, packed": (lambda a: mask.saliency_mask(a, 0.3, packed=True), (torch.randn(9, 3),)),
        "membership_scores": (membership.membership_scores, (torch.randn(6, 5), torch.randint(0, 5, (6,)))),
        "rmia_counts": (lambda x, z: membership.rmia_counts(x, z, gamma=(1.0, 2.0)), (torch.rand(2, 5), torch.rand(2, 6))),
        "rmia": (
            lambda x, rx, z, rz, m: membership.rmia(x, rx, z, rz, member=m, self_in_z=m[0]),
            (-torch.rand(5), -torch.rand(3, 5), -torch.rand(6), -torch.rand(3, 6), torch.eye(3).bool()[:, [0, 1, 2, 0, 1]])),
        "roc_bootstrap": (
            lambda m, n: OPS.roc_bootstrap(m, n, [0.1], 7, out := torch.zeros(4, 2, dtype=torch.float64)) or out,
            (torch.randn(5), torch.randn(6))),
        "rmia_vote": (membership.rmia_vote, (-torch.rand(4, 5), -torch.rand(3, 4, 5), -torch.rand(4, 6), -torch.rand(3, 4, 6))),
        "lira": (lira, (torch.randn(5), torch.randn(8, 5), torch.arange(40).view(8, 5) % 2 == 0)),
    }


def flat(results):
    return [results] if isinstance(results, torch.Tensor) else [t for r in results for t in flat(r)]


@pytest.mark.parametrize("name", public_calls())
def test_compiled_equals_eager(name):
    function, inputs = public_calls()[name]
    eager_inputs, compiled_inputs = ([t.clone() for t in inputs] for _ in range(2))
    eager = flat(function(*eager_inputs))
    torch.compiler.reset()
    compiled = flat(torch.compile(function, fullgraph=True)(*compiled_inputs))
    for a, b in zip(eager + eager_inputs, compiled + compiled_inputs, strict=True):
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


IN_PLACE = {
    "normal_": lambda x: noise.normal_(x, seed=1),
    "add_normal_": lambda x: noise.add_normal_(x, 1.0, seed=1),
    "add_normal_ by element": lambda x: noise.add_normal_(x, torch.ones_like(x), seed=1),
    "perturb_step_": lambda x: noise.perturb_step_(x, torch.ones_like(x), lr=0.1, std=1.0, seed=1),
    "error_max_step_": lambda x: update.error_max_step_(
        x, torch.ones_like(x), torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1
    ),
    "dampen_": lambda x: mask.dampen_(x, torch.ones_like(x), torch.zeros_like(x), alpha=1.0, lam=1.0),
    "masked_sgd_": lambda x: mask.masked_sgd_(x, torch.ones_like(x), None, lr=0.1),
    "masked_adam_": lambda x: mask.masked_adam_(
        x, torch.ones_like(x), None, torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1
    ),
    "accumulate_importance_": lambda x: mask.accumulate_importance_(x, torch.ones_like(x)),
    "soft_threshold_": lambda x: mask.soft_threshold_(x, 0.5),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_stale_saved_tensor_is_detected(implementation, name):
    """Without the version bump autograd would use the changed values and give a wrong gradient silently."""
    x = torch.randn(4, 3)
    w = torch.randn(4, 3, requires_grad=True)
    y = (w * x).sum()
    before = x._version
    with torch.no_grad():
        IN_PLACE[name](x)
    assert x._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", IN_PLACE)
def test_tensors_that_require_grad_are_refused_and_unchanged(name):
    leaf = torch.randn(4, 3, requires_grad=True)
    copy = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="requires grad and is changed in place.*torch.no_grad"):
        IN_PLACE[name](leaf)
    inner = leaf * 1
    with pytest.raises(RuntimeError, match="requires grad"):
        IN_PLACE[name](inner)
    assert torch.equal(leaf, copy)
    with torch.no_grad():
        IN_PLACE[name](leaf)
    assert not torch.equal(leaf, copy)


@pytest.mark.parametrize("name", IN_PLACE)
def test_vmap_is_refused(name):
    with pytest.raises(RuntimeError, match="can't run under torch.vmap"):
        torch.vmap(IN_PLACE[name])(torch.randn(5, 4, 3))


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
