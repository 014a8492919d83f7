"""Checks of the element-wise Triton kernels, for test_triton_interpreter.py, which runs this file in a
process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys

import numpy as np
import torch
from normals import exact_normals, plain_normals
from tolerance import FLOATS, assert_two_times, error, ulps

SIZES = [0, 1, 3, 4, 5, 4095, 4096, 4097, 9001]
BITS = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, math.nan, dtype=dtype)


def same_bits(a, b):
    return torch.equal(a.view(BITS[a.dtype]), b.view(BITS[b.dtype]))


def misaligned(n, dtype, lead, fill):
    """A contiguous slice that begins ``lead`` elements after an aligned address, and the buffer around it."""
    buffer = torch.full((n + lead + 3,), fill, dtype=dtype)
    return buffer[lead : lead + n], buffer


@contextlib.contextmanager
def like_a_gpu():
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def fused(self, x, y, z):
        # exact product, one rounding of the sum to 53 bits, one to 24: float32's fma but for a tie in 2^29
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data
        return TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    def rough_rsqrt(self, x):
        off = 2.0**-22.9 * np.where(x.data.view(np.int32) % 2, 1.0, -1.0)
        return TensorHandle(
            ((1.0 + off) / np.sqrt(x.data.astype(np.float64))).astype(np.float32), x.dtype.scalar
        )

    before = InterpreterBuilder.create_fma, InterpreterBuilder.create_rsqrt
    InterpreterBuilder.create_fma, InterpreterBuilder.create_rsqrt = fused, rough_rsqrt
    try:
        yield
    finally:
        InterpreterBuilder.create_fma, InterpreterBuilder.create_rsqrt = before


def plain_and_exact_normals(n, seed, stream, step, start):
    """The definition in float64 as PyTorch evaluates it, and in extended precision."""
    from fastforget.reference.noise import standard_normals

    counter = {"seed": seed, "stream": stream, "step": step, "start": start}
    return standard_normals(n, **counter), exact_normals(n, **counter)


def noise_words():
    from fastforget._triton import noise
    from fastforget.reference import noise as reference

    out = torch.empty(4, dtype=torch.int32)
    noise.random_bits(out, 0, 0, 0, 0)
    assert [w & 0xFFFFFFFF for w in out.tolist()] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    keys = [
        (0, 0, 0),
        (-1, 1, 2),
        (2**63 - 1, 2**31, 2**32 - 1),
        (-(2**63), 2**32 - 1, 2**31 - 1),
        (2**32 + 5, 7, 3),
    ]
    starts = [0, 1, 2, 3, 4098, 2**34 - 6, 2**34 + 1, 2**62 + 3]  # 2^34 is where the block index carries
    for (seed, stream, step), n, start in itertools.product(keys, SIZES, starts):
        got, expected = torch.empty(n, dtype=torch.int32), torch.empty(n, dtype=torch.int32)
        got.fill_(-7), expected.fill_(-7)
        noise.random_bits(got, seed, stream, step, start)
        reference.random_bits(expected, seed, stream, step, start)
        assert torch.equal(got, expected), (seed, stream, step, n, start)
    part, buffer = misaligned(4101, torch.int32, 1, -7)
    noise.random_bits(part, 5, 0, 0, 2)
    reference.random_bits(expected := torch.empty(4101, dtype=torch.int32), 5, 0, 0, 2)
    assert torch.equal(part, expected) and (buffer[:1] == -7).all() and (buffer[-2:] == -7).all()


def noise_accuracy():
    from fastforget._triton import noise
    from fastforget.reference import noise as reference

    n = 1 << 20
    exact = reference.standard_normals(n, seed=11, stream=3, step=1, start=1)
    x = poisoned(n)
    noise.normal_([x], [0.0], [1.0], 11, 3, 1, [1])
    assert ulps(x, exact)[exact.abs() > 1e-3].max() <= 4.0
    assert error(x, exact) <= 1e-6
    wide = poisoned(1 << 16, dtype=torch.float64)
    noise.normal_([wide], [0.0], [1.0], 11, 3, 1, [1])
    assert error(wide, exact[: 1 << 16]) <= 4 * torch.finfo(torch.float64).eps * 7.0


def noise_lists():
    from fastforget._triton import noise

    many, exact_many = plain_and_exact_normals(1 << 14, seed=99, stream=0, step=0, start=0)
    for lead, uniform in itertools.product((0, 1, 2), (True, False)):
        made = [misaligned(n, d, lead, 0.0) for n, d in itertools.product([0, 1, 3, 4097, 6001], FLOATS)]
        xs, buffers = [x for x, _ in made], [b for _, b in made]
        for x in xs:
            x.copy_(torch.randn(x.numel()))
        std = [0.3] if uniform else torch.rand(len(xs)).tolist()
        mean = [-1.5] if uniform else torch.randn(len(xs)).tolist()
        start = [0] if uniform else torch.randint(0, 9000, (len(xs),)).tolist()

        def pick(values, i):
            return values[0] if len(values) == 1 else values[i]

        before = [x.clone() for x in xs]
        noise.add_normal_(xs, std, 3, 2, 9, start)
        filled = [poisoned(x.numel(), dtype=x.dtype) for x in xs]
        noise.normal_(filled, mean, std, 3, 2, 9, start)
        for i, x in enumerate(xs):
            first, scale, shift = pick(start, i), pick(std, i), pick(mean, i)
            z, exact_z = plain_and_exact_normals(x.numel(), seed=3, stream=2 + i, step=9, start=first)
            working = torch.float64 if x.dtype == torch.float64 else torch.float32
            for got, base in ((x, before[i]), (filled[i], torch.full_like(before[i].double(), shift))):
                wide = base.double()
                plain = [(base.to(working) + scale * z.to(working)).to(x.dtype)]
                plain.append((shift + scale * many.to(working)).to(x.dtype))
                exact = [wide + scale * exact_z, shift + scale * exact_many]
                assert_two_times(got, plain, exact, f"tensor {i} {x.dtype}")
            # a list is launched as a table, one tensor directly: the same bits
            alone = before[i].clone()
            noise.add_normal_([alone], [scale], 3, 2 + i, 9, [first])
            assert same_bits(alone, x)
        for buffer in buffers:
            assert not buffer[:lead].any() and not buffer[buffer.numel() - 3 :].any(), (
                "wrote beyond the tensor"
            )

    whole = poisoned(10_000)
    noise.normal_([whole], [0.0], [1.0], 1, 0, 0, [5])
    cuts = [0, 1, 3, 4096, 4099, 9998, 10_000]
    for a, b in itertools.pairwise(cuts):
        part = poisoned(b - a)
        noise.normal_([part], [0.0], [1.0], 1, 0, 0, [5 + a])
        assert same_bits(part, whole[a:b]), "a value depends on more than its index"


def noise_perturb():
    from fastforget._triton import noise

    def terms_of(count, dtype, **counter):
        """A parameter, a gradient, a std and the noise: plain in the working dtype, and exact."""
        values = torch.randn(count), torch.randn(count), torch.rand(count)
        p, g, s = (v.to(dtype) for v in values)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        return p, g, s, plain_normals(count, working, **counter), exact_normals(count, **counter)

    def stepped(terms, grad, std, wide):
        p, g, s, plain_z, exact_z = terms
        z = exact_z if wide else plain_z
        base = p.to(z.dtype) - 0.7 * g.to(z.dtype) if grad else p.to(z.dtype)
        result = base + (s.to(z.dtype) if std is None else std) * z
        return result if wide else result.to(p.dtype)

    kinds = [(True, False), (False, True), (True, True), (False, False)]
    many = {d: terms_of(1 << 14, d, seed=5) for d in FLOATS}
    for (graded, elementwise), (lead, uniform) in itertools.product(kinds, ((0, False), (1, True))):
        made, params, grads, elements, buffers = [], [], [], [], []
        for i, (n, dtype) in enumerate(itertools.product([0, 3, 4097, 5001], FLOATS)):
            first = 2 if uniform else [0, 5, 4096, 8191][i % 4]
            made.append((first, terms_of(n, dtype, seed=3, stream=2 + i, step=9, start=first)))
            for into, values, shift in zip((params, grads, elements), made[-1][1], (lead, 2 * lead, lead), strict=False):
                part, buffer = misaligned(n, dtype, shift, 0.0)
                into.append(part.copy_(values))
                buffers.append((part, buffer))
        grads, elements = grads if graded else [], elements if elementwise else []
        std = [] if elementwise else [0.3] if uniform else [0.1 + 0.1 * i for i in range(len(params))]
        start = [2] if uniform else [first for first, _ in made]
        noise.perturb_step_(params, grads, 0.7, std, elements, 3, 2, 9, start)
        for i, (p, (first, terms)) in enumerate(zip(params, made, strict=True)):
            scale = None if elementwise else std[0] if uniform else std[i]
            plain, exact = (
                [stepped(t, graded, scale, wide) for t in (terms, many[p.dtype])] for wide in (False, True)
            )
            assert_two_times(p, plain, exact, f"tensor {i} {p.dtype} grad {graded} elements {elementwise}")
            alone = terms[0].clone()
            own = [grads[i]] if graded else [], [] if scale is None else [scale], elements[i : i + 1]
            noise.perturb_step_([alone], own[0], 0.7, own[1], own[2], 3, 2 + i, 9, [first])
            assert same_bits(alone, p), "a list and its tensors alone give different bits"
        for part, buffer in buffers:
            part.zero_()
            assert not buffer.any(), "wrote beyond the tensor"

    whole, grad = torch.randn(10_000), torch.randn(10_000)
    cuts = [0, 1, 3, 4096, 4099, 9998, 10_000]
    parts = [whole[a:b].clone() for a, b in itertools.pairwise(cuts)]
    noise.perturb_step_([whole], [grad], 0.1, [0.5], [], 1, 0, 0, [2**34 - 7])
    for part, (a, b) in zip(parts, itertools.pairwise(cuts), strict=True):
        noise.perturb_step_([part], [grad[a:b].clone()], 0.1, [0.5], [], 1, 0, 0, [2**34 - 7 + a])
        assert same_bits(part, whole[a:b]), "a value depends on more than its index"


def exact_step(x, g, m, v, step, lr, beta1, beta2, eps, l2, low, high):
    """error_max_step_ in extended precision: x, m, v and the sum of x^2 before."""
    if x.numel() == 0:
        return x.double(), m.double(), v.double(), torch.tensor(0.0, dtype=torch.float64)
    wide = [t.double().numpy().astype(np.longdouble) for t in (x, g, m, v)]
    lr, beta1, beta2, eps, l2 = (np.longdouble(s) for s in (lr, beta1, beta2, eps, l2))
    total = (wide[0] ** 2).sum()
    grad = wide[1] + 2 * l2 / x.shape[0] * wide[0]
    m = beta1 * wide[2] + (1 - beta1) * grad
    v = beta2 * wide[3] + (1 - beta2) * grad**2
    x = wide[0] - lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)
    results = x.clip(low, high), m, v, total
    return tuple(torch.from_numpy(np.asarray(r.astype(np.float64))) for r in results)


def update_step():
    from fastforget._triton import update
    from fastforget.reference import update as reference

    shapes = [(1,), (3, 5), (2, 4099), (5000,), (7, 3, 11, 13), (0, 4)]
    for shape, dtype, step, (low, high) in itertools.product(
        shapes, FLOATS, (1, 12), ((-math.inf, math.inf), (-0.5, 0.75))
    ):
        x, g, m = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(3))
        v = torch.rand(shape, dtype=torch.float64).to(dtype)
        if step == 1:
            m.zero_(), v.zero_()
        scalars = (step, 0.1, 0.9, 0.999, 1e-8, 0.3, low, high)

        ours, plain = [[t.clone() for t in (x, g, m, v)] for _ in range(2)]
        for tensors, function in ((ours, update.error_max_step_), (plain, reference.error_max_step_)):
            working = torch.float64 if dtype == torch.float64 else torch.float32
            tensors.append(torch.full((), math.nan, dtype=working))
            function(*tensors, *scalars)
        assert same_bits(ours.pop(1), g) and same_bits(plain.pop(1), g)
        exact = exact_step(x, g, m, v, *scalars)
        for name, o, p, e in zip(("x", "m", "v"), ours, plain, exact, strict=False):
            assert_two_times(o, p, e, f"{name} {shape} {dtype} step {step}")
        # one sum measures plain PyTorch's luck: several draws
        draws = [x] + [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(15)]
        sums = [d.to(working).square().sum() for d in draws]
        exact_sums = [exact_step(d, g, m, v, *scalars)[3] for d in draws]
        assert_two_times(ours[3], sums, exact_sums, f"sum {shape} {dtype}")

    x, g = torch.tensor([math.nan, 1.0, 2.0]), torch.tensor([1.0, math.nan, 1.0])
    total = torch.tensor(0.0)
    update.error_max_step_(
        x, g, torch.zeros(3), torch.zeros(3), total, 1, 0.1, 0.9, 0.999, 1e-8, 0.1, -1.0, 1.0
    )
    assert x[:2].isnan().all() and x[2] == 1.0 and total.isnan()


def mask_dampen():
    from fastforget._triton.mask import elementwise as mask

    from fastforget.reference.mask import elementwise as reference

    special = torch.tensor([0.0, 1.0, math.inf, math.nan, 1e-30, 3e38, 2.0])
    f, r = (t.flatten() for t in torch.meshgrid(special, special, indexing="ij"))
    for lead, (alpha, lam) in itertools.product((0, 1), ((1.0, 1.0), (2.5, 0.3), (0.0, 1.0))):
        lists = ([], [], [])
        for n, dtype in itertools.product([0, 1, 3, f.numel(), 2047, 2048, 5003], FLOATS):
            for kind, into in enumerate(lists):
                part, _ = misaligned(n, dtype, lead, math.nan)
                part.copy_(torch.randn(n) if kind == 0 else torch.rand(n).square())
                if n == f.numel() and kind:
                    part.copy_((f, r)[kind - 1])
                into.append(part)
        for count in (len(lists[0]), 1):
            ps, fs, rs = (into[-count:] for into in lists)
            ours, plain = [p.clone() for p in ps] if not lead else ps, [p.clone() for p in ps]
            got, expected = torch.tensor(-9), torch.tensor(-9)
            reference.dampen_(plain, fs, rs, expected, alpha, lam)
            mask.dampen_(ours, fs, rs, got, alpha, lam)
            assert got == expected
            for a, b in zip(ours, plain, strict=True):
                assert torch.equal(a.isnan(), b.isnan())
                assert same_bits(a.nan_to_num(0.0), b.nan_to_num(0.0)), (a.dtype, a.numel())


def main(checks):
    """Runs one family's checks in the GPU's arithmetic; numpy's warnings about NaN and infinity are meant."""
    torch.manual_seed(int(os.environ.get("FASTFORGET_TEST_SEED", "0")))
    np.seterr(all="ignore")
    with like_a_gpu():
        for check in checks[sys.argv[1]]:
            check()
    print(f"{sys.argv[1]}: {len(checks[sys.argv[1]])} checks passed")


CHECKS = {
    "noise": [noise_words, noise_accuracy, noise_lists, noise_perturb],
    "update": [update_step],
    "mask": [mask_dampen],
}

if __name__ == "__main__":
    main(CHECKS)
