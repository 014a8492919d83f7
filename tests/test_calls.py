"""The short way of a call: a public function that leaves the looking at its tensors to the op gives what the careful way gives, and
refuses what it refuses, with the same words and nothing changed. (test_direct.py: the calls that the short way makes.)"""

from __future__ import annotations

import pytest
import torch

import fastforget as ff
from fastforget import _schema
from fastforget.ops import _arguments, mask, membership, noise, update

OPS = torch.ops.fastforget
needs_native = pytest.mark.skipif(not ff.backend.native_cpu, reason="the compiled CPU ops are not loaded")


def lists(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.rand(shape) + 0.1 for shape in shapes]


def step(x, m, v, grad):
    return update.error_max_step_(x, grad, m, v, step=3, lr=0.1, clamp=(-1.0, 1.0))


def half_on(x):
    """Each second tensor of a list without a mask, the others and a tensor alone with one of another form."""
    if isinstance(x, torch.Tensor):
        return x > 0.5
    return [[None, x[i] > 0.5, mask.pack_bits(x[i] > 0.5)][i % 3] for i in range(len(x))]


def sgd(x, moved, grad):
    return mask.masked_sgd_(x, grad, half_on(x), lr=0.1, momentum=0.9, momentum_buffers=moved)


def adam(x, m, v, grad):
    return mask.masked_adam_(x, grad, half_on(x), m, v, step=3, lr=0.1)


# name: (call, number of arguments that are changed, number of arguments)
CALLS = {
    "normal_": (lambda x: noise.normal_(x, 2.0, 1.0, seed=3), 1, 1),
    "add_normal_": (lambda x: noise.add_normal_(x, 0.5, seed=2**64 - 1, stream=5, step=2, start=3), 1, 1),
    "add_normal_, plain": (lambda x: noise.add_normal_(x, 1, seed=3), 1, 1),
    "perturb_step_": (lambda x, g: noise.perturb_step_(x, g, lr=0.1, std=0.5, seed=3, start=1), 1, 2),
    "dampen_": (lambda x, f, r: mask.dampen_(x, f, r, alpha=1, lam=0.5), 1, 3),
    "accumulate_importance_": (lambda x, g: mask.accumulate_importance_(x, g, scale=0.5), 1, 2),
    "soft_threshold_": (lambda x: mask.soft_threshold_(x, 0.5), 1, 1),
    "masked_sgd_": (sgd, 2, 3),
    "masked_sgd_, no masks": (lambda x, g: mask.masked_sgd_(x, g, None, lr=1), 1, 2),
    "masked_adam_": (adam, 3, 4),
}
ONE_TENSOR = {
    "error_max_step_": (step, 3, 4),
    "membership_scores": (lambda z: membership.membership_scores(z, LABELS), 0, 1),
    "neuron_stats": (mask.neuron_stats, 0, 1),
    "neuron_stats, last": (lambda x: mask.neuron_stats(x, dim=-1), 0, 1),
}
LABELS = torch.tensor([0, 3, 1])
SHAPES = [(3, 4), (7,), (), (2, 0), (5, 1)]


def arguments(name: str, form: str) -> list:
    if name in ONE_TENSOR:
        return [x * 0.5 for x in lists(*[(3, 4)] * ONE_TENSOR[name][2])]
    count = CALLS[name][2]
    if form == "tensor":
        return lists(*[(3, 4)] * count)
    if form == "parameter":
        return [torch.nn.Parameter(lists((3, 4))[0]), *lists(*[(3, 4)] * (count - 1))]
    return [tuple(lists(*SHAPES)) if form == "tuple" else lists(*SHAPES) for _ in range(count)]


def tensors(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in tensors(v)]


def copied(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else type(value)(copied(v) for v in value)


EVERY_CALL = {**CALLS, **ONE_TENSOR}
FORMS = [(name, form) for name in CALLS for form in ("tensor", "parameter", "list", "tuple")]
FORMS += [(name, "tensor") for name in ONE_TENSOR]


@needs_native
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_short_way_is_taken_and_gives_what_the_careful_way_gives(name, form, monkeypatch):
    call, changed, _ = EVERY_CALL[name]
    short = arguments(name, form)
    careful = [copied(a) for a in short]
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(_arguments, "run", lambda *_: pytest.fail("went the careful way"))
            versions = [t._version for a in short[:changed] for t in tensors(a)]
            got = call(*short)
            assert all(t._version == v + 1 for t, v in zip(tensors(short[:changed]), versions, strict=True))
        monkeypatch.setattr(ff.backend, "native_cpu", False)
        expected = call(*careful)
    for a, b in zip(tensors([got, *short]), tensors([expected, *careful]), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("name", EVERY_CALL)
def test_without_no_grad_the_short_way_serves_tensors_outside_autograd(name, monkeypatch):
    monkeypatch.setattr(_arguments, "run", lambda *_: pytest.fail("went the careful way"))
    EVERY_CALL[name][0](*arguments(name, "tensor"))
    if name in CALLS:
        CALLS[name][0](*arguments(name, "list"))


@pytest.mark.parametrize("name", CALLS)
def test_one_of_a_list_that_requires_grad_is_refused(name):
    inputs = arguments(name, "list")
    inputs[0][1].requires_grad_()
    before = [copied(a) for a in inputs]
    with pytest.raises(RuntimeError, match=r"\[1\]: .*requires grad and is changed in place"):
        CALLS[name][0](*inputs)
    assert all(torch.equal(a, b) for a, b in zip(tensors(inputs), tensors(before), strict=True))


@pytest.mark.parametrize("name", [n for n, (_, _, count) in EVERY_CALL.items() if count > 1])
def test_what_is_read_may_require_grad_and_leaves_no_graph(name):
    call, changed, _ = EVERY_CALL[name]
    inputs = arguments(name, "tensor")
    expected = [copied(a) for a in inputs]
    inputs[changed].requires_grad_()
    call(*inputs)
    call(*expected)
    for a, b in zip(inputs[:changed], expected, strict=False):
        assert not a.requires_grad and torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n, (_, changed, _) in EVERY_CALL.items() if changed])
def test_strided_tensors_are_served(name):
    call, changed, _ = EVERY_CALL[name]
    inputs = arguments(name, "tensor")
    strided = [a.t().contiguous().t() for a in inputs]
    assert not strided[0].is_contiguous()
    call(*inputs)
    call(*strided)
    assert all(torch.equal(a, b) for a, b in zip(inputs[:changed], strided, strict=False))


def refused_lists():
    def three():
        return lists((2, 3), (6,), (4,))

    meta, sparse = torch.zeros(6, device="meta"), torch.eye(3).to_sparse()
    dampen = CALLS["dampen_"][0]
    accumulate = CALLS["accumulate_importance_"][0]
    return {
        "another device": (lambda a: noise.add_normal_([*a, meta], 1.0, seed=1), ValueError, r"x\[0\] is on cpu but x\[3\] is on meta"),
        "another device, filled": (lambda a: noise.normal_([*a, meta], seed=1), ValueError, r"x\[3\] is on meta"),
        "sparse": (lambda a: noise.add_normal_([*a, sparse], 1.0, seed=1), TypeError, r"x\[3\]: got layout torch.sparse_coo"),
        "sparse alone": (lambda _: noise.add_normal_(sparse, 1.0, seed=1), TypeError, "x: got layout torch.sparse_coo"),
        "no tensor": (lambda a: noise.add_normal_([*a, None], 1.0, seed=1), TypeError, r"x\[3\]: got NoneType"),
        "a number": (lambda a: noise.add_normal_([*a, 1.0], 1.0, seed=1), TypeError, r"x\[3\]: got float"),
        "integers": (lambda a: noise.add_normal_([*a, torch.arange(3)], 1.0, seed=1), TypeError, r"x\[3\]: .*int64"),
        "expanded": (lambda a: noise.add_normal_([*a, torch.zeros(1).expand(3)], 1.0, seed=1), ValueError, r"x\[3\]: .*one memory cell"),
        "another shape": (lambda a: dampen(a, three(), lists((2, 3), (6,), (4, 1))), ValueError, r"retain_importance\[2\]: .*shape"),
        "another order": (lambda a: dampen(a, lists((3, 2), (6,), (4,)), three()), ValueError, r"forget_importance\[0\]: .*shape"),
        "another dtype": (lambda a: dampen(a, three(), [x.double() for x in three()]), ValueError, r"retain_importance\[0\]: .*dtype"),
        "partner elsewhere": (lambda a: dampen(a, [*three()[:2], meta[:4]], three()), ValueError, r"forget_importance\[2\]: .*device"),
        "too few": (lambda a: dampen(a, three()[:2], three()), ValueError, "forget_importance: got 2 tensors"),
        "rows for tensors": (
            lambda a: dampen(a[1:2] * 2, torch.rand(2, 6), torch.rand(2, 6)), ValueError, "forget_importance: got 1 tensors"),
        "a number for a tensor": (lambda a: dampen(a[0], 1.0, a[0].clone()), TypeError, "forget_importance: got float"),
        "nothing for a tensor": (lambda a: accumulate(a[0], None), TypeError, "grads: got NoneType"),
        "gradient's shape": (lambda a: accumulate(a[0], torch.rand(3, 2)), ValueError, r"grads\[0\]: .*shape"),
        "step's gradient": (
            lambda a: noise.perturb_step_(a, lists((2, 3), (6,), (2, 2)), lr=0.1, std=1.0, seed=1), ValueError, r"grads\[2\]: .*shape"),
        "no gradients": (lambda a: noise.perturb_step_(a, None, lr=0.1, std=1.0, seed=1), TypeError, "grads: got NoneType"),
        "moment's shape": (
            lambda a: step(a[0], torch.rand(2, 3), torch.rand(3, 2), torch.rand(2, 3)), ValueError, "exp_avg_sq: .*shape"),
        "optimiser's gradient": (
            lambda a: sgd(a, three(), lists((2, 3), (6,), (2, 2))), ValueError, r"grads\[2\]: .*shape"),
        "optimiser's moment": (
            lambda a: adam(a, three(), lists((2, 3), (3, 2), (4,)), three()), ValueError, r"exp_avg_sqs\[1\]: .*shape"),
        "no momentum": (
            lambda a: mask.masked_sgd_(a, three(), None, lr=0.1, momentum=0.9), ValueError, "momentum_buffers: got None"),
        "too few masks": (
            lambda a: mask.masked_sgd_(a, three(), [None, None], lr=0.1), ValueError, "masks: got 2 masks"),
        "a mask of nothing": (
            lambda a: mask.masked_sgd_(a, three(), [None, None, torch.ones(0, dtype=torch.bool)], lr=0.1),
            ValueError, r"masks\[2\]: got a tensor of shape \(0,\)"),
        "a flat mask": (
            lambda a: mask.masked_sgd_(a, three(), [torch.ones(6, dtype=torch.bool), None, None], lr=0.1),
            ValueError, r"masks\[0\]: got a tensor of shape \(6,\)"),
        "a column of rows": (
            lambda a: mask.masked_adam_(a, three(), [torch.ones(2, 1, dtype=torch.bool), None, None], three(), three(), step=1, lr=1),
            ValueError, r"masks\[0\]: got a tensor of shape \(2, 1\)"),
        "stream": (lambda a: noise.add_normal_(a, 1.0, seed=1, stream=2**32 - 2), ValueError, "stream: got 4294967294"),
        "start": (lambda a: noise.add_normal_(a, 1.0, seed=1, start=-1), ValueError, "start: got -1"),
        "label matrix": (
            lambda a: membership.membership_scores(a[0], torch.zeros(2, 1, dtype=torch.int64)), ValueError, r"labels: got shape \(2, 1\)"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused_lists())
def test_refusals_name_the_argument_and_change_nothing(implementation, case):
    call, kind, message = refused_lists()[case]
    given = lists((2, 3), (6,), (4,))
    before, versions = [x.clone() for x in given], [x._version for x in given]
    with pytest.raises(kind, match=message):
        call(given)
    assert [x._version for x in given] == versions
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


class Watched(torch.Tensor):
    seen: list[str] = []  # noqa: RUF012  (the test's own record)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_of_tensor_sees_the_call():
    plain = torch.zeros(5)
    watched = torch.zeros(5).as_subclass(Watched)
    noise.add_normal_(plain, 1.0, seed=1)
    noise.add_normal_(watched, 1.0, seed=1)
    assert torch.equal(watched.as_subclass(torch.Tensor), plain)
    assert any("add_normal_" in name for name in Watched.seen)


def test_a_rule_is_what_was_asked_for_whatever_was_remembered():
    """Numbers that compare equal or can change later: each step is the one that the careful way takes."""
    low = torch.tensor(-0.5)
    clamps = [(0.0, 1.0), (-0.0, 1.0), (False, True), (low, 1.0), None, (None, 0.25), (-1.0, 1.0), (low, 1.0)]
    for i, clamp in enumerate(clamps):
        low.fill_(0.5 if i == len(clamps) - 1 else -0.5)
        for betas in ((0.9, 0.999), [0.5, 0.9]):
            quick = lists(*[(3, 4)] * 4)
            quick[0] -= 0.6
            careful = [t.clone() for t in quick]
            update.error_max_step_(*quick, step=2, lr=0.1, betas=betas, clamp=clamp)
            with ff.use_backend("native" if ff.backend.native_cpu else "reference"):
                update.error_max_step_(*careful, step=2, lr=0.1, betas=betas, clamp=clamp)
            assert all(torch.equal(a, b) for a, b in zip(quick, careful, strict=True))


def test_place_in_the_stream_may_be_left_out():
    short, long = torch.zeros(9), torch.zeros(9)
    OPS.add_normal_([short], [0.5], 3)
    OPS.add_normal_([long], [0.5], 3, 0, 0, [0])
    assert torch.equal(short, long)
    again = torch.zeros(9)
    _schema._guarded("add_normal_", _schema.SCHEMAS["add_normal_"][1])([again], [0.5], 3)
    torch.testing.assert_close(again, long)


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_raw_op_refuses_tensors_in_two_places(where):
    other = "meta" if where == "cpu" else "cpu"
    given = [torch.zeros(3, device=where), torch.zeros(3, device=other)]
    with pytest.raises(RuntimeError, match=f"add_normal_: tensors on {where} and {other}; accepted is one device a call"):
        OPS.add_normal_(given, [1.0], 3)
    with pytest.raises(RuntimeError, match=r"soft_threshold_: tensors on .*one device"):
        OPS.soft_threshold_([given[0]], [1.0], torch.zeros((), device=other), torch.zeros((), dtype=torch.int64, device=other))
    assert all((x == 0).all() for x in given if x.device.type == "cpu")


def odd_tensors():
    return {
        "sparse": (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        "quantized": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quint8"),
        "mkldnn": (torch.ones(3, 3).to_mkldnn(), "layout torch._mkldnn"),
    }


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", ["sparse", "quantized", "mkldnn"])
def test_a_tensor_of_another_kind_in_a_list_is_refused_before_the_others_change(kind):
    """Torch sends such a call past the CPU kernels."""
    odd, words = odd_tensors()[kind]
    dense = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match="add_normal_: a tensor is"):
        OPS.add_normal_([dense, odd], [1.0], 3)
    with pytest.raises(RuntimeError, match="add_normal_: a tensor is"):
        OPS.add_normal_([odd], [1.0], 3)
    with pytest.raises((TypeError, RuntimeError), match=words):
        noise.add_normal_([dense, odd], 1.0, seed=3)
    assert (dense == 0).all() and dense._version == 0


def test_the_default_device_has_no_part_in_it():
    logits, params = torch.randn(3, 4), torch.rand(4)
    expected = membership.membership_scores(logits, LABELS), mask.dampen_(params.clone(), params + 1, params, alpha=1, lam=1)
    with torch.device("meta"):
        got = membership.membership_scores(logits, LABELS), mask.dampen_(params.clone(), params + 1, params, alpha=1, lam=1)
    assert all(torch.equal(a, b) for a, b in zip(tensors(got), tensors(expected), strict=True))
