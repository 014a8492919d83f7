// The passes over a block of shadow-model scores: moments, and a sorting network. For membership_lira.cpp, which is
// compiled once per instruction set.
#pragma once
#include <cstdint>

#include "cpu/membership/lira_lanes.h"

namespace ff::FF_ISA {

constexpr int64_t kLine = 64;  // bytes of a cache line

// A block of columns of the scores, in place. members: whether the models had the columns' samples, a byte of 0xff or 0
// each; first all models' lines of the first 64 columns, and so on, so that a strip's lie together.
template <class S>
struct Block {
  const S* scores;
  int64_t score_stride;
  const uint8_t* members;
  int64_t models, width;
  const uint8_t* next;  // the members of the block to come, where they are
  int64_t next_stride;
  __attribute__((always_inline)) const S* score(int64_t model, int64_t c) const {
    return scores + model * score_stride + c;
  }
  // to the end of c's line
  __attribute__((always_inline)) const uint8_t* member(int64_t model, int64_t c) const {
    return members + (c / kLine * models + model) * kLine + c % kLine;
  }
};

constexpr int64_t kBlockColumns = 1024;

// Of each column of a strip (a line's worth) and side: number of models and its inverse, mean, and sum of squared
// distances from the mean.
template <class C>
struct Moments {
  alignas(64) C n[2][kLine], share[2][kLine], mean[2][kLine], m2[2][kLine];
};

// Models whose terms are added in registers before the partial sum joins the total: less rounding in long sums.
constexpr int64_t kModelsAtOnce = 8;
// Vectors of columns at a time in the first and in the second pass: as many as registers hold the sums of.
constexpr int kFirstVectors = 4, kSecondVectors = 2;

FF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls visit(first model, how many) for every group of models, with a constant wherever a group is whole.
template <class Visit>
FF_INLINE void for_groups(int64_t models, const Visit& visit) {
  int64_t m = 0;
  for (; m + kModelsAtOnce <= models; m += kModelsAtOnce) visit(m, kModelsAtOnce);
  if (m < models) visit(m, models - m);
}

// The rows of a strip are too short for the hardware to guess that the next strip's follow. Both passes fetch them
// ahead, the first one every other line, the second one the lines between, so that the memory is never idle.
FF_INLINE void fetch(const void* p, int64_t bytes) { __builtin_prefetch(static_cast<const char*>(p) + bytes); }

// Functions of their own: inlined beside each other, the passes would compete for registers.
#define FF_OUTLINE static __attribute__((noinline))

// An array's {} would be a string instruction, which takes as long as some twenty models.
template <int V, class Vec>
FF_INLINE void clear(Vec (&sums)[2][V]) {
  for (int v = 0; v < V; ++v) sums[0][v] = sums[1][v] = Vec{};
}

// The first pass, over V vectors of columns from c: means. `share` must be there.
template <int V, class S, class C, class Count>
FF_OUTLINE void find_means(const Block<S>& b, int64_t c, Count few, Moments<C>& out) {
  constexpr int64_t W = Lanes<C>::W, kBytes = V * W * static_cast<int64_t>(sizeof(S));
  VecOf<C> sum[2][V];
  clear(sum);
  for_groups(b.models, [&](int64_t first, auto models) __attribute__((always_inline)) {
    const S* scores = b.score(first, c);
    const uint8_t *on = b.member(first, c), *next = b.next + first * b.next_stride + c;
    VecOf<C> part[2][V];
    clear(part);
#pragma GCC unroll 1
    for (int64_t i = 0; i < models; ++i) {
      fetch(next, 0);
      for (int64_t byte = 0; byte < kBytes; byte += 2 * kLine) fetch(scores + kLine, byte);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const VecOf<C> x = load_scores<S, C>(scores + v * W, few);
        const Where<C> in = members<C>(on + v * W);
        add_where(static_cast<Where<C>>(~in), x, part[0][v]);
        add_where(in, x, part[1][v]);
      }
      scores += b.score_stride;
      on += kLine;
      next += b.next_stride;
    }
    for (int v = 0; v < V; ++v) {
      sum[0][v] += part[0][v];
      sum[1][v] += part[1][v];
    }
  });
  for (int side = 0; side < 2; ++side) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = c % kLine + v * W;
      store_own(out.mean[side] + at, sum[side][v] * load_own(out.share[side] + at));
    }
  }
}

// The second pass takes distances from the first one's means; their sums mend the means and the squares, so that all
// digits of the compute type are right however far the scores lie from 0. ahead: bytes from a score to what to fetch.
template <int V, class S, class C, class Count>
FF_OUTLINE void find_squares(const Block<S>& b, int64_t c, Count few, int64_t ahead, Moments<C>& out) {
  constexpr int W = Lanes<C>::W;
  using Vec = VecOf<C>;
  Vec mean[2][V], off[2][V], m2[2][V];
  clear(off);
  clear(m2);
  for (int side = 0; side < 2; ++side) {
    for (int v = 0; v < V; ++v) mean[side][v] = load_own(out.mean[side] + c % kLine + v * W);
  }
  for_groups(b.models, [&](int64_t first, auto models) __attribute__((always_inline)) {
    const S* scores = b.score(first, c);
    const uint8_t* on = b.member(first, c);
    Vec off_part[2][V], m2_part[2][V];
    clear(off_part);
    clear(m2_part);
#pragma GCC unroll 1
    for (int64_t i = 0; i < models; ++i) {
      fetch(scores, ahead);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const Vec x = load_scores<S, C>(scores + v * W, few);
        const Where<C> in = members<C>(on + v * W), out = static_cast<Where<C>>(~in);
        const Vec d = pick(in, mean[1][v], mean[0][v]) - x;
        add_where(out, d, off_part[0][v]);
        add_where(in, d, off_part[1][v]);
        add_square_where(out, d, m2_part[0][v]);
        add_square_where(in, d, m2_part[1][v]);
      }
      scores += b.score_stride;
      on += kLine;
    }
    for (int side = 0; side < 2; ++side) {
      for (int v = 0; v < V; ++v) {
        off[side][v] += off_part[side][v];
        m2[side][v] += m2_part[side][v];
      }
    }
  });
  for (int side = 0; side < 2; ++side) {
    for (int v = 0; v < V; ++v) {
      const int64_t at = c % kLine + v * W;
      const Vec shift = off[side][v] * load_own(out.share[side] + at);
      const Vec mended = mean[side][v] - shift, squares = m2[side][v] - shift * off[side][v];
      // an infinite mean has no distances from it
      store_own(out.mean[side] + at, mended == mended ? mended : mean[side][v]);
      store_own(out.m2[side] + at, squares < Vec{} ? Vec{} : squares);
    }
  }
}

// Of the strip from column c, a multiple of kLine. in_count: how many models had each of its columns' samples.
template <class S, class C>
FF_INLINE void find_moments(const Block<S>& b, int64_t c, const int32_t* in_count, Moments<C>& out) {
  constexpr int64_t W = Lanes<C>::W, kFirst = kFirstVectors * W, kSecond = kSecondVectors * W;
  constexpr int64_t kScore = sizeof(S);
  const int64_t width = smaller(kLine, b.width - c);
  const C models = static_cast<C>(b.models);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const C in = static_cast<C>(in_count[i]);
    out.n[0][i] = models - in;
    out.n[1][i] = in;
    out.share[0][i] = 1 / (models - in);
    out.share[1][i] = 1 / in;
  }
  if (width == kLine) {
    for (int64_t v = 0; v < kLine; v += kFirst) find_means<kFirstVectors>(b, c + v, Whole(), out);
    for (int64_t v = 0; v < kLine; v += kSecond) {
      const int64_t line = v * kScore % (2 * kLine) < kLine ? kLine : 0;  // to the first odd one
      find_squares<kSecondVectors>(b, c + v, Whole(), line < kSecond * kScore ? kLine * kScore + line : 0, out);
    }
    return;
  }
  int64_t v = 0;
  for (; v + W <= width; v += W) {
    find_means<1>(b, c + v, Whole(), out);
    find_squares<1>(b, c + v, Whole(), 0, out);
  }
  if (v == width) return;
  for (int64_t past = width; past < v + W; ++past) out.share[0][past] = out.share[1][past] = 1;
  find_means<1>(b, c + v, width - v, out);
  find_squares<1>(b, c + v, width - v, 0, out);
}

// Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2, algorithm M) of n vectors, each lane for itself.
template <class C>
FF_INLINE void sort_lanes(C* a, int64_t n) {
  constexpr int W = Lanes<C>::W;
  for (int64_t p = 1; p < n; p *= 2) {
    for (int64_t k = p; k >= 1; k /= 2) {
      for (int64_t j = k % p; j + k < n; j += 2 * k) {
        if (k < p && (j + k) % (2 * p) == 0) continue;  // not across the lists that are merged
        const int64_t end = j + k < n - k ? j + k : n - k;
        for (int64_t i = j; i < end; ++i) {
          const VecOf<C> x = load_own(a + i * W), y = load_own(a + (i + k) * W);
          store_own(a + i * W, x < y ? x : y);
          store_own(a + (i + k) * W, x < y ? y : x);
        }
      }
    }
  }
}

// The scores of one side in W columns from c, sorted: rank r of lane l at sorted[r * W + l], +inf behind the last.
template <class S, class Count>
FF_INLINE void gather_side(const Block<S>& b, int64_t c, Count few, int side, S* sorted) {
  const VecOf<S> absent = splat(static_cast<S>(__builtin_inf()));
  for (int64_t m = 0; m < b.models; ++m) {
    const VecOf<S> x = load_scores<S, S>(b.score(m, c), few);
    const Where<S> in = members<S>(b.member(m, c));
    store_own(sorted + m * Lanes<S>::W, side == 1 ? pick(in, x, absent) : pick(in, absent, x));
  }
}
template <class S>
FF_INLINE void sort_side(const Block<S>& b, int64_t c, int side, S* sorted) {
  if (c + Lanes<S>::W <= b.width) {
    gather_side(b, c, Whole(), side, sorted);
  } else {
    gather_side(b, c, b.width - c, side, sorted);
  }
  sort_lanes(sorted, b.models);
}

}  // namespace ff::FF_ISA
