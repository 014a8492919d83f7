"""Calls past torch's dispatcher (fastforget/_direct.py): the same op, nothing hidden from torch, nothing leaked, nothing half done."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastforget as ff
from fastforget import _direct, _schema
from fastforget.ops import mask, membership, noise, update

OPS = torch.ops.fastforget
NAMES = (
    "normal_", "add_normal_", "perturb_step_", "error_max_step_", "dampen_", "accumulate_importance_", "soft_threshold_",
    "neuron_stats", "saliency_mask", "masked_sgd_", "masked_adam_", "membership_scores", "rmia_counts",
)  # fmt: skip
pytestmark = pytest.mark.skipif(not _direct.OPS, reason="no direct calls here: needs the compiled parts and torch's exchange interface")
LABELS = torch.tensor([0, 3, 1])
RULE = (0.1, 0.9, 0.999, 1e-8, 0.1, -1.0, 1.0)


def test_what_can_be_called_directly():
    assert sorted(_direct.OPS) == sorted((*NAMES, "membership_scores into"))


def test_where_torch_has_no_such_interface_nothing_is_offered(monkeypatch):
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    found, reason = _direct._offered()
    assert found == {} and "no such interface" in reason
    assert _direct._refused(torch.zeros(3), 1.0) is None


def call(name: str, dtype=torch.float32, lists: bool = True):
    """The arguments of a direct call, those of the dispatched op for the same, and where in the second its outputs are."""

    def f(*shape):
        x = (torch.rand(shape, dtype=torch.float64) + 0.1).to(dtype)
        return (x, x.clone())

    def pair(*shapes):
        made = [f(*shape) for shape in shapes]
        return [a for a, _ in made], [b for _, b in made]

    single = torch.float64 if dtype == torch.float64 else torch.float32
    nan = {"fill_value": torch.nan, "dtype": single}
    shapes = [(3, 4), (7,), (), (2, 0), (5, 1)] if lists else [(3, 4)]
    (p, p2), (g, g2), (h, h2), (k, k2) = pair(*shapes), pair(*shapes), pair(*shapes), pair(*shapes)
    x, x2 = f(3, 4)
    if name in ("normal_", "add_normal_"):
        numbers = ([1.0], [0.5]) if name == "normal_" else ([0.5],)
        return (p, *numbers, 7, 1, 2, 3), (p2, *numbers, 7, 1, 2, [3]), ()
    if name == "perturb_step_":
        return (p, g, 0.1, 0.5, (), 7, 1, 2, 3), (p2, g2, 0.1, [0.5], [], 7, 1, 2, [3]), ()
    if name == "error_max_step_":
        states = [f(3, 4) for _ in range(3)]
        filled = (x2, *(b for _, b in states), torch.full((), **nan), 2, *RULE)
        return (x, *(a for a, _ in states), 2, *RULE), filled, (4,)
    if name == "dampen_":
        return (p, g, h, 1.0, 0.5), (p2, g2, h2, torch.full((), -1), 1.0, 0.5), (3,)
    if name == "accumulate_importance_":
        return (p, g, 2, 0.5), (p2, g2, 2, 0.5), ()
    if name == "soft_threshold_":
        sums = torch.full((), torch.nan, dtype=torch.float64), torch.full((), -1)
        return (p, 0.5), (p2, [0.5], *sums), (2, 3)
    if name == "neuron_stats":
        shapes = [(3, 4), (7,), (2, 0), (5, 1)] if lists else [(3, 4)]
        p, p2 = pair(*shapes)
        sums = [[torch.full(s[:1], **nan) for s in shapes] for _ in range(2)]
        return (p, 0), (p2, 0, *sums), (2, 3)
    if name == "saliency_mask":
        masks = [torch.zeros(s, dtype=torch.bool) for s in shapes]
        return (p, 6, False), (p2, 6, masks, torch.full((), **nan)), (2, 3)
    on = [t.float() > 0.5 for t in p]
    if name == "masked_sgd_":
        numbers = (0.1, 0.9, 0.0, 0.1, False, False, False)
        return (p, g, on, h, *numbers), (p2, g2, on, h2, *numbers), ()
    if name == "masked_adam_":
        numbers = (2, 0.1, 0.9, 0.999, 1e-8, 0.1, True, False)
        return (p, g, on, h, k, *numbers), (p2, g2, on, h2, k2, *numbers), ()
    if name == "membership_scores":
        return (x, LABELS, 0.5), (x2, LABELS, 0.5, torch.full((6, 3), **nan), torch.zeros(3, dtype=torch.bool)), (3, 4)
    ratios = torch.rand(5, dtype=single), torch.rand(9, dtype=single)
    return (*ratios, 0.5, True), (ratios[0][None], ratios[1][None], [0.5], True, torch.full((1, 5), -1)), (4,)


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


def rows(filled):
    """Outputs of a dispatched call as the direct one returns them: each score alone."""
    return [row for t in filled for row in (t.unbind(0) if t.dim() == 2 and t.dtype != torch.bool else [t])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_direct_call_is_the_op(name, lists, dtype):
    direct, dispatched, outputs = call(name, dtype, lists)
    freed = [torch.full((n,), torch.nan) for n in (1, 3, 4, 5) * 20]  # what an allocator hands out next
    del freed
    got = _direct.op(name)(*direct)
    getattr(OPS, name).default(*dispatched)
    expected = rows(flat([dispatched[i] for i in outputs]))
    assert (got is True) == (not outputs)
    for a, b in zip(flat(got), expected, strict=True):
        assert type(a) is torch.Tensor and a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) and torch.equal(a.isnan(), b.isnan())
        assert a.is_contiguous() and a.data_ptr() % 64 == 0 and not a.requires_grad and a._version == 0
    inputs = [v for i, v in enumerate(dispatched) if i not in outputs]
    if name != "rmia_counts":
        assert all(torch.equal(a, b) for a, b in zip(flat(direct), flat(inputs), strict=True))


def test_an_exchange_of_another_kind_is_a_reason_and_no_error(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", object())
    found, reason = _direct._offered()
    assert found == {} and "not of the kind expected" in reason


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_one_may_be_given_as_the_thing_itself(name):
    alone, _, _ = call(name, lists=False)
    listed, _, _ = call(name, lists=False)
    copies = [t.clone() for t in flat(listed)]
    alone = tuple(v[0] if isinstance(v, list) and len(v) == 1 else v for v in alone)
    for a, b in zip(flat(alone), copies, strict=True):
        a.copy_(b)
    for a, b in zip(flat(_direct.op(name)(*alone)), flat(_direct.op(name)(*listed)), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(flat(alone), flat(listed), strict=True))


def spoiled(arguments, i):
    """One argument made into what no op takes, in several ways."""
    value = arguments[i]
    wrong = ["text", object()]
    if isinstance(value, torch.Tensor):
        wrong += [value.t() if value.dim() == 2 else value.repeat_interleave(2)[::2], value.to("meta"), value.to(torch.complex64)]
        wrong += [value.to_sparse(), value.as_subclass(Sub), [value], None]
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        wrong += [[*value[:-1], value[-1].to("meta")], [*value[:-1], None], iter(value)]
        wrong += [[value[0].t(), *value[1:]], [*value[:-1], value[-1].as_subclass(Sub)]]
        if sum(isinstance(v, list) and isinstance(v[0], torch.Tensor) for v in arguments) > 1:
            wrong += [value[:-1], [*value[:-1], torch.zeros(2, 9)]]
    elif isinstance(value, int) and not isinstance(value, bool):
        wrong += [0.5, 2**70, True]
    elif isinstance(value, float):
        wrong += [None, "1"]
    return wrong


class Sub(torch.Tensor):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused_is_refused_before_anything_changes(name):
    arguments, _, _ = call(name)
    before = [t.clone() for t in flat(arguments)]
    versions = [t._version for t in flat(arguments)]
    for i in range(len(arguments)):
        for wrong in spoiled(arguments, i):
            if isinstance(wrong, list) and not any(isinstance(v, (list, tuple)) for v in arguments):
                continue  # [x] for x is refused by ops of one tensor only
            assert _direct.op(name)(*arguments[:i], wrong, *arguments[i + 1 :]) is None, (i, wrong)
    assert _direct.op(name)(*arguments[:-1]) is None
    assert _direct.op(name)(*arguments, 1) is None
    assert [t._version for t in flat(arguments)] == versions
    assert all(torch.equal(a, b) for a, b in zip(flat(arguments), before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_autograd_is_asked_about_every_tensor(name):
    arguments, _, _ = call(name, lists=False)
    for t in flat(arguments):
        if not t.is_floating_point():
            continue
        t.requires_grad_()
        assert _direct.op(name)(*arguments) is None
        with torch.no_grad():
            assert _direct.op(name)(*arguments) is not None
        t.requires_grad_(False)


class Seeing:
    def __init__(self):
        super().__init__()
        self.names = []

    def see(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Seen(Seeing, TorchDispatchMode):
    __torch_dispatch__ = Seeing.see


class SeenFunctions(Seeing, TorchFunctionMode):
    __torch_function__ = Seeing.see


def public(x):
    return mask.dampen_(x, x + 1, x, alpha=1.0, lam=0.5)


@pytest.mark.parametrize("mode", [Seen, SeenFunctions])
def test_modes_see_the_op(mode):
    x, y = torch.rand(4), None
    with mode() as seen:
        y = public(x)
    assert any("dampen_" in name for name in seen.names)
    assert y.item() >= 0


def test_the_profiler_sees_the_op():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        public(torch.rand(4))
    assert any("fastforget::dampen_" in event.key for event in profile.key_averages())
    assert _direct.op("dampen_")(*call("dampen_")[0]) is not None  # and it's over afterwards


def test_vmap_is_refused_as_before():
    with pytest.raises(RuntimeError, match="can't run under torch.vmap"):
        torch.vmap(lambda x: noise.add_normal_(x, 1.0, seed=1))(torch.zeros(2, 3))


def test_lazy_negation_is_heeded():
    """Torch keeps the sign of a conjugate's imaginary part aside; a view of one element is contiguous nevertheless."""
    view = torch.tensor([1 + 2j]).conj().imag
    assert view.is_neg() and view.is_contiguous()
    assert _direct.op("add_normal_")(view, 0.0, 1, 0, 0, 0) is None
    assert noise.add_normal_(view, 0.0, seed=1).item() == -2.0
    stats = mask.neuron_stats(torch.tensor([3 - 4j]).conj().imag)
    assert stats.mean_abs.item() == stats.sum_sq.item() / 4 == 4.0


def test_forced_backends_are_heeded():
    x = torch.zeros(1000)
    with ff.use_backend("reference"):
        noise.add_normal_(x, 1.0, seed=1)
    y = noise.add_normal_(torch.zeros(1000), 1.0, seed=1)
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_reference_is_kept(name):
    arguments, _, _ = call(name)
    bad = (*arguments[:-1], "text")
    watched = [*arguments, *flat(arguments)]

    def counts():
        return [sys.getrefcount(v) for v in watched if isinstance(v, (torch.Tensor, list))]

    before = counts()
    for _ in range(50):
        _direct.op(name)(*arguments)
        _direct.op(name)(*bad)
    assert counts() == before


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what is freed for a while")
def test_what_is_returned_is_freed():
    logits, labels = torch.randn(20_000, 4), torch.randint(0, 4, (20_000,))
    for _ in range(3):
        membership.membership_scores(logits, labels)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):  # half a megabyte each
        membership.membership_scores(logits, labels)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_what_is_returned_is_a_tensor_like_any():
    scores = membership.membership_scores(torch.randn(3, 4), LABELS)
    loss = scores.loss.requires_grad_()
    (loss * 2).sum().backward()
    assert torch.equal(loss.grad, torch.full((3,), 2.0))
    kept = scores.entropy.clone()
    entropy = scores.entropy
    del scores
    gc.collect()
    assert torch.equal(entropy, kept)
    total = update.error_max_step_(*(torch.rand(2, 3) for _ in range(4)), step=1, lr=0.1)
    assert total.shape == () and total.add_(1).item() > 1


def test_a_list_may_be_emptied_by_another_thread_meanwhile():
    """The lock isn't held while a large op runs; what was in the list must live until it is done."""
    expected = None
    for _ in range(20):
        params = [torch.full((100_000,), 2.0) for _ in range(24)]
        forget, retain = [torch.full_like(p, 8.0) for p in params], [torch.full_like(p, 0.5) for p in params]
        started = threading.Event()

        def empty(lists=(params, forget, retain), started=started):
            started.wait()
            for values in lists:
                values.clear()
            [torch.full((100_000,), torch.nan) for _ in range(24)]  # what would be written over freed memory

        thread = threading.Thread(target=empty)
        thread.start()
        started.set()
        try:
            count = mask.dampen_(params, forget, retain, alpha=1.0, lam=1.0).item()
        except ValueError:  # emptied before the call had looked at all three
            count = None
        thread.join()
        expected = expected or count
        assert count in (None, 0, 2_400_000)
    assert expected is not None


def test_every_direct_op_is_an_op():
    assert {name.partition(" ")[0] for name in _direct.OPS} <= set(_schema.SCHEMAS)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_scores_into_tensors_that_are_there(shape):
    logits, labels = torch.randn(shape), torch.randint(0, 4, shape[:-1])
    flat_logits, flat_labels = logits.reshape(-1, 4), labels.reshape(-1)
    scores, correct = torch.full((6, len(flat_labels)), torch.nan), torch.zeros(len(flat_labels), dtype=torch.bool)
    assert _direct.op("membership_scores into")(flat_logits, flat_labels, 1.0, scores, correct) is True
    assert scores._version == correct._version == 1
    got = membership.membership_scores(logits, labels)
    assert all(torch.equal(a.reshape(-1), b) for a, b in zip(got, [*scores, correct], strict=True))
    assert _direct.op("membership_scores into")(flat_logits, flat_labels, 1.0, scores[:5], correct) is None
