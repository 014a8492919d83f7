"""Somebody else writes values while an op reads them: results may be any, memory outside is never touched. And bytes of a boolean mask that
are neither 0 nor 1 are true, as they are to torch."""

from __future__ import annotations

import subprocess
import sys

import op_table
import pytest
import torch
from op_table import raw

import fastforget as ff
from fastforget.ops import mask, membership, update

OPS = torch.ops.fastforget

RACE = """
import sys, threading, time, torch
from fastforget.ops import mask
from fastforget import backend
OPS = torch.ops.fastforget
torch.set_num_threads(1)
kind = sys.argv[1]
x, labels = torch.randn(300_000), torch.randint(0, 10, (4000,))
logits, loss, dlogits = torch.randn(4000, 10), torch.empty(4000), torch.empty(4000, 10)
scores, correct = torch.empty(6, 4000), torch.empty(4000, dtype=torch.bool)
shadow, members = torch.randn(90, 700), torch.rand(90, 700) < 0.5
center, variance, count, loo = torch.empty(2, 700), torch.empty(2, 700), torch.zeros(2, 700, dtype=torch.int64), torch.empty(90, 700)
single, roc, boot = torch.randn(20_000), torch.empty(6, dtype=torch.float64), torch.empty(3, 2, dtype=torch.float64)
tally, votes = torch.empty(1, 90, 700, dtype=torch.int64), torch.empty(700, dtype=torch.int64)
stop = False
def write():
    wild = torch.full((4000,), 1 << 40)
    while not stop:
        if kind == "values":
            x.copy_(torch.randn(300_000) * 10.0 ** torch.randint(-3, 4, (1,)).item())
            x[:150_000] = 1.0
        elif kind == "scores":
            for written in (shadow, single):
                written.view(torch.int32).random_()  # any bits
                written.fill_(1.0)
                written.normal_()
            members.view(torch.uint8).random_(0, 256)
            members.fill_(True)
            count.random_(0, 9)
        else:
            labels.copy_(wild)
            labels.random_(0, 10)
thread = threading.Thread(target=write, daemon=True)
thread.start()
end = time.time() + float(sys.argv[2])
while time.time() < end:
    if kind == "values":
        mask.saliency_mask(x, 0.5)
        mask.saliency_mask(x, 0.1, packed=True)
        mask.saliency_mask([x[:1000], x[1000:]], 0.3)
    elif kind == "scores":
        for median in (False, True):
            OPS.lira_stats(shadow[..., None], members, median, center, variance, count)
            OPS.lira_loo(shadow[..., None], members, median, center[:0], 0, 1e-6, 2, loo)
        OPS.lira_ratio(shadow[..., None], center, variance, count, 0, 1e-6, 1, loo)
        OPS.lira_update_(shadow[..., None], members.view(torch.int8), count, *torch.zeros(2, 2, 700, 1).double())
        OPS.rmia_counts(shadow, shadow, [1.0], True, tally)
        OPS.rmia_vote(shadow, shadow, 1.0, False, votes)
        OPS.roc_stats(single[:9000], single[9000:], [0.1], roc)
        OPS.roc_bootstrap(single[:9000], single[9000:], [0.1], 1, boot)
    else:
        calls = {OPS.error_max_loss: (logits, labels, loss, dlogits), OPS.membership_scores: (logits, labels, 1.0, scores, correct)}
        for op, args in calls.items():
            try:
                op(*args)
            except RuntimeError as error:
                assert "accepted: 0 to 9" in str(error)
stop = True
thread.join()
print("survived")
"""


@pytest.mark.skipif(not ff.backend.native_cpu, reason="the compiled CPU ops are not loaded")
@pytest.mark.parametrize("kind", ["values", "labels", "scores"])
def test_values_that_change_meanwhile(kind):
    done = subprocess.run([sys.executable, "-c", RACE, kind, "4"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "survived", (done.returncode, done.stderr[-2000:])


ODD = [2, 128, 254, 255]


def odd(on, byte):
    """A mask that is true where ``on`` is, by a byte that is neither 0 nor 1."""
    return (on.to(torch.uint8) * byte).view(torch.bool)


@pytest.mark.parametrize("byte", ODD)
@pytest.mark.parametrize("location", ["mean", "median"])
def test_members_of_any_byte(implementation, byte, location):
    scores, target, on = torch.randn(40, 70), torch.randn(70), torch.rand(40, 70) < 0.5
    for variance in ("per_example", "global"):
        given = [membership.lira(target, scores, m, location=location, variance=variance) for m in (on, odd(on, byte))]
        assert torch.equal(*given) and not given[0].isnan().any()
    left_out = [membership.lira("loo", scores, m, location=location) for m in (on, odd(on, byte))]
    torch.testing.assert_close(*left_out, rtol=0, atol=0, equal_nan=True)
    counts = [membership.Lira(70).update(scores, m).count for m in (on, odd(on, byte))]
    assert torch.equal(*counts)


@pytest.mark.parametrize("byte", ODD)
def test_more_models_than_a_byte_counts(implementation, byte):
    scores, on = torch.randn(300, 3, 1), torch.ones(300, 3, dtype=torch.bool)
    out = [torch.zeros(2, 3, 1) for _ in range(2)], torch.zeros(2, 3, dtype=torch.int64)
    call = OPS.lira_stats if implementation != "reference" else lambda *a: ff.backend.call_forced("lira_stats", "cpu", a)
    call(scores, odd(on, byte), True, *out[0], out[1])
    assert out[1].tolist() == [[0] * 3, [300] * 3]


@pytest.mark.parametrize("byte", ODD)
@pytest.mark.parametrize("shape", [(37, 21), (37,)])
def test_masks_of_steps_of_any_byte(implementation, byte, shape):
    grad, on = torch.randn(37, 21), torch.rand(shape) < 0.5
    both = [torch.ones(37, 21) for _ in range(2)]
    for x, m in zip(both, (on, odd(on, byte)), strict=True):
        mask.masked_sgd_(x, grad, m, lr=0.1)
        mask.masked_adam_(x, grad, m, torch.zeros_like(x), torch.zeros_like(x), step=1, lr=0.1)
    assert torch.equal(*both)


@pytest.mark.parametrize("byte", ODD)
def test_rmia_members_of_any_byte(implementation, byte):
    x, rx, z, rz = -torch.rand(9), -torch.rand(6, 9), -torch.rand(30), -torch.rand(6, 30)
    on, inside = torch.rand(6, 9) < 0.5, torch.rand(9) < 0.5
    on[0], on[1] = True, False
    for mode in ("online", "offline"):
        given = [
            membership.rmia(x, rx, z, rz, member=m, member_z=odd(torch.ones(6, 30) > torch.arange(6)[:, None] % 2, byte), mode=mode,
                            self_in_z=s)
            for m, s in ((on, inside), (odd(on, byte), odd(inside, byte)))
        ]  # fmt: skip
        torch.testing.assert_close(*given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("byte", ODD)
def test_classes_left_out_of_any_byte(implementation, byte):
    logits, teacher, on = torch.randn(11, 40), torch.randn(11, 40), torch.rand(40) < 0.5
    for got, expected in zip(*(update.distill_loss(logits, teacher, drop=m) for m in (on, odd(on, byte))), strict=True):
        assert torch.equal(got, expected)


def test_the_table_has_no_other_boolean_input():
    """Whoever adds one adds a test above."""
    known = {"masked_sgd_": {2}, "masked_adam_": {2}, "lira_stats": {1}, "lira_loo": {1}, "distill_loss": {2}}
    for op in op_table.TABLE:
        arguments = getattr(OPS, op).default._schema.arguments
        read = {
            i
            for i, value in enumerate(raw(op))
            if arguments[i].alias_info is None and any(t.dtype == torch.bool for t in op_table.flat([value]))
        }
        assert read == known.get(op, set()), op
