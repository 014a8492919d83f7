"""Tensors that torch tracks or that have no storage: every op has a rule for them or refuses them in words, public and raw."""

from __future__ import annotations

import warnings

import op_table
import pytest
import torch
from op_table import LABELS, PUBLIC, copied, flat, mapped, raw
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import fastforget as ff
from fastforget.ops import noise, update

OPS = torch.ops.fastforget
DIFFERENTIABLE = ("error_max_loss", "distill_loss")
# random_bits has no floating tensor that could be tracked, and makes its own
TRACKED = [name for name in PUBLIC if name not in ("random_bits", "roc_bootstrap")]
RAW = [op for op in op_table.TABLE if op != "random_bits"]


def over(args, call):
    """``call(*args)`` as a function of the tensors in ``args``, and those; it returns the sum of the first."""
    tensors = flat(args)

    def function(*given):
        left = iter(given)
        call(*mapped(args, lambda _: next(left)))
        return given[0].double().sum()

    return function, tensors


def floats(tensors):
    return tuple(i for i, t in enumerate(tensors) if t.is_floating_point())


def refused(match, call, args):
    before = copied(args)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=match):
        warnings.simplefilter("ignore")
        call()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(flat(args), flat(before), strict=True))


FORMS = [(op, None) for op in RAW] + [(None, name) for name in TRACKED]


def form(op, name):
    return (raw(op), getattr(OPS, op)) if op else (PUBLIC[name].traced(), PUBLIC[name].call)


@pytest.mark.parametrize(("op", "name"), FORMS)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_forward_mode_is_refused(op, name, backend):
    args, call = form(op, name)
    if op and backend:
        pytest.skip("no backend is forced on a raw op")
    block = ff.use_backend(backend) if backend else warnings.catch_warnings()
    with block, forward_ad.dual_level():
        dual = mapped(args, lambda x: forward_ad.make_dual(x, torch.ones_like(x)) if x.is_floating_point() else x)
        refused("forward mode", lambda: call(*dual), args)
    if not op and backend:
        return
    function, tensors = over(args, call)
    which = floats(tensors)

    def of_floats(*given):
        every = list(tensors)
        for i, t in zip(which, given, strict=True):
            every[i] = t
        return function(*every)

    primals = tuple(tensors[i] for i in which)
    refused("forward mode", lambda: torch.func.jvp(of_floats, primals, tuple(map(torch.ones_like, primals))), args)


@pytest.mark.parametrize(("op", "name"), FORMS)
def test_functionalize_vmap_and_grad_are_refused(op, name):
    args, call = form(op, name)
    function, tensors = over(args, call)
    refused("functionalize", lambda: torch.func.functionalize(function)(*tensors), args)
    refused("vmap", lambda: torch.vmap(function)(*(torch.stack((t, t)) for t in tensors)), args)
    if name and name.split(",")[0] in DIFFERENTIABLE:
        return
    at = floats(tensors)[0]
    refused("grad", lambda: torch.func.grad(function, argnums=at)(*tensors), args)


def test_a_tensor_that_no_transform_tracks_is_served_within_it():
    w = torch.zeros(4)

    def f(x):
        noise.normal_(w, seed=3)
        OPS.add_normal_([w], [1.0], 4)
        return (x * x).sum()

    expected = noise.add_normal_(noise.normal_(torch.zeros(4), seed=3), 1.0, seed=4)
    assert torch.equal(torch.func.grad(f)(torch.ones(4)), torch.full((4,), 2.0)) and torch.equal(w, expected)
    assert torch.func.jvp(f, (torch.ones(4),), (torch.ones(4),))[1].item() == 8.0
    with forward_ad.dual_level():
        noise.normal_(w, seed=3)
    assert torch.equal(w, noise.normal_(torch.zeros(4), seed=3))


@pytest.mark.parametrize(("op", "name"), [(op, None) for op in op_table.TABLE] + [(None, name) for name in PUBLIC])
def test_fake_and_meta_tensors_are_traced(op, name):
    args, call = form(op, name)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        call(*mapped(args, mode.from_tensor))
    try:
        call(*mapped(args, lambda x: x.to("meta")))
    except (RuntimeError, ValueError) as error:  # a public call that has tensors of its own on the CPU
        assert not op and "meta" in str(error)


@pytest.mark.skipif(not ff.backend.native_cpu, reason="the compiled CPU ops are not loaded")
@pytest.mark.parametrize("op", op_table.TABLE)
def test_a_tensor_whose_storage_was_freed_is_refused(op):
    """As sharding frees parameters that are not in use; a view of one lies at a small address, not at null."""
    for at, tensor in enumerate(flat(raw(op))):
        if tensor.numel() == 0:
            continue
        room = torch.cat((tensor.flatten()[:1], tensor.flatten()))
        freed, left = room[1:].view(tensor.shape), iter(range(len(flat(raw(op)))))
        args = mapped(raw(op), lambda x, freed=freed, at=at, left=left: freed if next(left) == at else x)
        room.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="storage was freed"):
            getattr(OPS, op)(*args)


# ---- the one op with a gradient


def plain(logits, labels):
    return -torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def ours(logits, labels):
    return update.error_max_loss(logits, labels)[0]


def twice(loss, z, labels):
    (g,) = torch.autograd.grad((loss(z, labels) ** 2).sum(), z, create_graph=True)
    return g, torch.autograd.grad(g.pow(2).sum(), z)[0]


def test_error_max_loss_is_differentiated_twice(implementation):
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for a, b in zip(twice(ours, z, LABELS), twice(plain, z, LABELS), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    single = z.detach().float().requires_grad_()
    for a, b in zip(twice(ours, single, LABELS), twice(plain, z, LABELS), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_functional_gradients_of_error_max_loss(implementation):
    z = torch.randn(3, 4, dtype=torch.float64)

    def total(loss):
        return lambda z: (loss(z, LABELS) ** 2).sum()

    torch.testing.assert_close(torch.func.grad(total(ours))(z), torch.func.grad(total(plain))(z))

    def slope(loss):
        return lambda z: torch.func.grad(total(loss))(z).pow(2).sum()

    torch.testing.assert_close(torch.func.grad(slope(ours))(z), torch.func.grad(slope(plain))(z))
    with pytest.raises(RuntimeError, match="error_max_loss can't run in forward mode"):
        torch.func.hessian(total(ours))(z)


def test_a_gradient_that_is_not_differentiated_again_is_as_before(implementation):
    z = torch.randn(6, 5, requires_grad=True)
    labels = torch.randint(0, 5, (6,))
    loss, dlogits = update.error_max_loss(z, labels)
    loss.sum().backward()
    assert torch.equal(z.grad, dlogits * 6)
