"""Every op on CUDA tensors, native and Triton, against float64; skipped where there is no CUDA device."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import op_table
import pytest
import torch
from mask_cases import published
from native_parts import REQUIRED
from score_oracle import NAMES, exact_scores, plain_scores
from test_noise_perturb import TERMS, assert_right, drawn
from test_noise_perturb import call as perturb
from test_update import draw_state, exact_loss, exact_step, plain_loss, plain_step
from tolerance import FLOATS, assert_two_times, ulps
from torch import Tensor

import fastforget as ff
from fastforget.ops import mask, membership, noise, update
from fastforget.reference import noise as reference_noise
from fastforget.reference.membership import roc as reference_roc

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
    ),
]


@pytest.fixture(params=["native", "triton"], autouse=True)
def on_gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    reason = ff.backend.why_not(request.param, "normal_", DEVICE)
    if reason is not None:
        (pytest.fail if REQUIRED else pytest.skip)(f"{request.param}: {reason}")
    with ff.use_backend(request.param):
        yield request.param


def put(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else type(x)(put(v) for v in x)


def offset_by(count: int, x: Tensor) -> Tensor:
    """The values of ``x`` on the device, ``count`` elements behind an aligned address."""
    room = torch.empty(x.numel() + count, dtype=x.dtype, device=DEVICE)
    return room[count:].view(x.shape).copy_(x)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", op_table.TABLE)
def test_every_op_is_right(op: str, dtype: torch.dtype) -> None:
    op_table.check(op, lambda *args: ff.backend.call_forced(op, DEVICE, args), dtype, put)


# ---- noise


@pytest.mark.parametrize("n", [0, 1, 5, 1024, 4097, 1_000_003])
@pytest.mark.parametrize("start", [0, 3, 2**34 + 1])
def test_integers_equal_the_reference(n: int, start: int) -> None:
    expected = torch.empty(n, dtype=torch.int32)
    reference_noise.random_bits(expected, 0xDEADBEEF12345678, 5, 9, start)
    got = noise.random_bits(n, seed=0xDEADBEEF12345678, stream=5, step=9, start=start, device=DEVICE)
    assert torch.equal(got.cpu(), expected)


def test_float32_normals_are_within_4_ulp() -> None:
    n = 1 << 20
    got = noise.normal_(torch.empty(n, device=DEVICE), seed=11, stream=2).cpu()
    exact = reference_noise.standard_normals(n, seed=11, stream=2)
    assert (got.to(torch.float64) - exact).abs().max().item() <= 1e-6
    assert ulps(got, exact)[exact.abs() > 1e-3].max().item() <= 4.0


def test_float64_normals_are_the_definition() -> None:
    got = noise.normal_(torch.empty(100_001, dtype=torch.float64, device=DEVICE), seed=11).cpu()
    exact = reference_noise.standard_normals(100_001, seed=11)
    assert (got - exact).abs().max().item() <= 64 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [0, 1, 7, 1025, 70_001])
@pytest.mark.parametrize("shift", [0, 1])
def test_add_normal(dtype: torch.dtype, n: int, shift: int) -> None:
    x = torch.randn(n, dtype=torch.float64).to(dtype)
    got = noise.add_normal_(offset_by(shift, x), 0.25, seed=5, start=2).cpu()
    exact = x.to(torch.float64) + 0.25 * reference_noise.standard_normals(n, seed=5, start=2)
    largest = exact.abs().max().item() if n else 0.0
    allowed = largest * torch.finfo(dtype).eps * 0.5 + 0.25 * 1e-6 * (dtype != torch.float64) + 1e-15
    assert n == 0 or (got.to(torch.float64) - exact).abs().max().item() <= allowed


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [0, 1, 7, 1025, 70_001])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("terms", TERMS)
def test_perturb_step(dtype: torch.dtype, n: int, shift: int, terms: str) -> None:
    values = drawn(n, dtype)
    on_device = [offset_by(shift, v) for v in values]
    perturb(*on_device, terms, seed=5, stream=2, step=7, start=shift)
    assert_right(on_device[0].cpu(), values, terms, seed=5, stream=2, step=7, start=shift)


def test_a_list_of_steps_equals_single_calls() -> None:
    values = [drawn(n, FLOATS[i % 4]) for i, n in enumerate([3, 0, 320, 1, 4097, 1, 300_001] * 20)]
    lists = [[put(v[kind]) for v in values] for kind in range(3)]
    perturb(*lists, "both", seed=8, stream=3)
    for i, value in enumerate(values):
        alone = [put(v) for v in value]
        perturb(*alone, "both", seed=8, stream=3 + i)
        assert torch.equal(lists[0][i], alone[0])


def test_a_list_of_mixed_dtypes_equals_single_calls() -> None:
    shapes = [(3,), (0,), (64, 5), (), (4097,), (1,), (300_001,)]
    dtypes = [FLOATS[i % len(FLOATS)] for i in range(len(shapes))]
    xs = [torch.empty(s, dtype=d, device=DEVICE) for s, d in zip(shapes, dtypes, strict=True)]
    noise.normal_(xs, 2.0, 1.0, seed=8, stream=3)
    for i, x in enumerate(xs):
        alone = noise.normal_(torch.empty_like(x), 2.0, 1.0, seed=8, stream=3 + i)
        assert torch.equal(x, alone)


def test_guards_around_a_tensor_stay() -> None:
    memory = torch.full((300,), 7.0, device=DEVICE)
    noise.add_normal_(memory[101:198], 1.0, seed=1)
    assert bool((memory[:101] == 7.0).all()) and bool((memory[198:] == 7.0).all())
    assert bool((memory[101:198] != 7.0).all())


# ---- update


@functools.cache
def loss_draws(shape: tuple[int, int], dtype: torch.dtype, scale: float) -> tuple[Any, ...]:
    """Enough draws for plain PyTorch's largest error to be a measure; the first is ours to compute."""
    count = max(8, min(64, 4096 // max(1, math.prod(shape))))
    draws = [
        ((scale * torch.randn(shape)).to(dtype), torch.randint(0, shape[1], shape[:1])) for _ in range(count)
    ]
    return draws, *(list(zip(*(f(*d) for d in draws), strict=True)) for f in (plain_loss, exact_loss))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(0, 10), (1, 1), (256, 10), (33, 100), (64, 1000), (8, 4099)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_loss_and_gradient(dtype: torch.dtype, shape: tuple[int, int], scale: float) -> None:
    draws, plain, exact = loss_draws(shape, dtype, scale)
    loss, dlogits = update.error_max_loss(*put(draws[0]))
    assert_two_times(loss.cpu(), list(plain[0]), list(exact[0]), "loss")
    assert_two_times(dlogits.cpu(), list(plain[1]), list(exact[1]), "dlogits")


def test_bad_labels_make_their_row_nan_without_a_synchronisation() -> None:
    logits = torch.randn(3, 5)
    labels = torch.tensor([0, 5, -1])
    loss, dlogits = update.error_max_loss(put(logits), put(labels))
    assert torch.isnan(loss).tolist() == [False, True, True]
    assert torch.isnan(dlogits).all(1).tolist() == [False, True, True]
    scores = membership.membership_scores(put(logits), put(labels))
    assert torch.isnan(scores.loss).tolist() == [False, True, True]
    assert scores.correct.tolist()[1:] == [False, False]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (4, 3, 32, 32), (1, 65537)])
@pytest.mark.parametrize("step", [1, 10])
@pytest.mark.parametrize("clamp", [None, (-0.5, 0.75)])
def test_step(
    dtype: torch.dtype, shape: tuple[int, ...], step: int, clamp: tuple[float, float] | None
) -> None:
    state = draw_state(shape, dtype, step)
    # a few numbers would measure plain PyTorch's luck: its error is taken over many draws
    extra = [draw_state(shape, dtype, step) for _ in range(max(0, min(63, 4096 // math.prod(shape))))]
    draws = [state, *extra]
    x, g, m, v = (put(t.clone()) for t in state)
    sum_sq = update.error_max_step_(x, g, m, v, step=step, lr=0.1, clamp=clamp)
    plain = zip(*(plain_step(*d, step, clamp) for d in draws), strict=True)
    exact = zip(*(exact_step(*d, step, clamp) for d in draws), strict=True)
    for name, ours, p, e in zip(("x", "exp_avg", "exp_avg_sq"), (x, m, v), plain, exact, strict=True):
        ours = ours.cpu().reshape(-1)
        assert_two_times(ours, torch.stack(p).view(-1), torch.stack(e).view(-1), name)
    expected = state[0].to(torch.float64).square().sum().item()
    assert math.isclose(sum_sq.item(), expected, rel_tol=1e-5 if dtype != torch.float64 else 1e-12)


def test_step_is_deterministic() -> None:
    state = draw_state((256, 3, 32, 32), torch.float32, 3)
    results = []
    for _ in range(3):
        x, g, m, v = (put(t.clone()) for t in state)
        results.append((update.error_max_step_(x, g, m, v, step=3, lr=0.1), x))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


# ---- mask


@pytest.mark.parametrize("n", [0, 1, 65, 1025, 1_000_003])
@pytest.mark.parametrize("shift", [0, 1])
def test_dampening_is_bit_exact(n: int, shift: int) -> None:
    p = torch.randn(n)
    forget, retain = torch.rand(n).pow(6), torch.rand(n).pow(6)
    expected, selected = published(p, forget, retain, 10.0, 1.0)
    got = offset_by(shift, p)
    count = mask.dampen_(got, offset_by(shift, forget), put(retain), alpha=10.0, lam=1.0)
    assert torch.equal(got.cpu(), expected) and count.item() == selected


@pytest.mark.parametrize("dtype", FLOATS)
def test_dampening_of_a_list(dtype: torch.dtype) -> None:
    shapes = [(64, 3, 7, 7), (64,), (0,), (), (128, 64), (70_001,)]
    params = [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes]
    forget = [torch.rand(s, dtype=torch.float64).pow(6).to(dtype) for s in shapes]
    retain = [torch.rand(s, dtype=torch.float64).pow(6).to(dtype) for s in shapes]
    got = put([p.clone() for p in params])
    count = mask.dampen_(got, put(forget), put(retain), alpha=4.0, lam=2.0)
    selected = 0
    for x, p, f, r in zip(got, params, forget, retain, strict=True):
        wide = [t.reshape(-1).to(torch.float64) for t in (p, f, r)]
        exact, chosen = published(*wide, 4.0, 2.0)
        plain, _ = published(*(t.reshape(-1) for t in (p, f, r)), 4.0, 2.0)
        assert_two_times(x.cpu().reshape(-1), plain, exact, "params")
        selected += chosen
    assert count.item() == selected


def test_special_importances() -> None:
    p = torch.ones(4)
    forget = torch.tensor([math.nan, 1.0, math.inf, 0.0])
    retain = torch.tensor([0.0, 0.0, 1.0, 0.0])
    got = put(p)
    count = mask.dampen_(got, put(forget), put(retain), alpha=1.0, lam=1.0)
    assert got.tolist() == [1.0, 0.0, 0.0, 1.0] and count.item() == 2


# ---- membership


@functools.cache
def score_pool(rows: int, classes: int, dtype: torch.dtype, scale: float) -> tuple[Any, ...]:
    z = (scale * torch.randn(rows, classes, dtype=torch.float64)).to(dtype)
    y = torch.randint(0, classes, (rows,))
    wide = z.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return z, y, plain_scores(wide, y), exact_scores(z, y)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 2), (1000, 10), (200, 33), (300, 100), (64, 1000), (8, 9001)])
@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_scores(dtype: torch.dtype, shape: tuple[int, int], scale: float) -> None:
    rows, classes = shape
    z, y, plain, exact = score_pool(max(rows, min(2048, 1_000_000 // classes)), classes, dtype, scale)
    got = membership.membership_scores(put(z[:rows]), put(y[:rows]))
    for name, p, e in zip(NAMES, plain, exact, strict=True):
        assert_two_times(getattr(got, name).cpu(), p, e, name)
    assert torch.equal(got.correct.cpu(), z[:rows].argmax(1) == y[:rows])


def test_scores_of_impossible_classes_and_broken_rows() -> None:
    inf = math.inf
    z = torch.tensor([[-inf, 0.0, 1.0], [0.0, -inf, 1.0], [math.nan, 0.0, 0.0], [-inf] * 3, [inf, 0.0, 0.0]])
    s = membership.membership_scores(put(z), put(torch.tensor([0, 2, 0, 0, 0])))
    assert s.loss[0].item() == inf and s.confidence[0].item() == 0.0 and s.margin[0].item() == -inf
    assert math.isfinite(s.entropy[0].item()) and s.modified_entropy[0].item() == inf
    assert all(math.isfinite(v[1].item()) for v in s[:6])
    assert all(torch.isnan(v[2:]).all() for v in s[:6]) and not bool(s.correct[2:].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n1", "n0"), [(1, 1), (7, 300), (4097, 1025), (200_000, 300_000)])
@pytest.mark.parametrize("ties", [False, True])
def test_roc(on_gpu: str, dtype: torch.dtype, n1: int, n0: int, ties: bool) -> None:
    reason = ff.backend.why_not(on_gpu, "roc_stats", DEVICE)
    if reason is not None:
        pytest.skip(f"{on_gpu}: {reason}")
    member, nonmember = torch.randn(n1, dtype=dtype) + 0.5, torch.randn(n0, dtype=dtype)
    if ties:
        member, nonmember = (member * 4).round() / 4, (nonmember * 4).round() / 4  # -0.0 among them
    member[0] = math.inf
    fprs = [0.0, 1e-3, 1e-2, 0.5, 1.0]
    expected = torch.empty(4 + 2 * len(fprs), dtype=torch.float64)
    reference_roc.roc_stats(member, nonmember, fprs, expected)
    got = membership.roc_stats(put(member), put(nonmember), fprs=fprs)
    flat = torch.cat((torch.stack(got[:4]), got.tpr, got.thresholds)).cpu()
    torch.testing.assert_close(flat, expected, rtol=1e-15, atol=0.0)


# ---- streams and graphs


def _ops_once(buffers: dict[str, Tensor]) -> None:
    b = buffers
    noise.add_normal_([b["x"], b["p"]], 0.1, seed=3)
    noise.perturb_step_([b["x"], b["p"]], [b["g"], b["g"]], lr=0.1, std=[b["f"], b["r"]], seed=3, step=1)
    update.error_max_step_(b["x"], b["g"], b["m"], b["v"], step=1, lr=0.1)
    mask.dampen_([b["p"]], [b["f"]], [b["r"]], alpha=1.0, lam=1.0)


def _buffers() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(1)
    drawn = {k: torch.rand(4, 3000, generator=made) + 0.1 for k in ("x", "g", "p", "f", "r")}
    return put_all({**drawn, "m": torch.zeros(4, 3000), "v": torch.zeros(4, 3000)})


def put_all(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: put(v) for k, v in buffers.items()}


def test_a_side_stream_gives_the_same_values() -> None:
    expected, got = _buffers(), _buffers()
    _ops_once(expected)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        _ops_once(got)
    side.synchronize()
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_ops_can_be_captured_in_a_graph() -> None:
    expected, got = _buffers(), _buffers()
    _ops_once(_buffers())  # compiles what is compiled at first use
    _ops_once(expected)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _ops_once(got)
    for k, v in _buffers().items():
        got[k].copy_(v)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(expected[k], got[k]) for k in expected)
