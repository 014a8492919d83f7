"""The CUDA sources on an emulated device: CUDA's own rules. (The tests that every implementation passes run there too: conftest.py.)

g++ compiles csrc/cuda/*.cu, host code and kernels, against tests/cuda_emulator and runs them on CPU tensors.
This checks indexing, chunk tables, barriers, reductions, edge cases and the arithmetic's structure. It says
nothing about speed, about the device's own exp and log, or about a race that depends on timing.
"""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import FLOATS, assert_two_times

from fastforget.ops import mask, membership, noise, update
from fastforget.reference.membership.scores import membership_scores as reference_scores
from fastforget.reference.update import error_max_loss as reference_loss

IMPLEMENTATIONS = ("emulated",)
pytestmark = pytest.mark.slow


def everything() -> list[torch.Tensor]:
    """One result of every op, each from more work than one multiprocessor's blocks take in one stride."""
    x, g, m, v = torch.randn(4, 16, 9001)
    total = update.error_max_step_(x, g, m, v.abs_(), step=3, lr=0.1, clamp=(-1.0, 1.0))
    params = [torch.randn(50_001), torch.randn(7)]
    forget, retain = ([torch.rand_like(p) for p in params] for _ in range(2))
    count = mask.dampen_(params, forget, retain, alpha=2.0, lam=0.5)
    logits, labels = torch.randn(6000, 12), torch.randint(0, 12, (6000,))
    wide, wide_labels = torch.randn(200, 500), torch.randint(0, 500, (200,))
    return [
        *noise.normal_([torch.empty(200_003), torch.empty(5)], seed=4),
        *noise.perturb_step_(
            [torch.randn(200_003), torch.randn(5)], [torch.randn(200_003), torch.randn(5)],
            lr=0.1, std=[torch.rand(200_003), torch.rand(5)], seed=4,
        ),
        noise.random_bits(200_003, seed=4),
        *(x, m, v, total, *params, count),
        *update.error_max_loss(logits, labels),
        *update.error_max_loss(wide, wide_labels),
        *membership.membership_scores(logits, labels),
        *membership.membership_scores(wide, wide_labels),
        *membership.roc_stats((torch.randn(20_001) * 9).round(), (torch.randn(30_001) * 8).round())[:6],
    ]


def test_results_do_not_depend_on_the_number_of_multiprocessors(implementation, monkeypatch):
    results = []
    for count in ("1", "5"):
        monkeypatch.setenv("FASTFORGET_EMULATED_MULTIPROCESSORS", count)
        torch.manual_seed(0)
        results.append(everything())
    for one, five in zip(*results, strict=True):
        assert torch.equal(one, five)


def test_noise_lists_longer_than_a_launch_table(implementation):
    sizes = [(17 * i) % 23 for i in range(400)]
    dtypes = [FLOATS[i % 4] for i in range(400)]
    together = [torch.zeros(n, dtype=d) for n, d in zip(sizes, dtypes, strict=True)]
    alone = [x.clone() for x in together]
    noise.add_normal_(together, 0.5, seed=8, stream=3, start=list(range(400)))
    for i, x in enumerate(alone):
        noise.add_normal_(x, 0.5, seed=8, stream=3 + i, start=i)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_perturb_step_without_its_tensors_is_the_plain_op(emulated):
    """The public functions never call the op so, but its schema allows it."""
    x = torch.randn(1001)
    y = x.clone()
    emulated["perturb_step_"]([x], [], 0.0, [0.5], [], 7, 0, 0, [3])
    emulated["add_normal_"]([y], [0.5], 7, 0, 0, [3])
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    "grads, std, elements, message",
    [
        ([torch.zeros(4)], [0.5], [], "grads has 1 tensors for 2"),
        ([], [0.5], [torch.zeros(4)] * 3, "std_elements has 3 tensors for 2"),
        ([], [0.5] * 3, [torch.zeros(4)] * 2, None),
        ([torch.zeros(4), torch.zeros(3)], [0.5], [], "grads has 3 elements; expected 4"),
        ([], [], [torch.zeros(4), torch.zeros(4).double()], "std_elements has dtype"),
        ([torch.zeros(4)] * 2, [0.5] * 3, [], "std has 3 values for 2"),
    ],
)
def test_perturb_step_checks_a_direct_call(emulated, grads, std, elements, message):
    params = [torch.zeros(4), torch.zeros(4)]

    def step():
        emulated["perturb_step_"](params, grads, 0.1, std, elements, 7, 0, 0, [0])

    if message is None:  # std counts for nothing where std_elements is given
        step()
        return
    with pytest.raises(RuntimeError, match=message):
        step()
    assert not params[0].any()


def test_dampen_lists_longer_than_a_launch_table(implementation):
    params = [torch.randn((17 * i) % 23, dtype=torch.float64).to(FLOATS[i % 4]) for i in range(400)]
    forget, retain = ([torch.rand_like(p) for p in params] for _ in range(2))
    alone = [p.clone() for p in params]
    count = mask.dampen_(params, forget, retain, alpha=1.5, lam=0.5)
    singles = zip(alone, forget, retain, strict=True)
    assert (
        count.item() == sum(mask.dampen_([p], [f], [r], alpha=1.5, lam=0.5).item() for p, f, r in singles) > 0
    )
    assert all(torch.equal(a, b) for a, b in zip(params, alone, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [31, 32, 33, 128, 129, 256, 257, 512, 513, 1024, 1025, 8192, 8193])
def test_class_counts_around_every_change_of_kernel(implementation, classes, dtype):
    pool = 128
    z, y = (4 * torch.randn(pool, classes)).to(dtype), torch.randint(0, classes, (pool,))

    def reference(op, logits, *shapes):
        outputs = [torch.empty(shape, dtype=kind) for shape, kind in shapes]
        op(logits, y, *outputs)
        return outputs

    def scores(logits, labels, out, correct):
        reference_scores(logits, labels, 1.0, out, correct)

    got = membership.membership_scores(z[:7], y[:7])
    plain = reference(scores, z, ((6, pool), torch.float32), ((pool,), torch.bool))
    exact = reference(scores, z.double(), ((6, pool), torch.float64), ((pool,), torch.bool))
    for ours, p, e, name in zip(got, plain[0], exact[0], got._fields, strict=False):
        assert_two_times(ours, p, e, name)
    assert torch.equal(got.correct, exact[1][:7])
    # the gradient carries 1 / rows: one division for all rows, whichever are looked at
    loss, gradient = update.error_max_loss(z, y)
    plain = reference(reference_loss, z, ((pool,), torch.float32), (z.shape, dtype))
    exact = reference(reference_loss, z.double(), ((pool,), torch.float64), (z.shape, torch.float64))
    assert_two_times(loss, plain[0], exact[0], "loss")
    assert_two_times(gradient, plain[1], exact[1], "gradient")


@pytest.mark.parametrize("classes", [10, 100, 2000, 9000])
@pytest.mark.parametrize("bad", [-1, -(2**40), "classes", 2**40])
def test_labels_out_of_range_give_nan_in_their_row_alone(emulated, classes, bad):
    z, y = torch.randn(5, classes), torch.randint(0, classes, (5,))
    wrong = y.clone()
    wrong[3] = classes if bad == "classes" else bad
    outputs = []
    for labels in (y, wrong):
        scores, correct = torch.zeros(6, 5), torch.ones(5, dtype=torch.bool)
        loss, gradient = torch.zeros(5), torch.zeros(5, classes)
        emulated["membership_scores"](z, labels, 1.0, scores, correct)
        emulated["error_max_loss"](z, labels, loss, gradient)
        outputs.append((scores.T, correct, loss, gradient))
    others = torch.tensor([0, 1, 2, 4])
    for good, broken in zip(*outputs, strict=True):
        assert torch.equal(good[others], broken[others])
        assert not broken[3].any() if broken.dtype == torch.bool else bool(broken[3].isnan().all())


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_misaligned_tensors_give_the_same_bits_and_keep_their_neighbours(emulated, dtype, offset):
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(shift: int) -> list[torch.Tensor]:
        torch.manual_seed(1)
        held = []

        def place(values: torch.Tensor) -> torch.Tensor:
            memory = torch.full((shift + values.numel() + 8,), 7, dtype=values.dtype)
            view = memory[shift : shift + values.numel()].view(values.shape)
            held.append((memory, view))
            return view.copy_(values)

        x, g, m, v = (place(torch.randn(3, 1001).abs().to(dtype)) for _ in range(4))
        total = place(torch.zeros(1, dtype=wide))
        emulated["error_max_step_"](x, g, m, v, total, 2, 0.1, 0.9, 0.999, 1e-8, 0.1, -math.inf, math.inf)
        emulated["dampen_"]([place(x.clone())], [g], [m], place(torch.zeros(1, dtype=torch.int64)), 1.0, 0.5)
        for classes in (9, 77):
            logits = place(torch.randn(200, classes).to(dtype))
            labels = place(torch.randint(0, classes, (200,)))
            loss, gradient = place(torch.zeros(200, dtype=wide)), place(torch.zeros_like(logits))
            emulated["error_max_loss"](logits, labels, loss, gradient)
            scores = place(torch.zeros(6, 200, dtype=wide))
            correct = place(torch.zeros(200, dtype=torch.bool))
            emulated["membership_scores"](logits, labels, 2.0, scores, correct)
        member, nonmember = place(torch.randn(300, dtype=wide)), place(torch.randn(200, dtype=wide))
        emulated["roc_stats"](member, nonmember, [0.1], place(torch.zeros(6, dtype=torch.float64)))
        results = [view.clone() for _, view in held]
        for memory, view in held:
            memory[shift : shift + view.numel()] = 7
            assert torch.equal(memory, torch.full_like(memory, 7))
        return results

    for aligned, shifted in zip(run(0), run(offset), strict=True):
        assert torch.equal(aligned, shifted)


def test_false_positive_budgets_of_many_rates(emulated):
    member, nonmember = torch.randn(101), torch.randn(49)
    fprs = [i / 700 for i in range(701)]
    out = torch.zeros(4 + 2 * len(fprs), dtype=torch.float64)
    emulated["roc_stats"](member, nonmember, fprs, out)
    for fpr, tpr, threshold in zip(fprs, out[4:705], out[705:], strict=True):
        reachable = [t for t in member if (nonmember >= t).sum().item() / 49 <= fpr]
        assert tpr.item() == pytest.approx(len(reachable) / 101, abs=1e-15)
        assert threshold.item() == (min(reachable).item() if reachable else math.inf)
