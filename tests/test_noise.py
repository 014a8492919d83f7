"""Noise: known answers, exact integers, normals within 4 ulp, and independence of everything but the counter."""

from __future__ import annotations

import math

import pytest
import torch
from tolerance import FLOATS, ulps

from fastforget.ops import noise
from fastforget.reference.noise import standard_normals

IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512", "emulated")
SIZES = [0, 1, 2, 3, 4, 5, 7, 15, 63, 64, 65, 255, 1023, 1024, 1025, 4097, 70001]


def words(values: list[str]) -> list[int]:
    return [int(v, 16) for v in values]


def unsigned(x: torch.Tensor) -> list[int]:
    return [int(v) & 0xFFFFFFFF for v in x]


# Random123's known-answer vectors for philox4x32-10: counter words, key words, result
KNOWN = [
    (["0"] * 4, ["0"] * 2, ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
    (["ffffffff"] * 4, ["ffffffff"] * 2, ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
    (
        ["243f6a88", "85a308d3", "13198a2e", "03707344"],
        ["a4093822", "299f31d0"],
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
    ),
]


def test_known_answer(implementation):
    """The first vector through the public function (the other two count beyond the last element index)."""
    assert unsigned(noise.random_bits(4, seed=0)) == words(KNOWN[0][2])


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_known_answers_of_the_reference_generator(counter, key, result):
    from fastforget.reference.noise import philox_words

    c, k = words(counter), words(key)
    block = c[0] | c[1] << 32
    block = torch.tensor([block - 2**64 if block >= 2**63 else block])
    got = philox_words(block, seed=k[0] | k[1] << 32, stream=c[2], step=c[3])
    assert got.flatten().tolist() == words(result)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("start", [0, 1, 3, 6, 2**33 + 5])
def test_integers_equal_the_reference(implementation, n, start):
    key = 0xDEADBEEF12345678
    got = noise.random_bits(n, seed=key, stream=5, step=9, start=start)
    expected = torch.empty(n, dtype=torch.int32)
    from fastforget.reference.noise import random_bits

    random_bits(expected, key, 5, 9, start)
    assert torch.equal(got, expected)


def test_block_index_carries_into_the_high_word(implementation):
    start = 4 * (2**32 - 40)
    got = noise.random_bits(4 * 80, seed=3, start=start)
    parts = [noise.random_bits(4, seed=3, start=start + 4 * i) for i in range(80)]
    assert torch.equal(got, torch.cat(parts))
    high = noise.random_bits(4, seed=3, start=4 * 2**32)
    assert torch.equal(got[160:164], high)
    assert not torch.equal(high, noise.random_bits(4, seed=3, start=0))


def test_float32_normals_are_within_4_ulp(implementation):
    n = 1 << 20
    got = noise.normal_(torch.empty(n), seed=11, stream=2)
    exact = standard_normals(n, seed=11, stream=2)
    assert (got.to(torch.float64) - exact).abs().max().item() <= 1e-6
    assert ulps(got, exact)[exact.abs() > 1e-3].max().item() <= 4.0


def test_float64_normals_are_the_definition(implementation):
    got = noise.normal_(torch.empty(100_001, dtype=torch.float64), seed=11)
    exact = standard_normals(100_001, seed=11)
    assert (got - exact).abs().max().item() <= 64 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_normals_are_rounded_float32(implementation, dtype):
    got = noise.normal_(torch.empty(10_001, dtype=dtype), 0.5, 1.0, seed=4)
    single = noise.normal_(torch.empty(10_001), 0.5, 1.0, seed=4)
    assert torch.equal(got, single.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_add_normal_is_x_plus_std_times_normal(implementation, n, dtype):
    x = torch.randn(n, dtype=torch.float64).to(dtype)
    got = noise.add_normal_(x.clone(), 0.25, seed=5, start=2)
    exact = x.to(torch.float64) + 0.25 * standard_normals(n, seed=5, start=2)
    largest = exact.abs().max().item() if n else 0.0
    # half an ulp for the store, and what 4 ulp of the normal are worth after scaling
    allowed = largest * torch.finfo(dtype).eps * 0.5 + 0.25 * 1e-6 * (dtype != torch.float64)
    assert n == 0 or (got.to(torch.float64) - exact).abs().max().item() <= allowed + 1e-15


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_do_not_depend_on_the_list_split(implementation, dtype):
    shapes = [(3,), (0,), (64, 5), (), (4097,), (1,), (2, 3, 7)]
    together = noise.normal_([torch.empty(s, dtype=dtype) for s in shapes], 2.0, 1.0, seed=8, stream=3)
    for i, x in enumerate(together):
        alone = noise.normal_(torch.empty(shapes[i], dtype=dtype), 2.0, 1.0, seed=8, stream=3 + i)
        assert torch.equal(x, alone)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 100, 1023, 4096])
def test_values_do_not_depend_on_where_a_shard_begins(implementation, cut):
    whole = noise.normal_(torch.empty(5000), seed=1)
    left = noise.normal_(torch.empty(cut), seed=1)
    right = noise.normal_(torch.empty(5000 - cut), seed=1, start=cut)
    assert torch.equal(whole, torch.cat((left, right)))


def test_values_do_not_depend_on_the_thread_count(implementation):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(noise.normal_([torch.empty(300_001), torch.empty(77)], seed=2))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("offset", range(5))
def test_misaligned_tensors_keep_their_neighbours(implementation, offset):
    memory = torch.full((200,), 7.0)
    noise.normal_(memory[offset : offset + 131], seed=6)
    assert torch.equal(memory[offset : offset + 131], noise.normal_(torch.empty(131), seed=6))
    assert (memory[:offset] == 7).all() and (memory[offset + 131 :] == 7).all()


def test_strided_tensors_are_numbered_in_row_major_order(implementation):
    plain = noise.normal_(torch.empty(6, 10), seed=6)
    assert torch.equal(noise.normal_(torch.empty(10, 6).t(), seed=6), plain)
    images = torch.zeros(2, 3, 4, 5)
    strided = noise.add_normal_(images.clone().to(memory_format=torch.channels_last), 1.0, seed=6)
    assert torch.equal(strided, noise.add_normal_(images, 1.0, seed=6))
    assert strided.stride() == images.to(memory_format=torch.channels_last).stride()


def test_per_tensor_std_mean_and_start(implementation):
    a, b = noise.normal_([torch.empty(9), torch.empty(9)], [1.0, 2.0], [0.0, 5.0], seed=1, start=[0, 13])
    assert torch.equal(a, noise.normal_(torch.empty(9), seed=1))
    assert torch.equal(b, noise.normal_(torch.empty(9), 2.0, 5.0, seed=1, stream=1, start=13))


def test_mixed_dtypes_in_one_list(implementation):
    mixed = noise.normal_([torch.empty(100, dtype=d) for d in FLOATS], seed=3)
    for i, dtype in enumerate(FLOATS):
        assert torch.equal(mixed[i], noise.normal_(torch.empty(100, dtype=dtype), seed=3, stream=i))


def test_streams_steps_and_seeds_differ(implementation):
    def draw(**counter):
        return noise.normal_(torch.empty(64), **counter)

    base = draw(seed=1)
    for other in (draw(seed=2), draw(seed=1 + 2**32), draw(seed=1, stream=1), draw(seed=1, step=1)):
        assert not torch.equal(base, other)


def test_extreme_words_stay_finite(implementation):
    """The radius is finite for every word: u is at least half a step above 0 and at most 1."""
    z = noise.normal_(torch.empty(1 << 22), seed=0)
    assert torch.isfinite(z).all()
    assert z.abs().max().item() <= math.sqrt(2 * 33 * math.log(2))


def test_moments_and_correlations():
    """A sanity check on 4 million values; it can't see ulps, which the tests above measure."""
    n = 1 << 22
    z = noise.normal_(torch.empty(n, dtype=torch.float64), seed=123)
    sigma = 1 / math.sqrt(n)
    assert abs(z.mean().item()) < 5 * sigma
    assert abs(z.square().mean().item() - 1) < 5 * math.sqrt(2) * sigma
    assert abs((z**4).mean().item() - 3) < 5 * math.sqrt(96) * sigma
    for lag in (1, 2, 3, 4):
        assert abs((z[lag:] * z[:-lag]).mean().item()) < 5 * sigma
    other = noise.normal_(torch.empty(n, dtype=torch.float64), seed=123, stream=1)
    assert abs((z * other).mean().item()) < 5 * sigma
