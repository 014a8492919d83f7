"""Membership scores in Triton.

membership_scores: rows of up to 8192 classes stay in registers and are read once; longer rows are read
three times (maximum, sums, modified entropy), the later times from L2. Everything is relative to the row's
maximum, and the anchor class is kept out of the sums (see rows.py), so tiny losses keep their digits and
logit_confidence needs no probability near 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common import compute_dtype, divide, float_bits, on_device, scalar
from ..rows import (
    distance,
    exp_of_negative,
    exp_to_the_end,
    load_label,
    load_tile,
    log1p_of_positive,
    log_of_positive,
    minus_log1m_over_p,
    other_exps,
    row_tiling,
    tile_max,
)


@triton.jit
def _tail_sums(x, classes, top, anchor, y, scale, scale_low, SCALED: tl.constexpr):
    """Sums over all classes but anchor and label of e and e * -d, and the maximum over all but the anchor."""
    e, d = other_exps(x, classes, top, anchor, y, scale, scale_low, SCALED)
    # e is 0 there, and 0 * -inf would be NaN
    d = tl.where(d < -88.0, -88.0, d) if x.dtype != tl.float64 else tl.where(d < -800.0, -800.0, d)
    second = tl.max(tl.where(classes[None, :] == anchor[:, None], -float("inf"), x), 1)
    return tl.sum(e, 1), tl.sum(e * -d, 1), second


@triton.jit
def _modified_terms(x, classes, top, anchor, y, inverse, scale, scale_low, SCALED: tl.constexpr):
    """Sum over all classes but anchor and label of -p log(1 - p); there p <= 1/2."""
    e, _ = other_exps(x, classes, top, anchor, y, scale, scale_low, SCALED)
    p = e * inverse[:, None]
    return tl.sum(p * p * minus_log1m_over_p(p), 1)


@triton.jit
def _far_sums(x, classes, top, second, anchor, scale, scale_low, SCALED: tl.constexpr):
    """Sums over all classes but the anchor of e and e * -d, with e relative to the second largest logit: the
    first sum is at least 1 where there is a second class at all."""
    base = tl.where(second > -float("inf"), second, 0.0)
    e = exp_of_negative(distance(x, base[:, None], scale, scale_low, SCALED))
    e = tl.where(classes[None, :] == anchor[:, None], 0.0, e)
    d = distance(x, top[:, None], scale, scale_low, SCALED)
    return tl.sum(e, 1), tl.sum(tl.where(e > 0, e * -d, 0.0), 1)


@triton.jit(do_not_specialize=["temperature", "stride"])
def membership_scores_kernel(
    logits, labels, scores, correct, N, K, temperature: tl.int64, stride,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr,
    SCALED: tl.constexpr, BY_THREAD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < N
    classes = tl.arange(0, WIDTH)
    step = stride if BY_THREAD else 1
    exact = 1.0 / scalar(temperature, tl.float64)
    scale = exact.to(COMPUTE)
    scale_low = (exact - scale.to(tl.float64)).to(COMPUTE)
    y, valid, x_y = load_label(logits, labels, rows, in_rows, K, COMPUTE)

    if WHOLE:
        x = load_tile(logits, rows, in_rows, classes, K, step, COMPUTE)
        top, first = tile_max(x, classes, K)
    else:
        top = tl.full([ROWS], -float("inf"), COMPUTE)
        first = tl.zeros([ROWS], tl.int32) + K
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            tile_top, tile_first = tile_max(x, classes + k, K)
            first = tl.where(tile_top > top, tile_first, first)
            top = tl.where(tile_top > top, tile_top, top)
            k += WIDTH

    is_top = x_y == top
    anchor = tl.where(is_top, y, first)
    if WHOLE:
        tail, weighted, second = _tail_sums(x, classes, top, anchor, y, scale, scale_low, SCALED)
    else:
        tail = tl.zeros([ROWS], COMPUTE)
        weighted = tl.zeros([ROWS], COMPUTE)
        second = tl.full([ROWS], -float("inf"), COMPUTE)
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            more, more_weighted, tile_second = _tail_sums(
                x, classes + k, top, anchor, y, scale, scale_low, SCALED
            )  # fmt: skip
            tail += more
            weighted += more_weighted
            second = tl.maximum(second, tile_second)
            k += WIDTH

    d_y = distance(x_y, top, scale, scale_low, SCALED)
    e_y = exp_of_negative(d_y)
    rest = tl.where(is_top, tail, tail + e_y)  # all classes but the anchor
    weighted += tl.where(is_top | (e_y == 0), 0.0, e_y * -d_y)
    inverse = divide(tl.full([ROWS], 1.0, COMPUTE), 1.0 + rest)
    if WHOLE:
        modified = _modified_terms(x, classes, top, anchor, y, inverse, scale, scale_low, SCALED)
    else:
        modified = tl.zeros([ROWS], COMPUTE)
        k = 0
        while k < K:
            x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
            modified += _modified_terms(x, classes + k, top, anchor, y, inverse, scale, scale_low, SCALED)
            k += WIDTH

    # log of the tail, from the tail itself unless that is so small that its terms may have been flushed to
    # 0: then relative to the second largest logit. Rare, so the whole program branches on it.
    threshold: tl.constexpr = 1e-280 if tl.float64 == COMPUTE else 1e-25
    tiny = rest < threshold
    log_rest = log_of_positive(tl.where(tiny, 1.0, rest))
    if tl.max(tiny.to(tl.int32), 0) > 0:
        if WHOLE:
            far, far_weighted = _far_sums(x, classes, top, second, anchor, scale, scale_low, SCALED)
        else:
            far = tl.zeros([ROWS], COMPUTE)
            far_weighted = tl.zeros([ROWS], COMPUTE)
            k = 0
            while k < K:
                x = load_tile(logits, rows, in_rows, classes + k, K, step, COMPUTE)
                more, more_weighted = _far_sums(x, classes + k, top, second, anchor, scale, scale_low, SCALED)
                far += more
                far_weighted += more_weighted
                k += WIDTH
        gap = distance(second, top, scale, scale_low, SCALED)
        far_log = tl.where(second > -float("inf"), gap + log_of_positive(tl.where(far > 0, far, 1.0)), -float("inf"))
        log_rest = tl.where(tiny, far_log, log_rest)
        rest = tl.where(tiny, exp_to_the_end(far_log), rest)
        # the mean distance times the tail, each in its own range
        mean = far_weighted / tl.where(far > 0, far, 1.0)
        weighted = tl.where(tiny, tl.where(far > 0, rest * mean, 0.0), weighted)

    log_total = log1p_of_positive(rest)
    loss = tl.where(is_top, log_total, log_total - d_y)
    entropy = log_total + weighted * inverse
    not_label = tl.where(is_top, rest, 1.0 + tail) * inverse
    label_term = tl.where(not_label > 0, not_label * loss, 0.0)
    # -log(1 - p) of the anchor, whose p may be anything up to 1
    surprise = tl.where(inverse <= 0.5, inverse * minus_log1m_over_p(inverse), log_total - log_rest)
    modified += label_term + tl.where(is_top, 0.0, inverse * surprise)
    confidence = tl.where(is_top, 1.0, exp_to_the_end(d_y)) * inverse
    margin = tl.where(is_top, -distance(second, top, scale, scale_low, SCALED), d_y)
    logit_confidence = tl.where(is_top, -log_rest, d_y - log1p_of_positive(tail))
    # of two classes the other is the tail: no exp and log to round it
    logit_confidence = tl.where(K == 2, margin, logit_confidence)

    # NaN logits reach `rest` by themselves; +inf and rows of -inf would not
    defined = valid & (top < float("inf")) & (top > -float("inf")) & (rest == rest)
    nan = float("nan")
    out = scores + rows
    tl.store(out, tl.where(defined, loss, nan), mask=in_rows)
    tl.store(out + N, tl.where(defined, confidence, nan), mask=in_rows)
    tl.store(out + 2 * tl.cast(N, tl.int64), tl.where(defined, entropy, nan), mask=in_rows)
    tl.store(out + 3 * tl.cast(N, tl.int64), tl.where(defined, modified, nan), mask=in_rows)
    tl.store(out + 4 * tl.cast(N, tl.int64), tl.where(defined, margin, nan), mask=in_rows)
    tl.store(out + 5 * tl.cast(N, tl.int64), tl.where(defined, logit_confidence, nan), mask=in_rows)
    tl.store(correct + rows, (defined & (first == y)).to(tl.int8), mask=in_rows)


def membership_scores(logits: Tensor, labels: Tensor, temperature: float, scores: Tensor, correct: Tensor) -> None:
    n, classes = logits.shape
    if n == 0:
        return
    compute = compute_dtype(logits.dtype)
    by_thread, tiling = row_tiling(classes, compute, read_only=True)
    with on_device(logits):
        membership_scores_kernel[(triton.cdiv(n, tiling["ROWS"]),)](
            logits, labels, scores, correct.view(torch.int8), n, classes, float_bits(temperature), 1,
            COMPUTE=compute, SCALED=temperature != 1.0, BY_THREAD=by_thread, **tiling,
        )  # fmt: skip
