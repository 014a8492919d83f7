"""Adam's moments at small betas, in torch.optim's own form: the first one moves from the nearer end (torch.lerp), so that a gradient isn't
lost beside a large old value."""

from __future__ import annotations

import pytest
import torch
from tolerance import FLOATS

import fastforget as ff
from fastforget.ops import mask, update

LARGE = {torch.float16: 6e4}
BETAS = [(0.0, 0.9), (0.3, 0.0), (0.5, 0.5), (1e-20, 1e-20), (0.49999, 0.9), (0.50001, 0.9), (0.9, 0.999)]


def moments(dtype, betas, size=40):
    old = torch.full((size,), LARGE.get(dtype, 1e6), dtype=dtype)
    grad = torch.linspace(1e-3, 2e-3, size).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.lerp(old.to(wide), grad.to(wide), 1.0 - betas[0])
    square = (old.to(wide) * 1e-3) * betas[1] + (1.0 - betas[1]) * grad.to(wide) ** 2
    return old, grad, mean.to(dtype), square.to(dtype)


def near(got, expected):
    spacing = torch.finfo(got.dtype).eps
    assert torch.allclose(got.double(), expected.double(), rtol=2 * spacing, atol=0), (got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("betas", BETAS)
def test_masked_adam(implementation, dtype, betas):
    old, grad, mean, square = moments(dtype, betas)
    on = torch.arange(40) % 3 > 0
    for form in (None, on, mask.pack_bits(on)):
        m, v = old.clone(), (old.float() * 1e-3).to(dtype)
        kept = m.clone(), v.clone()
        mask.masked_adam_(torch.ones_like(old), grad, form, m, v, step=2, lr=0.01, betas=betas)
        chosen = torch.ones_like(on) if form is None else on
        near(m[chosen], mean[chosen])
        near(v[chosen], (kept[1].to(square.dtype).double() * betas[1] + (1.0 - betas[1]) * grad.double() ** 2).to(dtype)[chosen])
        assert torch.equal(m[~chosen], kept[0][~chosen]) and torch.equal(v[~chosen], kept[1][~chosen])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("betas", BETAS)
def test_error_max_step(implementation, dtype, betas):
    old, grad, mean, _ = moments(dtype, betas)
    x, m, v = torch.zeros_like(old), old.clone(), torch.zeros_like(old)
    update.error_max_step_(x, grad, m, v, step=2, lr=0.01, betas=betas, l2=0.0)
    near(m, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_optimiser_beside_torchs(dtype):
    def run(kind):
        p = torch.nn.Parameter(torch.ones(4, dtype=dtype))
        optimizer = kind([p], lr=0.01, betas=(0.0, 0.9))
        for g in (100.0 if dtype == torch.float16 else 1e6, 1e-3):  # a square of 6e4 is infinite in float16
            p.grad = torch.full((4,), g, dtype=dtype)
            optimizer.step()
        return optimizer.state[p]["exp_avg"], p.detach()

    for ours, theirs in zip(run(ff.optim.MaskedAdam), run(torch.optim.Adam), strict=True):
        near(ours, theirs)


@pytest.mark.parametrize("op", ["masked_adam_", "error_max_step_"])
@pytest.mark.parametrize("betas", [(-0.1, 0.9), (1.0, 0.9), (0.9, 1.0), (0.9, float("nan"))])
def test_raw_betas_out_of_range(op, betas):
    if not ff.backend.native_cpu:
        pytest.skip("the compiled CPU ops are not loaded")
    x = [torch.ones(1, 3) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"beta[12] is .*; accepted: 0 or more, below 1"):
        if op == "masked_adam_":
            all_on = torch.empty(0, dtype=torch.int8)
            torch.ops.fastforget.masked_adam_(*([t] for t in x[:2]), [all_on], [x[2]], [x[3]], 1, 0.1, *betas, 1e-8, 0.0, False, False)
        else:
            torch.ops.fastforget.error_max_step_(*x, torch.zeros(()), 1, 0.1, *betas, 1e-8, 0.1, -1.0, 1.0)
    assert all(torch.equal(t, torch.ones(1, 3)) for t in x)


@pytest.mark.parametrize("clamp", [(float("nan"), 1.0), (-1.0, float("nan")), (1.0, -1.0)])
def test_raw_clamps_that_no_value_can_keep(clamp):
    if not ff.backend.native_cpu:
        pytest.skip("the compiled CPU ops are not loaded")
    x = [torch.ones(1, 3) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"the clamp is .*; accepted: lowest <= highest"):
        torch.ops.fastforget.error_max_step_(*x, torch.zeros(()), 1, 0.1, 0.9, 0.9, 1e-8, 0.1, *clamp)
    assert all(torch.equal(t, torch.ones(1, 3)) for t in x)
