"""perturb_step_ and a std for each element: accuracy, and independence of everything but the counter."""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from normals import exact_normals, plain_normals
from tolerance import FLOATS, assert_two_times
from torch import Tensor

import fastforget as ff
from fastforget.ops import noise

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
LR = 0.7
SIZES = [0, 1, 5, 1023, 1025, 70_001]
TERMS = ["gradient", "elements", "both"]
POOL = 4096  # elements that measure plain PyTorch's error beside the few of a small tensor


def drawn(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter, a gradient, and a std for each element."""
    return tuple(v.to(dtype) for v in (torch.randn(count), torch.randn(count), torch.rand(count)))


def result(p: Tensor, g: Tensor, s: Tensor | float, terms: str, z: Tensor) -> Tensor:
    """p - lr * g + std * z in the dtype of ``z``."""
    base = p.to(z.dtype) if terms == "elements" else p.to(z.dtype) - LR * g.to(z.dtype)
    return base + (0.25 if terms == "gradient" else s.to(z.dtype)) * z


def call(p: Tensor | list[Tensor], g: Tensor | list[Tensor], s: Tensor | list[Tensor], terms: str, **counter: int) -> None:
    if terms == "elements":
        noise.add_normal_(p, s, **counter)
    else:
        noise.perturb_step_(p, g, lr=LR, std=0.25 if terms == "gradient" else s, **counter)


def assert_right(got: Tensor, values: tuple[Tensor, Tensor, Tensor], terms: str, **counter: int) -> None:
    """The two-times rule against plain PyTorch, from Box-Muller on, in the dtype that the kernels compute in."""
    working = torch.float64 if got.dtype == torch.float64 else torch.float32
    plain, exact = [], []
    for draw in (values, drawn(POOL, got.dtype)):
        n = draw[0].numel()
        plain.append(result(*draw, terms, plain_normals(n, working, **counter)).to(got.dtype))
        exact.append(result(*draw, terms, exact_normals(n, **counter)))
    assert_two_times(got, plain, exact, f"{terms} {got.dtype}")


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("start", [0, 3])
def test_a_step_is_what_it_says(implementation, start, n, dtype, terms):
    values = drawn(n, dtype)
    got = values[0].clone()
    call(got, *values[1:], terms, seed=5, stream=2, step=7, start=start)
    assert_right(got, values, terms, seed=5, stream=2, step=7, start=start)


@pytest.mark.parametrize("start", [2**31 - 5, 2**32 - 2, 2**34 - 6, 2**62 + 1])
def test_starts_beyond_32_bits(implementation, start):
    """Beyond 2**31 and 2**32 elements, and where the block index carries into its second word (at 2**34)."""
    values = drawn(2051, torch.float32)
    got = values[0].clone()
    call(got, *values[1:], "both", seed=2**63 + 1, start=start)
    assert_right(got, values, "both", seed=2**63 + 1, start=start)
    parts = [v[1000:1007].clone() for v in values]
    call(*parts, "both", seed=2**63 + 1, start=start + 1000)
    assert torch.equal(parts[0], got[1000:1007])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offsets", [(1, 0, 0), (0, 1, 0), (0, 0, 3), (1, 2, 3)])
def test_misaligned_tensors_give_the_same_bits_and_keep_their_neighbours(implementation, dtype, offsets):
    values = drawn(2099, dtype)
    plain = [v.clone() for v in values]
    call(*plain, "both", seed=6)
    memory = [torch.full((2120,), 7, dtype=dtype) for _ in values]
    views = [m[o : o + 2099].copy_(v) for m, o, v in zip(memory, offsets, values, strict=True)]
    call(*views, "both", seed=6)
    assert torch.equal(views[0], plain[0])
    assert torch.equal(views[1], values[1]) and torch.equal(views[2], values[2])
    for m, o in zip(memory, offsets, strict=True):
        assert (m[:o] == 7).all() and (m[o + 2099 :] == 7).all()


def test_strided_tensors_are_numbered_in_row_major_order(implementation):
    p, g, s = (v.view(3, 5, 8, 7) for v in drawn(840, torch.float32))
    plain = p.clone()
    call(plain, g, s, "both", seed=6)
    last = torch.channels_last
    for strided in itertools.product((False, True), repeat=3):
        made = [v.clone().to(memory_format=last) if t else v.clone() for v, t in zip((p, g, s), strided, strict=True)]
        strides = made[0].stride()
        call(*made, "both", seed=6)
        assert torch.equal(made[0], plain) and made[0].stride() == strides
    every_other = torch.zeros(1680)[::2].copy_(p.flatten())
    call(every_other, g.flatten(), s.flatten(), "both", seed=6)
    assert torch.equal(every_other, plain.flatten())


@pytest.mark.parametrize("terms", TERMS)
def test_a_list_of_mixed_dtypes_equals_its_tensors_alone(implementation, terms):
    sizes = [0, 1, 3, 64, 1025, 5, 2047, 9, 4096, 33] * 7  # 70: more than one launch table of the CUDA kernels
    values = [drawn(n, FLOATS[i % 4]) for i, n in enumerate(sizes)]
    lists = [[v[kind].clone() for v in values] for kind in range(3)]
    call(*lists, terms, seed=3, stream=11, step=1)
    for i, value in enumerate(values):
        call(*value, terms, seed=3, stream=11 + i, step=1)
        assert torch.equal(lists[0][i], value[0]), i


def test_floats_one_a_tensor_and_starts_one_a_tensor(implementation):
    p, g = [torch.randn(9), torch.randn(6)], [torch.randn(9), torch.randn(6)]
    alone = [v.clone() for v in p]
    noise.perturb_step_(p, g, lr=LR, std=[0.5, 2.0], seed=1, start=[0, 13])
    noise.perturb_step_(alone[0], g[0], lr=LR, std=0.5, seed=1)
    noise.perturb_step_(alone[1], g[1], lr=LR, std=2.0, seed=1, stream=1, start=13)
    assert torch.equal(p[0], alone[0]) and torch.equal(p[1], alone[1])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_std_of_equal_elements_is_the_float(implementation, dtype):
    x, g, _ = drawn(3001, dtype)
    a, b = x.clone(), x.clone()
    noise.add_normal_(a, 0.25, seed=1)
    noise.add_normal_(b, torch.full_like(x, 0.25), seed=1)
    assert torch.equal(a, b)
    noise.perturb_step_(a, g, lr=LR, std=0.25, seed=1, step=1)
    noise.perturb_step_(b, g, lr=LR, std=torch.full_like(x, 0.25), seed=1, step=1)
    assert torch.equal(a, b)


def test_no_noise_is_the_gradient_step_and_no_gradient_is_the_noise(implementation):
    p, g, s = drawn(3001, torch.float64)
    step = noise.perturb_step_(p.clone(), g, lr=0.5, std=0.0, seed=1)
    assert torch.equal(step, p - 0.5 * g)
    still = noise.perturb_step_(p.clone(), torch.zeros_like(p), lr=0.5, std=0.25, seed=1)
    assert torch.equal(still, noise.add_normal_(p.clone(), 0.25, seed=1))
    frozen = torch.where(torch.arange(3001) % 2 == 0, 0.0, s)
    moved = noise.add_normal_(p.clone(), frozen, seed=1)
    assert torch.equal(moved[::2], p[::2]) and (moved[1::2] != p[1::2]).sum() > 1490


def test_nan_and_infinity_stay_in_their_element(implementation):
    p, g, s = torch.zeros(9), torch.zeros(9), torch.ones(9)
    p[1], g[3], g[5], s[7] = math.nan, math.inf, -math.inf, math.nan
    clean = noise.perturb_step_(torch.zeros(9), torch.zeros(9), lr=1.0, std=1.0, seed=1)
    noise.perturb_step_(p, g, lr=1.0, std=s, seed=1)
    assert p[[1, 7]].isnan().all() and p[3] == -math.inf and p[5] == math.inf
    assert torch.equal(p[::2], clean[::2])


@pytest.mark.parametrize("terms", TERMS)
def test_values_do_not_depend_on_the_thread_count(implementation, terms):
    values = [drawn(n, d) for n, d in ((300_001, torch.float32), (77, torch.float64), (50_003, torch.bfloat16))]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            lists = [[v[kind].clone() for v in values] for kind in range(3)]
            call(*lists, terms, seed=2, start=1)
            results.append(lists[0])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_avx2_and_avx512_give_the_same_bits(cpu_levels, dtype, terms):
    values, results = drawn(70_001, dtype), []
    for level in cpu_levels:
        torch.ops.fastforget._cpu_isa(level)
        got = values[0].clone()
        call(got, *values[1:], terms, seed=9, start=1)
        results.append(got)
    assert torch.equal(*results)


@pytest.fixture
def cpu_levels() -> Iterator[tuple[int, int]]:
    reason = ff.backend.why_not("native", "perturb_step_", "cpu")
    if reason is not None:
        pytest.skip(reason)
    before = torch.ops.fastforget._cpu_isa(0)
    try:
        if torch.ops.fastforget._cpu_isa(4) != 4:
            pytest.skip("this CPU has no AVX-512")
        yield 3, 4
    finally:
        torch.ops.fastforget._cpu_isa(before)


# ---- any cut, any list


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_into_shards_equals_the_whole(implementation, data):
    n = data.draw(st.integers(1, 3000), label="elements")
    cuts = data.draw(st.lists(st.integers(0, n), max_size=5).map(sorted), label="cuts")
    start = data.draw(st.one_of(st.integers(0, 9), st.integers(2**34 - 2000, 2**34), st.integers(0, 2**62)), label="start")
    dtype, terms = data.draw(st.sampled_from(FLOATS), label="dtype"), data.draw(st.sampled_from(TERMS), label="terms")
    torch.manual_seed(n)
    whole = drawn(n, dtype)
    shards = [[v[a:b].clone() for v in whole] for a, b in itertools.pairwise([0, *cuts, n])]
    call(*whole, terms, seed=1, step=4, start=start)
    for shard, first in zip(shards, [0, *cuts], strict=True):
        call(*shard, terms, seed=1, step=4, start=start + first)
    assert torch.equal(torch.cat([shard[0] for shard in shards]), whole[0])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_of_a_list_equals_the_list(implementation, data):
    sizes = data.draw(st.lists(st.integers(0, 1500), min_size=1, max_size=8), label="sizes")
    cut = data.draw(st.integers(0, len(sizes)), label="cut")
    starts = data.draw(st.lists(st.integers(0, 2**40), min_size=len(sizes), max_size=len(sizes)), label="starts")
    terms = data.draw(st.sampled_from(TERMS), label="terms")
    torch.manual_seed(len(sizes))
    values = [drawn(n, FLOATS[i % 4]) for i, n in enumerate(sizes)]
    together, apart = ([[v[kind].clone() for v in values] for kind in range(3)] for _ in range(2))
    call(*together, terms, seed=1, stream=2**32 - len(sizes), start=starts)
    for part in (slice(0, cut), slice(cut, len(sizes))):
        stream = 2**32 - len(sizes) + part.start
        if part.start < part.stop:
            call(*(kind[part] for kind in apart), terms, seed=1, stream=stream, start=starts[part])
    assert all(torch.equal(a, b) for a, b in zip(together[0], apart[0], strict=True))


# ---- more than 2**31 elements


class Endless:
    """Address space for a tensor that is far larger than its memory: one block of memory, again and again, then a tail of its own."""

    PERIOD = 1 << 26  # bytes

    def __init__(self, size: int, tail: int) -> None:
        body = size - tail
        assert body % self.PERIOD == 0 and tail % mmap.PAGESIZE == 0
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.size = size
        file = os.memfd_create("endless")
        try:
            os.ftruncate(file, self.PERIOD + tail)
            self.address = self._map(None, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0)  # 0x4000: no reserve
            fixed = mmap.MAP_SHARED | 0x10
            for begin in range(0, body, self.PERIOD):
                self._map(self.address + begin, self.PERIOD, fixed, file, 0)
            self._map(self.address + body, tail, fixed, file, self.PERIOD)
        finally:
            os.close(file)

    def _map(self, where: int | None, size: int, flags: int, file: int, offset: int) -> int:
        got = self.libc.mmap(where, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, offset)
        if got == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        return got

    def tensor(self, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer((ctypes.c_char * self.size).from_address(self.address), dtype=dtype)

    def close(self) -> None:
        self.libc.munmap(self.address, self.size)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's memfd_create")
def test_a_tensor_of_more_than_2_to_the_31_elements(implementation):
    """Its last elements, which a 32-bit index can't reach, have memory of their own; the others share a small block."""
    if implementation == "reference":
        pytest.skip("plain PyTorch takes minutes for two thousand million elements")
    tail = 1 << 16
    maps = [Endless(2 * 2**31 + 2 * tail, 2 * tail) for _ in range(3)]
    try:
        p, g, s = (m.tensor(torch.bfloat16) for m in maps)
        assert p.numel() == 2**31 + tail
        values = drawn(tail, torch.bfloat16)
        for whole, value in zip((p, g, s), values, strict=True):
            whole[-tail:] = value
        call(p, g, s, "both", seed=4)
        call(*values, "both", seed=4, start=2**31)
        assert torch.equal(p[-tail:], values[0])
        del p, g, s
    finally:
        for m in maps:
            m.close()
