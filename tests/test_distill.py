"""distill_loss: the divergence from a teacher and its gradient, against extended precision."""

from __future__ import annotations

import math

import pytest
import torch
from distill_oracle import exact_loss, left_out, plain_loss
from tolerance import FLOATS, assert_two_times, drawn_once
from torch.nn import functional as F

import fastforget as ff
from fastforget.ops import update

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
# around every change of kernel: 2048 terms are kept on the CPU, 1024 classes belong to a warp on CUDA
SHAPES = [(0, 10), (1, 1), (3, 1), (1, 2), (64, 10), (17, 7), (33, 100), (5, 1000), (2, 1025), (3, 2048), (2, 2049), (2, 4099)]


@drawn_once
def case(shape, dtype, scale, temperature, form):
    """Draws, and what plain PyTorch and extended precision make of them: the same for every implementation."""
    draws = []
    for _ in range(max(1, min(64, 4096 // max(shape[0], 1)))):  # a row has one loss, however many classes
        z, t = ((scale * torch.randn(shape)).to(dtype) for _ in range(2))
        drop, out = left_out(form, shape)
        draws.append((z, t, drop, out))
        if shape[1] > 1000 and len(draws) == 8:
            break
    plain, exact = (list(zip(*(f(z, t, out, temperature) for z, t, _, out in draws), strict=True)) for f in (plain_loss, exact_loss))
    return draws[0], plain, exact


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("scale", "temperature", "form"), [(1.0, 1.0, "all"), (8.0, 2.0, "one a row"), (3.0, 0.3, "classes")])
def test_loss_and_gradient(implementation, shape, dtype, scale, temperature, form):
    (z, t, drop, _), plain, exact = case(shape, dtype, scale, temperature, form)
    loss, dlogits = update.distill_loss(z, t, temperature=temperature, drop=drop)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert dlogits.dtype == dtype
    assert_two_times(loss, list(plain[0]), list(exact[0]), "loss")
    assert_two_times(dlogits, list(plain[1]), list(exact[1]), "dlogits")


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 20.0, 1e4])
def test_small_and_large_temperatures(implementation, temperature):
    (z, t, _, _), plain, exact = case((16, 50), torch.float32, 4.0, temperature, "all")
    loss, dlogits = update.distill_loss(z, t, temperature=temperature)
    assert_two_times(loss, list(plain[0]), list(exact[0]), "loss")
    assert_two_times(dlogits, list(plain[1]), list(exact[1]), "dlogits")


@pytest.mark.parametrize("classes", [150_000, 70_001])
def test_very_long_rows(implementation, classes):
    if implementation == "emulated":
        pytest.skip("takes minutes; 4099 classes run in the same loop")
    (z, t, drop, _), plain, exact = case((3, classes), torch.float32, 2.0, 1.5, "one a row")
    loss, dlogits = update.distill_loss(z, t, temperature=1.5, drop=drop)
    assert_two_times(loss, list(plain[0]), list(exact[0]), "loss")
    assert_two_times(dlogits, list(plain[1]), list(exact[1]), "dlogits")


@pytest.mark.parametrize("classes", [10, 3000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(implementation, dtype, classes):
    z = (5 * torch.randn(7, classes)).to(dtype)
    loss, dlogits = update.distill_loss(z, z.clone(), temperature=0.7)
    assert not loss.any() and not dlogits.any()


@pytest.mark.parametrize("classes", [5, 2500])
def test_infinite_and_nan_logits(implementation, classes):
    inf, nan = math.inf, math.nan
    fill = -9.0  # of the classes after the third
    rows = {  # student, teacher: defined by hand
        "teacher rules a class out": ([0, 0, 0], [0, 0, -inf]),
        "both rule it out": ([0, 0, -inf], [0, 0, -inf]),
        "student rules out what the teacher allows": ([0, 0, -inf], [0, 0, 0]),
        "student is NaN": ([nan, 0, 0], [0, 0, 0]),
        "teacher is NaN": ([0, 0, 0], [0, nan, 0]),
        "student is infinite": ([inf, 0, 0], [0, 0, 0]),
        "teacher is infinite": ([0, 0, 0], [inf, 0, 0]),
    }
    z, t = (torch.full((len(rows), classes), fill) for _ in range(2))
    for i, (student, teacher) in enumerate(rows.values()):
        z[i, :3], t[i, :3] = torch.tensor(student), torch.tensor(teacher)
    loss, dlogits = update.distill_loss(z, t)
    w, v = z.double(), t.double()
    log_p, log_q = F.log_softmax(w, 1), F.log_softmax(v, 1)
    q = log_q.exp()
    expected = torch.where(q == 0, 0, q * (log_q - log_p)).sum(1)
    assert loss[2] == inf == expected[2]
    assert loss[3:].isnan().all() and dlogits[3:].isnan().all()
    torch.testing.assert_close(loss[:2].double(), expected[:2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dlogits[:3].double(), ((log_p.exp() - q) / len(rows))[:3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("classes", [4, 3000])
def test_a_row_without_a_class_is_nan_alone(implementation, dtype, classes):
    z, t = torch.zeros(3, classes, dtype=dtype), torch.zeros(3, classes, dtype=dtype)
    t[1] = -math.inf
    t[1, 2] = 0.0
    loss, dlogits = update.distill_loss(z, t, drop=torch.tensor([-1, 2, 0]))
    assert loss.isnan().tolist() == [False, True, False]
    assert dlogits.isnan().any(1).tolist() == [False, True, False] and dlogits[1].isnan().all()
    loss, _ = update.distill_loss(z[:, :1], t[:, 2:3], drop=torch.tensor([0, 0, -1]))
    assert loss.isnan().tolist() == [True, True, False] and loss[2] == 0


def test_all_but_one_class_dropped(implementation):
    """What is left has probability 1: the loss is the cross-entropy of that class."""
    z, t = torch.randn(6, 9), torch.randn(6, 9)
    loss, dlogits = update.distill_loss(z, t, drop=[0, 1, 2, 3, 5, 6, 7, 8])
    four = torch.full((6,), 4)
    torch.testing.assert_close(loss, F.cross_entropy(z, four, reduction="none"))
    torch.testing.assert_close(dlogits, (F.softmax(z, 1) - F.one_hot(four, 9)) / 6)


def test_the_forms_of_drop_agree(implementation):
    z, t = torch.randn(4, 6), torch.randn(4, 6)
    forms = [[3], (3,), [3, 3], torch.arange(6) == 3, torch.full((4,), 3), torch.full((4,), 3, dtype=torch.int32)]
    results = [update.distill_loss(z, t, drop=drop) for drop in forms]
    for loss, dlogits in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(dlogits, results[0][1])
    nothing = [None, [], torch.zeros(6, dtype=torch.bool), torch.full((4,), -1)]
    results = [update.distill_loss(z, t, drop=drop)[0] for drop in nothing]
    assert all(torch.equal(loss, results[0]) for loss in results)


def test_strided_rows(implementation):
    z, t = torch.randn(10, 16).t(), torch.randn(16, 20)[:, ::2]
    expected = update.distill_loss(z.contiguous(), t.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(update.distill_loss(z, t), expected, strict=True))


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("dtype", FLOATS)
def test_misaligned_rows(implementation, dtype, offset):
    def place(x):
        return torch.zeros(x.numel() + offset, dtype=dtype)[offset:].view(x.shape).copy_(x)

    for classes in (9, 2100):
        z, t = (torch.randn(3, classes).to(dtype) for _ in range(2))
        expected = update.distill_loss(z, t)
        assert all(torch.equal(a, b) for a, b in zip(update.distill_loss(place(z), place(t)), expected, strict=True))


def test_the_result_does_not_depend_on_the_thread_count(implementation):
    before = torch.get_num_threads()
    z, t = torch.randn(5, 9000), torch.randn(5, 9000)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(update.distill_loss(z, t, temperature=2.0))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_gradient_is_that_of_the_batch_mean(implementation):
    z, t = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        _, dlogits = update.distill_loss(z.detach(), t, temperature=3.0)
    loss = F.kl_div(F.log_softmax(z / 3, 1), F.softmax(t / 3, 1), reduction="batchmean")
    torch.testing.assert_close(dlogits, torch.autograd.grad(loss, z)[0])
    loss = update.distill_loss(z, t, temperature=3.0)[0].mean()
    torch.testing.assert_close(dlogits, torch.autograd.grad(loss, z)[0])


@pytest.mark.parametrize("drop", [None, [1], torch.tensor([0, -1, 2, 2])], ids=["none", "classes", "one a row"])
def test_the_loss_is_differentiable_twice(drop):
    z, t = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.randn(4, 3, dtype=torch.float64)

    def loss(logits):
        return update.distill_loss(logits, t, temperature=1.7, drop=drop)[0]

    assert torch.autograd.gradcheck(loss, (z,))
    assert torch.autograd.gradgradcheck(loss, (z,))


def test_a_training_step_compiles_whole():
    """The loss, its backward and a step in one graph, with the gradient of plain PyTorch."""
    weight, x, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(5, 6), torch.randn(5, 4)

    def loss(w):
        return update.distill_loss(x @ w, teacher, temperature=2.0, drop=[2])[0].mean()

    torch.compiler.reset()
    (ours,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(weight), weight)
    q = F.softmax(teacher.index_fill(1, torch.tensor([2]), -math.inf) / 2, 1)
    (plain,) = torch.autograd.grad(F.kl_div(F.log_softmax(x @ weight / 2, 1), q, reduction="batchmean"), weight)
    torch.testing.assert_close(ours, plain)


def test_transforms_are_refused():
    z, t = torch.randn(2, 3, 4), torch.randn(3, 4)
    with pytest.raises(RuntimeError, match="can't run under torch.vmap"):
        torch.vmap(lambda x: update.distill_loss(x, t)[0])(z)
    with pytest.raises(RuntimeError, match="forward mode"):
        torch.func.jvp(lambda x: update.distill_loss(x, t)[0], (z[0],), (z[1],))


Z = torch.zeros(4, 3)
BAD_CALLS = {
    "integers": (lambda: update.distill_loss(Z.int(), Z), TypeError, "logits: .*int32"),
    "a vector": (lambda: update.distill_loss(Z[0], Z[0]), ValueError, r"logits: .*accepted is \[batch, classes\]"),
    "no classes": (lambda: update.distill_loss(Z[:, :0], Z[:, :0]), ValueError, r"logits: .*accepted is \[batch, classes\]"),
    "teacher's shape": (lambda: update.distill_loss(Z, Z[:2]), ValueError, "teacher: .*shape must be that of logits"),
    "teacher's dtype": (lambda: update.distill_loss(Z, Z.double()), ValueError, "teacher: .*dtype must be that of logits"),
    "no teacher": (lambda: update.distill_loss(Z, None), TypeError, "teacher: got NoneType"),
    "teacher's gradient": (
        lambda: update.distill_loss(Z, Z.clone().requires_grad_()), RuntimeError, r"teacher requires grad.*teacher.detach\(\)"),
    "temperature": (lambda: update.distill_loss(Z, Z, temperature=0.0), ValueError, "temperature: got 0.0; accepted is a finite"),
    "infinite temperature": (lambda: update.distill_loss(Z, Z, temperature=math.inf), ValueError, "temperature: got inf"),
    "temperature tensor": (lambda: update.distill_loss(Z, Z, temperature=torch.ones(())), ValueError, "temperature: got tensor"),
    "class": (lambda: update.distill_loss(Z, Z, drop=[3]), ValueError, "drop: got 3; accepted is an int from 0 to 2"),
    "class name": (lambda: update.distill_loss(Z, Z, drop=["a"]), TypeError, "drop: got str 'a'"),
    "every class": (lambda: update.distill_loss(Z, Z, drop=[2, 0, 1]), ValueError, "drop: got all 3 classes"),
    "number": (lambda: update.distill_loss(Z, Z, drop=1), TypeError, "drop: got int 1; accepted is None, a list"),
    "floats": (lambda: update.distill_loss(Z, Z, drop=torch.zeros(4)), TypeError, "drop: got a tensor .*float32"),
    "rows": (lambda: update.distill_loss(Z, Z, drop=torch.zeros(3).long()), ValueError, r"drop: .*int64\[4\]"),
    "row class": (lambda: update.distill_loss(Z, Z, drop=torch.tensor([0, 1, 3, -1])), RuntimeError, r"drop\[2\] is 3; accepted: -1"),
    "elsewhere": (lambda: update.distill_loss(Z, Z, drop=torch.zeros(4, device="meta").long()), ValueError, "drop: on meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_arguments_are_named(implementation, name):
    if implementation == "emulated":
        pytest.skip("a device refuses no label: checking would stop the stream")
    call, kind, message = BAD_CALLS[name]
    with pytest.raises(kind, match=message):
        call()


def test_labels_out_of_range_on_a_device_give_nan_in_their_row_alone(emulated):
    for classes in (10, 2000):
        z, t = torch.randn(5, classes), torch.randn(5, classes)
        for bad in (classes, -2, 2**40):
            loss, gradient = torch.zeros(5), torch.zeros(5, classes)
            emulated["distill_loss"](z, t, torch.tensor([0, 1, -1, bad, 2]), 1.0, loss, gradient)
            assert loss.isnan().tolist() == gradient.isnan().all(1).tolist() == [False, False, False, True, False]
            assert not gradient[[0, 1, 2, 4]].isnan().any()


def test_a_method_can_train_by_it():
    """Two classes' teacher without the second: the student unlearns it."""
    torch.manual_seed(0)
    x, student = torch.randn(64, 5), torch.nn.Linear(5, 3)
    with torch.no_grad():
        teacher = 3 * student(x)
    optimizer = torch.optim.SGD(student.parameters(), lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        update.distill_loss(student(x), teacher, drop=[1])[0].mean().backward()
        optimizer.step()
    assert (teacher.argmax(1) == 1).any() and not (student(x).argmax(1) == 1).any()


def test_the_shared_memory_of_results_is_refused():
    z, t = torch.zeros(3, 4), torch.zeros(3, 4)
    none = torch.empty(0, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="distill_loss"):
        torch.ops.fastforget.distill_loss(z, t, none, 1.0, torch.zeros(3), z)
    with ff.use_backend("reference"), pytest.raises(RuntimeError, match="distill_loss"):
        ff.backend.call_forced("distill_loss", "cpu", (z, t, none, 1.0, torch.zeros(3), t))
