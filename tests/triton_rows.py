"""Checks of the row-wise Triton kernels, for test_triton_interpreter.py, which runs this file in a process
of its own.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from distill_oracle import FORMS, left_out, plain_loss
from distill_oracle import exact_loss as exact_divergence
from score_oracle import NAMES, exact_scores, plain_scores
from tolerance import FLOATS, assert_two_times
from triton_elementwise import main, poisoned


def exact_loss(z, y, batch):
    """log p_y and (onehot - softmax) / batch in extended precision."""
    wide, rows = z.double().numpy().astype(np.longdouble), np.arange(len(z))
    d = wide - wide.max(1, keepdims=True)
    log_p = d - np.log(np.exp(d).sum(1, keepdims=True))
    gradient = -np.exp(log_p)
    gradient[rows, y.numpy()] += 1
    log_p_y = log_p[rows, y.numpy()]
    return torch.from_numpy(log_p_y.astype(float)), torch.from_numpy((gradient / batch).astype(float))


def update_loss():
    from fastforget._triton import update

    shapes = [
        (0, 3),
        (1, 1),
        (1, 2),
        (3, 10),
        (37, 7),
        (33, 33),
        (5, 130),
        (3, 1000),
        (2, 2049),
        (2, 8192),
        (2, 8195),
    ]
    for (rows, classes), dtype, scale in itertools.product(shapes, FLOATS, (1.0, 12.0)):
        pool = max(rows, min(512, 100_000 // classes))
        z, y = (
            (scale * torch.randn(pool, classes, dtype=torch.float64)).to(dtype),
            torch.randint(0, classes, (pool,)),
        )
        working = torch.float64 if dtype == torch.float64 else torch.float32

        log_p = torch.log_softmax(z.to(working), 1)
        plain_loss = log_p[torch.arange(pool), y]
        plain_gradient = (torch.nn.functional.one_hot(y, classes) - log_p.exp()) / max(rows, 1)
        loss, dlogits = poisoned(rows, dtype=working), poisoned(rows, classes, dtype=dtype)
        update.error_max_loss(z[:rows], y[:rows], loss, dlogits)
        exact = exact_loss(z, y, max(rows, 1))
        assert_two_times(loss, plain_loss, exact[0], f"loss {rows}x{classes} {dtype}")
        assert_two_times(dlogits, plain_gradient.to(dtype), exact[1], f"dlogits {rows}x{classes} {dtype}")

    inf = math.inf
    z = torch.tensor(
        [[0, 1, 2], [math.nan, 0, 1], [inf, 0, 1], [-inf, -inf, -inf], [-inf, 0, 1], [0, 1, 2], [60, 0, 0]]
    )
    y = torch.tensor([3, 1, 1, 0, 0, -1, 0])
    for dtype in FLOATS:
        loss = poisoned(7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        dlogits = torch.zeros(7, 3, dtype=dtype)
        update.error_max_loss(z.to(dtype), y, loss, dlogits)
        assert loss[[0, 1, 2, 3, 5]].isnan().all() and dlogits[[0, 1, 2, 3, 5]].isnan().all()
        assert (
            loss[4] == -inf
            and dlogits[4].isfinite().all()
            and dlogits[4, 0] == torch.tensor(1 / 7, dtype=dtype)
        )
        assert loss[6] == pytest.approx(-2 * math.exp(-60), rel=1e-5), "a tiny loss was rounded away"


def distillation():
    from fastforget._triton import update

    shapes = [(0, 3), (1, 1), (3, 2), (37, 7), (33, 33), (5, 130), (3, 1000), (2, 2049), (2, 8195)]
    for number, ((rows, classes), dtype, temperature) in enumerate(itertools.product(shapes, FLOATS, (1.0, 2.5))):
        z, t = ((4 * torch.randn(rows, classes, dtype=torch.float64)).to(dtype) for _ in range(2))
        drop, out = left_out(FORMS[number % len(FORMS)], (rows, classes))
        working = torch.float64 if dtype == torch.float64 else torch.float32
        loss, dlogits = poisoned(rows, dtype=working), poisoned(rows, classes, dtype=dtype)
        none = torch.empty(0, dtype=torch.bool)
        update.distill_loss(z, t, none if drop is None else drop, temperature, loss, dlogits)
        more = [((4 * torch.randn(64, classes)).to(dtype), (4 * torch.randn(64, classes)).to(dtype)) for _ in range(3)]
        plain, exact = plain_loss(z, t, out, temperature), exact_divergence(z, t, out, temperature)
        nothing = torch.zeros(64, classes, dtype=torch.bool)
        plains, exacts = ([f(*pair, nothing, temperature)[0] for pair in more] for f in (plain_loss, exact_divergence))
        assert_two_times(loss, [plain[0], *plains], [exact[0], *exacts], f"distill loss {rows}x{classes} {dtype}")
        assert_two_times(dlogits, plain[1], exact[1], f"distill dlogits {rows}x{classes} {dtype}")

    inf = math.inf
    z = torch.tensor([[0, 1, 2], [math.nan, 0, 1], [inf, 0, 1], [-inf, -inf, -inf], [-inf, 0, 1], [0, 1, 2], [0, 1, 2]])
    t = torch.tensor([[0, 1, -inf], [0, 0, 1], [0, 0, 1], [0, 0, 0], [-inf, 0, 1], [inf, 1, 2], [0, 0, 0]])
    for dtype in FLOATS:
        loss = poisoned(7, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        dlogits = torch.zeros(7, 3, dtype=dtype)
        update.distill_loss(z.to(dtype), t.to(dtype), torch.tensor([-1, -1, -1, -1, -1, -1, 3]), 1.0, loss, dlogits)
        assert loss.isnan().tolist() == dlogits.isnan().all(1).tolist() == [False, True, True, True, False, True, True]
        assert loss[0].isfinite() and loss[4] == 0 and not dlogits[4].any()


def membership_scores():
    from fastforget._triton.membership import scores as membership

    shapes = [
        (1, 2),
        (3, 10),
        (17, 3),
        (129, 10),
        (40, 33),
        (9, 100),
        (5, 260),
        (3, 1000),
        (2, 4099),
        (2, 9001),
    ]
    for (rows, classes), dtype, scale, heated in itertools.product(
        shapes, FLOATS, (1.0, 12.0), (False, True)
    ):
        # the exact scores divide in float64, so for float64 by a power of two
        temperature = (2.0 if dtype == torch.float64 else 2.5) if heated else 1.0
        pool = max(rows, min(2048, 200_000 // classes))
        z, y = (
            (scale * torch.randn(pool, classes, dtype=torch.float64)).to(dtype),
            torch.randint(0, classes, (pool,)),
        )
        working = torch.float64 if dtype == torch.float64 else torch.float32
        scores, correct = poisoned(6, rows, dtype=working), torch.empty(rows, dtype=torch.bool)
        membership.membership_scores(z[:rows], y[:rows], temperature, scores, correct)
        assert torch.equal(correct, z[:rows].argmax(1) == y[:rows])
        plain, exact = plain_scores(z.to(working) / temperature, y), exact_scores(z.double() / temperature, y)
        for name, got, p, e in zip(NAMES, scores, plain, exact, strict=True):
            assert_two_times(got, p, e, f"{name} {rows}x{classes} {dtype} T={temperature}")


def membership_edges():
    from fastforget._triton.membership import scores as membership

    from fastforget.reference.membership import scores as reference

    inf, nan = math.inf, math.nan
    rows = [[0, -inf, -inf], [5, 5, -inf], [-inf, 0, 1], [0, -inf, -inf], [90, 0, 1], [90, 0, 1], [60, 0, 0]]
    rows += [[1e4, -1e4, 3], [1e4, -1e4, 3], [2, 2, 2], [0, 1, 1]]
    labels = [0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 2]
    undefined = [
        [nan, 0, 1],
        [0, 1, nan],
        [inf, 0, 1],
        [0, inf, inf],
        [-inf, -inf, -inf],
        [0, 1, 2],
        [0, 1, 2],
    ]
    labels += [1, 2, 1, 1, 0, 3, -1]
    z, y = torch.tensor(rows + undefined, dtype=torch.float64), torch.tensor(labels)
    n, good = len(z), len(rows)
    expected, verdict = poisoned(6, good, dtype=torch.float64), torch.empty(good, dtype=torch.bool)
    reference.membership_scores(z[:good], y[:good], 1.0, expected, verdict)
    for dtype, classes in itertools.product((torch.float64, torch.float32), (3, 40, 70, 9000)):
        # more classes of probability 0 lead to the other tilings and change nothing
        padded = torch.full((n, classes), -inf, dtype=dtype)
        padded[:, :3] = z
        label = torch.where(y == 3, classes, y)
        scores, correct = poisoned(6, n, dtype=dtype), torch.ones(n, dtype=torch.bool)
        membership.membership_scores(padded, label, 1.0, scores, correct)
        assert scores[:, good:].isnan().all() and not correct[good:].any()
        assert torch.equal(correct[:good], verdict)
        got, limit = scores[:, :good].double(), 16 * torch.finfo(dtype).eps
        finite = expected.isfinite()
        assert torch.equal(got.isfinite(), finite) and torch.equal(got[~finite], expected[~finite])
        # relative, as a tiny loss must keep its digits; below float32's range nothing is left
        difference = (got - expected)[finite].abs()
        assert (difference <= limit * expected[finite].abs() + torch.finfo(dtype).smallest_normal).all()


def membership_roc():
    from fastforget._triton.membership import roc

    from fastforget.reference.membership import roc as reference_roc

    fprs = [0.0, 1e-3, 1e-2, 0.5, 1.0]
    sizes = [(1, 1), (1, 7), (3, 5), (513, 1025), (1000, 300)]
    for (n1, n0), dtype, ties in itertools.product(sizes, (torch.float32, torch.float64), (True, False)):
        m, o = (torch.randn(n1, dtype=dtype) + 0.5), torch.randn(n0, dtype=dtype)
        if ties:
            m, o = m.mul(3).round() / 3, o.mul(3).round() / 3  # also brings zeros of both signs
            if n1 > 2:
                m[:3], o[:3] = (
                    torch.tensor([math.inf, -math.inf, -0.0]),
                    torch.tensor([math.inf, 0.0, -math.inf]),
                )
        for asked in (fprs, fprs[:1], []):
            out, expected = (
                poisoned(4 + 2 * len(asked), dtype=torch.float64),
                poisoned(4 + 2 * len(asked)).double(),
            )
            roc.roc_stats(m, o, asked, out)
            reference_roc.roc_stats(m, o, asked, expected)
            higher, equal = (m[:, None] > o[None]).sum().item(), (m[:, None] == o[None]).sum().item()
            assert out[0].item() == float(Fraction(2 * higher + equal, 2 * n1 * n0)), (
                "the rank sum is an integer"
            )
            cuts = torch.cat((m, o)).unique()
            tp, fp = (m[None] >= cuts[:, None]).sum(1), (o[None] >= cuts[:, None]).sum(1)
            gain = tp * n0 - fp * n1
            best = max(0, gain.max().item())
            assert out[1].item() == (1 + best / (n1 * n0)) / 2
            assert out[2].item() == max(best, -gain.min().item()) / (n1 * n0)
            at = [
                t for t, g in zip(cuts.tolist(), gain.tolist(), strict=True) if g == best and (m == t).any()
            ]
            assert out[3].item() == (max(at) if best > 0 else math.inf)
            assert torch.equal(out[4:], expected[4:])


CHECKS = {"update": [update_loss, distillation], "membership": [membership_scores, membership_edges, membership_roc]}

if __name__ == "__main__":
    main(CHECKS)
