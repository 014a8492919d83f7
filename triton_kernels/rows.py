"""Arithmetic over rows of logits, shared by the loss of the update family and the membership scores.

One class, the anchor, stays out of every sum: the label where it attains the maximum, else the first class
that does. It adds exactly 1 to the sum of exponentials, and a tail of 1e-20 beside it would be lost to
rounding. float32 uses its own exp and log (polynomials, a few ulp over the whole range) because the GPU's
fast ones lose digits where scores need them; float64 uses the library's. NaN goes through all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

# One tile holds whole rows up to this many classes; longer rows go in tiles of LOOP_TILE.
MAX_TILE = 8192
LOOP_TILE = 2048


@triton.jit
def exp_of_negative(d):
    """exp(d) for d <= 0; float32 gives 0 below -87.3, where exp leaves the normal range."""
    if d.dtype == tl.float64:
        return tl.exp(d)
    else:
        # comparisons written so that NaN isn't caught by them
        x = tl.where(d < -87.3, -87.3, d)
        # adding 1.5 * 2^23 rounds to an integer, which also sits in the low bits of the sum: shifted into
        # the exponent it is the factor 2^n. A multiplication and not an integer addition, so that NaN stays
        # NaN.
        shifted = tl.fma(x, 1.44269504, 12582912.0)
        n = shifted - 12582912.0
        f = tl.fma(n, -0.693145752, x)
        f = tl.fma(n, -1.42860677e-6, f)
        q = tl.fma(f, 0.00138436434, 0.00837415533)
        q = tl.fma(q, f, 0.041668002)
        q = tl.fma(q, f, 0.166664313)
        q = tl.fma(q, f, 0.499999942)
        q = tl.fma(q, f, 1.00000003)
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        return tl.where(d < -87.3, 0.0, tl.fma(f, q, 1.0) * power)


@triton.jit
def exp_to_the_end(d):
    """exp(d) for d <= 0 down to the smallest subnormal: for one value a row, where its two extra steps cost
    nothing."""
    if d.dtype == tl.float64:
        return tl.exp(d)
    else:
        far = d < -80.0
        e = exp_of_negative(tl.where(far, d + 40.0, d))
        return tl.where(far, e * 4.248354255291589e-18, e)


@triton.jit
def log_of_positive(x):
    """log(x) for normal positive x."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        bits = x.to(tl.int32, bitcast=True) - 0x3F2AAAAB
        exponent = (bits >> 23).to(tl.float32)
        t = ((bits & 0x7FFFFF) + 0x3F2AAAAB).to(tl.float32, bitcast=True) - 1.0
        p = tl.fma(t, 0.140561005, -0.154031983)
        p = tl.fma(p, t, 0.139876537)
        p = tl.fma(p, t, -0.16412791)
        p = tl.fma(p, t, 0.200119442)
        p = tl.fma(p, t, -0.250080273)
        p = tl.fma(p, t, 0.333331687)
        p = tl.fma(p, t, -0.499999321)
        p = tl.fma(p, t, 1.0)
        return tl.where(x == x, tl.fma(t, p, exponent * 0.693147181), x)


@triton.jit
def log1p_of_positive(x):
    """log(1 + x) for x >= 0: what the rounding of 1 + x lost comes back as its share of the derivative."""
    u = 1.0 + x
    return log_of_positive(u) + (x - (u - 1.0)) / u


@triton.jit
def minus_log1m_over_p(p):
    """-log(1 - p) / p for p in [0, 1/2]; 1 at 0."""
    if p.dtype == tl.float64:
        u = 1.0 - p
        safe = tl.where(p > 0, p, 1.0)
        return tl.where(p > 0, (-tl.log(u) + (p - (1.0 - u)) / u) / safe, 1.0)
    else:
        q = tl.fma(p, 2.21090663, -3.75019553)
        q = tl.fma(q, p, 3.31683483)
        q = tl.fma(q, p, -1.40470031)
        q = tl.fma(q, p, 0.592914067)
        q = tl.fma(q, p, 0.0836752799)
        q = tl.fma(q, p, 0.209390645)
        q = tl.fma(q, p, 0.24938691)
        q = tl.fma(q, p, 0.333353697)
        q = tl.fma(q, p, 0.499999738)
        return tl.fma(q, p, 1.0)


def row_tiling(classes: int, compute: tl.dtype, read_only: bool) -> tuple[bool, dict[str, int | bool]]:
    """Shape of a tile: whether a thread holds a whole row, and ROWS, WIDTH in classes, WHOLE rows or not
    and warps as launch arguments.

    A thread for each row suits few classes that are only read: nothing crosses threads, the arithmetic on a
    row's sums is done once and not by every lane, and a warp's rows are one contiguous stretch of memory,
    which L1 hands out column by column. Scattered stores would cost what it saves. Else a row belongs to
    one warp as far as 16 values a lane go (no barriers, 32 warps on a multiprocessor), then to several.
    Rows longer than 8192 are walked in tiles. Doubles take half of everything.
    """
    width = max(2, triton.next_power_of_2(classes))
    double = 2 if compute == tl.float64 else 1
    if read_only and width * double <= 32:
        return True, {"ROWS": 128, "WIDTH": width, "WHOLE": True, "num_warps": 4}
    if width * double > MAX_TILE:
        return False, {"ROWS": 1, "WIDTH": LOOP_TILE // double, "WHOLE": False, "num_warps": 8}
    rows = max(1, 256 // double // width)
    return False, {"ROWS": rows, "WIDTH": width, "WHOLE": True, "num_warps": max(1, width * double // 512)}


def pair_tiling(classes: int, compute: tl.dtype) -> dict[str, int | bool]:
    """ROWS, WIDTH, WHOLE and warps of a kernel that holds a row of two tensors at once: half as much of each in
    a lane, in the loop a quarter, as that keeps sums beside them."""
    each = 4 if compute == tl.float64 else 8
    width = max(2, triton.next_power_of_2(classes))
    if width > 512 * each:
        return {"ROWS": 1, "WIDTH": 128 * each, "WHOLE": False, "num_warps": 8}
    return {"ROWS": max(1, 32 * each // width), "WIDTH": width, "WHOLE": True, "num_warps": max(1, width // (32 * each))}


@triton.jit
def load_tile(logits, rows, in_rows, classes, K, stride, COMPUTE: tl.constexpr):
    """The rows' logits of these classes in the compute type, -inf outside.

    stride is 1. Passed at run time it hides from the compiler that the classes are contiguous, and the
    threads are laid out along the rows instead, one row each (see row_tiling; a test looks for it in the
    compiled code).
    """
    at = logits + (rows * K)[:, None] + (classes * stride)[None, :]
    inside = in_rows[:, None] & (classes < K)[None, :]
    return tl.load(at, mask=inside, other=-float("inf")).to(COMPUTE)


@triton.jit
def load_label(logits, labels, rows, in_rows, K, COMPUTE: tl.constexpr):
    """The label (0 where out of range), whether it is in range, and its logit."""
    y = tl.load(labels + rows, mask=in_rows, other=0)
    valid = (y >= 0) & (y < K)
    y = tl.where(valid, y, 0).to(tl.int32)
    return y, valid, tl.load(logits + rows * K + y, mask=in_rows, other=0.0).to(COMPUTE)


@triton.jit
def tile_max(x, classes, K):
    """Row maximum and the first class that attains it (K if none does: a row of NaN)."""
    top = tl.max(x, 1)
    at = tl.where(x == top[:, None], classes[None, :], K)
    return top, tl.min(at.to(tl.int32), 1)


@triton.jit
def distance(x, top, scale, scale_low, SCALED: tl.constexpr):
    """(x - top) / temperature. The reciprocal comes in two parts, so that scaling adds half an ulp and no
    more."""
    d = x - top
    if SCALED:
        # with d infinite the second part would be a sign flip away from inf - inf
        return tl.where(d == -float("inf"), d, tl.fma(d, scale, d * scale_low))
    else:
        return d


@triton.jit
def other_exps(x, classes, top, anchor, y, scale, scale_low, SCALED: tl.constexpr):
    """exp((x - top) / T) of every class but the anchor and the label (0 there), and the distances."""
    d = distance(x, top[:, None], scale, scale_low, SCALED)
    wide = classes[None, :]
    keep = (wide != anchor[:, None]) & (wide != y[:, None])
    return tl.where(keep, exp_of_negative(d), 0.0), d
