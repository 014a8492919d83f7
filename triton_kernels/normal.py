"""Philox words and normals in Triton, for every kernel that draws.

Same integers as every other backend, same normals within rounding: csrc/common/philox.h and csrc/common/normal.h state
the arithmetic, which is repeated here step by step (Triton's own randn cuts the tail at 5.7, its log, sin
and cos are approximations on the GPU).
"""

from __future__ import annotations

import triton
import triton.language as tl

# 16 elements (4 Philox blocks) a thread: four independent chains hide the latency of the wide
# multiplications, and the results of a thread are a run of 16-byte stores. Twice as many would not fit 64
# registers and halve the occupancy.
CHUNK = 4096
NUM_WARPS = 8


@triton.jit
def philox_words(block, seed, stream, step):
    """The four words of each 64-bit block index, equal to tl.philox(seed, low, high, stream, step). That
    one asks for the halves of each product separately and gets two instructions; a 64-bit product is one
    (mul.wide)."""
    # the first round mixes all words, so a scalar stream and step need no broadcast
    c0 = (block & 0xFFFFFFFF).to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = stream.to(tl.uint32)
    c3 = step.to(tl.uint32)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def in_order(a, b, c, d, CHUNK: tl.constexpr):
    """a0 b0 c0 d0 a1 b1 ...: a thread keeps its own words, so this moves no data between threads."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [CHUNK])


@triton.jit
def _radius(x):
    # u = 2^e (1 + t) with 1 + t in [2/3, 4/3): ln(1 + t) keeps its relative accuracy as u -> 1
    shifted = (x.to(tl.uint32, bitcast=True) - (0x3F2AAAAB + 0x10000000)).to(tl.int32, bitcast=True)
    t = ((shifted & 0x7FFFFF) + 0x3F2AAAAB).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(t, -0.281121625, 0.308063964)
    p = tl.fma(p, t, -0.279753159)
    p = tl.fma(p, t, 0.328255821)
    p = tl.fma(p, t, -0.400238877)
    p = tl.fma(p, t, 0.500160545)
    p = tl.fma(p, t, -0.666663374)
    p = tl.fma(p, t, 0.999998642)
    p = tl.fma(p, t, -2.0)
    # the exponent stays in place (e * 2^23), exact in float32; the constant is -2 ln 2 * 2^-23
    exponent = (shifted & -0x800000).to(tl.float32)
    y = tl.fma(t, p, exponent * -1.6525917e-07)
    # sqrt from the approximate reciprocal root and one Newton step, within 0.51 ulp: the correctly rounded
    # instruction is a subroutine with a branch. The floor keeps y = 0 (u = 1) from becoming 0 * inf; the
    # next y above it is 1e-7.
    reciprocal = tl.rsqrt(tl.maximum(y, 1e-20))
    root = y * reciprocal
    return tl.fma(tl.fma(-root, root, y), 0.5 * reciprocal, root)


@triton.jit
def _cos_sin(odd):
    # y in [-1/2, 1/2) quarter turns around the nearest quadrant, which the integer's top bits give without
    # any error
    y = (odd << 2).to(tl.int32, bitcast=True).to(tl.float32) * 2.3283064365386963e-10
    y2 = y * y
    s = tl.fma(y2, -0.00460483417, 0.0796814128)
    s = tl.fma(s, y2, -0.64596363)
    s = tl.fma(s, y2, -4.37113901e-08)
    c = tl.fma(y2, 0.000903767118, -0.0208601653)
    c = tl.fma(c, y2, 0.253669226)
    c = tl.fma(c, y2, -1.23370054)
    sine = tl.fma(y, 1.57079637, y * s).to(tl.uint32, bitcast=True)
    cosine = tl.fma(y2, c, 1.0).to(tl.uint32, bitcast=True)
    quadrant = odd + 0x20000000
    swapped = (quadrant & 0x40000000) != 0
    c_bits = tl.where(swapped, sine, cosine) ^ ((quadrant + 0x40000000) & 0x80000000)
    s_bits = tl.where(swapped, cosine, sine) ^ (quadrant & 0x80000000)
    return c_bits.to(tl.float32, bitcast=True), s_bits.to(tl.float32, bitcast=True)


@triton.jit
def normal_pair(even, odd, COMPUTE: tl.constexpr):
    x = even.to(tl.float32)
    x = tl.maximum(x, 0.5)
    if tl.float64 == COMPUTE:
        r = tl.sqrt(-2.0 * tl.log(x.to(tl.float64) * 2.3283064365386963e-10))
        t = odd.to(tl.float64) * 1.4629180792671596e-09  # 2 pi / 2^32
        return r * tl.cos(t), r * tl.sin(t)
    else:
        r = _radius(x)
        c, s = _cos_sin(odd)
        return r * c, r * s


@triton.jit
def normal_chunk(first, chunk, seed, stream, step, COMPUTE: tl.constexpr, CHUNK: tl.constexpr):
    """Normals of one chunk of a tensor whose element 0 has the global index ``first``, from the beginning of
    the Philox block that the chunk begins in."""
    block = (first >> 2) + chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4).to(tl.int64)
    w0, w1, w2, w3 = philox_words(block, seed, stream, step)
    z0, z1 = normal_pair(w0, w1, COMPUTE)
    z2, z3 = normal_pair(w2, w3, COMPUTE)
    return in_order(z0, z1, z2, z3, CHUNK)
