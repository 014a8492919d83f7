"""What is changed lies apart from everything else in the call, or the call is refused with nothing changed: raw and public, on every
implementation. The one exception is torch's own: the same tensor, read and changed element by element."""

from __future__ import annotations

import op_table
import pytest
import torch
from op_table import copied, flat, raw

import fastforget as ff
from fastforget import _apart, _schema
from fastforget.ops import mask, noise, update

OPS = torch.ops.fastforget
SHARED = "which is changed, shares memory with"


def refused(call, *tensors, match=SHARED):
    before = [t.clone() for t in tensors]
    with pytest.raises(RuntimeError, match=match):
        call()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def arguments_of(op):
    return _schema.overload(op)._schema.arguments


WRITTEN = [
    (op, i)
    for op in op_table.TABLE
    for i, argument in enumerate(arguments_of(op))
    if argument.alias_info is not None and argument.alias_info.is_write
]


def in_one_block(value, block, room):
    """The tensors of a call as views of one block of bytes, one behind the other."""

    def place(t):
        start = -(-room[0] // 16) * 16
        room[0] = start + t.numel() * t.element_size()
        view = block[start : room[0]].view(t.dtype).view(t.shape)
        return view.copy_(t)

    return op_table.mapped(value, place)


@pytest.mark.parametrize(("op", "which"), WRITTEN)
def test_a_changed_tensor_one_byte_into_another_is_refused(implementation, op, which):
    """Each changed argument in turn lies on the memory of each other argument."""
    args = raw(op)
    call = getattr(OPS, op) if implementation != "reference" else lambda *a: ff.backend.call_forced(op, "cpu", a)
    for other in range(len(args)):
        placed = list(in_one_block(args, torch.zeros(8192, dtype=torch.uint8), [0]))
        to, beside = flat(placed[which]), flat(placed[other])
        if other == which or not to or not beside or any(t.numel() == 0 for t in (to[0], beside[0])):
            continue
        target = beside[0]
        room = target.untyped_storage()
        start = target.storage_offset() * target.element_size()
        size = to[0].element_size()
        start = -(-start // size) * size
        moved = torch.tensor([], dtype=to[0].dtype).set_(room, start // size, to[0].shape)
        if start >= target.storage_offset() * target.element_size() + target.numel() * target.element_size():
            continue
        placed[which] = [moved, *placed[which][1:]] if isinstance(placed[which], list) else moved
        same = moved.data_ptr() == target.data_ptr() and moved.shape == target.shape and moved.dtype == target.dtype
        if same and op in _apart.ELEMENTWISE and arguments_of(op)[other].alias_info is None:
            continue  # the same tensor, read and changed element by element
        refused(lambda placed=placed: call(*placed), *flat(placed))


PUBLIC = {
    "normal_": lambda x, y: noise.normal_([x, y], seed=1),
    "add_normal_": lambda x, y: noise.add_normal_([x, y], 1.0, seed=1),
    "add_normal_, by element": lambda x, y: noise.add_normal_(x, y, seed=1),
    "perturb_step_": lambda x, y: noise.perturb_step_(x, y, lr=0.1, std=0.0, seed=1),
    "perturb_step_, by element": lambda x, y: noise.perturb_step_(x, torch.ones_like(x), lr=0.1, std=y, seed=1),
    "dampen_": lambda x, y: mask.dampen_(x, y, torch.ones_like(x), alpha=1, lam=1),
    "dampen_, retain": lambda x, y: mask.dampen_(x, torch.ones_like(x), y, alpha=1, lam=1),
    "accumulate_importance_": lambda x, y: mask.accumulate_importance_(x, y),
    "soft_threshold_": lambda x, y: mask.soft_threshold_([x, y], 0.1),
    "masked_sgd_": lambda x, y: mask.masked_sgd_(x, y, None, lr=0.1),
    "masked_sgd_, momentum": lambda x, y: mask.masked_sgd_(x, torch.ones_like(x), None, lr=0.1, momentum=0.9, momentum_buffers=y),
    "masked_adam_": lambda x, y: mask.masked_adam_(x, y, None, torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1),
    "masked_adam_, square": lambda x, y: mask.masked_adam_(x, torch.ones_like(x), None, torch.zeros_like(x), y, step=1, lr=0.1),
    "error_max_step_": lambda x, y: update.error_max_step_(x, y, torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1),
    "error_max_step_, mean": lambda x, y: update.error_max_step_(x, torch.ones_like(x), y, torch.zeros_like(x), step=1, lr=0.1),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_calls_refuse_views_that_share_some_elements(implementation, name):
    base = torch.rand(5, 6)
    refused(lambda: PUBLIC[name](base[1:], base[:-1]), base)  # dense
    refused(lambda: PUBLIC[name](base[:, 1:], base[:, :-1]), base)  # strided: the op would be given copies
    refused(lambda: PUBLIC[name](base[::2], base[:3]), base)


@pytest.mark.parametrize("name", PUBLIC)
def test_views_of_one_base_that_share_nothing_are_served(implementation, name):
    base = torch.rand(4, 6)
    apart = base.clone()
    PUBLIC[name](base[:, :3], base[:, 3:])
    halves = apart[:, :3].contiguous(), apart[:, 3:].contiguous()
    PUBLIC[name](*halves)
    assert torch.equal(base, torch.cat(halves, 1))


@pytest.mark.parametrize("size", [7, 100_003])
def test_the_same_tensor_read_and_changed_element_by_element_is_served(implementation, size):
    x = torch.rand(size) + 0.5
    y, copy = x.clone(), x.clone()
    mask.masked_sgd_(x, x, None, lr=0.5)
    mask.masked_sgd_(y, copy, None, lr=0.5)
    assert torch.equal(x, y)
    copy = x.clone()
    mask.accumulate_importance_(x, x)
    mask.accumulate_importance_(y, copy)
    assert torch.equal(x, y)
    copy = x.clone()
    assert mask.dampen_(x, x, x, alpha=0.5, lam=0.25).item() == mask.dampen_(y, copy, copy.clone(), alpha=0.5, lam=0.25).item()
    assert torch.equal(x, y)


@pytest.mark.parametrize("count", [2, 40])
def test_a_tensor_twice_in_a_list_is_refused(implementation, count):
    xs = [torch.rand(9) for _ in range(count)]
    xs[-1] = xs[0]
    ones = [torch.ones(9) for _ in xs]
    refused(lambda: mask.accumulate_importance_(xs, ones), *xs, match=r"importances\[\d+\].*shares memory with importances\[\d+\]")
    refused(lambda: noise.normal_(xs, seed=1), *xs)
    refused(lambda: mask.masked_adam_(xs, ones, None, [t.clone() for t in ones], [t.clone() for t in ones], step=1, lr=0.1), *xs)


def test_what_is_only_read_may_be_given_many_times(implementation):
    xs, gradient = [torch.zeros(9) for _ in range(40)], torch.arange(9.0)
    mask.masked_sgd_(xs, [gradient] * 40, [gradient > 3] * 40, lr=1.0)
    assert all(torch.equal(x, torch.where(gradient > 3, -gradient, 0.0)) for x in xs)


@pytest.mark.parametrize("seed", range(20))
def test_long_lists_are_judged_as_pairs_would_be(seed):
    """Random intervals of one block, in and out of order: refused exactly if two of them share an element."""
    if not ff.backend.native_cpu:
        pytest.skip("the compiled CPU ops are not loaded")
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(4000)
    starts = torch.randperm(100, generator=generator)[:60] * 40
    if seed % 2:
        starts = starts.sort().values
    sizes = torch.randint(1, 41 + (seed % 4 == 3), (60,), generator=generator)
    spans = [(s, min(s + n, 4000)) for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    xs = [base[a:b] for a, b in spans]
    share = any(a < d and c < b for i, (a, b) in enumerate(spans) for c, d in spans[:i])
    if share:
        refused(lambda: OPS.normal_(xs, [0.0], [1.0], 1), base)
    else:
        OPS.normal_(xs, [0.0], [1.0], 1)
    reads = [base[a:b] for a, b in spans[30:]]
    other = [torch.zeros_like(t) for t in reads]
    OPS.accumulate_importance_(other, reads, 1, 1.0)  # reads may share as they like
    written = xs[:30]
    like = [torch.zeros(4000)[a:b] for a, b in spans[:30]]
    within = any(a < d and c < b for i, (a, b) in enumerate(spans[:30]) for c, d in spans[:i])
    if not within:
        OPS.accumulate_importance_(written, like, 1, 1.0)


def test_copies_keep_the_tensors_of_a_call_apart():
    args = copied([torch.ones(2), [torch.ones(3)]])
    _schema.refuse_shared("normal_", (args[1], args[0]))
