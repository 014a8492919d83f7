"""The fast path of a call: a public function that lets the op check the tensors gives what the slow path gives, and refuses what the slow
path refuses, with the same words and nothing changed."""

from __future__ import annotations

import op_table
import pytest
import torch
from op_table import SHAPES, adam, copied, flat, sgd, step

import fastforget as ff
from fastforget import _schema
from fastforget.ops import _arguments, mask, membership, noise, update

OPS = torch.ops.fastforget
needs_native = pytest.mark.skipif(not ff.backend.native_cpu, reason="the compiled CPU ops are not loaded")


def lists(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.rand(shape) + 0.1 for shape in shapes]


EVERY_CALL = {name: public for name, public in op_table.PUBLIC.items() if public.fast}
CALLS = {name: public for name, public in EVERY_CALL.items() if public.kind == "lists"}  # of a tensor or a list of them


def arguments(name: str, form: str) -> list:
    count, alone = EVERY_CALL[name].count, op_table.MATRIX
    if name not in CALLS:
        return [x * 0.5 for x in lists(*[alone] * count)]
    if form == "tensor":
        return lists(*[alone] * count)
    if form == "parameter":
        return [torch.nn.Parameter(lists(alone)[0]), *lists(*[alone] * (count - 1))]
    return [tuple(lists(*SHAPES)) if form == "tuple" else lists(*SHAPES) for _ in range(count)]


FORMS = [(name, form) for name in CALLS for form in ("tensor", "parameter", "list", "tuple")]
FORMS += [(name, "tensor") for name in EVERY_CALL if name not in CALLS]


@needs_native
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_fast_path_is_taken_and_gives_what_the_slow_path_gives(name, form, monkeypatch):
    call, changed = EVERY_CALL[name].call, EVERY_CALL[name].changed
    fast = arguments(name, form)
    slow = [copied(a) for a in fast]
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.setattr(_arguments, "run", lambda *_: pytest.fail("took the slow path"))
            versions = [t._version for a in fast[:changed] for t in flat(a)]
            got = call(*fast)
            assert all(t._version == v + 1 for t, v in zip(flat(fast[:changed]), versions, strict=True))
        monkeypatch.setattr(ff.backend, "native_cpu", False)
        expected = call(*slow)
    for a, b in zip(flat([got, *fast]), flat([expected, *slow]), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("name", EVERY_CALL)
def test_without_no_grad_the_fast_path_serves_tensors_outside_autograd(name, monkeypatch):
    monkeypatch.setattr(_arguments, "run", lambda *_: pytest.fail("took the slow path"))
    EVERY_CALL[name].call(*arguments(name, "tensor"))
    if name in CALLS:
        CALLS[name].call(*arguments(name, "list"))


@pytest.mark.parametrize("name", CALLS)
def test_one_of_a_list_that_requires_grad_is_refused(name):
    inputs = arguments(name, "list")
    inputs[0][1].requires_grad_()
    before = [copied(a) for a in inputs]
    refusal = r"\[1\]: .*requires grad and is changed in place" if CALLS[name].changed else r"\[1\] requires grad, but .* has no gradient"
    with pytest.raises(RuntimeError, match=refusal):
        CALLS[name].call(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(flat(inputs), flat(before), strict=True))


@pytest.mark.parametrize("name", [n for n, public in EVERY_CALL.items() if public.count > 1 and public.changed])
def test_what_is_read_may_require_grad_and_leaves_no_graph(name):
    call, changed = EVERY_CALL[name].call, EVERY_CALL[name].changed
    inputs = arguments(name, "tensor")
    expected = [copied(a) for a in inputs]
    inputs[changed].requires_grad_()
    call(*inputs)
    call(*expected)
    for a, b in zip(inputs[:changed], expected, strict=False):
        assert not a.requires_grad and torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n, public in EVERY_CALL.items() if public.changed])
def test_strided_tensors_are_served(name):
    call, changed = EVERY_CALL[name].call, EVERY_CALL[name].changed
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
    dampen = CALLS["dampen_"].call
    accumulate = CALLS["accumulate_importance_"].call
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


def test_a_rule_is_what_was_asked_for_whatever_was_remembered():
    """Numbers that compare equal or can change later: each step is the one that the slow path takes."""
    low = torch.tensor(-0.5)
    clamps = [(0.0, 1.0), (-0.0, 1.0), (False, True), (low, 1.0), None, (None, 0.25), (-1.0, 1.0), (low, 1.0)]
    for i, clamp in enumerate(clamps):
        low.fill_(0.5 if i == len(clamps) - 1 else -0.5)
        for betas in ((0.9, 0.999), [0.5, 0.9]):
            fast = lists(*[(3, 4)] * 4)
            fast[0] -= 0.6
            slow = [t.clone() for t in fast]
            update.error_max_step_(*fast, step=2, lr=0.1, betas=betas, clamp=clamp)
            with ff.use_backend("native" if ff.backend.native_cpu else "reference"):
                update.error_max_step_(*slow, step=2, lr=0.1, betas=betas, clamp=clamp)
            assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


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


@needs_native
@pytest.mark.parametrize("name", EVERY_CALL)
@pytest.mark.parametrize("wrong", ["text", None, 1.0, "meta", "integer", "sparse", "strided"])
def test_the_op_refuses_before_anything_changes(name, wrong, monkeypatch):
    """Whatever stands in a tensor's place: the fast path is not taken, and what the slow path finds is untouched."""
    spoiled = {
        "meta": lambda x: x.to("meta"), "integer": lambda x: x.int(), "sparse": lambda x: x.to_sparse(),
        "strided": lambda x: x.t(),
    }  # fmt: skip
    call, count = EVERY_CALL[name].call, EVERY_CALL[name].count
    for i in range(count):
        given = arguments(name, "tensor")
        given[i] = spoiled[wrong](given[i]) if wrong in spoiled else wrong
        kept = [copied(a) for a in given if isinstance(a, torch.Tensor) and not a.is_sparse and not a.is_meta]

        def slow(*_, given=given, kept=kept):
            here = [a for a in given if isinstance(a, torch.Tensor) and not a.is_sparse and not a.is_meta]
            assert all(torch.equal(a, b) and a._version == 0 for a, b in zip(here, kept, strict=True))
            raise FileNotFoundError

        monkeypatch.setattr(_arguments, "run", slow)
        with pytest.raises((FileNotFoundError, TypeError, ValueError, RuntimeError)):
            call(*given)
